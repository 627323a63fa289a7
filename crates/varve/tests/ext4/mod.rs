// SPDX-License-Identifier: Apache-2.0
//! A Linux guest that keeps ext4 on a volume and works on it, until it is asked whether the disk was one all the time.

use std::path::Path;
use std::time::Duration;
use varve_lab::guest::{Disk, Guest, GuestConfig, Initramfs, Kernel};

/// Far more than anything here takes on a quiet machine.
pub const SOON: Duration = Duration::from_secs(120);

/// Writes one file after the other and reports its number and checksum; syncs every fourth. Ends at an error.
const LOAD: &str = "(i=0; while i=$((i + 1)); do
    head -c $((i % 7 * 9000 + 5000)) /dev/urandom >/mnt/$i || { echo failed >/dev/report; exit; }
    if [ $((i % 4)) = 0 ]; then sync /mnt/$i || { echo failed >/dev/report; exit; }; fi
    echo $i $(sha256sum </mnt/$i | cut -c -64) >/dev/report; [ -e /tmp/stop ] && break; done; touch /tmp/stopped) >/dev/null 2>&1 &";

/// A guest whose `/dev/vda` is an export.
pub fn config(directory: &Path, socket: &Path, export: &str) -> GuestConfig {
    let kernel = Kernel::find().unwrap();
    let initramfs = Initramfs::builder().program("mkfs.ext4").program("e2fsck").build(&kernel, directory).unwrap();
    let mut config = GuestConfig::new(kernel, initramfs, directory);
    config.disks.push(Disk::nbd(socket, export));
    config
}

/// Makes a file system, and begins to work on it; each file that is done is a report.
pub fn begin(guest: &mut Guest) {
    guest.check("mkfs.ext4 -q /dev/vda && mount -t ext4 -o commit=1 /dev/vda /mnt", SOON).unwrap();
    guest.check(LOAD, SOON).unwrap();
}

/// Ends the work: nothing failed, the file system is sound, and every file is what was written.
pub fn end(mut guest: Guest) {
    guest.check("touch /tmp/stop; until [ -e /tmp/stopped ]; do usleep 10000; done; sync", SOON).unwrap();
    let errors = guest.run("dmesg | grep -iE 'error|hung|remount'", SOON).unwrap();
    assert_eq!(errors.status, 1, "the kernel saw no error: {}", errors.text());
    let lines = guest.reports().lines();
    assert!(!lines.iter().any(|line| line == "failed"), "the load saw an error");

    // From the disk, not from the guest's memory; unsynced files count as well, since no write that was answered is lost.
    guest.check("umount /mnt && e2fsck -f -n /dev/vda && mount -t ext4 /dev/vda /mnt", SOON).unwrap();
    let sums: String =
        lines.iter().filter_map(|line| line.split_once(' ')).map(|(i, sum)| format!("{sum}  {i}\n")).collect();
    let script = format!("cd /mnt && echo '{}' | sha256sum -c | grep -v ': OK$'", sums.trim());
    let failed = guest.run(&script, SOON).unwrap();
    assert_eq!((failed.status, failed.text().as_str()), (1, ""), "a file has not its checksum");
    guest.shutdown(SOON).unwrap();
}
