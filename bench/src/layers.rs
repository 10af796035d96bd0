//! 77 components that are ready at once, in 8 layers of which each waits for all of the one before, with 77 start slots: from the first
//! spawn to the last readiness, beside 77 of the same spawned at once by nothing but a loop.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use crate::{
    floor,
    mesh::{Mesh, Sync, span},
    programs::Programs,
    report::{Line, Samples, Target},
};

/// Components.
const COMPONENTS: usize = 77;
/// Layers.
const LAYERS: usize = 8;
/// Boots, each of a new mesh.
const BOOTS: usize = 5;

/// Measures.
///
/// # Errors
/// When the mesh cannot be had, or does not boot.
pub(crate) async fn measure(programs: &Programs) -> Result<Vec<Line>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("razar.yaml");
    std::fs::write(&path, stack(&programs.demo())?)?;
    let (mut floors, mut boots) = (Samples::default(), Samples::default());
    for _ in 0..BOOTS {
        let demo = programs.binary("razar-demo-service");
        floors.push(tokio::task::spawn_blocking(move || floor::parallel(&demo, COMPONENTS)).await??);
        let mesh = Mesh::up(programs, &path, &[], Sync::Always).await?;
        let (took, ready) = span(&mesh.history().await?)?;
        ensure!(ready == COMPONENTS, "{ready} of {COMPONENTS} became ready");
        boots.push(took);
        mesh.down().await?;
    }
    Ok(vec![Line::times("77 ready at once in 8 layers, first spawn -> last ready", boots, &[Target::Ratio(3.0)]).beside(floors.median())])
}

fn stack(demo: &str) -> Result<String> {
    let mut text = format!("name: bench-layers\nmesh: {{ parallel_starts: {COMPONENTS} }}\ncomponents:\n");
    let layer = |n: usize| n * LAYERS / COMPONENTS;
    for n in 0..COMPONENTS {
        writeln!(text, "  c{n}:\n    chakra: heart\n    command: [{demo}, --name=c{n}, --notify]\n    readiness: {{ notify: true }}")?;
        let before: Vec<_> = (0..COMPONENTS).filter(|other| layer(*other) + 1 == layer(n)).collect();
        if !before.is_empty() {
            let waits = before.iter().map(|other| format!("c{other}: {{ condition: ready }}")).collect::<Vec<_>>();
            writeln!(text, "    depends_on: {{ {} }}", waits.join(", "))?;
        }
    }
    Ok(text)
}
