//! Where values come from, and what can be wrong with them.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Where the value of a key comes from; each wins over those before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A line of the configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
    },
    /// An environment variable.
    Variable(String),
    /// A flag of the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Variable(name) => write!(f, "{name}"),
            Origin::Flag(name) => write!(f, "--{name}"),
        }
    }
}

/// A key that the file sets.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) line: usize,
}

/// A configuration that no node can start with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}; give another file with --config", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line of the file is wrong.
    #[error("{}:{line}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// A value is wrong.
    #[error("`{key}` = `{value}` ({origin}): {what}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// Where that is from.
        origin: Origin,
        /// What is wrong.
        what: String,
    },
    /// Values that do not go together.
    #[error("{0}")]
    Together(String),
    /// The secret.
    #[error("secret_file {}: {what}", path.display())]
    Secret {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}
