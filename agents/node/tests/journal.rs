//! The journal through its public surface: what is written is found again, whatever tears it, and no number is given twice.

#![expect(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "a test says what failed by failing")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use razar_bus_schema::{
    ids::{Incarnation, Instance},
    v1::{self, Event, InstanceMemory, SpawnPlanned, Spawned, event::Fact},
};
use razar_node::journal::{BLOCK, Journal, JournalError, Limits, Restored};

const NODE: &str = "a";
const SMALL: Limits = Limits { segment_bytes: 2000, disk_bytes: 20_000 };

fn event(text: &str) -> Event {
    let fact = Fact::OrderVoid(v1::OrderVoid { key: text.to_owned(), why: "test".to_owned() });
    Event { kind: "order_void".to_owned(), mesh: "razar".to_owned(), fact: Some(fact), ..Event::default() }
}

fn text(event: &Event) -> &str {
    match &event.fact {
        Some(Fact::OrderVoid(void)) => &void.key,
        other => panic!("another fact: {other:?}"),
    }
}

fn sequence(event: &Event) -> u64 {
    event.node_sequence.as_ref().unwrap().sequence
}

fn planned(instance: &Instance, generation: u64, start: u64) -> SpawnPlanned {
    SpawnPlanned {
        instance: Some(instance.into()),
        incarnation: Some(Incarnation::new(generation, start).into()),
        log_path: format!("/logs/{instance}"),
        ..SpawnPlanned::default()
    }
}

fn memory(instance: &Instance, generation: u64, start: u64) -> InstanceMemory {
    InstanceMemory { instance: Some(instance.into()), generation, start, short_lives: 2, ..InstanceMemory::default() }
}

fn open(dir: &Path, boot: &str) -> (Journal, Restored) {
    Journal::open(dir, NODE, boot).unwrap()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut logs: Vec<PathBuf> = all.filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
    logs.sort();
    logs
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(10), "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_was_written_is_found_by_the_next_agent() {
    let dir = tempfile::tempdir().unwrap();
    let api = Instance::new("api", 1);
    let (mut journal, restored) = open(dir.path(), "boot1");
    assert!(restored.new_epoch && !restored.jumped);
    assert_eq!(restored.node_epoch.len(), 16);
    let epoch = restored.node_epoch;
    let stored = journal.append_event(event("one")).unwrap();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].id, format!("n:a:{epoch}:1"));
    journal.append_event(event("two")).unwrap();
    journal.acknowledged(1).unwrap();
    journal.spawn_planned(planned(&api, 1, 1)).unwrap();
    let process = v1::ProcessIdentity { pid: 7, start_time_ticks: 8, boot_id: "boot1".to_owned(), pidfd_inode: 9 };
    journal.spawned(Spawned { planned: Some(planned(&api, 1, 1)), process: Some(process.clone()) }).unwrap();
    journal.spawn_planned(planned(&api, 1, 2)).unwrap();
    journal.remember(memory(&api, 1, 2)).unwrap();
    drop(journal);

    let (mut journal, restored) = open(dir.path(), "boot1");
    assert!(!restored.new_epoch && !restored.jumped && restored.damage.is_empty());
    assert_eq!(restored.node_epoch, epoch);
    // A few acknowledgements may be forgotten; what was not acknowledged never is.
    assert_eq!(text(restored.unacknowledged.last().unwrap()), "two");
    assert_eq!(restored.processes.len(), 1);
    assert_eq!(restored.processes[0].process, Some(process));
    assert_eq!(restored.planned, vec![planned(&api, 1, 2)]);
    assert_eq!(restored.memories, BTreeMap::from([(api.clone(), memory(&api, 1, 2))]));
    assert_eq!(sequence(&journal.append_event(event("three")).unwrap()[0]), 3);
    journal.gone(&api, Incarnation::new(1, 1)).unwrap();
    journal.gone(&api, Incarnation::new(1, 2)).unwrap();
    drop(journal);
    let (_journal, restored) = open(dir.path(), "boot1");
    assert!(restored.processes.is_empty() && restored.planned.is_empty());
}

