//! What is wrong with a workflow file, said the way a compiler says it.

use std::fmt;

/// Most diagnostics a report keeps; the rest are counted.
pub const DIAGNOSTICS_MAX: usize = 100;
/// Most characters of a source line that are shown.
const LINE_CHARS_MAX: usize = 120;
/// Most characters of a user's word inside a message.
const WORD_CHARS_MAX: usize = 64;

/// All that is wrong with one file, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// At most [`DIAGNOSTICS_MAX`].
    pub diagnostics: Vec<Diagnostic>,
    /// How many more there were.
    pub left_out: usize,
}

impl Report {
    /// Number of diagnostics of this severity, those left out excepted.
    pub fn count(&self, severity: Severity) -> usize {
        self.diagnostics.iter().filter(|d| d.severity == severity).count()
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.diagnostics.is_empty()
    }
}

impl std::error::Error for Report {}

/// All diagnostics, an empty line after each, and how many there are; ends with a line break.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in &self.diagnostics {
            writeln!(f, "{diagnostic}")?;
        }
        if self.left_out > 0 {
            writeln!(f, "... and {} more like these\n", self.left_out)?;
        }
        let (errors, warnings) = (self.count(Severity::Error), self.count(Severity::Warning));
        let plural = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        match (errors, warnings) {
            (0, 0) => Ok(()),
            (0, w) => writeln!(f, "{}", plural(w, "warning")),
            (e, 0) => writeln!(f, "{}", plural(e, "error")),
            (e, w) => writeln!(f, "{}, {}", plural(e, "error"), plural(w, "warning")),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Which kind it is, for scripts.
    pub code: Code,
    /// What is wrong.
    pub message: String,
    /// Where; boxed since a report travels in a `Result`.
    pub place: Box<Place>,
    /// What to do about it.
    pub help: Vec<String>,
}

/// A place in a file, with the line it is on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The file's name.
    pub file: String,
    /// From 1; 0 if it is about the file as a whole.
    pub line: usize,
    /// In characters, from 1; 0 if it is about the file as a whole.
    pub column: usize,
    /// The line, cut to what can be shown.
    pub text: String,
    /// Characters of `text` before the marked part.
    pub mark_start: usize,
    /// Characters marked, at least 1.
    pub mark_len: usize,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = &self.place;
        writeln!(f, "{}[{}]: {}", self.severity.name(), self.code.name(), self.message)?;
        let gutter = place.line.to_string().len();
        if place.line == 0 {
            writeln!(f, "  --> {}", place.file)?;
        } else {
            writeln!(f, "{:gutter$}--> {}:{}:{}", "", place.file, place.line, place.column)?;
            writeln!(f, "{:gutter$} |", "")?;
            writeln!(f, "{} | {}", place.line, place.text)?;
            let (start, len) = (place.mark_start, place.mark_len);
            writeln!(f, "{:gutter$} | {:start$}{}", "", "", "^".repeat(len))?;
        }
        for help in &self.help {
            writeln!(f, "{:gutter$} = help: {help}", "")?;
        }
        Ok(())
    }
}

/// How bad a diagnostic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The workflow cannot run.
    Error,
    /// It can, but probably not as meant.
    Warning,
}

impl Severity {
    /// As messages say it.
    pub const fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

/// Which kind of thing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The file cannot be read.
    Io,
    /// It is no YAML.
    Syntax,
    /// More of something than is allowed.
    Limit,
    /// A key that means nothing here.
    UnknownKey,
    /// A key that must be there.
    MissingKey,
    /// A key twice.
    DuplicateKey,
    /// A map where a text belongs, a text where a number belongs, ...
    WrongType,
    /// The right type, but not a value that is allowed.
    BadValue,
    /// A reference that is not written as one.
    BadReference,
    /// A reference to a step, port, input or function that does not exist.
    UnknownName,
    /// A reference to something of the wrong type or shape.
    TypeMismatch,
    /// A condition that cannot be compiled.
    BadCondition,
    /// Steps that wait for each other.
    Cycle,
    /// Part of the format, but not of this version.
    Unsupported,
    /// Declared and never used.
    Unused,
    /// A file the workflow names is not there.
    MissingFile,
}

impl Code {
    /// As messages say it.
    pub const fn name(self) -> &'static str {
        match self {
            Code::Io => "io",
            Code::Syntax => "syntax",
            Code::Limit => "limit",
            Code::UnknownKey => "unknown-key",
            Code::MissingKey => "missing-key",
            Code::DuplicateKey => "duplicate-key",
            Code::WrongType => "wrong-type",
            Code::BadValue => "bad-value",
            Code::BadReference => "bad-reference",
            Code::UnknownName => "unknown-name",
            Code::TypeMismatch => "type-mismatch",
            Code::BadCondition => "bad-condition",
            Code::Cycle => "cycle",
            Code::Unsupported => "unsupported",
            Code::Unused => "unused",
            Code::MissingFile => "missing-file",
        }
    }
}

/// A range of bytes of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
}

/// What is wrong, before it is known where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) code: Code,
    pub(super) message: String,
    pub(super) help: Vec<String>,
}

impl Problem {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Problem { code, message: message.into(), help: Vec::new() }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    /// With "did you mean", if anything in `known` is near `asked`; else with what there is.
    pub(super) fn near<'k>(
        code: Code,
        message: impl Into<String>,
        asked: &str,
        known: impl IntoIterator<Item = &'k str>,
    ) -> Self {
        let known: Vec<&str> = known.into_iter().collect();
        let problem = Problem::new(code, message);
        match nearest(asked, &known) {
            Some(near) => problem.help(format!("did you mean `{near}`?")),
            None if known.is_empty() => problem,
            None => problem.help(format!("known here: {}", list(&known))),
        }
    }
}

