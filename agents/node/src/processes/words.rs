//! What components say by themselves, on their notification sockets and in their logs, on its way to the loop. What a word means is the
//! specification's to say, and what follows from it the policy's.

use std::{sync::Arc, time::Duration};

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    v1::{self, probe::Check},
};
use razar_os::{Notification, NotifyError, NotifySocket};
use regex::Regex;
use tokio::sync::{mpsc, oneshot};

use super::ProcessNews;
use crate::{logs::Follow, policy::probing::Role};

/// Time until a word that the loop could not make use of is said to it again.
const AGAIN: Duration = Duration::from_secs(1);

/// A word on a notification socket. It is there, for the next agent too, until it is [done](Self::done); one that is dropped comes again.
#[derive(Debug)]
pub struct Word {
    /// Whose.
    pub instance: Instance,
    /// Of which incarnation.
    pub incarnation: Incarnation,
    said: Notification,
    done: oneshot::Sender<()>,
}

impl Word {
    /// The signs that it gives, and what was said: READY=1 answers startup and readiness, any message is a sign of life for liveness.
    #[must_use]
    pub fn signs(&self, spec: &v1::ComponentSpec) -> Vec<(Role, &'static str)> {
        told_roles(spec).filter_map(|role| Some((role, sign_of(role, &self.said)?))).collect()
    }

    /// What follows from it is written down.
    pub fn done(self) {
        // Where its component has gone meanwhile, nobody waits.
        let _ = self.done.send(());
    }
}

fn sign_of(role: Role, said: &Notification) -> Option<&'static str> {
    match role {
        Role::Startup | Role::Readiness => said.ready.then_some("READY=1"),
        Role::Liveness => (said.watchdog || said.ready).then_some("WATCHDOG=1"),
    }
}

fn told_roles(spec: &v1::ComponentSpec) -> impl Iterator<Item = Role> + '_ {
    let notifies = |role: &Role| matches!(role.probe(spec).and_then(|p| p.check.as_ref()), Some(Check::Notify(_)));
    Role::ALL.into_iter().filter(notifies)
}

/// Whether a component needs a notification socket.
pub(super) fn wants_notify(spec: &v1::ComponentSpec) -> bool {
    told_roles(spec).next().is_some()
}

/// Says each word to the loop. One is taken out of the socket only once the loop has written down what follows from it: an agent that dies
/// before leaves it to the next, who hears it again if this one died just after. Said twice, it means the same.
pub(super) async fn listen(socket: Arc<NotifySocket>, news: mpsc::Sender<ProcessNews>, instance: Instance, incarnation: Incarnation) {
    loop {
        match socket.peek().await {
            Ok(said) if !said.ready && !said.watchdog => {}
            Ok(said) => {
                let (done, is_done) = oneshot::channel();
                if news.send(ProcessNews::Word(Word { instance: instance.clone(), incarnation, said, done })).await.is_err() {
                    return;
                }
                if is_done.await.is_err() {
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            }
            Err(NotifyError::Malformed { pid, what }) => tracing::debug!(%instance, ?pid, what, "notification passed over"),
            Err(NotifyError::Io(_) | NotifyError::PathTooLong { .. }) => return,
        }
        if socket.take().is_err() {
            return;
        }
    }
}

/// Turns lines of a log into signs: the first in which the pattern of a role is found is that role's.
pub(super) async fn read_signs(
    mut follow: Follow,
    news: mpsc::Sender<ProcessNews>,
    instance: Instance,
    incarnation: Incarnation,
    mut roles: Vec<Role>,
    mut patterns: Vec<Regex>,
) {
    while !patterns.is_empty() {
        let Ok(found) = follow.find(&patterns).await else { return };
        for (place, line) in &found {
            let Some(role) = roles.get(*place).copied() else { continue };
            let said = format!("log: {}", line.shown().text);
            if news.send(ProcessNews::Sign(instance.clone(), incarnation, role, said)).await.is_err() {
                return;
            }
        }
        // From the last on, so that the places of the others stay.
        for (place, _) in found.iter().rev() {
            patterns.remove(*place);
            roles.remove(*place);
        }
    }
}

#[cfg(test)]
mod tests;
