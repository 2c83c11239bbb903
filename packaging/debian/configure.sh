# Both packages have the command, its manual pages and its completion.
alternatives() { # PRIORITY
    set -- "$1" /usr/lib/#NAME#/shadowmesh
    update-alternatives --quiet --install /usr/bin/shadowmesh shadowmesh "$2" "$1" \
        --slave /usr/share/man/man1/shadowmesh.1.gz shadowmesh.1.gz "$2.1.gz" \
        --slave /usr/share/man/man5/shadowmesh.yaml.5.gz shadowmesh.yaml.5.gz "$2.yaml.5.gz" \
        --slave /usr/share/bash-completion/completions/shadowmesh shadowmesh.bash "$2.bash" \
        --slave /usr/share/zsh/vendor-completions/_shadowmesh shadowmesh.zsh "$2.zsh" \
        --slave /usr/share/fish/vendor_completions.d/shadowmesh.fish shadowmesh.fish "$2.fish"
}

# Has the service start with the system, and fails if it must not be started now: what an administrator runs in its
# place, or beside it, stays as it is.
enable() { # UNIT...
    others=$(foreign "$@")
    for file in $others; do
        echo "#NAME#: its service is not enabled, for $file, which is not the package's, is in its place; to change over:" \
            "systemctl disable --now $(basename "$file" .service); rm $file; systemctl daemon-reload; systemctl enable --now #NAME#" >&2
    done
    for file in /usr/local/bin/#NAME# /usr/local/bin/shadowmesh; do
        [ ! -e "$file" ] || echo "#NAME#: $file hides the package's command of this name; to change over: rm $file" >&2
    done
    if [ -z "$others" ]; then
        deb-systemd-helper unmask "$unit" >/dev/null || :
        if deb-systemd-helper --quiet was-enabled "$unit"; then
            deb-systemd-helper enable "$unit" >/dev/null || :
        else
            deb-systemd-helper update-state "$unit" >/dev/null || :
        fi
    fi
    reload_units
    [ -z "$others" ]
}
