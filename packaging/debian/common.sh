unit=#NAME#.service

# Passes on only that something failed; the service has its own words in the journal.
service() { # ACTION
    deb-systemd-invoke "$1" "$unit" >/dev/null ||
        echo "#NAME#: $unit did not $1; why: journalctl -u #NAME# -n 20" >&2
}

reload_units() { [ ! -d /run/systemd/system ] || systemctl --system daemon-reload >/dev/null || :; }
