//! The stack file and the plan, pure: a file's text goes in; diagnostics, a storable document, a plan and records come out.
//! No IO, no clock, no environment: text, directory, variables, nodes and history are passed in. Starting what is planned is
//! the node's part, writing it down the orchestrator's, printing it the command line's.

mod check;
mod diagnostic;
mod document;
pub mod errors;
pub mod file;
pub mod fill;
mod load;
pub mod names;
mod plan;
mod read;
mod schema;
mod system;
mod tree;
pub mod units;

pub use diagnostic::{Code, DIAGNOSTICS_MAX, Diagnostic, Diagnostics, Excerpt, Position, Severity};
pub use document::{
    ChakraSpec, DOCUMENT_BYTES_MAX, DOCUMENT_VERSION, DocumentError, HookSpec, KnownErrorSpec, Limits, ProfileSpec, ResolveError, Resolved,
    StackDocument, spec_hash,
};
pub use load::{Loaded, Outside, Source, load, load_with};
pub use plan::{
    Basis, Change, History, INSTANCES_MAX, NodeFacts, Path, Plan, PlanError, Row, Running, Step, Stop, TAKES_GUESS, Waited, instances, plan,
};
pub use schema::schema;
pub use system::{STACK as SYSTEM_STACK, SystemAgent, SystemBroker, SystemStack, system};
pub use tree::{FILE_BYTES_MAX, NODES_MAX};
