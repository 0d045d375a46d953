//! The runtime: from the words of the command line to a box and its record.
//!
//! ```text
//! cli ──► job::spec ──► launch::plan ──► supervisor ──► agentd_init (PID 1)
//!                                            │
//!                                            └──► job::record, on disk
//! ```
//!
//! Invariant: data flows one way. Only `cli` reads the command line and the environment; `launch` looks at the host and
//! the image (and `doctor`, which runs nothing); what the supervisor does follows from the plan alone.

pub mod cgroup;
pub mod cli;
pub mod control;
pub mod doctor;
pub mod job;
pub mod launch;
mod real_path;
pub mod supervisor;
