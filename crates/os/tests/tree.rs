//! Trees: who is found, what a sample says of them, and that a kill leaves nobody.

#![allow(clippy::unwrap_used, reason = "tests may fail loudly")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use razar_os::{Cgroups, FileId, Member, Pid, ProcTable, Process, Signal, TaskState, Tree};
use support::{PATIENCE, Place, Running, is_alive, state_and_parent, until};

/// Its tree has found this one; looked for once in a table of all processes.
fn finds(tree: &mut Tree, pid: Pid) -> bool {
    tree.refresh(&ProcTable::read().unwrap());
    tree.contains(pid)
}

fn kill_all(running: &mut Running, pids: &[Pid]) {
    let report = running.tree.kill(PATIENCE).unwrap();
    assert!(report.is_complete(), "{report:?}");
    for pid in pids {
        assert!(!is_alive(*pid), "{pid} outlived the kill: {report:?}");
    }
}

#[test]
fn descendants_in_a_session_of_their_own_are_found_by_the_quick_look_and_killed() {
    let place = Place::new();
    let mut running = place.sh("setsid sh -c 'echo $$ > far; exec sleep 1000 >/dev/null 2>&1' & wait");
    let far = place.pid_in("far");
    let sample = running.tree.sample().unwrap();
    assert!(sample.tasks.iter().any(|task| task.pid == far), "{sample:?}");
    assert!(running.tree.contains(far));
    let mut by_table = Tree::new(&running.process, None, None).unwrap();
    assert!(finds(&mut by_table, far), "by descent alone");
    assert!(running.tree.signal(Signal::CONT).unwrap());
    kill_all(&mut running, &[far]);
    assert_eq!(running.wait().signal, Some(9));
}

#[test]
fn an_orphan_that_kept_its_log_is_found_by_it_though_it_shed_session_and_parent() {
    let place = Place::new();
    // Not seen before: the tree is asked only after the main process has ended and was reaped.
    let mut running =
        place.sh("setsid sh -c 'sh -c \"echo \\$\\$ > stray; exec sleep 1000\" & exit' & wait; while ! [ -s stray ]; do :; done");
    let stray = place.pid_in("stray");
    assert!(running.wait().is_success());
    assert!(is_alive(stray));
    assert!(finds(&mut running.tree, stray));
    kill_all(&mut running, &[stray]);
    let mut untagged = Tree::new(&running.process, None, None).unwrap();
    untagged.refresh(&ProcTable::read().unwrap());
    assert_eq!(untagged.members().count(), 0);
}

#[test]
fn an_orphan_without_log_is_found_by_session_while_the_main_process_is_a_zombie() {
    let place = Place::new();
    let mut running = place.sh("sh -c 'echo $$ > stray; exec sleep 1000 >/dev/null 2>&1' & while ! [ -s stray ]; do :; done");
    let stray = place.pid_in("stray");
    until("the main process is a zombie", || running.process.has_exited().unwrap());
    assert!(finds(&mut running.tree, stray));
    kill_all(&mut running, &[stray]);
}

#[test]
fn one_seen_before_is_killed_though_it_shed_everything() {
    let place = Place::new();
    let mut running = place.sh(
        "setsid sh -c 'sh -c \"echo \\$\\$ > stray; exec sleep 1000 >/dev/null 2>&1\" & wait' & mkfifo go; read x < go; kill -9 0; exit",
    );
    let stray = place.pid_in("stray");
    running.tree.sample().unwrap();
    assert!(running.tree.contains(stray));
    // Its parents die, and it is adopted by somebody else: no tag, another session.
    let parent = Pid::new(state_and_parent(stray).unwrap().1).unwrap();
    Process::current_holder(parent).unwrap().unwrap().signal(Signal::KILL).unwrap();
    until("it is an orphan", || state_and_parent(stray).is_some_and(|(_, now)| now != parent.as_raw()));
    assert!(finds(&mut running.tree, stray), "remembered");
    let mut forgetful = Tree::new(&running.process, Some(place.tag), None).unwrap();
    assert!(!finds(&mut forgetful, stray), "nothing but memory ties it to the tree");
    kill_all(&mut running, &[stray]);
}

#[test]
fn a_process_of_another_tree_is_left_alone() {
    let (one, two) = (Place::new(), Place::new());
    let mut first = one.sh("sleep 1000 & wait");
    let second = two.sh("exec sleep 1000");
    assert!(!finds(&mut first.tree, second.process.pid()));
    kill_all(&mut first, &[]);
    assert!(is_alive(second.process.pid()));
    assert!(is_alive(Pid::this()));
    // Not even a mark that the calling process carries itself makes it a member, nor those above it.
    let mine = FileId::of_fd(std::io::stdout()).unwrap();
    assert!(ProcTable::read().unwrap().tagged(mine).iter().any(|tagged| tagged.member.pid == Pid::this()));
    let mut tree = Tree::of_orphans(Some(mine), None);
    tree.refresh(&ProcTable::read().unwrap());
    assert!(!tree.contains(Pid::this()) && !tree.contains(Process::parent().unwrap().unwrap().pid()));
}

