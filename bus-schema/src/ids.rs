//! Identities as types: mesh, node, component, instance, incarnation, incident, and the hashes that make ids computable.
//! Nothing here is random: two replicas that see the same facts compute the same ids.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};

use crate::v1;

/// Longest name of a mesh, node, chakra or component, in bytes: a subject of five of them stays short.
pub const NAME_BYTES_MAX: usize = 63;

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The name is empty, too long, or has a character other than a–z, 0–9, `-` and `_`, or does not begin with a letter or digit.
    #[error("`{0}` is no name: a letter or digit, then at most 62 of a-z, 0-9, `-`, `_`")]
    Name(String),
    /// Not of the form `component` or `component.ordinal`.
    #[error("`{0}` is no instance: `api` or `api.1`")]
    Instance(String),
    /// Not of the form `generation.start`.
    #[error("`{0}` is no incarnation: `1.3`")]
    Incarnation(String),
    /// Not of the form `instance@incarnation` with an optional `+count`.
    #[error("`{0}` is no incident: `api@1.3`")]
    Incident(String),
    /// A message lacks the field that identifies its object.
    #[error("the message names no {0}")]
    Missing(&'static str),
}

/// Whether `name` may name a mesh, node, chakra or component.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= NAME_BYTES_MAX
        && bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
}

/// One replica of a component, printed `api` for ordinal 0 and `api.1` for others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance {
    /// Component name.
    pub component: String,
    /// Ordinal from 0.
    pub ordinal: u32,
}

impl Instance {
    /// An instance of `component`.
    pub fn new(component: impl Into<String>, ordinal: u32) -> Self {
        Self { component: component.into(), ordinal }
    }

    /// Form with the ordinal always told, as in keys and heartbeat subjects: `api.0`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}.{}", self.component, self.ordinal)
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ordinal == 0 { f.write_str(&self.component) } else { write!(f, "{}.{}", self.component, self.ordinal) }
    }
}

impl FromStr for Instance {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = || IdError::Instance(text.to_owned());
        let (component, ordinal) = match text.split_once('.') {
            None => (text, 0),
            Some((component, ordinal)) => (component, ordinal.parse().map_err(|_| bad())?),
        };
        if !is_name(component) {
            return Err(bad());
        }
        Ok(Self::new(component, ordinal))
    }
}

impl From<&Instance> for v1::InstanceId {
    fn from(i: &Instance) -> Self {
        Self { component: i.component.clone(), ordinal: i.ordinal }
    }
}

impl TryFrom<&v1::InstanceId> for Instance {
    type Error = IdError;

    fn try_from(i: &v1::InstanceId) -> Result<Self, IdError> {
        if is_name(&i.component) { Ok(Self::new(i.component.clone(), i.ordinal)) } else { Err(IdError::Name(i.component.clone())) }
    }
}

/// One life of an instance, ordered by generation, then start; printed `1.3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Incarnation {
    /// Number of the instance's placement, from 1; 0: none.
    pub generation: u64,
    /// The node's start counter inside the generation, from 1; 0: never started.
    pub start: u64,
}

impl Incarnation {
    /// An incarnation.
    #[must_use]
    pub const fn new(generation: u64, start: u64) -> Self {
        Self { generation, start }
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.start)
    }
}

impl FromStr for Incarnation {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let parts = text.split_once('.').and_then(|(g, s)| Some(Self::new(g.parse().ok()?, s.parse().ok()?)));
        parts.ok_or_else(|| IdError::Incarnation(text.to_owned()))
    }
}

impl From<Incarnation> for v1::Incarnation {
    fn from(i: Incarnation) -> Self {
        Self { generation: i.generation, start: i.start }
    }
}

impl From<&v1::Incarnation> for Incarnation {
    fn from(i: &v1::Incarnation) -> Self {
        Self::new(i.generation, i.start)
    }
}

/// An incident of an instance: the incarnation that failed first, and how often that one had shown life before.
/// Printed `api@1.3`; the count only where one incarnation fails again: `api@1.3+1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incident {
    /// Instance that failed.
    pub instance: Instance,
    /// Incarnation that failed first.
    pub incarnation: Incarnation,
    /// Signs of life that it had given after earlier failures.
    pub signs_of_life: u64,
}

