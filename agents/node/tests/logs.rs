//! Components' logs with real writers and a real filesystem.

#![expect(clippy::unwrap_used, reason = "a test says what failed by failing")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use razar_bus_schema::ids::{Incarnation, Instance};
use razar_node::logs::{self, From, LogBounds, LogKeeper, LogStore};
use regex::Regex;

const BOUNDS: LogBounds = LogBounds { max_size_bytes: 64 * 1024, keep: 3 };

fn life(start: u64) -> (Instance, Incarnation) {
    (Instance::new("api", 0), Incarnation::new(1, start))
}

fn store() -> (tempfile::TempDir, LogStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::new(dir.path().join("logs"));
    (dir, store)
}

fn texts(lines: Vec<logs::LogLine>) -> Vec<String> {
    lines.into_iter().map(|line| line.text).collect()
}

#[test]
fn a_tail_goes_back_over_rotations_and_incarnations() {
    let (_dir, store) = store();
    for start in 1..=2 {
        let (api, incarnation) = life(start);
        let mut log = store.open(&api, incarnation).unwrap();
        assert!(log.path.ends_with(format!("api.0/1.{start}.log")));
        for n in 0..3000 {
            writeln!(log.file, "{start}: line {n:05} {}", "x".repeat(20)).unwrap();
            if n == 2500 {
                let rotated = store.rotate(&api, incarnation, BOUNDS).unwrap().unwrap();
                assert!(rotated.kept_bytes > 0);
            }
        }
        write!(log.file, "{start}: unfinished").unwrap();
    }
    let (api, _) = life(2);
    let all = texts(store.tail(&api, 4002).unwrap());
    assert_eq!(all.len(), 4002);
    assert_eq!(all[4001], "2: unfinished");
    assert_eq!(all[0], format!("1: line 02000 {}", "x".repeat(20)));
    assert_eq!(all[1000], "1: unfinished");
    assert_eq!(all[1001], format!("2: line 00000 {}", "x".repeat(20)));
    for (n, line) in all[1001..4001].iter().enumerate() {
        assert!(line.starts_with(&format!("2: line {n:05}")), "{line}");
    }
    assert_eq!(texts(store.tail(&api, 1).unwrap()), ["2: unfinished"]);
    assert!(store.tail(&api, 0).unwrap().is_empty());
    assert!(store.tail(&Instance::new("other", 0), 10).unwrap().is_empty());
}

#[test]
fn a_rotation_keeps_the_file_that_the_process_writes_to() {
    let (_dir, store) = store();
    let (api, incarnation) = life(1);
    let bounds = LogBounds { max_size_bytes: 256 * 1024, keep: 100 };
    let log = store.open(&api, incarnation).unwrap();
    // A writer that knows nothing of the rotation.
    let script = "i=0; while [ $i -lt 60000 ]; do echo \"line $i\"; i=$((i+1)); done";
    let mut writer = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).stdout(log.file.try_clone().unwrap()).spawn().unwrap();
    let (cuts, mut rotations, mut lost) = (can_cut_in_front(&store), 0, 0);
    while writer.try_wait().unwrap().is_none() {
        if let Some(rotation) = store.rotate(&api, incarnation, bounds).unwrap() {
            rotations += 1;
            lost += rotation.lost_bytes;
        }
    }
    assert!(rotations > 0);
    assert_eq!(logs_inode(&log.path), log.id.inode);
    if !cuts {
        println!("  this filesystem cannot cut in front: {lost} bytes lost between copying and emptying");
        return;
    }
    // Where the filesystem can cut in front, not one line is missing or doubled.
    assert_eq!(lost, 0);
    let lines = store.tail(&api, 10_000).unwrap();
    assert_eq!(lines.len(), 10_000);
    for (n, line) in lines.iter().enumerate() {
        assert_eq!(line.text, format!("line {}", 50_000 + n));
    }
}

fn can_cut_in_front(store: &LogStore) -> bool {
    let file = std::fs::File::create(store.dir().join("probe")).unwrap();
    file.set_len(1 << 20).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::COLLAPSE_RANGE, 0, 1 << 16).is_ok()
}

