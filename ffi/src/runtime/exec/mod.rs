//! Programs: started once per invocation, with inputs and outputs as files.
//!
//! A program finds each input under a path and writes each output to a path, in a directory of the
//! invocation's own on tmpfs. An input that is a segment of its own is a link to it, so nothing is
//! copied; a finished output is handed to the node as it is and becomes a segment. Standard input
//! and output can be ports too.

mod files;
mod pump;

use super::returned;
use crate::fault::{Code, Fault};
use crate::invocation::{Invocation, Returned};
use crate::process;
use files::{Inputs, OutputFiles, Scratch};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

/// A program and how its ports are connected.
pub(crate) struct Exec {
    command: Vec<String>,
    stdin: Option<String>,
    stdout: Option<String>,
    cwd: Option<PathBuf>,
    scratch: PathBuf,
    runs: AtomicU64,
}

impl Exec {
    /// Looks for the program, so that a wrong name is known before any input is made.
    pub(crate) fn load(
        command: &[String],
        stdin: Option<&str>,
        stdout: Option<&str>,
        cwd: Option<&Path>,
        scratch: PathBuf,
    ) -> Result<Exec, String> {
        let program = command.first().ok_or("an exec function needs a command")?;
        if !files::is_runnable(program, cwd) {
            return Err(format!(
                "cannot run {program:?}: no such program, or it is not executable; check `command` in the \
                 workflow file, the PATH of the node, and `chmod +x`"
            ));
        }
        Ok(Exec {
            command: command.to_vec(),
            stdin: stdin.map(str::to_owned),
            stdout: stdout.map(str::to_owned),
            cwd: cwd.map(Path::to_owned),
            scratch,
            runs: AtomicU64::new(0),
        })
    }

    pub(crate) fn run(&self, invocation: &Invocation) -> Returned {
        self.execute(invocation).unwrap_or_else(returned)
    }

    fn execute(&self, invocation: &Invocation) -> Result<Returned, Fault> {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let scratch = Scratch::create(self.scratch.join(format!("{}-{run}", std::process::id())))?;
        let stdin = self.stdin.as_deref().map(|name| invocation.input_index(name)).transpose()?;
        let stdout = self.stdout.as_deref().map(|name| invocation.output_index(name)).transpose()?;
        let inputs = Inputs::prepare(invocation, &scratch, stdin)?;
        let mut outputs = OutputFiles::prepare(invocation, &scratch, stdout)?;

        let words = words(&self.command, invocation, &inputs, &outputs)?;
        let (program, args) =
            words.split_first().ok_or_else(|| Fault::new(Code::Argument, "an empty command"))?;
        let mut command = Command::new(program);
        command.args(args).current_dir(self.cwd.as_deref().unwrap_or(scratch.path()));
        self.environment(&mut command, invocation, &scratch, &inputs, &outputs);
        let source = pump::Source::of(invocation, stdin, &inputs)?;
        command.stdin(match &source {
            pump::Source::Nothing => Stdio::null(),
            pump::Source::File(file) => {
                Stdio::from(file.try_clone().map_err(|e| scratch_error("stdin", &e))?)
            }
            pump::Source::Pipe(_) => Stdio::piped(),
        });
        let streamed = stdout.filter(|index| pump::is_streamed(invocation, *index));
        command.stdout(match (stdout, streamed) {
            (None, _) => Stdio::inherit(),
            (Some(_), Some(_)) => Stdio::piped(),
            (Some(index), None) => outputs.stdout_file(index)?,
        });
        // SAFETY: between fork and exec the child only calls prctl, which is async-signal-safe.
        unsafe {
            command.pre_exec(|| process::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong));
        }
        let watches = pump::Watches::begin(invocation, &outputs)?;
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let message = format!("cannot start {program:?}: {error}");
                return Ok(Returned::Error { name: "CannotStart".into(), message });
            }
        };
        let status = pump::run(invocation, child, source, streamed, &mut outputs, watches)?;
        match ended(status) {
            Returned::Ok => outputs.collect(invocation).map(|()| Returned::Ok),
            failed => Ok(failed),
        }
    }

    fn environment(
        &self,
        command: &mut Command,
        invocation: &Invocation,
        scratch: &Scratch,
        inputs: &Inputs,
        outputs: &OutputFiles,
    ) {
        let invoke = &invocation.invoke;
        let variable = |kind: &str, name: &str| {
            let name: String = name
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
                .collect();
            format!("DFLOW_{kind}_{name}")
        };
        for (input, value) in invoke.inputs.iter().zip(inputs.words()) {
            if let [word] = value.as_slice() {
                command.env(variable("IN", &input.name), word);
            } else if !value.is_empty() {
                command.env(variable("IN", &input.name), scratch.input(&input.name));
            }
        }
        for (index, output) in invoke.outputs.iter().enumerate() {
            command.env(variable("OUT", &output.name), outputs.path(index));
        }
        command
            .env("DFLOW_WORKFLOW", &invoke.workflow)
            .env("DFLOW_STEP", &invoke.step)
            .env("DFLOW_RUN", invoke.run.0.to_string())
            .env("DFLOW_ITEM", invoke.invocation.item.to_string())
            .env("DFLOW_ATTEMPT", invoke.attempt.to_string())
            .env("DFLOW_SCRATCH", scratch.path());
    }
}

