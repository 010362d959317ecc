//! From a bundle to a folder. What comes from outside is not trusted: no links, no devices, no path that
//! leads out, and limits on everything.

use super::{BundleError, FILES_MAX, PATH_BYTES_MAX};
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

/// What was in a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// The workflow file, relative to the folder.
    pub main: PathBuf,
    /// How many files there are.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Unpacks a bundle into `folder`, which must be new and empty, and which the caller removes on failure.
///
/// # Errors
/// When it is no bundle, has more than `bytes_max`, or the folder cannot be written.
pub fn unpack(bundle: impl Read, folder: &Path, bytes_max: u64) -> Result<Unpacked, BundleError> {
    let no_tar = |source| BundleError::NoTar { source };
    let mut archive = tar::Archive::new(bundle);
    let mut unpacked = Unpacked { main: PathBuf::new(), files: 0, bytes: 0 };
    for entry in archive.entries().map_err(no_tar)? {
        let mut entry = entry.map_err(no_tar)?;
        let raw = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&raw).chars().take(200).collect::<String>();
        let refuse = |why| BundleError::Entry { path: shown.clone(), why };
        if raw.len() > PATH_BYTES_MAX {
            return Err(refuse("has a path that is too long"));
        }
        let path = entry.path().map_err(no_tar)?.into_owned();
        let path: PathBuf = path.components().filter(|c| *c != Component::CurDir).collect();
        if !path.components().all(|c| matches!(c, Component::Normal(_))) {
            return Err(refuse("leads out of the bundle"));
        }
        match entry.header().entry_type() {
            tar::EntryType::Directory => continue,
            tar::EntryType::Regular | tar::EntryType::Continuous => {}
            tar::EntryType::XGlobalHeader => continue,
            _ => return Err(refuse("is neither a regular file nor a folder")),
        }
        if path.as_os_str().is_empty() {
            return Err(refuse("has no name"));
        }
        unpacked.files += 1;
        if unpacked.files > FILES_MAX {
            return Err(BundleError::TooMany { what: "files", max: FILES_MAX });
        }
        unpacked.bytes = unpacked.bytes.saturating_add(entry.size());
        if unpacked.bytes > bytes_max {
            return Err(BundleError::TooLarge { bytes: unpacked.bytes, max: bytes_max });
        }
        let executable = entry.header().mode().is_ok_and(|mode| mode & 0o111 != 0);
        let target = folder.join(&path);
        let write = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => {
                BundleError::Entry { path: shown.clone(), why: "clashes with another" }
            }
            _ => BundleError::Write { path: target.clone(), source },
        };
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(write)?;
        }
        let mode = if executable { 0o755 } else { 0o644 };
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&target).map_err(write)?;
        io::copy(&mut entry, &mut file).map_err(write)?;
        if unpacked.files == 1 {
            unpacked.main = path;
        }
    }
    if unpacked.files == 0 { Err(BundleError::Empty) } else { Ok(unpacked) }
}