fn logs_inode(path: &std::path::Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap())
}

#[test]
fn old_files_are_kept_up_to_the_bound_over_incarnations() {
    let (_dir, store) = store();
    for start in 1..=10 {
        let (api, incarnation) = life(start);
        let mut log = store.open(&api, incarnation).unwrap();
        log.file.write_all(&vec![b'\n'; 70_000]).unwrap();
        store.rotate(&api, incarnation, BOUNDS).unwrap();
    }
    let mut names: Vec<_> = std::fs::read_dir(store.instance_dir(&life(1).0)).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["1.10.log", "1.10.log.1", "1.9.log", "1.9.log.1"]);
}

#[test]
fn a_kept_log_pushes_out_those_of_earlier_incarnations() {
    let (_dir, store) = store();
    (1..=10).for_each(|start| drop(store.open(&life(start).0, life(start).1).unwrap()));
    let keeper = LogKeeper::start(store.clone()).unwrap();
    keeper.keep(life(10).0, life(10).1, BOUNDS);
    let files = || std::fs::read_dir(store.instance_dir(&life(1).0)).unwrap().map(|e| e.unwrap().file_name()).collect::<BTreeSet<_>>();
    let left: BTreeSet<_> = (10 - BOUNDS.keep..=10).map(|start| format!("1.{start}.log").into()).collect();
    wait("the oldest to be removed", || files() == left);
}

/// A start finds its directory and a file, and what it took is made again.
#[test]
fn what_a_start_needs_is_made_ahead() {
    let (_dir, store) = store();
    let keeper = LogKeeper::start(store.clone()).unwrap();
    let (instance, incarnation) = life(1);
    let spares = |dirs: bool| {
        let entries = std::fs::read_dir(store.dir().join("spare")).into_iter().flatten().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir() == dirs).map(|path| logs_inode(&path)).collect::<BTreeSet<_>>()
    };
    wait("the spares", || (spares(false).len(), spares(true).len()) == (96, 96));
    let (files, dirs) = (spares(false), spares(true));
    keeper.expect(instance.clone());
    wait("its directory", || store.instance_dir(&instance).is_dir());
    assert!(dirs.contains(&logs_inode(&store.instance_dir(&instance))), "a spare took its name");
    let log = store.open(&instance, incarnation).unwrap();
    assert!(files.contains(&log.id.inode) && spares(false).len() == 95, "a spare took its name");
    keeper.keep(instance, incarnation, LogBounds::default());
    wait("others", || (spares(false).len(), spares(true).len()) == (96, 96));
    assert!(!spares(false).contains(&log.id.inode));
}

/// Writes `bytes` into a log that has rested, `rate` a second; the most that lay on the disk meanwhile, and what was written.
fn flood(store: &LogStore, log: &mut std::fs::File, bytes: u64, rate: f64) -> (u64, u64) {
    let line = [b"y".repeat(1023), b"\n".to_vec()].concat().repeat(64);
    let (api, _) = life(1);
    let (started, mut written, mut largest) = (Instant::now(), 0_u64, 0);
    while written < bytes {
        log.write_all(&line).unwrap();
        written += line.len() as u64;
        if written % (1 << 20) == 0 {
            let files = std::fs::read_dir(store.instance_dir(&api)).unwrap();
            largest = largest.max(files.filter_map(|e| Some(e.ok()?.metadata().ok()?.len())).sum::<u64>());
            let due = Duration::from_secs_f64(written as f64 / rate);
            std::thread::sleep(due.saturating_sub(started.elapsed()));
        }
    }
    println!("  {} MB in {:?}, at most {largest} bytes on disk", written / 1_000_000, started.elapsed());
    (largest, written)
}