#[test]
fn what_a_dead_agent_started_is_found_by_its_log_alone() {
    let place = Place::new();
    let running = place.sh("sh -c 'echo $$ > child; exec sleep 1000' & wait");
    let child = place.pid_in("child");
    let found = ProcTable::read().unwrap().tagged(place.tag);
    let pids: Vec<_> = found.iter().map(|tagged| (tagged.member.pid, tagged.leads_session)).collect();
    assert_eq!(pids, [(running.process.pid(), true), (child, false)]);
    let adopted = Process::open_member(found[0].member).unwrap().unwrap();
    assert_eq!(adopted.identity(), running.process.identity());
    let stale = Member { start_time_ticks: found[0].member.start_time_ticks + 1, ..found[0].member };
    assert!(Process::open_member(stale).unwrap().is_none());

    // The main process goes, and nobody saw it: what is left has only the log.
    running.process.signal(Signal::KILL).unwrap();
    running.wait();
    let mut left = Tree::of_orphans(Some(place.tag), None);
    let report = left.kill(PATIENCE).unwrap();
    assert!(report.is_complete() && report.signalled == 1, "{report:?}");
    assert!(!is_alive(child));
    let mut nothing = Tree::of_orphans(None, None);
    nothing.refresh(&ProcTable::read().unwrap());
    assert_eq!(nothing.members().count(), 0, "no mark, no members");
}

#[test]
fn a_sample_tells_stopped_spinning_and_sleeping_apart() {
    let place = Place::new();
    let mut running =
        place.sh("while :; do :; done & echo $! > spin; sleep 1000 & echo $! > sleep; sleep 1000 & echo $! > stop; kill -STOP $!; wait");
    let [spin, sleep, stop] = ["spin", "sleep", "stop"].map(|name| place.pid_in(name));
    until("it is stopped", || state_and_parent(stop).is_some_and(|(state, _)| state == 'T'));
    let began = Instant::now();
    let first = running.tree.sample().unwrap();
    let of = |sample: &razar_os::TreeSample, pid| sample.tasks.iter().find(|task| task.pid == pid).copied().unwrap();
    let mut last = first.clone();
    until("the spinning one has run for 30 ms", || {
        last = running.tree.sample().unwrap();
        of(&last, spin).run_ns >= of(&first, spin).run_ns + 30_000_000
    });
    assert!(began.elapsed() >= Duration::from_millis(30), "it has one thread");
    assert_eq!(of(&last, spin).state, TaskState::Running);
    assert_eq!(of(&last, sleep).state, TaskState::Sleeping);
    assert_eq!(of(&last, stop).state, TaskState::Stopped);
    assert_eq!(of(&last, stop).run_ns, of(&first, stop).run_ns);
    assert!(!last.traced);
    let usage = running.tree.usage().unwrap();
    assert_eq!((usage.processes, usage.threads), (4, 4));
    assert!(usage.cpu_ns >= 20_000_000 && usage.rss_bytes > 100_000 && usage.open_files >= 12, "{usage:?}");
    kill_all(&mut running, &[spin, sleep, stop]);
    assert_eq!(running.tree.sample().unwrap().tasks, []);
}

#[test]
fn a_process_whose_main_thread_has_ended_is_alive_and_can_be_killed() {
    let place = Place::new();
    let script = "import ctypes,os,threading,time\nopen('up','w').write(str(os.getpid())+chr(10))\nthreading.Thread(target=time.sleep,args=(1000,)).start()\nctypes.CDLL(None).syscall(60,0)\n";
    std::fs::write(place.path("half.py"), script).unwrap();
    let mut running = place.sh("exec python3 half.py");
    let pid = place.pid_in("up");
    assert_eq!(pid, running.process.pid());
    if !cfg!(target_arch = "x86_64") {
        return; // 60 is `exit` (of one thread) there alone.
    }
    until("its main thread is a zombie", || state_and_parent(pid).is_some_and(|(state, _)| state == 'Z'));
    assert!(!running.process.has_exited().unwrap());
    let sample = running.tree.sample().unwrap();
    assert_eq!(sample.tasks.len(), 1, "{sample:?}");
    assert_ne!(sample.tasks[0].tid, pid);
    kill_all(&mut running, &[]);
    assert_eq!(running.wait().signal, Some(9));
}

#[test]
fn a_traced_process_is_told() {
    let place = Place::new();
    let script = "import ctypes,os,signal,time\nif os.fork()==0:\n ctypes.CDLL(None).ptrace(0,0,0,0)\n os.kill(os.getpid(),signal.SIGSTOP)\ntime.sleep(1000)\n";
    std::fs::write(place.path("traced.py"), script).unwrap();
    let mut running = place.sh("exec python3 traced.py");
    until("a tracer is seen", || running.tree.sample().unwrap().traced);
}

