//! A job: what was asked for ([`spec`]), and what is kept of it on disk ([`record`], [`store`]).

pub mod brief;
pub mod events;
pub mod id;
mod in_use;
pub mod logs;
pub(crate) mod number;
pub mod record;
pub mod restart;
pub mod spec;
pub mod store;
pub mod usage;
