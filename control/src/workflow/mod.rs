//! The front-end of the workflow format `dflow/v1`: text in, checked graph or diagnostics out.
//!
//! A file goes through three stages, each of which finds all of its errors before the next begins
//! to guess: `yaml` makes a tree that knows its places; the readers (`function`, `step`,
//! `inputs`, `settings`) make declarations of it; `link` resolves the references between them
//! into a [`Graph`]. A declaration that is in error stays known by name, so that one mistake gives
//! one diagnostic.
//!
//! [`Graph`]: dflow_core::graph::Graph

mod condition;
mod diagnostic;
mod flow;
mod function;
mod inputs;
mod link;
mod load;
mod names;
mod reader;
mod reference;
mod settings;
mod spec;
mod step;
mod units;
mod value;
mod yaml;

pub use condition::{CompiledCondition, ConditionError, EXPRESSION_BYTES_MAX, ITERATION_DEPTH_MAX};
pub use diagnostic::{Code, DIAGNOSTICS_MAX, Diagnostic, Place, Report, Severity};
pub use inputs::{InputArg, InputData, InputError};
pub use load::{load, parse};
pub use spec::*;
pub use value::{element_bytes, list_elements};

/// Most workers of a function unless its `pool.max` says otherwise; a node's slots bound it further.
pub const WORKERS_DEFAULT_MAX: u32 = 1024;

/// Bytes of `512`, `4KiB`, `1MiB`, `2GiB`, `3MB`, as in a workflow file.
///
/// # Errors
/// Text that says how to write it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    units::size_bytes(text)
}