/// Fault 47: whatever the rate, what lies on the disk stays bounded, and what is lost is counted byte for byte.
#[test]
fn a_flood_stays_bounded_and_its_loss_is_counted() {
    // At most so much on the disk: the files that are kept, and what comes between two looks while the keeper waits for its turn.
    for (bytes, rate, most) in [(200_000_000, 100e6, 60_000_000), (1_500_000_000, 500e6, 120_000_000)] {
        let (_dir, store) = store();
        let (api, incarnation) = life(1);
        let bounds = LogBounds { max_size_bytes: 4 * 1024 * 1024, keep: 2 };
        let mut log = store.open(&api, incarnation).unwrap();
        let keeper = LogKeeper::start(store.clone()).unwrap();
        keeper.keep(api.clone(), incarnation, bounds);
        // It has chattered for a while, and rests.
        writeln!(log.file, "hello").unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let (largest, written) = flood(&store, &mut log.file, bytes, rate);
        let written = written + 6;
        let mut lost = 0;
        wait("the end of the flood is rotated", || {
            lost += keeper.losses().iter().map(|loss| loss.lost_bytes).sum::<u64>();
            std::fs::metadata(&log.path).unwrap().len() <= bounds.max_size_bytes
        });
        lost += keeper.losses().iter().map(|loss| loss.lost_bytes).sum::<u64>();
        let kept: u64 = std::fs::read_dir(store.instance_dir(&api)).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        let aside = written - lost - kept;
        assert!(lost > bytes / 2, "{lost}");
        assert!(aside <= 10 * bounds.max_size_bytes, "{aside} bytes were pushed out by newer copies");
        assert!(largest < most, "{largest}");
        assert_eq!(logs_inode(&log.path), log.id.inode);
    }
}

/// A log that rests is not looked at; the first line after a rest is noticed all the same, whatever came between.
#[test]
fn a_log_that_rests_is_kept_when_it_is_written_to_again() {
    let (_dir, store) = store();
    let (api, incarnation) = life(1);
    let mut log = store.open(&api, incarnation).unwrap();
    let keeper = LogKeeper::start(store.clone()).unwrap();
    keeper.keep(api.clone(), incarnation, BOUNDS);
    for round in 0..5 {
        log.file.write_all(&vec![b'\n'; 100_000]).unwrap();
        wait("a rotation after a rest", || std::fs::metadata(&log.path).unwrap().len() <= BOUNDS.max_size_bytes);
        // Long enough for the keeper to let it rest.
        std::thread::sleep(Duration::from_millis(60 * round));
    }
    keeper.forget(&api, incarnation);
    log.file.write_all(&vec![b'\n'; 100_000]).unwrap();
    std::thread::sleep(Duration::from_millis(150));
    assert!(std::fs::metadata(&log.path).unwrap().len() >= 100_000, "what is forgotten is left alone");
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(10), "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn the_last_error_is_found_among_chatter() {
    let (_dir, store) = store();
    let (api, incarnation) = life(1);
    let mut log = store.open(&api, incarnation).unwrap();
    assert_eq!(logs::last_error_line(&log.path).unwrap(), "");
    writeln!(log.file, "starting").unwrap();
    assert_eq!(logs::last_error_line(&log.path).unwrap(), "starting");
    let trace = "Error: connect ECONNREFUSED redis://app:hunter22@cache\n    at Socket.<anonymous> (net.js:1:2)\n\nNode.js v20\n\n";
    log.file.write_all(trace.as_bytes()).unwrap();
    assert_eq!(logs::last_error_line(&log.path).unwrap(), "Error: connect ECONNREFUSED redis://***@cache");
    // It is looked for in the last 64 KiB only.
    log.file.write_all(&b"chatter\n".repeat(20_000)).unwrap();
    assert_eq!(logs::last_error_line(&log.path).unwrap(), "chatter");
    log.file.write_all("error ".repeat(1000).as_bytes()).unwrap();
    assert!(logs::last_error_line(&log.path).unwrap().len() <= logs::ERROR_BYTES_MAX);
    assert_eq!(logs::last_error_line(std::path::Path::new("/nowhere")).unwrap(), "");
}

