//! From a workflow to a bundle.

use super::{BundleError, ENTRIES_MAX, FILES_MAX};
use crate::workflow::{PythonModule, Runtime, TemplatePart, Workflow};
use rustix::fs::{MemfdFlags, memfd_create};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

/// A bundle in memory that is no process's heap, ready to be read from its beginning.
#[derive(Debug)]
pub struct Packed {
    /// The tar.
    pub file: File,
    /// Its length.
    pub bytes: u64,
    /// Paths of its files, the workflow file first.
    pub paths: Vec<PathBuf>,
}

/// Packs a workflow file with what it needs: the files that its functions name by relative paths, and
/// what stands under `files:` or, if that is missing and a function is Python, all `.py` files beside it.
///
/// # Errors
/// When a file is missing or unreadable, or there are too many of them.
pub fn pack(file: &Path, workflow: &Workflow) -> Result<Packed, BundleError> {
    let read = |source| BundleError::Read { path: file.to_owned(), source };
    let text = fs::read(file).map_err(read)?;
    let name = file.file_name().map_or_else(|| "workflow.yaml".into(), PathBuf::from);
    pack_text(&text, &name, workflow)
}

/// As [`pack`], for a text that is in no file; `name` is what it is called.
///
/// # Errors
/// As of [`pack`].
pub fn pack_text(text: &[u8], name: &Path, workflow: &Workflow) -> Result<Packed, BundleError> {
    let dir = plain(&workflow.source_dir);
    let files = needed(workflow, &dir)?;
    let root = root(&dir, &files)?;
    let inside = |path: &Path| path.strip_prefix(&root).unwrap_or(path).to_owned();
    let memory = memfd_create("dflow-bundle", MemfdFlags::CLOEXEC)
        .map_err(|e| BundleError::Write { path: "memory".into(), source: e.into() })?;
    let mut tar = tar::Builder::new(File::from(memory));
    let main = inside(&dir.join(name));
    let write = |source| BundleError::Write { path: "memory".into(), source };
    append(&mut tar, &main, text.len() as u64, false, text).map_err(write)?;
    let mut paths = vec![main.clone()];
    for path in &files {
        let target = inside(path);
        if target == main {
            continue;
        }
        let read = |source| BundleError::Read { path: path.clone(), source };
        let metadata = fs::metadata(path).map_err(read)?;
        let executable = metadata.permissions().mode() & 0o111 != 0;
        let content = File::open(path).map_err(read)?;
        append(&mut tar, &target, metadata.len(), executable, content).map_err(read)?;
        paths.push(target);
    }
    let mut file = tar.into_inner().map_err(write)?;
    file.flush().and_then(|()| file.rewind()).map_err(write)?;
    let bytes = file.metadata().map_err(write)?.len();
    Ok(Packed { file, bytes, paths })
}

/// Writes the bundle of a workflow that needs no files.
///
/// # Errors
/// When `target` cannot be written.
pub fn wrap(text: &[u8], target: &mut impl Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(target);
    append(&mut tar, Path::new("workflow.yaml"), text.len() as u64, false, text)?;
    tar.finish()
}

fn append(
    tar: &mut tar::Builder<impl Write>,
    path: &Path,
    bytes: u64,
    executable: bool,
    content: impl io::Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(if executable { 0o755 } else { 0o644 });
    header.set_entry_type(tar::EntryType::Regular);
    // A file that grows meanwhile must not spill into the next entry; one that shrinks is an error.
    let mut content = io::Read::take(content, bytes);
    tar.append_data(&mut header, path, &mut content)?;
    if content.limit() > 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
    }
    Ok(())
}

/// All files that go along, in order. Absolute paths are left to the node.
fn needed(workflow: &Workflow, dir: &Path) -> Result<BTreeSet<PathBuf>, BundleError> {
    let mut gather = Gather { files: BTreeSet::new(), looked: 0 };
    // What was relative has been joined to the workflow's folder.
    let relative = |path: &Path| path.starts_with(&workflow.source_dir);
    let mut python = Vec::new();
    for function in &workflow.functions {
        match &function.runtime {
            Runtime::Python { module, path, .. } => {
                if let PythonModule::File(file) = module
                    && relative(file)
                {
                    gather.add(&plain(file))?;
                }
                python.extend(path.iter().filter(|p| relative(p)).map(|p| plain(p)));
            }
            Runtime::Native { library, .. } if relative(library) => gather.add(&plain(library))?,
            Runtime::Exec { command, .. } => {
                if let Some([TemplatePart::Text(program)]) = command.first().map(|t| t.parts.as_slice())
                    && relative(Path::new(program))
                {
                    gather.add(&plain(Path::new(program)))?;
                }
            }
            Runtime::Native { .. } | Runtime::Builtin { .. } => {}
        }
    }
    match &workflow.files {
        Some(files) => files.iter().try_for_each(|path| gather.all(&plain(&dir.join(path)), None))?,
        None => python.iter().try_for_each(|path| gather.all(path, Some("py")))?,
    }
    Ok(gather.files)
}

struct Gather {
    files: BTreeSet<PathBuf>,
    looked: usize,
}

impl Gather {
    fn add(&mut self, path: &Path) -> Result<(), BundleError> {
        if !self.files.contains(path) && self.files.len() >= FILES_MAX {
            return Err(BundleError::TooMany { what: "files", max: FILES_MAX });
        }
        self.files.insert(path.to_owned());
        Ok(())
    }

    /// A file, or those under a folder: of one extension, or all but what tools leave behind.
    fn all(&mut self, path: &Path, extension: Option<&str>) -> Result<(), BundleError> {
        let read = |source| BundleError::Read { path: path.to_owned(), source };
        if !fs::metadata(path).map_err(read)?.is_dir() {
            return self.add(path);
        }
        for entry in fs::read_dir(path).map_err(read)? {
            let entry = entry.map_err(read)?;
            self.looked += 1;
            if self.looked > ENTRIES_MAX {
                return Err(BundleError::TooMany { what: "folder entries", max: ENTRIES_MAX });
            }
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') || name == "__pycache__" {
                continue;
            }
            let kind = entry.file_type().map_err(read)?;
            let path = entry.path();
            // A link to a folder may lead back here.
            if kind.is_dir() {
                self.all(&path, extension)?;
            } else if (kind.is_file() || fs::metadata(&path).is_ok_and(|m| m.is_file()))
                && extension.is_none_or(|e| path.extension().is_some_and(|own| own == e))
            {
                self.add(&path)?;
            }
        }
        Ok(())
    }
}

/// The deepest folder that has all of it.
fn root(dir: &Path, files: &BTreeSet<PathBuf>) -> Result<PathBuf, BundleError> {
    let mut root = dir.to_owned();
    for file in files {
        while !file.starts_with(&root) {
            root.pop();
        }
        if root.parent().is_none() {
            return Err(BundleError::Scattered { path: file.clone() });
        }
    }
    Ok(root)
}

/// A path without `.` and `..`. Links are not followed: a bundle has the same shape as the paths say.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}