#[test]
fn a_planned_start_is_used_up_even_if_its_memory_was_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let api = Instance::new("api", 0);
    let (mut journal, _) = open(dir.path(), "boot1");
    journal.remember(memory(&api, 3, 4)).unwrap();
    journal.spawn_planned(planned(&api, 3, 5)).unwrap();
    drop(journal);
    let (_journal, restored) = open(dir.path(), "boot1");
    assert_eq!((restored.memories[&api].generation, restored.memories[&api].start), (3, 5));
}

#[test]
fn after_a_power_cut_numbers_go_on_a_block_further() {
    let dir = tempfile::tempdir().unwrap();
    let api = Instance::new("api", 0);
    let (mut journal, _) = open(dir.path(), "boot1");
    journal.append_event(event("one")).unwrap();
    journal.remember(memory(&api, 1, 1)).unwrap();
    drop(journal);
    let (mut journal, restored) = open(dir.path(), "boot2");
    assert!(restored.jumped);
    assert_eq!(restored.start_floor, BLOCK);
    assert_eq!(restored.memories[&api].start, 1 + BLOCK);
    assert_eq!(sequence(&journal.append_event(event("two")).unwrap()[0]), 2 + BLOCK);
    drop(journal);
    // Another agent in the same boot goes on where this one was.
    let (mut journal, restored) = open(dir.path(), "boot2");
    assert!(!restored.jumped);
    assert_eq!(restored.memories[&api].start, 1 + BLOCK);
    assert_eq!(sequence(&journal.append_event(event("three")).unwrap()[0]), 3 + BLOCK);
}

#[test]
fn the_floor_of_a_second_power_cut_lies_above_what_began_above_the_first() {
    let dir = tempfile::tempdir().unwrap();
    for (boot, floor) in [("boot1", 0), ("boot2", BLOCK), ("boot3", 2 * BLOCK)] {
        let (journal, restored) = open(dir.path(), boot);
        assert_eq!(restored.start_floor, floor, "{boot}");
        drop(journal);
    }
}

#[test]
fn after_an_orderly_close_a_reboot_loses_no_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path(), "boot1");
    journal.append_event(event("one")).unwrap();
    journal.acknowledged(1).unwrap();
    journal.close().unwrap();
    let (mut journal, restored) = open(dir.path(), "boot2");
    assert!(!restored.jumped);
    assert_eq!((restored.unacknowledged_total, restored.acknowledged), (0, 1));
    assert_eq!(sequence(&journal.append_event(event("two")).unwrap()[0]), 2);
    drop(journal);
    // The mark is open again: this end was not orderly.
    assert!(open(dir.path(), "boot3").1.jumped);
}

#[test]
fn a_record_torn_at_any_byte_is_cut_and_nothing_before_it_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, restored) = open(dir.path(), "boot1");
    journal.append_event(event("kept")).unwrap();
    let path = segments(dir.path()).pop().unwrap();
    let before = std::fs::metadata(&path).unwrap().len();
    journal.append_event(event("torn")).unwrap();
    drop(journal);
    let whole = std::fs::read(&path).unwrap();
    let mark = std::fs::read(dir.path().join("mark")).unwrap();
    for length in before..whole.len() as u64 {
        for segment in segments(dir.path()) {
            std::fs::remove_file(segment).unwrap();
        }
        std::fs::write(&path, &whole[..usize::try_from(length).unwrap()]).unwrap();
        std::fs::write(dir.path().join("mark"), &mark).unwrap();
        let (mut journal, found) = open(dir.path(), "boot1");
        assert_eq!(found.node_epoch, restored.node_epoch, "cut at {length}");
        assert_eq!(found.unacknowledged.iter().map(text).collect::<Vec<_>>(), ["kept"], "cut at {length}");
        // Something was torn unless the cut fell between two records.
        assert_eq!(found.jumped, length > before, "cut at {length}");
        let next = sequence(&journal.append_event(event("next")).unwrap()[0]);
        assert_eq!(next, if length > before { 2 + BLOCK } else { 2 }, "cut at {length}");
        drop(journal);
        let (_, found) = open(dir.path(), "boot1");
        assert_eq!(found.unacknowledged.iter().map(text).collect::<Vec<_>>(), ["kept", "next"], "cut at {length}");
    }
}