fn ended(status: ExitStatus) -> Returned {
    match (status.code(), status.signal()) {
        (Some(0), _) => Returned::Ok,
        (Some(code), _) => Returned::Exit(code),
        (None, signal) => Returned::Signal(signal.unwrap_or(libc::SIGKILL)),
    }
}

/// The command with its placeholders replaced. A word that is nothing but a list's placeholder
/// becomes one word per item.
fn words(
    command: &[String],
    invocation: &Invocation,
    inputs: &Inputs,
    outputs: &OutputFiles,
) -> Result<Vec<String>, Fault> {
    let mut words = Vec::new();
    for word in command {
        if let Some(name) = word.strip_prefix("{in.").and_then(|rest| rest.strip_suffix('}'))
            && !name.contains('{')
        {
            words.extend(inputs.words()[invocation.input_index(name)?].iter().cloned());
            continue;
        }
        let mut done = String::new();
        let mut rest = word.as_str();
        while let Some((kind, before, name, after)) = placeholder(rest) {
            done.push_str(before);
            match kind {
                "in" => done.push_str(&inputs.words()[invocation.input_index(name)?].join(" ")),
                _ => done.push_str(&outputs.path(invocation.output_index(name)?).to_string_lossy()),
            }
            rest = after;
        }
        done.push_str(rest);
        words.push(done);
    }
    Ok(words)
}

/// The first placeholder of a word: its kind, what stands before, its name, what stands after.
fn placeholder(word: &str) -> Option<(&'static str, &str, &str, &str)> {
    let find = |kind: &'static str, open: &str| {
        let at = word.find(open)?;
        let (name, after) = word[at + open.len()..].split_once('}')?;
        Some((kind, &word[..at], name, after))
    };
    let (input, output) = (find("in", "{in."), find("out", "{out."));
    match (input, output) {
        (Some(a), Some(b)) => Some(if a.1.len() < b.1.len() { a } else { b }),
        (a, b) => a.or(b),
    }
}

pub(super) fn scratch_error(what: &str, error: &std::io::Error) -> Fault {
    Fault::new(Code::NoMemory, format!("cannot set up {what} in the scratch directory: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_found_in_order() {
        let word = "--a={out.x}:{in.y}{print $1}";
        let (kind, before, name, after) = placeholder(word).expect("there is one");
        assert_eq!((kind, before, name), ("out", "--a=", "x"));
        let (kind, before, name, after) = placeholder(after).expect("there is another");
        assert_eq!((kind, before, name, after), ("in", ":", "y", "{print $1}"));
        assert!(placeholder(after).is_none());
    }
}
