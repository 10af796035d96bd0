//! A number that the journal names belongs to somebody else by now (33): nobody is taken for what had it before, and nobody else is
//! signalled. The kernel is made to give the number out again, which asks for root.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use razar_bus_schema::v1::event::Fact;
use razar_tests::e2e::{Mesh, Part, SOON, Stack, alive, holds_for, parent_of, signal, wait_for};
use rustix::process::Signal;

/// The number that the kernel gave out last; the next process gets the one after it that is free.
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";
/// Others start processes at the same time.
const TRIES: usize = 1_000;

/// Somebody else's process, ended with the test.
struct Stranger(Child);

impl Drop for Stranger {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A process of the test's own with this number.
fn with_pid(pid: u32) -> Result<Stranger> {
    for _ in 0..TRIES {
        fs::write(LAST_PID, (pid - 1).to_string()).with_context(|| format!("writing {LAST_PID}: run this test as root"))?;
        let child = Command::new("sleep").arg("1000").stdin(Stdio::null()).env_clear().spawn()?;
        let stranger = Stranger(child);
        if stranger.0.id() == pid {
            return Ok(stranger);
        }
    }
    anyhow::bail!("the number {pid} was not given out again in {TRIES} tries")
}

/// A program that finds the number in its file alive refuses to start, and a zombie's is: PostgreSQL's `postmaster.pid`, for one.
#[test]
fn who_died_is_put_away_before_who_takes_its_place_looks_for_it() -> Result<()> {
    let looks = |mesh: &Mesh| -> Result<Stack> {
        let (script, file) = (mesh.dir().join("odd.sh"), mesh.dir().join("odd.pid").display().to_string());
        fs::write(&script, format!("sleep 0.01; [ -e {file} ] && kill -0 $(cat {file}) && exit 1\necho $$ > {file}; exec sleep 1000\n"))?;
        Ok(Stack::new("looks").with(Part::shell("odd", &format!("exec /bin/sh {}", script.display()))))
    };
    let mesh = Mesh::start(looks)?;
    for starts in 2..=3 {
        let old = wait_for("its number written", SOON, || {
            let written = fs::read_to_string(mesh.dir().join("odd.pid")).unwrap_or_default();
            Ok(written.trim().parse::<u32>().ok().filter(|pid| mesh.pid("odd").is_ok_and(|now| now == *pid)))
        })?;
        signal(old, Signal::KILL)?;
        wait_for("another process of the component", SOON, || Ok(mesh.pid("odd").ok().filter(|pid| *pid != old && alive(*pid))))?;
        holds_for("it stays", Duration::from_millis(500), || Ok(mesh.events_of("odd", "component_started")?.len() <= starts))?;
    }
    mesh.end()
}

/// Mutation caught: an identity that is compared by its number alone (`Process::open` and `survey` in crates/os and agents/node).
#[test]
fn a_number_that_was_given_out_again_is_neither_adopted_nor_signalled() -> Result<()> {
    let mesh = Mesh::start(|_| Ok(Stack::new("reused").with(Part::shell("odd", "exec sleep 1000"))))?;
    let (old, broker) = (mesh.pid("odd")?, mesh.pid("broker")?);
    // Nobody of the node sees the end, and its journal goes on naming the number. (Stopped first: an agent that misses its guard starts
    // another.)
    let (guard, agent) = (mesh.guard_pid()?, mesh.agent_pid()?);
    signal(agent, Signal::STOP)?;
    for pid in [guard, agent, old] {
        signal(pid, Signal::KILL)?;
    }
    wait_for("the number free", SOON, || Ok((!fs::exists(format!("/proc/{old}"))?).then_some(())))?;
    let stranger = with_pid(old)?;
    mesh.guard()?;
    let new = wait_for("another process of the component", SOON, || {
        Ok(mesh.pid("odd").ok().filter(|pid| *pid != old && alive(*pid) && parent_of(*pid).is_some()))
    })?;
    let told = mesh.wait_event("odd", "component_exited", |_| true)?;
    let Some(Fact::ComponentExited(exited)) = told.fact else { anyhow::bail!("no fact") };
    ensure!(exited.while_away && exited.stragglers_killed == 0, "{exited:?}");
    ensure!(mesh.component("odd")?.incarnation.is_some_and(|i| i.start == 2) && mesh.pid("broker")? == broker);
    // Neither a stop of the component nor the end of the mesh reaches who has the number.
    mesh.razar(&["restart", "odd"])?.ok()?;
    wait_for("the second one's end", SOON, || Ok((!alive(new)).then_some(())))?;
    mesh.end()?;
    holds_for("the stranger lives", Duration::from_millis(500), || Ok(alive(stranger.0.id())))
}