#[test]
fn any_flipped_byte_is_survived_and_numbers_stay_unique() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, restored) = open(dir.path(), "boot1");
    for n in 0..3 {
        journal.append_event(event(&format!("e{n}"))).unwrap();
    }
    drop(journal);
    let path = segments(dir.path()).pop().unwrap();
    let whole = std::fs::read(&path).unwrap();
    let mark = std::fs::read(dir.path().join("mark")).unwrap();
    for at in 0..whole.len() {
        for segment in segments(dir.path()) {
            std::fs::remove_file(segment).unwrap();
        }
        let mut bent = whole.clone();
        bent[at] ^= 0x10;
        std::fs::write(&path, bent).unwrap();
        std::fs::write(dir.path().join("mark"), &mark).unwrap();
        let (mut journal, found) = open(dir.path(), "boot1");
        let next = journal.append_event(event("next")).unwrap().remove(0);
        // Either the same journal goes on behind a gap, or it is another journal.
        assert!(found.new_epoch != (found.node_epoch == restored.node_epoch), "byte {at}");
        assert!(found.new_epoch || sequence(&next) > 3, "byte {at} gave {}", next.id);
        assert!(!found.damage.is_empty(), "byte {at}");
    }
}

#[test]
fn a_damaged_newest_segment_gives_no_number_twice() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { segment_bytes: 400_000, disk_bytes: u64::MAX };
    let (mut journal, first) = Journal::open_with(dir.path(), NODE, "boot1", limits).unwrap();
    let mut last = 0;
    for _ in 0..6000 {
        last = sequence(&journal.append_event(event("e")).unwrap()[0]);
    }
    drop(journal);
    let newest = segments(dir.path()).pop().unwrap();
    assert!(segments(dir.path()).len() > 1);
    let mut bytes = std::fs::read(&newest).unwrap();
    bytes[9] ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    let (mut journal, restored) = Journal::open_with(dir.path(), NODE, "boot1", limits).unwrap();
    assert_eq!(restored.node_epoch, first.node_epoch);
    assert!(restored.next_sequence > last);
    assert!(sequence(&journal.append_event(event("next")).unwrap()[0]) > last);
}

#[test]
fn a_lost_disk_is_a_new_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let (_, first) = open(dir.path(), "boot1");
    let path = segments(dir.path()).pop().unwrap();
    std::fs::write(&path, b"rubbish").unwrap();
    let (mut journal, second) = open(dir.path(), "boot1");
    assert!(second.new_epoch && second.node_epoch != first.node_epoch);
    assert_eq!(second.damage.len(), 1);
    assert_eq!(sequence(&journal.append_event(event("one")).unwrap()[0]), 1);
    assert!(path.with_extension("bad").exists(), "what was found is put aside");
    drop(journal);
    for segment in segments(dir.path()) {
        std::fs::remove_file(segment).unwrap();
    }
    let (_, third) = open(dir.path(), "boot1");
    assert!(third.new_epoch && third.node_epoch != second.node_epoch);
}

