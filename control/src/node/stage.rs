//! Putting a run's inputs into the store, by the thread that submits it.

use super::engine::{Request, Requests, Submission};
use super::error::SubmitError;
use super::{Done, Given, RunSpec, Spread, Watch};
use crate::workflow::{InputArg, InputData, InputError, InputSpec, Workflow};
use crossbeam::channel::bounded;
use dflow_core::graph::StartPolicy;
use dflow_proto::RunId;
use dflow_proto::ids::Extent;
use dflow_proto::store::StoreError;
use dflow_shm::segment::PartMut;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;

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

/// A run that has a name and takes inputs, but has not begun. Dropping it gives their memory back.
pub struct OpenRun {
    requests: Requests,
    workflow: Arc<Workflow>,
    run: RunId,
    /// By index of the input.
    inputs: Vec<Option<Extent>>,
    spread: Spread,
    begun: bool,
}

/// Memory of the store for one input of an [`OpenRun`], filled from front to back. What has been
/// written is not kept anywhere else.
#[derive(Debug)]
pub struct InputWriter {
    index: usize,
    extent: Extent,
    part: PartMut,
    at: usize,
    bytes: usize,
}

/// The encoded values of all inputs, or what is wrong with the first that is wrong.
pub(super) fn check(spec: &RunSpec) -> Result<Vec<InputData>, SubmitError> {
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

impl OpenRun {
    pub(super) fn open(requests: Requests, workflow: Arc<Workflow>) -> Result<Self, SubmitError> {
        let (reply, run) = bounded(1);
        requests.send(Request::Open { reply })?;
        let run = run.recv().map_err(|_| SubmitError::NodeGone)?;
        let inputs = vec![None; workflow.inputs.len()];
        Ok(OpenRun { requests, workflow, run, inputs, spread: Spread::default(), begun: false })
    }

    /// The run's id.
    pub fn id(&self) -> RunId {
        self.run
    }

    /// What is to run.
    pub fn workflow(&self) -> &Arc<Workflow> {
        &self.workflow
    }

    /// The declaration of an input.
    ///
    /// # Errors
    /// There is no such input.
    pub fn spec(&self, name: &str) -> Result<&InputSpec, SubmitError> {
        Ok(&self.workflow.inputs[self.index(name)?])
    }

    /// Checks a value and writes it; it replaces what was written before.
    ///
    /// # Errors
    /// When there is no such input, the value is refused or unreadable, or the store cannot take it.
    pub fn put(&mut self, name: &str, given: &Given) -> Result<(), SubmitError> {
        let index = self.index(name)?;
        let data = self.workflow.input_bytes(name, Some(given.as_arg()))?;
        self.write(index, &data)
    }

    /// Memory for a value of exactly `bytes` that the caller writes piece by piece. Waits while the
    /// store is full, at most until it is clear that nothing will make room. The caller answers for
    /// what the input's type demands of the bytes.
    ///
    /// # Errors
    /// When there is no such input, `bytes` is more than it allows, or the store cannot take it.
    pub fn writer(&self, name: &str, bytes: u64) -> Result<InputWriter, SubmitError> {
        let index = self.index(name)?;
        let bytes_max = self.workflow.inputs[index].bytes_max;
        if bytes_max > 0 && bytes > bytes_max {
            let why = format!("{bytes} bytes; at most {bytes_max} are allowed");
            return Err(InputError::Refused { name: name.into(), why }.into());
        }
        self.reserve(index, bytes)
    }

    /// The input is whole; it replaces what was written before.
    ///
    /// # Panics
    /// If bytes are missing: [`InputWriter::missing_bytes`] must be 0.
    pub fn written(&mut self, writer: InputWriter) {
        assert_eq!(writer.missing_bytes(), 0, "an input that is not whole");
        self.inputs[writer.index] = Some(writer.extent);
    }

    /// Over which nodes of the cluster it is to be spread; as [`Spread::Auto`] does unless this is called.
    pub fn spread(&mut self, spread: Spread) {
        self.spread = spread;
    }

    /// Begins the run. Inputs that were not given take their defaults.
    ///
    /// # Errors
    /// When an input without default was not given, the store cannot take one, or a node that is to take part
    /// cannot.
    pub fn begin(mut self, start: Option<StartPolicy>, done: Done) -> Result<Watch, SubmitError> {
        for index in 0..self.inputs.len() {
            if self.inputs[index].is_none() {
                let data = self.workflow.input_bytes(&self.workflow.inputs[index].name, None)?;
                self.write(index, &data)?;
            }
        }
        let inputs = self.inputs.iter().flatten().copied().collect();
        let (reply, accepted) = bounded(1);
        self.requests.send(Request::Submit(Submission {
            workflow: self.workflow.clone(),
            start,
            spread: std::mem::take(&mut self.spread),
            staged: Staged { run: self.run, inputs },
            done,
            reply,
        }))?;
        self.begun = true;
        accepted.recv().map_err(|_| SubmitError::NodeGone)?
    }

    fn index(&self, name: &str) -> Result<usize, SubmitError> {
        match self.workflow.inputs.iter().position(|i| i.name == name) {
            Some(index) => Ok(index),
            // The front-end words the error.
            None => Err(self.workflow.input_bytes(name, None).map_or_else(SubmitError::from, |_| {
                unreachable!("an input that is not declared has no default")
            })),
        }
    }

    pub(super) fn write(&mut self, index: usize, data: &InputData) -> Result<(), SubmitError> {
        let bytes = match data {
            InputData::Bytes(bytes) => bytes.len() as u64,
            InputData::File { bytes, .. } => *bytes,
        };
        let mut writer = self.reserve(index, bytes)?;
        match data {
            InputData::Bytes(bytes) => writer.write_all(bytes),
            InputData::File { path, .. } => File::open(path).and_then(|file| writer.read_in(file)),
        }
        .map_err(|source| SubmitError::Read {
            name: self.workflow.inputs[index].name.clone(),
            path: match data {
                InputData::File { path, .. } => path.clone(),
                InputData::Bytes(_) => Default::default(),
            },
            source,
        })?;
        self.written(writer);
        Ok(())
    }

    fn reserve(&self, index: usize, bytes: u64) -> Result<InputWriter, SubmitError> {
        let spec = &self.workflow.inputs[index];
        let (reply, grant) = bounded(1);
        self.requests.send(Request::Stage { run: self.run, bytes, file: spec.file, reply })?;
        let grant = grant.recv().map_err(|_| SubmitError::NodeGone)?;
        let (extent, part) =
            grant.map_err(|source| SubmitError::Store { name: spec.name.clone(), source })?;
        Ok(InputWriter { index, extent: Extent { bytes, ..extent }, part, at: 0, bytes: bytes as usize })
    }
}

impl Drop for OpenRun {
    fn drop(&mut self) {
        if !self.begun {
            // A node that is gone has given everything back.
            let _ = self.requests.send(Request::Forget { run: self.run });
        }
    }
}

impl InputWriter {
    /// Bytes that are still to be written.
    pub fn missing_bytes(&self) -> usize {
        self.bytes - self.at
    }

    /// Copies exactly what is missing from `source`, which may have changed its length since it was
    /// looked at.
    ///
    /// # Errors
    /// When it cannot be read, or ends too early.
    pub fn read_in(&mut self, mut source: impl Read) -> io::Result<()> {
        let mut piece = vec![0u8; PIECE_BYTES];
        while self.missing_bytes() > 0 {
            let want = piece.len().min(self.missing_bytes());
            let got = source.read(&mut piece[..want])?;
            if got == 0 {
                let what = format!("it ended {} bytes too early", self.missing_bytes());
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
            }
            self.write_all(&piece[..got])?;
        }
        Ok(())
    }
}

impl Write for InputWriter {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if piece.len() > self.missing_bytes() {
            let what = format!("{} bytes came, and {} are missing", piece.len(), self.missing_bytes());
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
        }
        self.part.copy_in(self.at, piece);
        self.at += piece.len();
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
