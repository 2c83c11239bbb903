unit=#NAME#.service

# The service's own last words are in the journal, by then perhaps of another start. Behind the mistakes of a
# configuration they are how many there are: then the last of these.
service() { # ACTION
    began=$(date +%s)
    if ! deb-systemd-invoke "$1" "$unit" >/dev/null 2>&1; then
        journalctl --sync 2>/dev/null || :
        last=$(journalctl --quiet --no-pager --reverse -o cat -n 2 -t #NAME# --since "@$began" 2>/dev/null |
            sed -n '1{/ problems=[0-9]*$/!{p;q;};};2p') || :
        echo "#NAME#: $unit did not $1: ${last:-no word of it}; more: journalctl -u #NAME# -n 20" >&2
    fi
}

reload_units() { [ ! -d /run/systemd/system ] || systemctl --system daemon-reload >/dev/null || :; }

# Of these units the files that an administrator made for another program, by the guide or from a clone: systemd
# takes them instead of the package's, or beside it. A copy made by `systemctl edit --full` runs the package's program.
foreign() { # UNIT...
    for each in "$@"; do
        file=/etc/systemd/system/$each
        case $(readlink "$file") in
        /dev/null | /lib/systemd/system/* | /usr/lib/systemd/system/*) continue ;;
        esac
        [ -e "$file" ] || continue
        [ "$each" = "$unit" ] && grep -q '^ExecStart=/usr/bin/#NAME# ' "$file" || echo "$file"
    done
}

