//! From messages of the contract to what people read. Pure: no clock, no terminal, no bus; `now` and the program's name are passed in.

pub(crate) mod event;
pub(crate) mod incident;
pub(crate) mod log;
pub(crate) mod mesh;
pub(crate) mod plan;
pub(crate) mod spec;
pub(crate) mod status;
pub(crate) mod text;
pub(crate) mod time;
pub(crate) mod why;
