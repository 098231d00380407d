//! Which files are taken up, and what is said of those that are not.

use std::os::unix::fs::FileExt;

use super::*;

const SHAPE: Shape = Shape { worker: 1, workers: 2, records_v4: 100, records_v6: 50 };
const BOOT: [u8; 16] = [7; 16];

fn open(path: &Path, shape: Shape, boot: [u8; 16]) -> Store {
    Store::open(path, shape, boot, [11, 22]).unwrap()
}

/// Makes a store, changes its file, and says why it was not taken up again.
fn after(change: impl FnOnce(&File), shape: Shape, boot: [u8; 16]) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flows.1");
    drop(open(&path, SHAPE, BOOT));
    change(&OpenOptions::new().write(true).open(&path).unwrap());
    let store = open(&path, shape, boot);
    assert!(!(store.recovered && store.discarded.is_some()));
    // Taken up or begun anew: usable either way, and taken up next time.
    let why = store.discarded.clone();
    drop(store);
    assert!(open(&path, shape, boot).recovered);
    why
}

#[test]
fn a_file_is_made_and_taken_up_with_its_seed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flows.1");
    let first = open(&path, SHAPE, BOOT);
    assert!(!first.recovered && first.discarded.is_none());
    drop(first);
    let second = Store::open(&path, SHAPE, BOOT, [99, 99]).unwrap();
    assert!(second.recovered);
    assert_eq!(second.seed(), [11, 22], "the seed is the table's, not the process's");
}

#[test]
fn what_does_not_fit_is_begun_anew_and_said() {
    let nothing = |_: &File| {};
    assert_eq!(after(nothing, SHAPE, BOOT), None);
    assert_eq!(after(nothing, SHAPE, [8; 16]).as_deref(), Some("the machine was booted since"));
    let why = after(nothing, Shape { workers: 3, ..SHAPE }, BOOT).unwrap();
    assert!(why.starts_with("workers or limits changed"), "{why}");
    assert!(why.contains("IPv4 and"), "in words: {why}");
    assert!(after(nothing, Shape { records_v4: 101, ..SHAPE }, BOOT).is_some());
    assert!(after(nothing, Shape { records_v6: 49, ..SHAPE }, BOOT).is_some());
    let why = after(|file| file.write_all_at(&99_u32.to_ne_bytes(), 8).unwrap(), SHAPE, BOOT).unwrap();
    assert_eq!(why, format!("its layout is 99, this build's is {LAYOUT}"));
    let why = after(|file| file.write_all_at(b"garbage", 0).unwrap(), SHAPE, BOOT).unwrap();
    assert_eq!(why, "it is not a flow table of Penstock");
    assert_eq!(after(|file| file.set_len(100).unwrap(), SHAPE, BOOT).unwrap(), "the file is shorter than its header");
    let why = after(|file| file.set_len(SHAPE.len() as u64 - 1).unwrap(), SHAPE, BOOT).unwrap();
    assert_eq!(why, format!("the file has {} bytes, not {}", SHAPE.len() - 1, SHAPE.len()));
    assert_eq!(after(|file| file.set_len(0).unwrap(), SHAPE, BOOT), None, "an empty file has nothing to discard");
    let noise: Vec<u8> = (0..SHAPE.len()).map(|n| (n * 31 % 251) as u8).collect();
    assert!(after(|file| file.write_all_at(&noise, 0).unwrap(), SHAPE, BOOT).is_some());
}

#[test]
fn a_second_process_is_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flows.1");
    let held = open(&path, SHAPE, BOOT);
    let Err(error) = Store::open(&path, SHAPE, BOOT, [1, 1]) else { panic!("opened twice") };
    assert!(matches!(error, PersistError::Locked { .. }));
    assert!(error.to_string().contains("flows.1 is locked by another process"), "{error}");
    drop(held);
    assert!(open(&path, SHAPE, BOOT).recovered);
}

