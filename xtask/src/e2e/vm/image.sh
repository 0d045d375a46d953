#!/bin/sh
# Makes a Debian tree ($1) into the test guest: kernels, an initrd for each, users, the agent, and the disk.
#
# mmdebstrap runs this when the packages are in the tree. From the environment: OUT, a directory for what is made;
# AGENT, the guest's side of the conversation; KERNELS, the releases to take a kernel of, each in the tree's
# sources.list. Rules: no maintainer script of a kernel runs; everything is owned as mmdebstrap's namespace has it.
set -eu
tree=$1

# Only unpacked: with its scripts come initramfs-tools, and a minute.
for release in $KERNELS; do
  mkdir -p "$tree/kernel"
  chmod 1777 "$tree/kernel"
  chroot "$tree" sh -euc '
    cd /kernel
    plan=$(apt-get -q -t "$1" -s --no-install-recommends install linux-image-cloud-amd64)
    for package in $(echo "$plan" | sed -n "s/^Inst \(linux-\(image\|binary\|modules\)-[0-9][^ ]*\) .*/\1/p"); do
      apt-get -q -t "$1" -o APT::Sandbox::User=root download "$package"
    done
  ' sh "$release"
  for package in "$tree"/kernel/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$tree" --keep-directory-symlink
  done
  rm -rf "$tree/kernel"
  kernel=$(ls "$tree"/boot/vmlinuz-*)
  version=${kernel##*/vmlinuz-}
  chroot "$tree" depmod "$version"

  # The disk's driver is a module: an initrd of busybox and what leads to it.
  initrd=$tree/initrd
  mkdir -p "$initrd/bin" "$initrd/dev" "$initrd/root" "$initrd/modules"
  cp "$tree/usr/bin/busybox" "$initrd/bin/"
  {
    echo '#!/bin/busybox sh'
    echo '/bin/busybox mount -t devtmpfs dev /dev'
    for module in virtio_pci virtio_blk ext4 virtio_console; do
      chroot "$tree" modprobe -S "$version" --show-depends "$module"
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r path; do
      name=${path##*/}
      name=${name%%.ko*}.ko
      case $path in
        *.xz) chroot "$tree" busybox xzcat "$path" >"$initrd/modules/$name" ;;
        *) cp "$tree$path" "$initrd/modules/$name" ;;
      esac
      echo "/bin/busybox insmod /modules/$name"
    done
    echo 'until [ -b /dev/vda ]; do /bin/busybox usleep 20000; done'
    echo '/bin/busybox mount -t ext4 /dev/vda /root && /bin/busybox mount --move /dev /root/dev'
    echo 'exec /bin/busybox switch_root /root /sbin/init'
  } >"$initrd/init"
  chmod 755 "$initrd/init"
  chroot "$tree" sh -euc 'cd /initrd; find . | busybox cpio -o -H newc' >"$OUT/initrd-$release"
  mv "$kernel" "$OUT/vmlinuz-$release"
  rm -rf "$initrd" "$tree"/boot/*
done

install -m 755 "$AGENT" "$tree/usr/local/sbin/agent"
cat >"$tree/etc/systemd/system/agent.service" <<'UNIT'
[Unit]
DefaultDependencies=no
After=systemd-logind.service dbus.service systemd-user-sessions.service user@1000.service user@1001.service
[Service]
ExecStart=/usr/local/sbin/agent
OOMScoreAdjust=-1000
TasksMax=infinity
Delegate=yes
[Install]
WantedBy=multi-user.target
UNIT
mkdir -p "$tree/etc/systemd/journald.conf.d" "$tree/etc/systemd/system/user@.service.d" "$tree/var/lib/systemd/linger"
printf '[Journal]\nStorage=volatile\n' >"$tree/etc/systemd/journald.conf.d/volatile.conf"
# What `agentd doctor` tells an administrator to do; cpuset and io are not in systemd's default.
printf '[Service]\nDelegate=cpu cpuset io memory pids\n' >"$tree/etc/systemd/system/user@.service.d/delegate.conf"
echo guest >"$tree/etc/hostname"
echo '127.0.0.1 localhost guest' >"$tree/etc/hosts"
echo 0123456789abcdef0123456789abcdef >"$tree/etc/machine-id"
: >"$tree/etc/fstab"
chroot "$tree" useradd --create-home --uid 1000 --shell /bin/bash ranges
chroot "$tree" useradd --create-home --uid 1001 --shell /bin/bash plain
echo ranges:100000:65536 | tee "$tree/etc/subuid" >"$tree/etc/subgid"
touch "$tree/var/lib/systemd/linger/ranges" "$tree/var/lib/systemd/linger/plain"
chroot "$tree" systemctl -q enable agent.service 2>/dev/null
# Work that a machine of one hour does not need.
chroot "$tree" systemctl -q mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer \
  e2scrub_all.timer e2scrub_reap.service getty@tty1.service getty-static.service serial-getty@ttyS0.service \
  systemd-hwdb-update.service systemd-journal-catalog-update.service systemd-firstboot.service ldconfig.service \
  systemd-update-done.service systemd-machine-id-commit.service systemd-random-seed.service systemd-pstore.service \
  systemd-hibernate-clear.service systemd-tpm2-setup.service systemd-tpm2-setup-early.service \
  systemd-tmpfiles-clean.timer 2>/dev/null

rm -rf "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/archives/*.deb "$tree"/var/cache/apt/*.bin
[ ! -e "$tree/usr/sbin/start-stop-daemon.REAL" ] || mv "$tree/usr/sbin/start-stop-daemon.REAL" "$tree/usr/sbin/start-stop-daemon"
rm -f "$tree/usr/sbin/policy-rc.d"
# Bound, to see the tree without the /proc, /sys and /dev that mmdebstrap has mounted in it.
plain=$(mktemp -d)
mount --bind "$tree" "$plain"
trap 'umount "$plain"; rmdir "$plain"' EXIT
mke2fs -q -t ext4 -O '^has_journal' -E root_owner=0:0,lazy_itable_init=1 -d "$plain" "$OUT/disk" 8G
