#!/bin/sh
# A daemon that runs goes on as the new version, with what the old one holds. None is
# started that did not run.
set -e
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
if systemctl is-active --quiet vswitch.service; then
	systemctl reload vswitch.service || echo "vswitch goes on as the version before; systemctl status vswitch says why" >&2
fi
systemctl try-restart vswitch-attend.service
