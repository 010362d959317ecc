//! The front-end of the workflow format `dflow/v1`: text in, checked graph or diagnostics out.

mod condition;
mod diagnostic;
mod reference;
mod spec;
mod units;

pub use condition::{CompiledCondition, ConditionError, EXPRESSION_BYTES_MAX, ITERATION_DEPTH_MAX};
pub use diagnostic::{Code, DIAGNOSTICS_MAX, Diagnostic, Place, Report, Severity};
pub use spec::*;

/// Most workers of a function unless its `pool.max` says otherwise; a node's slots bound it further.
pub const WORKERS_DEFAULT_MAX: u32 = 1024;