#[test]
fn last_hops_follow_their_interfaces_to_other_places() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flows.1");
    let places = |names: &[&str]| {
        let mut store = open(&path, SHAPE, BOOT);
        store.place_ports(names.iter().copied());
        store.header().hops[..4].iter().map(|hop| hop.port).collect::<Vec<_>>()
    };
    places(&["eth0", "eth1", "tap"]);
    let mut store = open(&path, SHAPE, BOOT);
    for port in 0..3 {
        let hop = StoredHop { mac: [2, 0, 0, 0, 0, port], port, used: 1 };
        store.keep_hop(u16::from(port) + 1, hop, Tags::NONE);
    }
    drop(store);
    assert_eq!(places(&["eth0", "eth1", "tap"]), [0, 0, 1, 2]);
    assert_eq!(places(&["eth1", "eth7", "eth0", "tap"]), [0, 2, 0, 3]);
    assert_eq!(places(&["eth1", "tap"]), [0, NO_PORT, 0, 1], "by nobody else's port");
    assert_eq!(places(&["eth0", "eth1", "tap"]), [0, NO_PORT, 1, 2]);

    // A file of a build that stored no names: as before.
    let at = std::mem::offset_of!(Header, ports) as u64;
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 16 * MAX_PORTS], at).unwrap();
    assert_eq!(places(&["eth1", "eth0", "tap"]), [0, NO_PORT, 1, 2]);
}

#[test]
fn stores_of_workers_that_are_no_more_go_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let others = ["flows", "flows.x", "flows.9.old", "lock", "placement.json"];
    for name in ["flows.0", "flows.1", "flows.2", "flows.10"].iter().chain(&others) {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    remove_beyond(2, dir.path()).unwrap();
    let mut left: Vec<_> = dir.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["flows", "flows.0", "flows.1", "flows.9.old", "flows.x", "lock", "placement.json"]);
    assert!(remove_beyond(2, Path::new("/nonexistent")).is_err());
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let Err(error) = Store::open(Path::new("/nonexistent/flows.0"), SHAPE, BOOT, [1, 1]) else { panic!("opened") };
    assert!(error.to_string().starts_with("/nonexistent/flows.0: "), "{error}");
}

/// Garbage records behind a good header: recovery takes what makes sense of them, and no more.
#[test]
fn garbage_records_do_not_upset_recovery() {
    use crate::pipeline::testkit::{Pkt, Plan, Rig, config};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flows.0");
    let config = config(0, 1);
    for round in 0..20_u64 {
        drop(open(&path, config.shape(), BOOT));
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let mut state = round + 1;
        let noise: Vec<u8> = (0..100 * 64)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // Small numbers are more often valid states, flags, ids.
                if state >> 60 < 8 { (state >> 40) as u8 % 9 } else { (state >> 50) as u8 }
            })
            .collect();
        file.write_all_at(&noise, Shape::records_at() as u64).unwrap();
        file.write_all_at(&noise, config.shape().v6_at() as u64).unwrap();
        // Hops too.
        let hops = std::mem::offset_of!(Header, hops) as u64;
        file.write_all_at(&noise, hops).unwrap();
        drop(file);
        let mut plan = Plan::default();
        plan.serve("203.0.113.10:443/tcp", &["10.0.0.11:31443"]);
        plan.snat("10.0.0.1", [1024, 65535]);
        let mut rig = Rig::over(plan, &config, open(&path, config.shape(), BOOT));
        rig.check();
        rig.front(&Pkt::syn("198.51.100.7:5555", "203.0.113.10:443").bytes()).to_node();
        rig.sweep();
        rig.check();
        assert_eq!(rig.pipeline.flows_v4().counts().established, 0, "garbage serves nobody");
    }
}

#[test]
fn room_is_asked_for_at_the_start_and_what_was_not_used_is_still_a_hole() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        println!("SKIPPED: persist: no tmpfs at /dev/shm");
        return;
    };
    let path = dir.path().join("flows.1");
    let too_much = Shape { records_v4: u32::MAX, records_v6: u32::MAX, ..SHAPE };
    let Err(refused) = Store::open(&path, too_much, BOOT, [11, 22]) else { panic!("room for 640 GiB") };
    assert!(refused.to_string().contains("with room for"), "{refused}");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 0, "what was taken is given back");
    // Records of more than the header's last page.
    let shape = Shape { records_v4: 10_000, ..SHAPE };
    let store = open(&path, shape, BOOT);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap());
    assert!(blocks * 512 >= shape.len() as u64, "{blocks} blocks");
    let [v4, v6] = store.used_records();
    assert!(v4 < 64 && v6 == 0, "{v4} {v6}");
}
