#!/bin/sh
# The node's state stays until the package is purged: installed again, it is the same node.
set -e
case "$1" in
purge) rm -rf /var/lib/vswitch /run/vswitch ;;
esac
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload || true
