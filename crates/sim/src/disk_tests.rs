// SPDX-License-Identifier: Apache-2.0
//! What a disk shows after each kind of crash and fault.

use super::*;
use crate::SimOptions;

struct Bench {
    world: SimWorld,
    process: Rc<SimEnv>,
    medium: DiskMedium,
    disk: SimDisk,
}

fn bench(seed: u64) -> Bench {
    let world = SimWorld::new(SimOptions::seed(seed));
    let process = world.process("node");
    let medium = DiskMedium::new(&world, "journal", 1 << 20);
    let disk = medium.open(&process);
    Bench { world, process, medium, disk }
}

impl Bench {
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_at(offset, &[IoSlice::new(bytes)])
    }
    fn sync(&self) -> io::Result<()> {
        self.world.block_on(&self.process, self.disk.sync()).unwrap()
    }
    fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.world.block_on(&self.process, self.disk.read_at(offset, len)).unwrap()
    }
}

#[test]
fn a_crash_leaves_what_its_mode_allows() {
    for mode in CrashMode::ALL {
        let b = bench(1);
        b.write(0, &[1; 1024]).unwrap();
        b.sync().unwrap();
        b.write(0, &[2; 1024]).unwrap();
        b.write(2048, &[3; 512]).unwrap();
        b.medium.crash(mode);
        let (first, second) = (b.medium.contents(0..1024), b.medium.contents(2048..2560));
        match mode {
            CrashMode::Kill | CrashMode::Kept => assert_eq!((first, second), (vec![2; 1024], vec![3; 512])),
            CrashMode::Lost => assert_eq!((first, second), (vec![1; 1024], vec![0; 512])),
            CrashMode::Newest => assert_eq!((first, second), (vec![1; 1024], vec![3; 512])),
            CrashMode::Writes => {
                assert!(first == vec![1; 1024] || first == vec![2; 1024]);
                assert!(second == vec![0; 512] || second == vec![3; 512]);
            }
            CrashMode::Torn => {
                for sector in first.chunks(512) {
                    assert!(sector == [1; 512] || sector == [2; 512], "a sector is never torn inside");
                }
            }
        }
        assert_eq!(b.medium.unsynced(), if mode == CrashMode::Kill { 2 } else { 0 });
    }
}

#[test]
fn a_kill_and_then_a_power_cut_lose_what_was_never_synced() {
    let b = bench(1);
    b.write(0, &[9; 512]).unwrap();
    b.medium.crash(CrashMode::Kill);
    assert_eq!(b.medium.contents(0..512), [9; 512]);
    b.medium.crash(CrashMode::Lost);
    assert_eq!(b.medium.contents(0..512), [0; 512]);
}

#[test]
fn the_seed_tears_writes_in_every_way() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..64 {
        let b = bench(seed);
        b.write(0, &[1; 1024]).unwrap();
        b.medium.crash(CrashMode::Torn);
        seen.insert((b.medium.contents(0..1)[0], b.medium.contents(512..513)[0]));
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn a_small_write_dirties_its_sector_whole() {
    let b = bench(1);
    b.write(100, &[1; 10]).unwrap();
    b.write(110, &[2; 10]).unwrap();
    b.medium.crash(CrashMode::Newest);
    assert_eq!(b.medium.contents(100..120), [[1; 10], [2; 10]].concat(), "the sector as the newest write left it");
}

#[test]
fn a_sync_covers_what_came_before_it_was_asked_for() {
    let b = bench(1);
    b.write(0, &[1; 512]).unwrap();
    let sync = b.disk.sync();
    b.write(512, &[2; 512]).unwrap();
    b.world.block_on(&b.process, sync).unwrap().unwrap();
    assert_eq!(b.medium.unsynced(), 1);
    b.medium.crash(CrashMode::Lost);
    assert_eq!(b.medium.contents(0..1024), [[1; 512], [0; 512]].concat());
}

#[test]
fn a_failed_sync_leaves_pages_clean_but_lost() {
    let b = bench(1);
    b.write(0, &[1; 512]).unwrap();
    b.medium.fail_sync(0);
    assert!(b.sync().is_err());
    b.sync().unwrap();
    assert_eq!(b.read(0, 512).unwrap(), vec![1; 512], "reads go on showing them");
    b.medium.crash(CrashMode::Kept);
    assert_eq!(b.medium.contents(0..512), [0; 512], "and the power cut loses them");
}

#[test]
fn writes_go_wrong_as_they_are_told_to() {
    let b = bench(1);
    for (nth, fault) in [
        WriteFault::Error,
        WriteFault::NoSpace,
        WriteFault::Partial(700),
        WriteFault::Dropped,
        WriteFault::Misdirected(8192),
    ]
    .into_iter()
    .enumerate()
    {
        b.medium.fail_write(nth as u64, fault);
    }
    assert_eq!(b.write(0, &[1; 512]).unwrap_err().kind(), io::ErrorKind::Other);
    assert_eq!(b.write(0, &[1; 512]).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert!(b.write(0, &[1; 1024]).is_err());
    assert_eq!(b.medium.contents(699..701), [1, 0]);
    b.write(2048, &[2; 512]).unwrap();
    b.write(4096, &[3; 512]).unwrap();
    assert_eq!((b.medium.contents(2048..2049), b.medium.contents(4096..4097)), (vec![2], vec![3]));
    b.medium.fail_write_below(1024, WriteFault::Error);
    b.write(1024, &[4; 512]).unwrap();
    assert!(b.write(512, &[4; 512]).is_err());
    b.write(512, &[4; 512]).unwrap();
    b.sync().unwrap();
    b.medium.crash(CrashMode::Kept);
    let at = |offset: u64| b.medium.contents(offset..offset + 1)[0];
    assert_eq!((at(512), at(1024), at(2048), at(4096), at(8192)), (4, 4, 0, 0, 3));
    b.medium.set_full(true);
    let disk = b.medium.open(&b.process);
    assert_eq!(disk.write_at(0, &[IoSlice::new(&[1])]).unwrap_err().kind(), io::ErrorKind::StorageFull);
}

#[test]
fn bad_places_and_bad_ranges_are_errors() {
    let b = bench(1);
    b.write(512, &[0; 512]).unwrap();
    b.medium.fail_reads(512..1024);
    assert!(b.read(0, 513).is_err());
    assert_eq!(b.read(1024, 10).unwrap(), vec![0; 10]);
    b.medium.flip_bit(0, 3);
    assert_eq!(b.read(0, 1).unwrap(), vec![8]);
    assert_eq!(b.write((1 << 20) - 1, &[0; 2]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(b.write(u64::MAX, &[0; 2]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert!(b.read(1 << 20, 1).is_err());
}

#[test]
fn an_opening_ends_with_the_crash() {
    let b = bench(1);
    b.medium.crash(CrashMode::Kill);
    assert!(b.write(0, &[1]).is_err());
    assert_eq!(b.medium.contents(0..1), [0]);
    let stuck = b.world.block_on(&b.process, b.disk.sync());
    assert!(matches!(stuck, Err(crate::RunError::Stuck { .. })));
}
