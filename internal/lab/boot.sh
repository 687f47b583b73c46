# The first process of a container that systemd is to run (see systemd.go), from the making
# of its namespaces to systemd itself. Its root is this machine's, or another's, over which
# what is written lies in memory. Nothing of the machine is started there, and nothing of
# the kernel's that containers share can be set, such as sysctls that are not the network's.
# $1 directory to work in, $2 the container's /run, $3 its host name, $4 the root
set -eu
mount --make-rslave /
mount -t tmpfs -o mode=755 lab "$1"
mkdir "$1/changed" "$1/work" "$1/root" "$1/old"
mount -t overlay -o "lowerdir=$4,upperdir=$1/changed,workdir=$1/work" lab "$1/root"
cd "$1/root"

mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --bind /proc/sys/net proc/sys/net
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --bind "$2" run
mount -t tmpfs -o mode=1777 lab tmp
mount -t tmpfs -o mode=755 lab dev
mkdir dev/net dev/pts dev/shm
for device in null zero full random urandom tty net/tun; do cp -a "/dev/$device" "dev/$device"; done
mount -t devpts -o newinstance,ptmxmode=0666 lab dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd

# Of the machine's units only systemd's own targets and the journal are of use.
rm -rf etc/systemd usr/lib/systemd/system-generators lib/systemd/system-generators
rm -rf usr/lib/systemd/system/*.wants lib/systemd/system/*.wants
mkdir -p etc/systemd/system/sockets.target.wants
for socket in systemd-journald.socket systemd-journald-dev-log.socket; do
	ln -s "/lib/systemd/system/$socket" etc/systemd/system/sockets.target.wants/
done
: >etc/fstab
echo "$3" >etc/hostname
tr -d - </proc/sys/kernel/random/uuid >etc/machine-id

mount --bind "$1" mnt
pivot_root . mnt/old
umount -l /mnt/old
exec env -i "PATH=$PATH" container=lab /lib/systemd/systemd --unit=multi-user.target --log-target=journal