#[tokio::test]
async fn a_line_is_seen_when_its_end_is_written() {
    let (_dir, store) = store();
    let (api, incarnation) = life(1);
    let mut log = store.open(&api, incarnation).unwrap();
    write!(log.file, "booting\nnot yet rea").unwrap();
    let mut follow = store.follow(&api, incarnation, From::Beginning).unwrap();
    let pattern = [Regex::new(r"ready on \d+").unwrap()];
    assert_eq!(follow.next().await.unwrap()[0].bytes, b"booting");
    let early = tokio::time::timeout(Duration::from_millis(50), follow.find(&pattern)).await;
    assert!(early.is_err(), "{early:?}");
    let writer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        write!(log.file, "dy\n{}ready on 80\r", "x".repeat(50)).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        writeln!(log.file).unwrap();
        log
    });
    let found = tokio::time::timeout(Duration::from_secs(5), follow.find(&pattern)).await.unwrap().unwrap();
    assert_eq!(found[0].1.bytes, format!("{}ready on 80", "x".repeat(50)).as_bytes());
    writer.join().unwrap();
}

#[tokio::test]
async fn a_reader_loses_nothing_when_the_file_is_rotated_under_it() {
    let (_dir, store) = store();
    let (api, incarnation) = life(1);
    let mut log = store.open(&api, incarnation).unwrap();
    let mut follow = store.follow(&api, incarnation, From::Now).unwrap();
    let mut next = 0;
    for round in 0..50 {
        for n in 0..200 {
            writeln!(log.file, "line {:06}", round * 200 + n).unwrap();
        }
        while next < (round + 1) * 200 {
            for line in follow.next().await.unwrap() {
                assert_eq!(line.shown().text, format!("line {next:06}"));
                next += 1;
            }
        }
        store.rotate(&api, incarnation, BOUNDS).unwrap();
    }
    assert!(logs_inode(&log.path) == log.id.inode && std::fs::metadata(&log.path).unwrap().len() < 120_000);
}

#[tokio::test]
async fn a_reader_that_is_too_slow_goes_on_behind_what_it_missed() {
    let (_dir, store) = store();
    let (api, incarnation) = life(1);
    let mut log = store.open(&api, incarnation).unwrap();
    let mut follow = store.follow(&api, incarnation, From::Now).unwrap();
    log.file.write_all(&b"missed\n".repeat(20_000)).unwrap();
    store.rotate(&api, incarnation, BOUNDS).unwrap();
    writeln!(log.file, "last").unwrap();
    let found = tokio::time::timeout(Duration::from_secs(5), follow.find(&[Regex::new("^last$").unwrap()])).await;
    assert_eq!(found.unwrap().unwrap()[0].1.bytes, b"last");
}

#[tokio::test]
async fn an_endless_line_is_bounded() {
    let (_dir, store) = store();
    let (api, incarnation) = life(1);
    let mut log = store.open(&api, incarnation).unwrap();
    let mut follow = store.follow(&api, incarnation, From::Now).unwrap();
    log.file.write_all(&vec![b'x'; 1_000_000]).unwrap();
    log.file.write_all(b"\nnext\n").unwrap();
    let first = follow.next().await.unwrap().remove(0);
    assert!(first.cut && first.bytes.len() == 8 * 1024);
    assert!(first.shown().text.len() <= 8 * 1024);
}

#[tokio::test]
async fn many_readers_share_one_watch_and_sleep_while_nothing_is_written() {
    let (_dir, store) = store();
    let mut readers = Vec::new();
    let mut logs = Vec::new();
    for n in 0..100 {
        let instance = Instance::new(format!("c{n}"), 0);
        logs.push(store.open(&instance, Incarnation::new(1, 1)).unwrap());
        readers.push(store.follow(&instance, Incarnation::new(1, 1), From::Now).unwrap());
        // A second reader of the same file comes and goes.
        drop(store.follow(&instance, Incarnation::new(1, 1), From::Now).unwrap());
    }
    for (log, reader) in logs.iter_mut().zip(&mut readers) {
        assert!(tokio::time::timeout(Duration::from_millis(1), reader.next()).await.is_err());
        writeln!(log.file, "hello").unwrap();
        let lines = tokio::time::timeout(Duration::from_secs(5), reader.next()).await.unwrap().unwrap();
        assert_eq!(lines[0].bytes, b"hello");
    }
}
