#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The guest's first process: sets the machine up, runs the test's script, then answers the host for ever.
#
# Port 1 of the virtio console carries the host's commands, a line "run ID LIMIT HEX" each, and their answers, a line
# "done ID STATUS SENT TOTAL" followed by SENT bytes of output. Only this process has that port open, and nothing of the
# kernel is printed there. Port 2 carries what programs write to the pipe /dev/report, which many may do at a time.
# When this process ends the kernel panics and QEMU exits, so the host notices.
export PATH=/usr/local/bin:/bin HOME=/root LANG=C
/bin/busybox mkdir -p /bin /dev /proc /sys /tmp /run /root /mnt /etc
/bin/busybox --install -s /bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mkdir -p /dev/shm /run/lab
mount -t tmpfs tmpfs /dev/shm
ln -s /proc/self/fd /dev/fd
. /etc/lab/settings
while read -r module; do
    insmod "/lib/modules/$module.ko" || echo "lab: module $module does not load" >/dev/console
done </etc/lab/modules
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    ip addr add 10.0.2.15/24 dev eth0
    ip link set eth0 up
fi

# A host whose test was killed has no one left who ends QEMU.
(sleep "$lifetime"; poweroff -f) &

# The ports appear a little after their driver.
tries=0
until [ -e /dev/vport0p1 ] && [ -e /dev/vport0p2 ]; do
    tries=$((tries + 1))
    [ $tries -lt 1000 ] || { echo "lab: no virtio ports" >/dev/console; exit 1; }
    usleep 10000
done
exec 3<>/dev/vport0p1
mkfifo /dev/report
exec 4<>/dev/report
cat <&4 >/dev/vport0p2 3>&- &
exec 4>&-

status=0
if [ -e /etc/lab/setup ]; then
    cd /root && sh /etc/lab/setup </dev/null >/run/lab/setup 2>&1 3>&-
    status=$?
    cat /run/lab/setup >/dev/console
fi
read -r uptime idle </proc/uptime
echo "ready $status $uptime" >&3

while :; do
    # No host is connected, or no longer: nothing to read.
    read -r verb id limit script <&3 || { usleep 10000; continue; }
    [ "$verb" = run ] || continue
    echo "$script" | xxd -r -p >/run/lab/command
    cd /root && sh /run/lab/command </dev/null >/run/lab/output 2>&1 3>&-
    status=$?
    # A background process of the command may still be writing to the file, so it is measured once.
    total=$(stat -c %s /run/lab/output)
    sent=$total
    [ "$sent" -le "$limit" ] || sent=$limit
    { echo "done $id $status $sent $total"; head -c "$sent" /run/lab/output; } >&3
    # The next command gets a new file, so a background process keeps writing to its own.
    rm -f /run/lab/output
done
