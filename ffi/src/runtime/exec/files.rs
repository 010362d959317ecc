//! A program's inputs and outputs as files.

use super::scratch_error;
use crate::fault::{Code, Fault};
use crate::input::Got;
use crate::invocation::Invocation;
use crate::node::Node;
use crate::output::PACKED_BYTES_MAX;
use dflow_proto::ids::Extent;
use dflow_proto::link::{InputValue, PortKind, Report};
use dflow_shm::table::Found;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Whether a program of this name can be started from `cwd`.
pub(super) fn is_runnable(program: &str, cwd: Option<&Path>) -> bool {
    let runnable = |path: &Path| {
        fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return runnable(&cwd.unwrap_or(Path::new("")).join(program));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| runnable(&directory.join(program)))
}

/// The directory of one invocation, removed with all that is in it.
pub(super) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(super) fn create(path: PathBuf) -> Result<Scratch, Fault> {
        let make = |path: &Path| DirBuilder::new().mode(0o700).create(path);
        make(&path).map_err(|e| scratch_error(&path.display().to_string(), &e))?;
        let scratch = Scratch { path };
        for part in ["in", "out"] {
            make(&scratch.path.join(part)).map_err(|e| scratch_error(part, &e))?;
        }
        Ok(scratch)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the input of this name is.
    pub(super) fn input(&self, name: &str) -> PathBuf {
        self.path.join("in").join(name)
    }

    fn output(&self, name: &str) -> PathBuf {
        self.path.join("out").join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now goes with the zygote's directory.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// What stands for each input on the command line: the text of a value, or paths.
pub(super) struct Inputs {
    words: Vec<Vec<String>>,
}

impl Inputs {
    /// Waits for all inputs but the one that is standard input, and makes them readable by path.
    pub(super) fn prepare(
        invocation: &Invocation,
        scratch: &Scratch,
        stdin: Option<usize>,
    ) -> Result<Inputs, Fault> {
        let mut words = Vec::new();
        for (index, input) in invocation.invoke.inputs.iter().enumerate() {
            if input.name.contains('/') || input.name.starts_with('.') {
                return Err(Fault::new(Code::Name, format!("input {:?} cannot be a file name", input.name)));
            }
            let path = scratch.input(&input.name);
            words.push(match &input.value {
                InputValue::Inline(_) => vec![invocation.param_text(&input.name)?],
                InputValue::Null => Vec::new(),
                InputValue::One { .. } if stdin == Some(index) => Vec::new(),
                InputValue::One { index } => {
                    let found = invocation.extent(*index, None)?;
                    expose(invocation, found, &path)?.into_iter().collect()
                }
                InputValue::List { index } => {
                    fs::create_dir(&path).map_err(|e| scratch_error(&input.name, &e))?;
                    let mut items = Vec::new();
                    for item in 0.. {
                        let found = invocation.extent(*index, Some(item))?;
                        match expose(invocation, found, &path.join(format!("{item:06}")))? {
                            Some(word) => items.push(word),
                            None => break,
                        }
                    }
                    items
                }
            });
        }
        Ok(Inputs { words })
    }

    /// Per input: one word, none if it was skipped, or one per item.
    pub(super) fn words(&self) -> &[Vec<String>] {
        &self.words
    }
}

/// Makes an object readable under `path`: as a link to its segment if it is alone there, else as a
/// copy, which is small (large objects of programs get segments of their own).
fn expose(invocation: &Invocation, found: Found, path: &Path) -> Result<Option<String>, Fault> {
    let extent = match found {
        Found::Sealed(extent) => extent,
        Found::Null | Found::End { .. } => return Ok(None),
        Found::Growing { .. } | Found::Failed => {
            return Err(Fault::new(Code::Input, "an input is not complete"));
        }
    };
    match descriptor_path(invocation, extent)? {
        Some(target) => symlink(target, path),
        None => {
            let Got::View(view) = invocation.view(extent)? else { return Ok(None) };
            fs::write(path, invocation.slice(&view))
        }
    }
    .map_err(|e| scratch_error(&path.display().to_string(), &e))?;
    Ok(Some(path.to_string_lossy().into_owned()))
}

/// A path that opens the segment of an object, for any process of this user, if the object is all
/// there is in it. By the worker's pid and not `self`: a program may start others that do not
/// inherit descriptors.
pub(super) fn descriptor_path(invocation: &Invocation, extent: Extent) -> Result<Option<PathBuf>, Fault> {
    if extent.bytes == 0 {
        return Ok(None);
    }
    let fd = invocation.node.segments.file_of(extent)?;
    Ok(fd.map(|fd| PathBuf::from(format!("/proc/{}/fd/{fd}", std::process::id()))))
}

/// Where a program writes each output.
pub(super) struct OutputFiles {
    paths: Vec<PathBuf>,
    /// Ports that something else takes care of: a streamed standard output.
    taken: Vec<bool>,
    /// Of each `many` port, the name of the file that must come next for it to be taken early.
    next: Vec<Option<String>>,
    closed: Vec<BTreeSet<String>>,
}

impl OutputFiles {
    pub(super) fn prepare(
        invocation: &Invocation,
        scratch: &Scratch,
        stdout: Option<usize>,
    ) -> Result<OutputFiles, Fault> {
        let outputs = &invocation.invoke.outputs;
        let mut paths = Vec::new();
        for (index, output) in outputs.iter().enumerate() {
            if output.name.contains('/') || output.name.starts_with('.') {
                return Err(Fault::new(
                    Code::Name,
                    format!("output {:?} cannot be a file name", output.name),
                ));
            }
            let path = scratch.output(&output.name);
            if output.kind == PortKind::Many {
                if stdout == Some(index) {
                    let message =
                        format!("output {:?} is a list; standard output is one object", output.name);
                    return Err(Fault::new(Code::Type, message));
                }
                fs::create_dir(&path).map_err(|e| scratch_error(&output.name, &e))?;
            }
            paths.push(path);
        }
        Ok(OutputFiles {
            taken: vec![false; paths.len()],
            next: vec![None; paths.len()],
            closed: vec![BTreeSet::new(); paths.len()],
            paths,
        })
    }

    pub(super) fn path(&self, output: usize) -> &Path {
        &self.paths[output]
    }

    /// A file in the place of standard output, taken like any other output file afterwards.
    pub(super) fn stdout_file(&self, output: usize) -> Result<Stdio, Fault> {
        File::create(&self.paths[output]).map(Stdio::from).map_err(|e| scratch_error("standard output", &e))
    }

    /// Someone else puts this output.
    pub(super) fn take(&mut self, output: usize) {
        self.taken[output] = true;
    }

    /// A file in the directory of a `many` port was closed or moved in. It becomes an item at once if
    /// it is the next of a numbered series (beginning at 0 or 1): then no file that sorts before
    /// it can still come. All others wait for the program's end.
    pub(super) fn file_closed(
        &mut self,
        invocation: &Invocation,
        output: usize,
        name: &str,
    ) -> Result<(), Fault> {
        let directory = self.paths[output].clone();
        self.closed[output].insert(name.to_owned());
        if self.next[output].is_none() && starts_series(name) {
            self.next[output] = Some(name.to_owned());
        }
        while let Some(next) = self.next[output].clone()
            && self.closed[output].remove(&next)
        {
            self.next[output] = successor(&next);
            adopt(invocation, output, &directory.join(next))?;
        }
        Ok(())
    }

    /// After the program's success: everything that was not taken yet, the rest of a list by name.
    pub(super) fn collect(&self, invocation: &Invocation) -> Result<(), Fault> {
        for (index, output) in invocation.invoke.outputs.iter().enumerate() {
            let path = &self.paths[index];
            if self.taken[index] {
                continue;
            }
            if output.kind != PortKind::Many {
                // A file that is not there is an output that was never put: the end of the
                // invocation reports it.
                if path.is_file() {
                    adopt(invocation, index, path)?;
                }
                continue;
            }
            let listing = fs::read_dir(path).map_err(|e| scratch_error(&output.name, &e))?;
            let mut files: Vec<PathBuf> = listing.flatten().map(|entry| entry.path()).collect();
            files.sort();
            for file in files.iter().filter(|file| file.is_file()) {
                adopt(invocation, index, file)?;
            }
        }
        Ok(())
    }
}

/// The last run of digits before the extension: start and end.
fn digits(name: &str) -> Option<(usize, usize)> {
    let stem = name.rfind('.').filter(|at| *at > 0).unwrap_or(name.len());
    let end = name[..stem].rfind(|c: char| c.is_ascii_digit())? + 1;
    let start = name[..end].rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
    // A letter of more than one byte before the digits.
    let start =
        (start..end).find(|at| name.is_char_boundary(*at) && name.as_bytes()[*at].is_ascii_digit())?;
    Some((start, end))
}

fn starts_series(name: &str) -> bool {
    digits(name)
        .and_then(|(start, end)| name[start..end].parse::<u64>().ok())
        .is_some_and(|number| number <= 1)
}

/// The name with its number increased, with as many digits; `None` if they do not suffice, since
/// the names would no longer sort in the order of the numbers.
fn successor(name: &str) -> Option<String> {
    let (start, end) = digits(name)?;
    let number = name[start..end].parse::<u64>().ok()?.checked_add(1)?;
    let text = format!("{number:0width$}", width = end - start);
    (text.len() == end - start).then(|| format!("{}{text}{}", &name[..start], &name[end..]))
}

/// Makes a finished file an object: without a copy, unless it is small.
fn adopt(invocation: &Invocation, output: usize, path: &Path) -> Result<(), Fault> {
    let error = |e: std::io::Error| scratch_error(&path.display().to_string(), &e);
    let mut file = File::open(path).map_err(error)?;
    let bytes = file.metadata().map_err(error)?.len();
    fs::remove_file(path).map_err(error)?;
    if bytes <= PACKED_BYTES_MAX {
        let mut data = Vec::with_capacity(bytes as usize);
        file.read_to_end(&mut data).map_err(error)?;
        return invocation.put(output, &data);
    }
    let ask = |node: &Node, ticket| {
        node.segments.send_file(ticket, file.as_fd())?;
        Ok(Report::Adopt { ticket, bytes })
    };
    let extent = invocation.node.request(ask, invocation.invoke.spin_us, invocation.is_main())?;
    invocation.put_adopted(output, extent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_files_have_successors() {
        let next = |name| successor(name);
        assert_eq!(next("seg009.mp4").as_deref(), Some("seg010.mp4"));
        assert_eq!(next("000000").as_deref(), Some("000001"));
        assert_eq!(next("é7").as_deref(), Some("é8"));
        assert_eq!(next("9"), None, "10 sorts before 9");
        assert_eq!(next("noNumber.7z"), None);
        assert!(
            starts_series("seg000.mp4") && starts_series("x1") && !starts_series("x2") && !starts_series("x")
        );
    }
}
