//! The built-in functions: `noop`, `log`, `synthetic` and `probe`.

use super::{probe, returned, synthetic};
use crate::fault::Fault;
use crate::input::Got;
use crate::invocation::{Invocation, Returned};
use dflow_proto::link::{InputValue, PortKind};
use std::io::Write;

/// `log` prints this much of each object. Bytes.
const LOG_BYTES_MAX: usize = 4096;

/// Which built-in function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Builtin {
    /// Waits for its inputs and puts empty outputs.
    Noop,
    /// Prints its inputs as they come, and puts empty outputs.
    Log,
    /// See [`synthetic`].
    Synthetic,
    /// See [`probe`].
    Probe,
}

impl Builtin {
    pub(crate) fn load(handler: &str) -> Result<Builtin, String> {
        match handler {
            "noop" => Ok(Builtin::Noop),
            "log" => Ok(Builtin::Log),
            "synthetic" => Ok(Builtin::Synthetic),
            "probe" => Ok(Builtin::Probe),
            other => Err(format!(
                "there is no built-in function {other:?}; there are noop, log, synthetic and probe"
            )),
        }
    }

    pub(crate) fn run(self, invocation: &Invocation) -> Returned {
        let result = match self {
            Builtin::Noop => each_input(invocation, |_, _, _| Ok(())).and_then(|()| put_empty(invocation)),
            Builtin::Log => each_input(invocation, |name, item, got| print(invocation, name, item, got))
                .and_then(|()| put_empty(invocation)),
            Builtin::Synthetic => return synthetic::run(invocation),
            Builtin::Probe => return probe::run(invocation),
        };
        result.map_or_else(returned, |()| Returned::Ok)
    }
}

/// Reads every input, list items one by one.
fn each_input(
    invocation: &Invocation,
    mut read: impl FnMut(&str, Option<u32>, Got) -> Result<(), Fault>,
) -> Result<(), Fault> {
    for (index, input) in invocation.invoke.inputs.iter().enumerate() {
        if !matches!(input.value, InputValue::List { .. }) {
            read(&input.name, None, invocation.get(index)?)?;
            continue;
        }
        for item in 0.. {
            match invocation.get_item(index, item)? {
                Got::View(view) => read(&input.name, Some(item), Got::View(view))?,
                Got::Null | Got::End => break,
            }
        }
    }
    Ok(())
}

fn print(invocation: &Invocation, name: &str, item: Option<u32>, got: Got) -> Result<(), Fault> {
    let place = item.map_or_else(|| name.to_owned(), |item| format!("{name}[{item}]"));
    let line = match got {
        Got::View(view) => {
            let bytes = invocation.slice(&view);
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(LOG_BYTES_MAX)]);
            let more = if bytes.len() > LOG_BYTES_MAX {
                format!(" ... ({} bytes)", bytes.len())
            } else {
                String::new()
            };
            format!("{place}: {}{more}\n", shown.trim_end())
        }
        Got::Null | Got::End => format!("{place}: (skipped)\n"),
    };
    // A log that nobody can take is no reason to fail a step.
    let _ = std::io::stdout().write_all(line.as_bytes());
    Ok(())
}

fn put_empty(invocation: &Invocation) -> Result<(), Fault> {
    for (index, output) in invocation.invoke.outputs.iter().enumerate() {
        if output.kind != PortKind::Many {
            invocation.put(index, &[])?;
        }
    }
    Ok(())
}
