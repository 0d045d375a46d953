//! A job: what was asked for ([`spec`]), and what is kept of it on disk ([`record`], [`store`]).

pub mod id;
pub mod record;
pub mod spec;
pub mod store;
