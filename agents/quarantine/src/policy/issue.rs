//! What an isolation says of its cause: as the node judged the error when it gave the component up; else by the built-in error registry.

use razar_bus_schema::v1;
use razar_stack::errors::Registry;

/// Issue type of what an operator isolated.
pub const MANUAL: &str = "manual";

/// What was told of an error, else what is known of its text.
#[must_use]
pub fn of(told: Option<&v1::Issue>, error: &str) -> v1::Issue {
    told.filter(|issue| !issue.issue_type.is_empty()).cloned().unwrap_or_else(|| Registry::default().issue(error))
}
