//! `razar-bench`: how fast the mesh is, beside the floor that this machine allows, measured in the same run.
//! It starts meshes of its own, as a user would, in temporary state directories, and leaves nothing behind. It reports; it never
//! fails because something is slow. The targets are the project's; what was measured is in docs/benchmarks.md.

mod bare;
mod broker;
mod crash;
mod floor;
mod hang;
mod ladder;
mod layers;
mod mesh;
mod programs;
mod report;
mod schedule;
mod silence;
mod story;
mod system;
mod told;
mod unified;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::{programs::Programs, report::Report};

/// How fast the mesh is, beside the floor of this machine.
#[derive(Debug, Parser)]
#[command(name = "razar-bench")]
struct Args {
    /// What to measure; nothing named: all of it, in about seven minutes
    #[arg(value_enum)]
    sections: Vec<Section>,
    /// The lines as one JSON array, for other programs
    #[arg(long)]
    json: bool,
    /// Kills per measurement of `crash` and `ready`
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(10..=900))]
    kills: u32,
    /// Hangs per measurement of `hang`
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    hangs: u32,
    /// Seconds over which `watch` adds up CPU
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(5..=3600))]
    watch: u64,
}

/// A part of the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// kill -9 until the port listens again, beside a bare respawn
    Crash,
    /// kill -9 until a subscriber has the stored component_ready, beside the same way without the mesh
    Ready,
    /// Stopped and deadlocked components until they are replaced
    Hang,
    /// From a component that its node gave up to the start by recovery's order, beside the same way without the mesh
    Ladder,
    /// 77 components in 8 layers, beside 77 spawned at once
    Layers,
    /// examples/unified-77, profile full, beside the best schedule
    Unified,
    /// A node that falls silent until it is told; the watchdog's CPU at ten thousand beats a second
    Silence,
    /// Memory and CPU of the mesh while it watches 77 components; status queries
    Watch,
    /// The same with three replicas of each agent
    Replicas,
    /// The story of one incident from a stream of a million events
    Story,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    // Dropped on the first signal: a mesh that is up ends as its handle does.
    let ended = tokio::select! {
        ended = measure(&args) => ended,
        () = told_to_end() => return ExitCode::from(130),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("razar-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn told_to_end() {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => drop(terminate.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}

async fn measure(args: &Args) -> Result<()> {
    let programs = Programs::find()?;
    let asked = |section| args.sections.is_empty() || args.sections.contains(&section);
    let mut report = Report::new(args.json);
    report.machine();
    if asked(Section::Crash) || asked(Section::Ready) {
        let parts = crash::Parts { listening: asked(Section::Crash), ready: asked(Section::Ready), kills: args.kills };
        report.take("crash", crash::measure(&programs, &parts).await);
    }
    if asked(Section::Hang) {
        report.take("hang", hang::measure(&programs, args.hangs).await);
    }
    if asked(Section::Silence) {
        report.take("silence", silence::measure(&programs).await);
    }
    if asked(Section::Ladder) {
        report.take("ladder", ladder::measure(&programs).await);
    }
    if asked(Section::Layers) {
        report.take("layers", layers::measure(&programs).await);
    }
    if asked(Section::Unified) || asked(Section::Watch) {
        let parts = unified::Parts { boot: asked(Section::Unified), watch: asked(Section::Watch).then_some(args.watch) };
        report.take("unified", unified::measure(&programs, &parts).await);
    }
    if asked(Section::Replicas) {
        report.take("replicas", unified::replicas(&programs, args.watch).await);
    }
    if asked(Section::Story) {
        report.take("story", story::measure(&programs).await);
    }
    report.finish()
}