#[test]
fn segments_are_begun_and_deleted_and_their_state_lives_on() {
    let dir = tempfile::tempdir().unwrap();
    let api = Instance::new("api", 0);
    let (mut journal, _) = Journal::open_with(dir.path(), NODE, "boot1", SMALL).unwrap();
    journal.remember(memory(&api, 1, 1)).unwrap();
    let mut newest = 0;
    for n in 0..500 {
        newest = sequence(&journal.append_event(event(&format!("e{n}"))).unwrap()[0]);
        if n % 10 == 9 {
            wait("synced", || journal.status().unsynced == 0);
            journal.acknowledged(newest).unwrap();
        }
    }
    let status = journal.status();
    assert!(status.segments <= 3 && status.bytes < 3 * SMALL.segment_bytes, "{status:?}");
    assert_eq!(segments(dir.path()).len(), status.segments);
    assert_eq!(newest, 500);
    drop(journal);
    let (_, restored) = Journal::open_with(dir.path(), NODE, "boot1", SMALL).unwrap();
    assert_eq!(restored.memories[&api], memory(&api, 1, 1));
    assert!(restored.unacknowledged_total < 64);
    assert_eq!(restored.next_sequence, 501);
}

#[test]
fn when_the_bus_takes_nothing_for_too_long_events_wait_unnumbered_and_come_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let api = Instance::new("api", 0);
    let (mut journal, _) = Journal::open_with(dir.path(), NODE, "boot1", SMALL).unwrap();
    let mut stored = 0;
    let error = loop {
        match journal.append_event(event(&format!("e{stored}"))) {
            Ok(events) => stored += events.len() as u64,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, JournalError::Full { .. }), "{error}");
    assert!(journal.append_event(event("later")).is_err());
    let status = journal.status();
    assert_eq!((status.events_held, status.events_lost), (2, 0));
    assert!(status.failing.is_some());
    // Healing goes on, and what it writes does not pile up.
    for start in 1..200 {
        journal.remember(memory(&api, 1, start)).unwrap();
    }
    wait("segments without events are deleted", || {
        journal.acknowledged(0).unwrap();
        journal.status().bytes < SMALL.disk_bytes + 2 * SMALL.segment_bytes
    });
    assert!(journal.retry_held().is_empty(), "still full");
    wait("synced", || journal.status().unsynced == 0);
    journal.acknowledged(stored).unwrap();
    let late = journal.append_event(event("last")).unwrap();
    assert_eq!(late.iter().map(text).collect::<Vec<_>>(), [format!("e{stored}").as_str(), "later", "last"]);
    assert_eq!(late.iter().map(sequence).collect::<Vec<_>>(), [stored + 1, stored + 2, stored + 3]);
    assert_eq!(journal.status().failing, None);
}

#[test]
fn what_is_held_is_bounded_and_losses_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { segment_bytes: 2000, disk_bytes: 1 };
    let (mut journal, _) = Journal::open_with(dir.path(), NODE, "boot1", limits).unwrap();
    for n in 0..5000 {
        assert!(journal.append_event(event(&format!("e{n}"))).is_err());
    }
    let status = journal.status();
    assert_eq!((status.events_held as u64 + status.events_lost, status.events_held), (5000, 4096));
}

#[test]
fn an_event_that_the_bus_could_never_take_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path(), "boot1");
    let error = journal.append_event(event(&"x".repeat(300 * 1024))).unwrap_err();
    assert!(matches!(error, JournalError::TooLarge { .. }), "{error}");
    assert_eq!(journal.status().events_held, 0);
    assert_eq!(sequence(&journal.append_event(event("next")).unwrap()[0]), 1);
}

#[test]
fn what_was_written_is_on_disk_soon_and_never_more_than_a_block_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path(), "boot1");
    for n in 0..5000 {
        journal.append_event(event(&format!("e{n}"))).unwrap();
        assert!(journal.status().unsynced <= BLOCK);
    }
    wait("synced", || journal.status().unsynced == 0);
}

#[test]
fn the_backlog_is_read_back_in_order_from_any_place() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { segment_bytes: 2000, disk_bytes: u64::MAX };
    let (mut journal, _) = Journal::open_with(dir.path(), NODE, "boot1", limits).unwrap();
    for n in 1..=300 {
        journal.append_event(event(&format!("e{n}"))).unwrap();
    }
    let mut backlog = journal.backlog();
    let mut read = Vec::new();
    loop {
        let events = backlog.read_after(read.last().copied().unwrap_or(0), 7).unwrap();
        if events.is_empty() {
            break;
        }
        assert!(events.len() <= 7);
        read.extend(events.iter().map(sequence));
    }
    assert_eq!(read, (1..=300).collect::<Vec<_>>());
}

