#!/bin/sh
# An upgrade leaves everything running. A removal takes away what the units put on the
# host: a container runtime would go by a configuration whose plugin is gone.
set -e
case "$1" in
remove | deconfigure | 0) ;;
*) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then
	systemctl disable --now vswitch-attend.service || true
	vswitch host detach >/dev/null 2>&1 || ip link delete vswitch0 2>/dev/null || true
	systemctl disable --now vswitch.service || true
fi
rm -f /etc/cni/net.d/10-vswitch.conflist
