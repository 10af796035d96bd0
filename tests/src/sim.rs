//! The mesh in one thread, from a seed: the policies of all six agents as they are, around them a simulated bus, two
//! clocks per machine, disks, processes, and an operator, all of which fail as the fault catalogue says. After every step the
//! invariants of the reliability contract are asserted by an oracle that shares no code with the policies.
//! No IO, no threads, no real time: the same seed gives the same story, line by line.
#![expect(
    clippy::collapsible_match,
    clippy::result_unit_err,
    clippy::should_implement_trait,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a simulation is a test: it may fail loudly"
)]

pub mod ailments;
pub mod bus;
pub mod calm;
pub mod checks;
pub mod disk;
pub mod faults;
pub mod healing;
pub mod host;
pub mod operator;
pub mod oracle;
pub mod process;
pub mod random;
pub mod registry;
pub mod replica;
pub mod run;
pub mod stack;
pub mod story;
pub mod verdicts;
pub mod watch;
pub mod world;
