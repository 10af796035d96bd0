//! What ails components beyond what one process draws for itself, and by which figures they are healed.

use std::{collections::BTreeSet, time::Duration};

use razar_bus_schema::ids::Instance;
use razar_quarantine::policy as quarantine;
use razar_recovery::policy as recovery;

use super::{
    faults::{Fault, Faults},
    process::{Fate, Proc},
    random::Rng,
    world::{Happening, World},
};

/// Figures of recovery and quarantine, some of them far smaller than their defaults so that a short run reaches them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Those of the ladder.
    pub ladder: recovery::Limits,
    /// Those of quarantine.
    pub quarantine: quarantine::Limits,
}

impl Figures {
    /// The figures of a seed.
    pub fn random(rng: &mut Rng) -> Self {
        let ladder = recovery::Limits {
            cooldown: Duration::from_secs(*rng.pick(&[10, 60])),
            flaps_max: *rng.pick(&[2, 3, 10]),
            brake_roots: *rng.pick(&[2, 3, 5]),
            brake_percent: *rng.pick(&[20, 50]),
            ..recovery::Limits::default()
        };
        let isolation = Duration::from_secs(*rng.pick(&[20, 60, 300, 1800]));
        Self { ladder, quarantine: quarantine::Limits { isolation, soak: Duration::from_secs(5) } }
    }
}

/// Components with an ailment.
#[derive(Debug, Clone, Default)]
pub struct Ailments {
    /// Those that die when what they need does not serve.
    pub leaners: BTreeSet<String>,
    /// Those that end again and again, each time after having served for a while.
    pub flappers: BTreeSet<String>,
    /// Those that die soon after each start, whatever is done, until somebody mends them.
    pub broken: BTreeSet<String>,
    /// Instances that die soon after each start until their state on this machine is cleared.
    pub dirty: BTreeSet<(usize, Instance)>,
}

impl Ailments {
    /// Those of a seed.
    pub fn random(rng: &mut Rng, components: &[String], faults: &Faults) -> Self {
        let mut draw = |fault, share| {
            let mut chosen = BTreeSet::new();
            for name in components {
                if rng.per_mille(share) && faults.on(fault) {
                    chosen.insert(name.clone());
                }
            }
            chosen
        };
        Self { leaners: draw(Fault::Leans, 400), flappers: draw(Fault::Flaps, 200), ..Self::default() }
    }

    /// Whether nothing that the ladder does helps an instance on a machine.
    #[must_use]
    pub fn is_past_help(&self, h: usize, id: &Instance) -> bool {
        self.broken.contains(&id.component) || self.dirty.contains(&(h, id.clone()))
    }

    /// The fate of a process that is born with what ails its component.
    pub fn taint(&self, fate: &mut Fate, h: usize, id: &Instance, rng: &mut Rng, faults: &Faults) {
        if self.is_past_help(h, id) {
            fate.fails = Some(rng.millis(0, 2_500));
        }
        if self.flappers.contains(&id.component) && faults.on(Fault::Flaps) {
            fate.dies = Some((fate.ready_after + rng.millis(1_200, 25_000), 1));
        }
        fate.leans = self.leaners.contains(&id.component);
    }
}

impl World {
    /// Somebody breaks a component, or mends it.
    pub(super) fn breaks_or_mends(&mut self) {
        let name = self.chaos.pick(&self.stacks.components).clone();
        if self.ailments.broken.remove(&name) {
            self.say("world", format_args!("{name} is mended"));
        } else {
            self.say("world", format_args!("{name} is broken: each of its processes dies soon"));
            self.ailments.broken.insert(name);
        }
    }

    /// Whether something that a process cannot do without does not serve on its machine.
    #[must_use]
    pub fn is_let_down(&self, h: usize, proc: &Proc) -> bool {
        let needs = proc.spec.depends_on.iter().filter(|d| d.required && d.component != proc.instance.component);
        needs.into_iter().any(|d| {
            let mut others = self.hosts[h].procs.values().filter(|p| p.instance.component == d.component);
            let one_shot = self.stacks.one_shots.contains(&d.component);
            !one_shot && !others.any(|p| p.hang.is_none() && p.serves(self.now))
        })
    }

    /// A process that leans on others looks whether they serve, and ends if they do not.
    pub(super) fn leans(&mut self, h: usize, pid: u32) -> bool {
        let Some(proc) = self.hosts[h].procs.get(&pid) else { return false };
        if proc.hang.is_none() && self.is_let_down(h, proc) {
            return true;
        }
        let wait = self.luck.millis(200, 1_500);
        self.later(wait, Happening::ProcStep(h, pid, super::host::Step::Leans));
        false
    }
}
