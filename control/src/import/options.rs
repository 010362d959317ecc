//! What becomes of a trace's times and sizes.

use super::error::ImportError;

/// What an imported task does with its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Sleeps one second, as in the DFlow and FaaSFlow papers
    #[default]
    Paper,
    /// Sleeps as long as it ran in the trace, times --time-scale
    Trace,
    /// Only reads and writes
    Zero,
}

impl Mode {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Paper => "paper",
            Mode::Trace => "trace",
            Mode::Zero => "zero",
        }
    }
}

/// What to make of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportOptions {
    /// What tasks do with their time.
    pub mode: Mode,
    /// Traced seconds are multiplied by this in mode [`Mode::Trace`].
    pub time_scale: f64,
    /// Sizes in bytes are multiplied by this.
    pub size_scale: f64,
    /// Steps put what comes from outside; else nobody reads it.
    pub externals: bool,
    /// Items of a list whose length the source does not tell.
    pub items: u32,
    /// Where the file is from, for the header of the result.
    pub origin: Option<String>,
}

impl Default for ImportOptions {
    fn default() -> Self {
        ImportOptions {
            mode: Mode::Paper,
            time_scale: 1.0,
            size_scale: 1.0,
            externals: true,
            items: 8,
            origin: None,
        }
    }
}

/// Longest time a task may sleep, in microseconds: a year.
const SLEEP_US_MAX: f64 = 365.0 * 86_400.0 * 1e6;
/// Largest object, in bytes.
const OBJECT_BYTES_MAX: f64 = (1u64 << 50) as f64;

impl ImportOptions {
    pub(super) fn check(&self) -> Result<(), ImportError> {
        for (name, value) in [("time-scale", self.time_scale), ("size-scale", self.size_scale)] {
            if !value.is_finite() || value < 0.0 {
                return Err(ImportError::BadScale { name, value });
            }
        }
        if self.items == 0 {
            return Err(ImportError::NoItems);
        }
        Ok(())
    }

    /// Microseconds that a task sleeps which ran for `runtime_s` seconds.
    pub(super) fn sleep_us(&self, runtime_s: f64) -> u64 {
        match self.mode {
            Mode::Paper => 1_000_000,
            Mode::Trace => (runtime_s * 1e6 * self.time_scale).min(SLEEP_US_MAX).round() as u64,
            Mode::Zero => 0,
        }
    }

    /// The size to write for an object of `bytes`. What had bytes keeps at least one, so that it
    /// stays an object that is handed over.
    pub(super) fn bytes(&self, bytes: u64) -> u64 {
        if bytes == 0 || self.size_scale == 0.0 {
            return 0;
        }
        ((bytes as f64 * self.size_scale).min(OBJECT_BYTES_MAX).round() as u64).max(1)
    }
}
