#!/bin/sh
# The rules of shadowmesh-relay.nft for hosts with iptables: `iptables.sh` puts them in force, again as often as you like;
# `iptables.sh off` removes them. They come first in INPUT: behind ufw's, which accept the port, they would see nothing.
set -eu

rules() {
    iptables=$1 internal=$2 prefix=$3
    "$iptables" -w -D INPUT -j SHADOWMESH 2>/dev/null || : # not there yet
    "$iptables" -w -F SHADOWMESH 2>/dev/null || :
    if [ "$action" = off ]; then
        "$iptables" -w -X SHADOWMESH 2>/dev/null || :
        return
    fi
    "$iptables" -w -N SHADOWMESH 2>/dev/null || : # is there already
    "$iptables" -w -A SHADOWMESH -i lo -j RETURN
    "$iptables" -w -A SHADOWMESH -p tcp -m multiport --dports 8080,9090 ! -s "$internal" -j DROP
    # After 10 s of silence a source has its burst again; forgotten sooner, it would have it sooner. A full table would
    # drop all new sources.
    "$iptables" -w -A SHADOWMESH -p tcp -m multiport --dports 443,9545 -m conntrack --ctstate NEW \
        -m hashlimit --hashlimit-name shadowmesh --hashlimit-mode srcip --hashlimit-srcmask "$prefix" \
        --hashlimit-htable-expire 10000 --hashlimit-htable-max 1048576 \
        --hashlimit-above 20/second --hashlimit-burst 200 -j DROP
    "$iptables" -w -I INPUT 1 -j SHADOWMESH
}

case ${1-on} in
on | off) action=${1-on} ;;
*)
    echo "usage: iptables.sh [on|off]" >&2
    exit 2
    ;;
esac
rules iptables 10.0.0.0/8 32
if [ -e /proc/net/if_inet6 ]; then rules ip6tables fd00::/8 64; fi
