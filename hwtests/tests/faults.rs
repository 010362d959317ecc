//! Functions, files and machines that misbehave: each run ends in the right error (or in the right
//! result), names step and attempt, and leaves no process behind.

#![allow(clippy::print_stdout, missing_docs)]

#[path = "faults/functions.rs"]
mod functions;
#[path = "faults/limits.rs"]
mod limits;
#[path = "faults/process.rs"]
mod process;
#[path = "faults/python.rs"]
mod python;
