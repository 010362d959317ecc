//! How a node starts a zygote: its arguments, written and read in one place.

use core::fmt;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// What a zygote is told on its command line.
///
/// The node starts `dflow-zygote LIBDFLOW ARGS..` (or `python3 -m dflow._zygote LIBDFLOW ARGS..`),
/// where `LIBDFLOW` is the path of `libdflow.so` and `ARGS` is [`ZygoteArgs::to_args`]. The zygote
/// inherits its socket under the given number, and its standard output and error are where
/// messages of the loading go. It should be started by a thread that lives until the zygote has
/// answered `Loaded`: until then the zygote dies with that thread (`PR_SET_PDEATHSIG`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZygoteArgs {
    /// Descriptor of its end of the socket to the node.
    pub socket: i32,
    /// A directory of its own, on tmpfs, made (0700) and removed by the zygote. Only `exec` uses it.
    pub scratch: Option<PathBuf>,
    /// Limit of each worker's private memory in bytes, 0 for none.
    pub memory_bytes: u64,
    /// What it runs.
    pub runtime: RuntimeArgs,
}

/// What a zygote runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeArgs {
    /// A function of a shared library with the C ABI of `dflow.h`.
    Native {
        /// Path of the library.
        library: PathBuf,
        /// The function's name in it.
        symbol: String,
    },
    /// A program started once per invocation.
    Exec {
        /// Program and arguments. `{in.NAME}` stands for the path of an input's file (or, where the
        /// node sends the value itself, its text), `{out.NAME}` for the path to write an output to.
        command: Vec<String>,
        /// The input that is its standard input.
        stdin: Option<String>,
        /// The output that its standard output becomes.
        stdout: Option<String>,
        /// Its working directory; its scratch directory if not given.
        cwd: Option<PathBuf>,
    },
    /// A function inside libdflow: `synthetic`, `log` or `noop`.
    Builtin {
        /// Its name.
        handler: String,
    },
    /// A Python function.
    Python {
        /// `file.py:function` or `package.module:function`.
        handler: String,
        /// Put before `sys.path`.
        path: Vec<PathBuf>,
    },
}

/// Arguments that make no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadArgs {
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for BadArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zygote arguments: {}", self.what)
    }
}

impl std::error::Error for BadArgs {}

impl ZygoteArgs {
    /// The arguments that [`ZygoteArgs::parse`] reads back.
    pub fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        let mut push = |name: &str, value: &OsStr| {
            args.push(name.into());
            args.push(value.into());
        };
        push("--socket", self.socket.to_string().as_ref());
        if let Some(scratch) = &self.scratch {
            push("--scratch", scratch.as_ref());
        }
        if self.memory_bytes > 0 {
            push("--memory", self.memory_bytes.to_string().as_ref());
        }
        let mut rest: &[String] = &[];
        match &self.runtime {
            RuntimeArgs::Native { library, symbol } => {
                push("--runtime", "native".as_ref());
                push("--library", library.as_ref());
                push("--symbol", symbol.as_ref());
            }
            RuntimeArgs::Exec { command, stdin, stdout, cwd } => {
                push("--runtime", "exec".as_ref());
                if let Some(port) = stdin {
                    push("--stdin", port.as_ref());
                }
                if let Some(port) = stdout {
                    push("--stdout", port.as_ref());
                }
                if let Some(cwd) = cwd {
                    push("--cwd", cwd.as_ref());
                }
                rest = command;
            }
            RuntimeArgs::Builtin { handler } => {
                push("--runtime", "builtin".as_ref());
                push("--handler", handler.as_ref());
            }
            RuntimeArgs::Python { handler, path } => {
                push("--runtime", "python".as_ref());
                push("--handler", handler.as_ref());
                for directory in path {
                    push("--path", directory.as_ref());
                }
            }
        }
        args.push("--".into());
        args.extend(rest.iter().map(OsString::from));
        args
    }

    /// Reads what [`ZygoteArgs::to_args`] wrote.
    pub fn parse(args: &[OsString]) -> Result<ZygoteArgs, BadArgs> {
        let bad = |what: &str| BadArgs { what: what.to_owned() };
        let mut values: Vec<(String, OsString)> = Vec::new();
        let mut args = args.iter();
        let mut command = Vec::new();
        while let Some(name) = args.next() {
            if name.as_bytes() == b"--" {
                command = args.by_ref().map(text).collect::<Result<_, _>>()?;
                break;
            }
            let value = args.next().ok_or_else(|| bad("a name without its value"))?;
            values.push((text(name)?, value.clone()));
        }
        let find = |name: &str| values.iter().find(|(key, _)| key == name).map(|(_, value)| value);
        let need = |name: &str| find(name).ok_or_else(|| bad(&format!("{name} is missing")));
        let number = |value: &OsString| {
            text(value)?.parse::<u64>().map_err(|_| bad(&format!("{value:?} is no number")))
        };
        let optional = |name: &str| find(name).map(text).transpose();
        let runtime = match text(need("--runtime")?)?.as_str() {
            "native" => {
                RuntimeArgs::Native { library: need("--library")?.into(), symbol: text(need("--symbol")?)? }
            }
            "exec" if command.is_empty() => return Err(bad("an exec function needs a command after --")),
            "exec" => RuntimeArgs::Exec {
                command,
                stdin: optional("--stdin")?,
                stdout: optional("--stdout")?,
                cwd: find("--cwd").map(PathBuf::from),
            },
            "builtin" => RuntimeArgs::Builtin { handler: text(need("--handler")?)? },
            "python" => RuntimeArgs::Python {
                handler: text(need("--handler")?)?,
                path: values.iter().filter(|(key, _)| key == "--path").map(|(_, path)| path.into()).collect(),
            },
            other => return Err(bad(&format!("runtime {other:?} is unknown"))),
        };
        Ok(ZygoteArgs {
            socket: number(need("--socket")?)? as i32,
            scratch: find("--scratch").map(PathBuf::from),
            memory_bytes: find("--memory").map(number).transpose()?.unwrap_or(0),
            runtime,
        })
    }
}

fn text(value: &OsString) -> Result<String, BadArgs> {
    value.to_str().map(str::to_owned).ok_or_else(|| BadArgs { what: format!("{value:?} is not UTF-8") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_as_written() {
        let runtimes = [
            RuntimeArgs::Native { library: "/x/lib a.so".into(), symbol: "dflow_main".into() },
            RuntimeArgs::Exec {
                command: vec!["sh".into(), "-c".into(), "--".into()],
                stdin: Some("a".into()),
                stdout: None,
                cwd: Some("/tmp".into()),
            },
            RuntimeArgs::Builtin { handler: "noop".into() },
            RuntimeArgs::Python { handler: "a.py:f".into(), path: vec!["/x".into(), "/y".into()] },
        ];
        for runtime in runtimes {
            let args = ZygoteArgs { socket: 5, scratch: Some("/s".into()), memory_bytes: 7, runtime };
            assert_eq!(ZygoteArgs::parse(&args.to_args()), Ok(args));
        }
        let error = ZygoteArgs::parse(&["--socket".into(), "3".into()]).expect_err("no runtime");
        assert_eq!(error.to_string(), "zygote arguments: --runtime is missing");
    }
}
