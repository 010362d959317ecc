//! Why past runs could not be kept or read.

use std::io;
use std::path::PathBuf;

/// What went wrong with the history. No run fails for it.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// No directory is known.
    #[error("there is no place for past runs: set HOME or XDG_STATE_HOME, or give --state DIR")]
    NoPlace,
    /// Its directory cannot be made.
    #[error("cannot make {}: {source}; choose another place with --state DIR or DFLOW_STATE", path.display())]
    Dir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Other processes kept it for too long.
    #[error("{} was in use by other dflow processes for {waited_ms} ms; try again", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// It is no history, or damaged.
    #[error("{} is damaged ({what}); move it away to begin a new one: mv {} {}.damaged", path.display(), path.display(), path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How it shows.
        what: String,
    },
    /// A newer dflow wrote it.
    #[error(
        "{} has format {format}, and this dflow knows {known}: use the dflow that wrote it, or another place with \
         --state DIR",
        path.display()
    )]
    Future {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u64,
        /// The newest known.
        known: u64,
    },
    /// The file cannot be read or written.
    #[error("cannot use {}: {source}", path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<redb::Error>,
    },
    /// There are no past runs.
    #[error("{} has no runs yet; `dflow run FILE` makes one", path.display())]
    Empty {
        /// The directory.
        path: PathBuf,
    },
    /// No run has this name.
    #[error("no past run is called {name:?}; `dflow ps` lists them")]
    NoRun {
        /// What was asked for.
        name: String,
    },
    /// Several runs have names that begin so.
    #[error("{count} runs begin with {name:?}: {}; give more of the name", .some.join(", "))]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// How many.
        count: usize,
        /// The first few.
        some: Vec<String>,
    },
}
