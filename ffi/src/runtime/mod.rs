//! What runs inside libdflow's own zygote: shared libraries, programs, and the built-in functions.

mod builtin;
mod exec;
mod native;
mod probe;
mod synthetic;

use crate::fault::Fault;
use crate::invocation::{Invocation, Returned};
use dflow_shm::spawn::{RuntimeArgs, ZygoteArgs};

/// A loaded function, ready to be forked.
pub(crate) enum Function {
    /// A symbol of a shared library.
    Native(native::Native),
    /// A program.
    Exec(exec::Exec),
    /// Part of libdflow.
    Builtin(builtin::Builtin),
}

impl Function {
    /// Loads what the arguments name; the error says what is wrong and what to do.
    pub(crate) fn load(args: &ZygoteArgs) -> Result<Function, String> {
        match &args.runtime {
            RuntimeArgs::Native { library, symbol } => {
                native::Native::load(library, symbol).map(Function::Native)
            }
            RuntimeArgs::Exec { command, stdin, stdout, cwd } => {
                let scratch = args.scratch.clone().ok_or("an exec function needs a scratch directory")?;
                exec::Exec::load(command, stdin.as_deref(), stdout.as_deref(), cwd.as_deref(), scratch)
                    .map(Function::Exec)
            }
            RuntimeArgs::Builtin { handler } => builtin::Builtin::load(handler).map(Function::Builtin),
            RuntimeArgs::Python { .. } => {
                Err("a Python function is loaded by python3 -m dflow._zygote, not by dflow-zygote".into())
            }
        }
    }

    /// Executes one invocation.
    pub(crate) fn run(&self, invocation: &Invocation) -> Returned {
        match self {
            Function::Native(native) => native.run(invocation),
            Function::Exec(exec) => exec.run(invocation),
            Function::Builtin(builtin) => builtin.run(invocation),
        }
    }
}

/// A fault of the interface that ends the invocation, as an error of its own class.
fn returned(fault: Fault) -> Returned {
    let name = crate::fault::code_name(fault.code as i32).unwrap_or(c"DFLOW_E");
    Returned::Error { name: name.to_string_lossy().into_owned(), message: fault.message }
}
