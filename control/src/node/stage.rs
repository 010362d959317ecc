//! Putting a run's inputs into the store, by the thread that submits it.

use super::engine::{Request, Requests};
use super::error::SubmitError;
use super::{Given, RunSpec};
use crate::workflow::{InputArg, InputData};
use crossbeam::channel::bounded;
use dflow_proto::RunId;
use dflow_proto::ids::Extent;
use dflow_proto::store::StoreError;
use dflow_shm::segment::PartMut;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Read from a file at a time: stays in the second-level cache between the two copies.
const PIECE_BYTES: usize = 256 << 10;

/// Memory for one input: where, and the right to write there.
pub(super) type StageGrant = Result<(Extent, PartMut), StoreError>;

/// A run that has a name and inputs in the store, but has not begun.
pub(super) struct Staged {
    pub(super) run: RunId,
    /// By index of the input.
    pub(super) inputs: Vec<Extent>,
}

/// Checks all inputs first, then writes them. Nothing is left behind on failure.
pub(super) fn stage(requests: &Requests, spec: &RunSpec) -> Result<Staged, SubmitError> {
    let data = check(spec)?;
    let (reply, run) = bounded(1);
    requests.send(Request::Open { reply })?;
    let run = run.recv().map_err(|_| SubmitError::NodeGone)?;
    let files = spec.workflow.inputs.iter().map(|i| i.file);
    let names = spec.workflow.inputs.iter().map(|i| i.name.as_str());
    let written: Result<Vec<_>, _> = data
        .into_iter()
        .zip(files)
        .zip(names)
        .map(|((data, file), name)| write(requests, run, name, &data, file))
        .collect();
    match written {
        Ok(inputs) => Ok(Staged { run, inputs }),
        Err(error) => {
            requests.send(Request::Forget { run })?;
            Err(error)
        }
    }
}

fn check(spec: &RunSpec) -> Result<Vec<InputData>, SubmitError> {
    for (name, _) in &spec.inputs {
        if !spec.workflow.inputs.iter().any(|i| i.name == *name) {
            // The front-end words the error.
            spec.workflow.input_bytes(name, None)?;
        }
    }
    let value =
        |name: &str| spec.inputs.iter().rev().find(|(n, _)| n == name).map(|(_, given)| given.as_arg());
    let inputs = spec.workflow.inputs.iter();
    inputs.map(|i| Ok(spec.workflow.input_bytes(&i.name, value(&i.name))?)).collect()
}

fn write(
    requests: &Requests,
    run: RunId,
    name: &str,
    data: &InputData,
    file: bool,
) -> Result<Extent, SubmitError> {
    let bytes = match data {
        InputData::Bytes(bytes) => bytes.len() as u64,
        InputData::File { bytes, .. } => *bytes,
    };
    let (reply, grant) = bounded(1);
    requests.send(Request::Stage { run, bytes, file, reply })?;
    let grant = grant.recv().map_err(|_| SubmitError::NodeGone)?;
    let store = |source| SubmitError::Store { name: name.into(), source };
    let (extent, part) = grant.map_err(store)?;
    match data {
        InputData::Bytes(bytes) => part.copy_in(0, bytes),
        InputData::File { path, .. } => read_into(&part, bytes, path)
            .map_err(|source| SubmitError::Read { name: name.into(), path: path.clone(), source })?,
    }
    Ok(Extent { bytes, ..extent })
}

/// Copies exactly `bytes` of a file, which may have changed its length since it was checked.
fn read_into(part: &PartMut, bytes: u64, path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut piece = vec![0u8; PIECE_BYTES];
    let mut at = 0;
    while (at as u64) < bytes {
        let want = piece.len().min(bytes as usize - at);
        let got = file.read(&mut piece[..want])?;
        if got == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was read",
            ));
        }
        part.copy_in(at, &piece[..got]);
        at += got;
    }
    Ok(())
}

impl Given {
    fn as_arg(&self) -> InputArg<'_> {
        match self {
            Given::Text(text) => InputArg::Text(text),
            Given::File(path) => InputArg::File(path),
            Given::Json(json) => InputArg::Json(json),
        }
    }
}
