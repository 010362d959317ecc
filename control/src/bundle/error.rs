//! Why there is no bundle.

use std::io;
use std::path::PathBuf;

/// What is wrong with a bundle, or with the files it should be made of.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file or folder cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// It.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Where the bundle is to be put cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// It.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Files of the workflow have no folder in common.
    #[error(
        "the workflow names {} by a relative path, which has no folder but / in common with it: keep its files together",
        path.display()
    )]
    Scattered {
        /// The file.
        path: PathBuf,
    },
    /// Too many files.
    #[error(
        "more than {max} {what} would go with the workflow: list what it needs under `files:`, or give it a folder of \
         its own"
    )]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many are possible.
        max: usize,
    },
    /// It is too large.
    #[error(
        "the workflow with its files has {bytes} bytes or more; at most {max} are taken (`bundle_max` of the node)"
    )]
    TooLarge {
        /// Its size as far as it was read.
        bytes: u64,
        /// What is possible.
        max: u64,
    },
    /// It is no tar.
    #[error("this is no bundle: {source}; send a tar of regular files, the workflow file first")]
    NoTar {
        /// Why.
        source: io::Error,
    },
    /// It has an entry that a bundle may not have.
    #[error("entry {path:?} of the bundle {why}")]
    Entry {
        /// Its path.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It has no files.
    #[error("the bundle is empty; its first entry must be the workflow file")]
    Empty,
}
