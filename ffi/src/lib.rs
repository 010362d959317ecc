//! libdflow: what runs inside a function process.
//!
//! A zygote ([`zygote`]) loads a function's code and forks workers; a worker ([`worker`]) executes
//! invocations one after the other; an invocation ([`invocation`]) reads its inputs and writes its
//! outputs in memory shared with the node. `include/dflow.h` is the interface of functions,
//! `include/dflow_worker.h` that of language bindings. Nothing here links anything but libc.

pub mod abi;
pub mod abi_worker;
mod fault;
mod input;
mod invocation;
mod json;
mod memory;
mod node;
mod output;
mod process;
mod runtime;
mod segments;
mod worker;
mod zygote;

pub use fault::{Code, Fault};
pub use input::{Got, View};
pub use invocation::{Invocation, Returned};
pub use worker::Worker;
pub use zygote::{Served, Zygote};
