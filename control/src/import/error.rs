//! What can be wrong with a file, and what had to be assumed to read it.

use std::fmt;

/// Most characters of a word of the file inside a message.
const WORD_CHARS_MAX: usize = 64;

/// Why a file cannot be imported. `path` says where: `workflow.tasks[3].files[0].size`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ImportError {
    /// Larger than any file that is read.
    #[error("the file has {have_bytes} bytes; at most {max_bytes} are read")]
    FileTooLarge {
        /// Its size.
        have_bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// Not UTF-8.
    #[error("the file is no text: the byte at offset {offset} is not UTF-8; is it compressed?")]
    NotText {
        /// Of the first bad byte.
        offset: usize,
    },
    /// It ends before it should.
    #[error(
        "the file ends in the middle of a value (line {line}, column {column}): it has been cut off; fetch it again"
    )]
    Truncated {
        /// Of the end, from 1.
        line: usize,
        /// Of the end, from 1.
        column: usize,
    },
    /// Neither JSON nor YAML.
    #[error("this is no valid {format}: {what}")]
    Syntax {
        /// What it should be.
        format: &'static str,
        /// What the parser says, with the place.
        what: String,
    },
    /// A schema whose meaning is not known.
    #[error("schema version {found} is not known; 1.0 to 1.6 are, and what follows in 1.x is tried")]
    Schema {
        /// As the file has it.
        found: String,
    },
    /// Something that must be there is not.
    #[error("{path} has no `{key}`; is this a {format} file?")]
    Missing {
        /// Where.
        path: String,
        /// What.
        key: &'static str,
        /// The format that needs it.
        format: &'static str,
    },
    /// A list where a text belongs, and so on.
    #[error("{path} must be {expected}, found {found}")]
    WrongType {
        /// Where.
        path: String,
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A size or time below zero, or too large.
    #[error("{path} must be from 0 to {max}, found {found}")]
    OutOfRange {
        /// Where.
        path: String,
        /// The largest allowed.
        max: f64,
        /// What is there.
        found: String,
    },
    /// A name that is none.
    #[error("{path} is a name of {have_bytes} bytes; names have 1 to {max_bytes}")]
    NameLength {
        /// Where.
        path: String,
        /// Its length.
        have_bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// Two tasks that cannot be told apart.
    #[error("{path} is a second task `{}`; ids must be unique", word(id))]
    DuplicateTask {
        /// Where the second is.
        path: String,
        /// Their id.
        id: String,
    },
    /// A reference to a task that is not there.
    #[error("{path} names a task `{}` that the file does not have", word(id))]
    UnknownTask {
        /// Where.
        path: String,
        /// What it names.
        id: String,
    },
    /// More of something than is allowed.
    #[error("the file has {have} {what}; at most {max} are allowed")]
    TooMany {
        /// What.
        what: &'static str,
        /// How many.
        have: usize,
        /// The limit.
        max: usize,
    },
    /// There is nothing to run.
    #[error("{path} has no tasks; there is nothing to run")]
    NoTasks {
        /// Where they should be.
        path: String,
    },
    /// Tasks that wait for each other.
    #[error("tasks wait for each other: {}", cycle(tasks))]
    Cycle {
        /// Their ids, each waiting for the one before it, the first for the last.
        tasks: Vec<String>,
    },
    /// Part of the format that has no counterpart here.
    #[error("{path}: {what}")]
    Unsupported {
        /// Where.
        path: String,
        /// What, and what to do instead.
        what: String,
    },
    /// A scale that is no scale.
    #[error("--{name} must be a number from 0 up, found {value}")]
    BadScale {
        /// Which.
        name: &'static str,
        /// What was given.
        value: f64,
    },
    /// A list of nothing.
    #[error("--items must be at least 1")]
    NoItems,
}

/// What had to be assumed to read a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Warning {
    /// A schema of the same major version that came later.
    NewerSchema {
        /// As the file has it.
        found: String,
    },
    /// The file does not say which schema it follows.
    NoSchema,
    /// Files without a size; they are taken as empty.
    NoSize {
        /// How many.
        files: usize,
        /// One of them.
        first: String,
    },
    /// Files listed with more than one size; the first counts.
    SizesDiffer {
        /// How many.
        files: usize,
        /// One of them.
        first: String,
    },
    /// Tasks without a time; they are taken as instant.
    NoRuntime {
        /// How many.
        tasks: usize,
        /// One of them.
        first: String,
    },
    /// Files that several tasks write; readers take those of their parents.
    SeveralWriters {
        /// How many.
        files: usize,
        /// One of them.
        first: String,
    },
    /// Parents or children that the file does not have; they are left out.
    UnknownRelative {
        /// How many.
        names: usize,
        /// One of them.
        first: String,
    },
    /// A file is asked of a function that does not make it, nor does any other: it comes from outside.
    NotMade {
        /// The file.
        file: String,
        /// Who should make it.
        function: String,
    },
    /// The length of a list is not in the file.
    ItemsAssumed {
        /// The function that makes the list.
        function: String,
        /// The length taken.
        items: u32,
    },
    /// A condition that is more than comparisons; a run input decides instead.
    ConditionReplaced {
        /// As the file has it.
        condition: String,
        /// The input.
        input: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let such_as = |n: &usize, first: &str| match n {
            1 => format!("`{}`", word(first)),
            _ => format!("{n}, such as `{}`", word(first)),
        };
        match self {
            Warning::NewerSchema { found } => {
                write!(f, "schema version {} is later than 1.6; it is read as 1.6", word(found))
            }
            Warning::NoSchema => write!(f, "the file does not name its schema version; its shape tells"),
            Warning::NoSize { files, first } => {
                write!(f, "files without a size, taken as empty: {}", such_as(files, first))
            }
            Warning::SizesDiffer { files, first } => {
                write!(
                    f,
                    "files listed with several sizes, of which the first counts: {}",
                    such_as(files, first)
                )
            }
            Warning::NoRuntime { tasks, first } => {
                write!(f, "tasks without a time, taken as instant: {}", such_as(tasks, first))
            }
            Warning::SeveralWriters { files, first } => {
                let which = such_as(files, first);
                write!(
                    f,
                    "files that several tasks write, of which readers take those of their parents: {which}"
                )
            }
            Warning::UnknownRelative { names, first } => {
                write!(
                    f,
                    "parents or children that the file does not have, left out: {}",
                    such_as(names, first)
                )
            }
            Warning::NotMade { file, function } => {
                let (file, function) = (word(file), word(function));
                write!(
                    f,
                    "`{file}` is to come from `{function}`, which does not make it: it comes from outside"
                )
            }
            Warning::ItemsAssumed { function, items } => {
                let function = word(function);
                write!(
                    f,
                    "the list that `{function}` makes is taken to have {items} items; change that with --items"
                )
            }
            Warning::ConditionReplaced { condition, input } => {
                write!(f, "the condition `{}` is replaced by the run input `{input}`", word(condition))
            }
        }
    }
}

/// A word of the file, short enough for a message and without control characters.
pub(super) fn word(text: &str) -> String {
    let mut short: String =
        text.chars().take(WORD_CHARS_MAX).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(WORD_CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}

fn cycle(tasks: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = tasks.iter().take(SHOWN).map(|t| word(t)).collect::<Vec<_>>().join(" -> ");
    if tasks.len() > SHOWN {
        text += &format!(" -> ... ({} more)", tasks.len() - SHOWN);
    }
    if let Some(first) = tasks.first() {
        text += " -> ";
        text += &word(first);
    }
    text
}
