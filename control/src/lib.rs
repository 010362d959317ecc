//! The DFlow node and the `dflow` command.
//!
//! - [`workflow`]: the front-end of the format `dflow/v1`: text in, checked graph or diagnostics out;
//! - [`graphview`]: a workflow as a picture;
//! - [`import`]: workflows of other systems;
//! - [`history`]: past runs;
//! - [`trace`]: where the time of a run went;
//! - [`report`]: the same as a page for people;
//! - [`bench`]: workflows under load, beside imitated systems;
//! - [`doctor`]: whether a machine is fit for a node;
//! - [`netns`]: a network of namespaces, to measure and test in;
//! - [`node`]: the engine that owns scheduler, store and function processes;
//! - [`bundle`]: a workflow with the files it needs;
//! - [`daemon`]: the node as a service, and [`api`], how it is asked over HTTP;
//! - [`client`]: asking it;
//! - [`cli`]: the command.

pub mod api;
pub mod bench;
pub mod bundle;
pub mod cli;
pub mod client;
pub mod daemon;
pub mod doctor;
pub mod graphview;
pub mod history;
pub mod import;
pub mod netns;
pub mod node;
pub mod report;
mod text;
pub mod trace;
pub mod workflow;