#[test]
fn a_polite_signal_reaches_the_group_even_without_its_leader() {
    let place = Place::new();
    let mut running = place.sh(
        "sh -c 'trap \"echo asked > said; exit\" TERM; echo $$ > stray; while :; do sleep 0.01; done' & while ! [ -s stray ]; do :; done",
    );
    let stray = place.pid_in("stray");
    assert!(running.wait().is_success());
    assert!(running.tree.signal(Signal::TERM).unwrap());
    until("it has heard it", || place.path("said").exists());
    until("it has ended", || !is_alive(stray));
    until("nobody is left", || !running.tree.signal(Signal::TERM).unwrap());
}

#[test]
fn what_forks_without_end_is_killed() {
    let place = Place::new();
    // Every child is born as its parent dies, in a new session: only the log ties it to the tree.
    let script = "import os\nwhile True:\n if os.fork(): os._exit(0)\n os.setsid()\n open('new','w').write(str(os.getpid()))\n os.rename('new','runs')\n";
    std::fs::write(place.path("hop.py"), script).unwrap();
    let mut running = place.sh("exec python3 hop.py");
    let now = || std::fs::read_to_string(place.path("runs")).unwrap_or_default();
    until("it hops", || !now().is_empty());
    let first = now();
    until("it hops on", || now() != first);
    // Without a cgroup a single kill is not certain of such a one on a busy machine; a few are.
    for _ in 0..5 {
        let started = Instant::now();
        let report = running.tree.kill(PATIENCE).unwrap();
        println!("hopper: {report:?} in {:?}", started.elapsed());
        // That something does not happen can only be waited for; it hops every millisecond.
        let last = now();
        std::thread::sleep(Duration::from_millis(100));
        if now() == last {
            return;
        }
    }
    panic!("it still hops");
}

#[test]
fn a_cgroup_holds_kills_and_tells_of_all() {
    let Some(cgroups) = Cgroups::detect() else {
        println!("no cgroup2 that may be written to on this machine: not tested");
        return;
    };
    println!("cgroups below {}", cgroups.path().display());
    let mesh = format!("test-{}", Pid::this());
    let cgroup = Arc::new(cgroups.create(&mesh, "n1", "api.0").unwrap());
    assert!(!cgroup.is_populated().unwrap());
    let place = Place::new();
    let started = Instant::now();
    let running = place
        .sh_in("setsid sh -c 'echo $$ > far; exec sleep 1000 >/dev/null 2>&1' & wait", Some(std::os::fd::AsFd::as_fd(cgroup.as_ref())));
    println!("started in a cgroup in {:?}", started.elapsed());
    let far = place.pid_in("far");
    let pids = cgroup.pids().unwrap();
    assert!(pids.contains(&far) && pids.contains(&running.process.pid()), "{pids:?}");
    assert!(cgroup.is_populated().unwrap());
    assert!(!cgroups.remove(&mesh, "n1", "api.0").unwrap(), "somebody is in it");
    cgroup.set_frozen(true).unwrap();
    until("it is frozen", || cgroup.is_frozen().unwrap());
    println!("memory controller: {:?}", cgroup.oom_killed());

    let mut tree = Tree::new(&running.process, None, Some(Arc::clone(&cgroup))).unwrap();
    assert!(tree.sample().unwrap().tasks.iter().any(|task| task.pid == far));
    let report = tree.kill(PATIENCE).unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert!(!is_alive(far));
    assert_eq!(running.wait().signal, Some(9));
    until("nobody is in it", || !cgroup.is_populated().unwrap());
    assert!(cgroups.find(&mesh, "n1", "api.0").unwrap().is_some());
    assert!(cgroups.remove(&mesh, "n1", "api.0").unwrap());
    assert!(cgroups.find(&mesh, "n1", "api.0").unwrap().is_none());
    assert!(!cgroups.path().join(&mesh).exists());
}

#[test]
fn a_pass_over_77_processes_costs_milliseconds() {
    let place = Place::new();
    let mut running = place.sh("i=0; while [ $i -lt 76 ]; do sleep 1000 & i=$((i+1)); done; echo $$ > up; wait");
    place.pid_in("up");
    until("all are there", || running.tree.sample().unwrap().tasks.len() >= 77);
    let mut times: Vec<[Duration; 4]> = Vec::new();
    for _ in 0..20 {
        let started = Instant::now();
        running.tree.sample().unwrap();
        let sampled = started.elapsed();
        let table = ProcTable::read().unwrap();
        let read = started.elapsed() - sampled;
        running.tree.refresh(&table);
        let refreshed = started.elapsed() - sampled - read;
        let counted = Instant::now();
        running.tree.usage().unwrap();
        times.push([sampled, read, refreshed, counted.elapsed()]);
    }
    for (what, of) in ["sample of 77", "table of all", "refresh", "usage of 77"].iter().zip(0..) {
        let mut column: Vec<Duration> = times.iter().map(|row| row[of]).collect();
        column.sort_unstable();
        println!("{what}: median {:?}", column[10]);
    }
    let started = Instant::now();
    let report = running.tree.kill(PATIENCE).unwrap();
    println!("kill of 77: {:?}", started.elapsed());
    assert!(report.is_complete(), "{report:?}");
}