/// Collects diagnostics of one text.
pub(super) struct Diagnostics<'t> {
    text: &'t str,
    file: String,
    /// Byte offset of the first byte of each line.
    lines: Vec<usize>,
    /// With the byte offset they are about, to be sorted by it.
    found: Vec<(usize, Diagnostic)>,
    left_out: usize,
    errors: usize,
}

impl<'t> Diagnostics<'t> {
    pub(super) fn new(text: &'t str, file: &str) -> Self {
        let starts = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(starts).collect();
        Diagnostics { text, file: file.to_owned(), lines, found: Vec::new(), left_out: 0, errors: 0 }
    }

    /// The text the spans are of.
    pub(super) fn text(&self) -> &'t str {
        self.text
    }

    /// Whether an error was found.
    pub(super) fn failed(&self) -> bool {
        self.errors > 0
    }

    /// Number of errors found so far.
    pub(super) fn errors(&self) -> usize {
        self.errors
    }

    pub(super) fn error(&mut self, code: Code, span: Span, message: impl Into<String>) {
        self.add(Severity::Error, code, span, message.into(), Vec::new());
    }

    pub(super) fn error_help(
        &mut self,
        code: Code,
        span: Span,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.add(Severity::Error, code, span, message.into(), vec![help.into()]);
    }

    pub(super) fn problem(&mut self, span: Span, problem: Problem) {
        self.add(Severity::Error, problem.code, span, problem.message, problem.help);
    }

    pub(super) fn warn(
        &mut self,
        code: Code,
        span: Span,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.add(Severity::Warning, code, span, message.into(), vec![help.into()]);
    }

    fn add(&mut self, severity: Severity, code: Code, span: Span, message: String, help: Vec<String>) {
        self.errors += usize::from(severity == Severity::Error);
        if self.found.len() >= DIAGNOSTICS_MAX {
            self.left_out += 1;
            return;
        }
        let place = Box::new(self.place(span));
        self.found.push((span.start, Diagnostic { severity, code, message, place, help }));
    }

    /// The diagnostics in the order of the file.
    pub(super) fn finish(mut self) -> Report {
        self.found.sort_by_key(|(at, _)| *at);
        Report { diagnostics: self.found.into_iter().map(|(_, d)| d).collect(), left_out: self.left_out }
    }

    fn place(&self, span: Span) -> Place {
        let start = floor_char(self.text, span.start);
        let line = self.lines.partition_point(|&at| at <= start) - 1;
        let line_start = self.lines[line];
        let line_text = self.text[line_start..].split('\n').next().unwrap_or("").trim_end_matches('\r');
        let line_end = line_start + line_text.len();
        // A span may begin at the line break, and end on a later line.
        let start = start.min(line_end);
        let end = floor_char(self.text, span.end).clamp(start, line_end);
        let column = self.text[line_start..start].chars().count() + 1;
        let marked = self.text[start..end].trim_end().chars().count().max(1);
        let (text, mark_start) = cut(line_text, column - 1);
        let mark_len = marked.min(text.chars().count().saturating_sub(mark_start)).max(1);
        Place { file: self.file.clone(), line: line + 1, column, text, mark_start, mark_len }
    }
}

/// The report of a file that could not even be read as text.
pub(super) fn unreadable(file: &str, code: Code, message: String, help: Vec<String>) -> Report {
    let place = Box::new(Place { file: file.to_owned(), ..Place::default() });
    Report {
        diagnostics: vec![Diagnostic { severity: Severity::Error, code, message, place, help }],
        left_out: 0,
    }
}

/// The last character boundary at or before `at`.
fn floor_char(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The part of a line that is shown, and where in it the character `at` of the line is. What a
/// terminal would act on is replaced, so that a hostile file cannot move the cursor.
fn cut(line: &str, at: usize) -> (String, usize) {
    let first = if at < LINE_CHARS_MAX * 3 / 4 { 0 } else { at - LINE_CHARS_MAX / 2 };
    let shown = line.chars().skip(first).take(LINE_CHARS_MAX);
    let mut text: String = shown.map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().nth(first + LINE_CHARS_MAX).is_some() {
        text.push_str("...");
    }
    if first == 0 { (text.trim_end().to_owned(), at) } else { (format!("...{text}"), at - first + 3) }
}

/// A word of the user's, short enough and clean enough for a message.
pub(super) fn word(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut short: String = text.chars().take(WORD_CHARS_MAX).map(clean).collect();
    if text.chars().nth(WORD_CHARS_MAX).is_some() {
        short.push_str("...");
    }
    short
}

/// `a`, `b` and `c`; the first ten.
pub(super) fn list(words: &[&str]) -> String {
    let shown: Vec<String> = words.iter().take(10).map(|w| format!("`{}`", word(w))).collect();
    match words.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// The known word that was probably meant.
pub(super) fn nearest<'k>(asked: &str, known: &[&'k str]) -> Option<&'k str> {
    // Names are short; a long one is garbage, and the distance costs the product of the lengths.
    if asked.len() > 2 * WORD_CHARS_MAX {
        return None;
    }
    let near = |k: &&'k str| k.len() <= 2 * WORD_CHARS_MAX;
    let lower = asked.to_lowercase();
    known
        .iter()
        .copied()
        .filter(near)
        .map(|k| (strsim::damerau_levenshtein(&lower, &k.to_lowercase()), k))
        .filter(|(distance, k)| {
            *distance <= k.chars().count().max(asked.chars().count()) / 3 + 1 && *distance < k.chars().count()
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, k)| k)
}
