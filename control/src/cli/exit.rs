//! Exit codes: part of the interface, so that scripts can tell what went wrong.

/// How `dflow` ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    /// All went well.
    Ok = 0,
    /// The workflow failed.
    Failed = 1,
    /// The command line, the workflow file or an input is wrong.
    Usage = 2,
    /// The node could not start here.
    Environment = 3,
    /// The results could not be written.
    Output = 4,
    /// The run exceeded its deadline.
    Deadline = 124,
    /// Ctrl-C or SIGTERM.
    Interrupted = 130,
}

/// The same, for people.
pub(super) const HELP: &str = "\
Exit codes:
  0    done
  1    the workflow failed (the last lines on stderr say which step, attempt and why)
  2    wrong command line, workflow file or input
  3    the node could not start on this machine
  4    results could not be written
  124  the run exceeded its deadline
  130  interrupted (Ctrl-C, SIGTERM)";
