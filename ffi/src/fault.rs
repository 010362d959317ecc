//! What a call of the C interface returns when it cannot do what was asked.

use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::fmt;

/// The codes of `dflow.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    /// A null pointer, or a number out of range.
    Argument = -1,
    /// No port of this name or index.
    Name = -2,
    /// A list used as one object, or the reverse.
    Type = -3,
    /// The output was put before.
    Sealed = -4,
    /// Beyond the reserved or declared size.
    TooLarge = -5,
    /// A reservation is not sealed yet.
    Busy = -6,
    /// The store can never hold this much.
    NoMemory = -7,
    /// The input will never be complete.
    Input = -8,
    /// More items than allowed.
    TooMany = -9,
    /// The function has failed the invocation.
    Failed = -10,
    /// The node is gone or speaks another protocol.
    Node = -11,
}

/// Success.
pub(crate) const OK: i32 = 0;
/// No such item or byte, and never will be.
pub(crate) const END: i32 = 1;
/// The source was skipped.
pub(crate) const NULL: i32 = 2;
/// This process is the new worker.
pub(crate) const WORKER: i32 = 3;

const CODES: [(Code, &CStr); 11] = [
    (Code::Argument, c"DFLOW_E_ARGUMENT"),
    (Code::Name, c"DFLOW_E_NAME"),
    (Code::Type, c"DFLOW_E_TYPE"),
    (Code::Sealed, c"DFLOW_E_SEALED"),
    (Code::TooLarge, c"DFLOW_E_TOO_LARGE"),
    (Code::Busy, c"DFLOW_E_BUSY"),
    (Code::NoMemory, c"DFLOW_E_NO_MEMORY"),
    (Code::Input, c"DFLOW_E_INPUT"),
    (Code::TooMany, c"DFLOW_E_TOO_MANY"),
    (Code::Failed, c"DFLOW_E_FAILED"),
    (Code::Node, c"DFLOW_E_NODE"),
];

/// The name of a code of `dflow.h`, if it is one.
pub(crate) fn code_name(code: i32) -> Option<&'static CStr> {
    match code {
        OK => Some(c"DFLOW_OK"),
        END => Some(c"DFLOW_END"),
        NULL => Some(c"DFLOW_NULL"),
        WORKER => Some(c"DFLOW_WORKER"),
        _ => CODES.iter().find(|(known, _)| *known as i32 == code).map(|(_, name)| *name),
    }
}

/// A code and the sentence that goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The code.
    pub code: Code,
    /// What is wrong and what to do.
    pub message: String,
}

impl Fault {
    /// A fault of this code.
    pub fn new(code: Code, message: impl Into<String>) -> Fault {
        Fault { code, message: message.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

thread_local! {
    static LAST: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// Keeps a message for [`last_message`] on this thread.
pub(crate) fn remember(message: &str) {
    let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
    LAST.with(|last| *last.borrow_mut() = Some(message));
}

/// Hands `read` the message of this thread's last fault, empty if there was none.
pub(crate) fn last_message<T>(read: impl FnOnce(&CStr) -> T) -> T {
    LAST.with(|last| read(last.borrow().as_deref().unwrap_or(c"")))
}
