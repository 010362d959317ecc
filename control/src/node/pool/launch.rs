//! Fork servers: one process per function that has loaded its code.

use crate::node::config::NodeConfig;
use crate::node::logs::{Logs, Tail};
use crate::workflow::{FunctionSpec, PythonModule, Runtime, Template, TemplatePart};
use dflow_proto::zygote::{FromZygote, ToZygote};
use dflow_shm::pass::{Channel, PassError};
use dflow_shm::spawn::{RuntimeArgs, ZygoteArgs};
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Log ids of zygotes: workers count from 1 upwards and never get here.
const ZYGOTE_LOGS: u64 = 1 << 63;
/// Where `exec` functions find their inputs and put their outputs: memory, like the store.
pub(super) const SCRATCH_ROOT: &str = "/dev/shm";
/// Scratch directories begin with this; the node's process id, its number
/// in that process and the pool's number follow.
pub(super) const SCRATCH_PREFIX: &str = "dflow-";

/// A fork server.
pub(super) struct Zygote {
    child: Child,
    channel: Channel,
    tail: Tail,
    log: u64,
}

impl Zygote {
    /// Starts one; it reports `Loaded` or `LoadFailed` by its socket.
    ///
    /// # Errors
    /// Text for the function's author.
    pub(super) fn spawn(
        spec: &FunctionSpec,
        dir: &Path,
        config: &NodeConfig,
        mark: u64,
        node: u32,
        logs: &Logs,
    ) -> Result<Self, String> {
        let name = &spec.name;
        let text = |what: &str, e: &dyn std::fmt::Display| format!("function {name}: cannot {what}: {e}");
        let (channel, theirs) = Channel::pair().map_err(|e| text("make a socket", &e))?;
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| text("make a pipe", &e))?;
        rustix::io::ioctl_fionbio(&reader, true).map_err(|e| text("set up a pipe", &e))?;
        let log = ZYGOTE_LOGS | mark;
        let tail = logs.add(log, reader).map_err(|e| text("watch a pipe", &e))?;
        tail.begin(None, name);
        let scratch = matches!(spec.runtime, Runtime::Exec { .. }).then(|| {
            PathBuf::from(format!("{SCRATCH_ROOT}/{SCRATCH_PREFIX}{}-{node}-{mark}", std::process::id()))
        });
        // The socket takes the place of standard input: the one number that a child inherits
        // without a step between fork and exec.
        let args = ZygoteArgs { socket: 0, scratch, memory_bytes: 0, runtime: runtime_args(spec) };
        let mut command = program(spec, config);
        command
            .arg(&config.libexec.libdflow)
            .args(args.to_args())
            .env("DFLOW_WORKFLOW_DIR", dir)
            .envs(&spec.env)
            // Ctrl-C is for the node, which then ends its functions.
            .process_group(0)
            .stdin(Stdio::from(theirs.into_fd()))
            .stdout(Stdio::from(writer.try_clone().map_err(|e| text("set up a pipe", &e))?))
            .stderr(Stdio::from(writer));
        let child = command.spawn().map_err(|e| {
            let program = command.get_program().to_string_lossy();
            format!("function {name}: cannot start {program}: {e}; is it installed and on the PATH?")
        })?;
        Ok(Zygote { child, channel, tail, log })
    }

    /// To wait for what it says.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    pub(super) fn send(&self, message: &ToZygote, fds: &[BorrowedFd<'_>]) -> Result<(), PassError> {
        self.channel.send(message, fds, false)
    }

    /// The next message, `None` if there is none now.
    ///
    /// # Errors
    /// It is dead, or no longer makes sense: why.
    pub(super) fn receive(&mut self) -> Result<Option<FromZygote>, String> {
        match self.channel.receive(false) {
            Ok((message, _)) => Ok(Some(message)),
            Err(PassError::NotReady) => Ok(None),
            Err(PassError::Closed) => Err(match self.child.wait() {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            }),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The end of what it printed.
    pub(super) fn last_words(&self, logs: &Logs) -> String {
        logs.flush(self.log);
        self.tail.text()
    }

    /// Closes the socket, which tells it to end its workers and itself.
    pub(super) fn hang_up(self) -> Child {
        self.child
    }

    /// Ends one that loads for ever.
    pub(super) fn kill(mut self, logs: &Logs) {
        // Workers exist only after the loading, so nothing is orphaned.
        let _ = self.child.kill();
        let _ = self.child.wait();
        logs.remove(self.log);
    }
}

/// Waits until `late`, then no longer asks.
pub(super) fn await_end(mut child: Child, late: Instant) {
    while Instant::now() < late {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(2)),
            Ok(Some(_)) | Err(_) => return,
        }
    }
    tracing::warn!(pid = child.id(), "a fork server did not end in time and is killed");
    let _ = child.kill();
    let _ = child.wait();
}

/// The program that loads the function.
fn program(spec: &FunctionSpec, config: &NodeConfig) -> Command {
    if !matches!(spec.runtime, Runtime::Python { .. }) {
        return Command::new(&config.libexec.zygote);
    }
    let interpreter = std::env::var_os("DFLOW_PYTHON").unwrap_or_else(|| "python3".into());
    let mut command = Command::new(interpreter);
    let mut path = vec![config.libexec.python.clone()];
    path.extend(std::env::var_os("PYTHONPATH").iter().flat_map(std::env::split_paths));
    let joined = std::env::join_paths(path).unwrap_or_else(|_| OsString::from(&config.libexec.python));
    command.args(["-m", "dflow._zygote"]).env("PYTHONPATH", joined);
    command
}

fn runtime_args(spec: &FunctionSpec) -> RuntimeArgs {
    match &spec.runtime {
        Runtime::Python { module, function, path } => {
            let module = match module {
                PythonModule::Name(name) => name.clone(),
                PythonModule::File(file) => file.display().to_string(),
            };
            RuntimeArgs::Python { handler: format!("{module}:{function}"), path: path.clone() }
        }
        Runtime::Native { library, symbol } => {
            RuntimeArgs::Native { library: library.clone(), symbol: symbol.clone() }
        }
        Runtime::Exec { command, stdin, stdout } => RuntimeArgs::Exec {
            command: command.iter().map(template).collect(),
            stdin: stdin.clone(),
            stdout: stdout.clone(),
            cwd: None,
        },
        Runtime::Builtin { handler } => RuntimeArgs::Builtin { handler: handler.name().into() },
    }
}

fn template(template: &Template) -> String {
    let part = |part: &TemplatePart| match part {
        TemplatePart::Text(text) => text.clone(),
        TemplatePart::Input(name) => format!("{{in.{name}}}"),
        TemplatePart::Output(name) => format!("{{out.{name}}}"),
    };
    template.parts.iter().map(part).collect()
}