/// A real full disk: a tmpfs of 128 KiB in a mount namespace of its own, in which this test runs itself again.
#[test]
fn a_full_disk_stops_the_journal_and_not_the_node() {
    if let Ok(dir) = std::env::var("RAZAR_TEST_FULL_DISK") {
        return on_a_full_disk(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let script =
        "mount -t tmpfs -o size=128k none \"$RAZAR_TEST_FULL_DISK\" && exec \"$0\" --exact a_full_disk_stops_the_journal_and_not_the_node";
    let output = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .env("RAZAR_TEST_FULL_DISK", dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "needs user namespaces (`unshare`) to mount a small disk:\n{said}");
}

fn on_a_full_disk(dir: &Path) {
    let api = Instance::new("api", 0);
    let (mut journal, _) = open(&dir.join("journal"), "boot1");
    let filler = dir.join("filler");
    std::fs::write(&filler, vec![0; 64 * 1024]).unwrap();
    let mut numbered = Vec::new();
    let error = loop {
        match journal.append_event(event(&"x".repeat(500))) {
            Ok(events) => numbered.extend(events.iter().map(sequence)),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, JournalError::Io { .. }), "{error}");
    assert!(journal.status().failing.unwrap().contains("No space left"));
    assert!(journal.remember(InstanceMemory { completed_spec_hash: "y".repeat(8192), ..memory(&api, 7, 7) }).is_err());
    std::fs::remove_file(&filler).unwrap();
    numbered.extend(journal.retry_held().iter().map(sequence));
    assert_eq!(journal.status().failing, None);
    assert_eq!(numbered, (1..=numbered.len() as u64).collect::<Vec<_>>());
    drop(journal);
    let (_, restored) = open(&dir.join("journal"), "boot1");
    assert_eq!(restored.unacknowledged.iter().map(sequence).collect::<Vec<_>>(), numbered);
    assert_eq!(restored.memories[&api].generation, 7, "what only memory held came with the next snapshot");
}

#[derive(Debug, Clone)]
enum Op {
    Event(String),
    Plan(u8, u64, u64),
    Spawn(u8, u64, u64),
    Gone(u8, u64, u64),
    Remember(u8, u64, u64),
    Acknowledge,
    Reopen,
    Reboot,
    Close,
}

fn op() -> impl Strategy<Value = Op> {
    let life = (0..4_u8, 1..4_u64, 1..4_u64);
    prop_oneof![
        6 => ".{0,40}".prop_map(Op::Event),
        2 => life.clone().prop_map(|(i, g, s)| Op::Plan(i, g, s)),
        2 => life.clone().prop_map(|(i, g, s)| Op::Spawn(i, g, s)),
        2 => life.clone().prop_map(|(i, g, s)| Op::Gone(i, g, s)),
        2 => life.prop_map(|(i, g, s)| Op::Remember(i, g, s)),
        1 => Just(Op::Acknowledge),
        1 => Just(Op::Reopen),
        1 => Just(Op::Reboot),
        1 => Just(Op::Close),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_history_is_restored(ops in prop::collection::vec(op(), 1..80)) {
        let limits = Limits { segment_bytes: 1500, disk_bytes: u64::MAX };
        let dir = tempfile::tempdir().unwrap();
        let mut boot = 0;
        let open = |boot: u32| Journal::open_with(dir.path(), NODE, &format!("boot{boot}"), limits).unwrap();
        let (mut journal, first) = open(boot);
        let (mut events, mut last, mut acknowledged, mut told): (Vec<Event>, u64, u64, u64) = (Vec::new(), 0, 0, 0);
        let (mut processes, mut plans) = (BTreeMap::new(), BTreeMap::new());
        let mut highest: BTreeMap<Instance, Incarnation> = BTreeMap::new();
        for op in ops {
            let of = |i: u8, g: u64, s: u64| (Instance::new(format!("c{i}"), 0), Incarnation::new(g, s));
            match op {
                Op::Event(text) => {
                    let stored = journal.append_event(event(&text)).unwrap().remove(0);
                    prop_assert!(sequence(&stored) > last, "numbered twice");
                    last = sequence(&stored);
                    events.push(stored);
                }
                Op::Plan(i, g, s) => {
                    let life = of(i, g, s);
                    journal.spawn_planned(planned(&life.0, g, s)).unwrap();
                    let most = highest.entry(life.0.clone()).or_default();
                    *most = (*most).max(life.1);
                    plans.insert(life, ());
                }
                Op::Spawn(i, g, s) => {
                    let life = of(i, g, s);
                    journal.spawned(Spawned { planned: Some(planned(&life.0, g, s)), process: None }).unwrap();
                    plans.remove(&life);
                    processes.insert(life, ());
                }
                Op::Gone(i, g, s) => {
                    let life = of(i, g, s);
                    journal.gone(&life.0, life.1).unwrap();
                    plans.remove(&life);
                    processes.remove(&life);
                }
                Op::Remember(i, g, s) => {
                    let life = of(i, g, s);
                    // The policy never remembers less than it has used.
                    let most = highest.entry(life.0.clone()).or_default();
                    *most = (*most).max(life.1);
                    journal.remember(memory(&life.0, most.generation, most.start)).unwrap();
                }
                Op::Acknowledge => {
                    (acknowledged, told) = (last, last);
                    journal.acknowledged(last).unwrap();
                }
                Op::Reopen | Op::Reboot | Op::Close => {
                    let closed = matches!(op, Op::Close);
                    if closed { journal.close().unwrap() } else { drop(journal) }
                    boot += u32::from(matches!(op, Op::Reboot | Op::Close));
                    let (next, restored) = open(boot);
                    journal = next;
                    prop_assert_eq!(&restored.node_epoch, &first.node_epoch);
                    prop_assert_eq!(restored.jumped, matches!(op, Op::Reboot));
                    prop_assert!(restored.acknowledged <= acknowledged);
                    if closed {
                        prop_assert_eq!(restored.acknowledged, told);
                    }
                    told = restored.acknowledged;
                    // Of acknowledged ones a few may come again, with their ids.
                    let expected: Vec<&Event> = events.iter().filter(|e| sequence(e) > acknowledged).collect();
                    let found: Vec<&Event> = restored.unacknowledged.iter().collect();
                    prop_assert!(found.iter().all(|e| events.contains(e)) && found.is_sorted_by_key(|e| sequence(e)));
                    let due: Vec<&Event> = found.into_iter().filter(|e| sequence(e) > acknowledged).collect();
                    prop_assert_eq!(due, expected);
                    prop_assert_eq!(restored.unacknowledged_total, restored.unacknowledged.len() as u64);
                    let key = |p: &SpawnPlanned| (
                        Instance::try_from(p.instance.as_ref().unwrap()).unwrap(),
                        Incarnation::from(p.incarnation.as_ref().unwrap()),
                    );
                    let found: BTreeMap<_, ()> = restored.processes.iter().map(|s| (key(s.planned.as_ref().unwrap()), ())).collect();
                    prop_assert_eq!(&found, &processes);
                    let found: BTreeMap<_, ()> = restored.planned.iter().map(|p| (key(p), ())).collect();
                    prop_assert_eq!(&found, &plans);
                    if restored.jumped {
                        highest.values_mut().for_each(|most| most.start += BLOCK);
                    }
                    let found: BTreeMap<_, _> =
                        restored.memories.into_iter().map(|(i, m)| (i, Incarnation::new(m.generation, m.start))).collect();
                    prop_assert_eq!(&found, &highest);
                }
            }
        }
    }
}
