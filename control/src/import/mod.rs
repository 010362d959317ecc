//! Workflows of other systems, as `dflow/v1`: WfFormat traces and FaaSFlow's flat files.
//!
//! A reader ([`wfformat`], [`faasflow`]) makes a [`traced::Traced`] of a file: tasks, and the files
//! that they hand to each other. [`emit`] writes that down as a workflow of `synthetic` steps, which
//! read, wait and write as much as the trace says. The way back is [`export`].
//!
//! Data edges come from file names: who writes a file hands it to all who read it. What nobody writes
//! comes from outside; steps called `external` put it, so that reading it costs what reading costs.

mod condition;
mod cursor;
mod emit;
mod error;
pub mod export;

mod faasflow;
mod guard;
mod names;
mod options;
mod plan;
mod traced;
mod wfformat;
mod yaml;

pub use error::{ImportError, Warning};
pub use options::{ImportOptions, Mode};
pub use traced::Stats;

use dflow_proto::limits::WORKFLOW_BYTES_MAX;

/// A format that can be imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// A trace or a generated workflow of WfCommons, schema 1.0 to 1.6, JSON
    Wfformat,
    /// FaaSFlow's flat workflow, version 1, YAML
    Faasflow,
}

impl Kind {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Wfformat => "wfformat",
            Kind::Faasflow => "faasflow",
        }
    }
}

/// An imported workflow.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// The text of a `dflow/v1` file.
    pub yaml: String,
    /// What had to be assumed.
    pub warnings: Vec<Warning>,
    /// How much there is of it, in the sizes of the source.
    pub stats: Stats,
}

/// The format a file seems to be in, `None` if it is none of those (a `dflow/v1` file, above all).
///
/// A file that is cut off or otherwise broken is still told by its beginning, so that the error comes
/// from the reader that knows the format.
pub fn sniff(bytes: &[u8]) -> Option<Kind> {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(WORKFLOW_BYTES_MAX as usize)]);
    if text.trim_start().starts_with('{') {
        let has = |key: &str| text.contains(key);
        let trace = has("\"schemaVersion\"")
            || (has("\"workflow\"") && (has("\"jobs\"") || has("\"tasks\"") || has("\"specification\"")));
        return (trace && !has("\"apiVersion\"")).then_some(Kind::Wfformat);
    }
    let mut functions = false;
    for line in text.lines() {
        match line {
            _ if line.starts_with("apiVersion") => return None,
            // FaaSFlow's functions are a list; those of `dflow/v1` are a map.
            _ if functions && line.trim_start().starts_with("- ") => return Some(Kind::Faasflow),
            _ if line.trim_end() == "functions:" => functions = true,
            _ if line.trim_start().starts_with('#') || line.trim().is_empty() => {}
            _ => functions = false,
        }
    }
    None
}

/// Reads a file of another system and writes it as a `dflow/v1` file.
///
/// # Errors
/// The file is no such workflow; the error says where and what to do.
pub fn import(kind: Kind, bytes: &[u8], options: &ImportOptions) -> Result<Imported, ImportError> {
    options.check()?;
    if bytes.len() as u64 > WORKFLOW_BYTES_MAX {
        return Err(ImportError::FileTooLarge {
            have_bytes: bytes.len() as u64,
            max_bytes: WORKFLOW_BYTES_MAX,
        });
    }
    let text = std::str::from_utf8(bytes).map_err(|e| ImportError::NotText { offset: e.valid_up_to() })?;
    let mut warnings = Vec::new();
    let traced = match kind {
        Kind::Wfformat => wfformat::read(text, &mut warnings)?,
        Kind::Faasflow => faasflow::read(text, options, &mut warnings)?,
    };
    traced.check()?;
    let stats = traced.stats();
    let yaml = emit::emit(&traced, &stats, kind, options)?;
    Ok(Imported { yaml, warnings, stats })
}
