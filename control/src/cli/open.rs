//! A workflow file as a command is given it: of our own format, or of one that is imported on the fly.

use super::exit::Exit;
use crate::import::{self, ImportOptions};
use crate::workflow::{self, Workflow};
use dflow_proto::limits::WORKFLOW_BYTES_MAX;
use std::io::Read;
use std::path::Path;

/// Loads the file and prints what is suspect, or prints what is wrong.
pub(super) fn open(path: &Path) -> Result<Workflow, Exit> {
    Ok(source(path)?.0)
}

/// As [`open`]; with the text of what was imported, which is in no file.
pub(super) fn source(path: &Path) -> Result<(Workflow, Option<String>), Exit> {
    source_with(path, &ImportOptions::default())
}

/// As [`open`], with a say in how a foreign file is imported.
pub(super) fn open_with(path: &Path, options: &ImportOptions) -> Result<Workflow, Exit> {
    Ok(source_with(path, options)?.0)
}

fn source_with(path: &Path, options: &ImportOptions) -> Result<(Workflow, Option<String>), Exit> {
    match foreign(path, options) {
        Some(imported) => imported.map(|(workflow, text)| (workflow, Some(text))),
        None => match workflow::load(path) {
            Ok(workflow) => {
                eprint!("{}", workflow.warnings);
                Ok((workflow, None))
            }
            Err(report) => {
                eprint!("{report}");
                Err(Exit::Usage)
            }
        },
    }
}

/// The workflow of another system's file; `None` if it is none, or
/// cannot be read (which `workflow::load` then words).
fn foreign(path: &Path, options: &ImportOptions) -> Option<Result<(Workflow, String), Exit>> {
    let file = std::fs::File::open(path).ok().filter(|f| f.metadata().is_ok_and(|m| m.is_file()))?;
    let mut bytes = Vec::new();
    file.take(WORKFLOW_BYTES_MAX + 1).read_to_end(&mut bytes).ok()?;
    let kind = import::sniff(&bytes)?;
    let name = path.display();
    let imported = match import::import(kind, &bytes, options) {
        Ok(imported) => imported,
        Err(error) => {
            eprintln!("error: {name}: {error}");
            return Some(Err(Exit::Usage));
        }
    };
    imported.warnings.iter().for_each(|warning| eprintln!("warning: {name}: {warning}"));
    let dir = path.parent().unwrap_or(Path::new("."));
    let parsed = workflow::parse(&imported.yaml, &format!("{name} (imported)"), dir).map_err(|report| {
        eprint!("{report}");
        Exit::Usage
    });
    Some(parsed.map(|workflow| (workflow, imported.yaml)))
}