impl fmt::Display for Incident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.instance, self.incarnation)?;
        if self.signs_of_life > 0 { write!(f, "+{}", self.signs_of_life) } else { Ok(()) }
    }
}

impl FromStr for Incident {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = || IdError::Incident(text.to_owned());
        let (instance, rest) = text.split_once('@').ok_or_else(bad)?;
        let (incarnation, signs) = match rest.split_once('+') {
            None => (rest, 0),
            Some((incarnation, signs)) => (incarnation, signs.parse().map_err(|_| bad())?),
        };
        Ok(Self {
            instance: instance.parse().map_err(|_| bad())?,
            incarnation: incarnation.parse().map_err(|_| bad())?,
            signs_of_life: signs,
        })
    }
}

impl From<&Incident> for v1::IncidentId {
    fn from(i: &Incident) -> Self {
        Self {
            instance: Some((&i.instance).into()),
            incarnation: Some(i.incarnation.into()),
            signs_of_life: i.signs_of_life,
            mesh_cause: String::new(),
        }
    }
}

impl TryFrom<&v1::IncidentId> for Incident {
    type Error = IdError;

    fn try_from(i: &v1::IncidentId) -> Result<Self, IdError> {
        let instance = i.instance.as_ref().ok_or(IdError::Missing("instance"))?;
        let incarnation = i.incarnation.as_ref().ok_or(IdError::Missing("incarnation"))?;
        Ok(Self { instance: instance.try_into()?, incarnation: incarnation.into(), signs_of_life: i.signs_of_life })
    }
}

/// Lower-case hex SHA-256 of `bytes`.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Trace id computed from what the trace is about (`mission:<id>`, `incident:<id>` with its mesh), never zero.
#[must_use]
pub fn trace_id(subject: &str) -> [u8; 16] {
    let mut id = [0; 16];
    id.iter_mut().zip(Sha256::digest(subject.as_bytes())).for_each(|(to, from)| *to = from);
    if id == [0; 16] { [1; 16] } else { id }
}

/// Span id computed from what the span is about, never zero.
#[must_use]
pub fn span_id(subject: &str) -> [u8; 8] {
    let mut id = [0; 8];
    id.iter_mut().zip(Sha256::digest(subject.as_bytes())).for_each(|(to, from)| *to = from);
    if id == [0; 8] { [1; 8] } else { id }
}

/// `traceparent` header of a sampled span.
#[must_use]
pub fn traceparent(trace: [u8; 16], span: [u8; 8]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    format!("00-{}-{}-01", hex(&trace), hex(&span))
}

/// The trace and span id in a `traceparent` header, if it is well formed and neither is zero.
#[must_use]
pub fn parse_traceparent(header: &str) -> Option<([u8; 16], [u8; 8])> {
    let mut parts = header.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if version.len() != 2 || flags.len() != 2 || version == "ff" {
        return None;
    }
    let (trace, span) = (unhex::<16>(trace)?, unhex::<8>(span)?);
    (trace != [0; 16] && span != [0; 8]).then_some((trace, span))
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    let mut out = [0; N];
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_narrow() {
        for good in ["a", "memory-store", "third_eye", "7zip"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "_", "-a", "A", "a.b", "a b", "ü", &"a".repeat(64)] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn incidents_print_as_people_type_them() {
        for text in ["api@1.3", "api.1@1.3", "api@1.3+2"] {
            assert_eq!(text.parse::<Incident>().unwrap().to_string(), text);
        }
        for bad in ["api", "api@1", "@1.2", "api@1.2+", "api@1.2+x"] {
            assert!(bad.parse::<Incident>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn incarnations_order_by_generation_then_start(a in any::<(u64, u64)>(), b in any::<(u64, u64)>()) {
            prop_assert_eq!(Incarnation::new(a.0, a.1).cmp(&Incarnation::new(b.0, b.1)), a.cmp(&b));
        }

        #[test]
        fn traceparents_survive_a_round_trip(trace in any::<[u8; 16]>(), span in any::<[u8; 8]>()) {
            prop_assume!(trace != [0; 16] && span != [0; 8]);
            prop_assert_eq!(parse_traceparent(&traceparent(trace, span)), Some((trace, span)));
        }

        #[test]
        fn any_header_is_survived(header in ".*") {
            let _ = parse_traceparent(&header);
            let _ = header.parse::<Incident>();
        }
    }
}
