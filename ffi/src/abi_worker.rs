//! The exported functions of `dflow_worker.h`, for bindings of other languages and for the zygote
//! binary.

use crate::abi::{CInfo, guard, string};
use crate::fault::{self, Code, Fault};
use crate::input::{Got, View};
use crate::invocation::{Invocation, Returned};
use crate::runtime::Function;
use crate::worker::Worker;
use crate::zygote::{Served, Zygote};
use dflow_proto::link::{InputValue, PortKind, PortType};
use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::ptr::null;

/// `dflow_input`.
#[repr(C)]
pub struct CInput {
    name: *const c_char,
    data: *const c_void,
    bytes: u64,
    name_bytes: u32,
    ty: u32,
    shape: u32,
    state: u32,
}

/// `dflow_output`.
#[repr(C)]
pub struct COutput {
    name: *const c_char,
    bytes_max: u64,
    name_bytes: u32,
    ty: u32,
    kind: u32,
    items_max: u32,
}

/// `dflow_call`.
#[repr(C)]
pub struct CCall {
    ctx: *const Invocation,
    info: *const CInfo,
    inputs: *const CInput,
    outputs: *const COutput,
    inputs_len: u32,
    outputs_len: u32,
    signature: u64,
}

/// `dflow_zygote`.
pub struct CZygote(Option<Zygote>);

/// `dflow_worker`, and what the last `dflow_call` points to.
pub struct CWorker {
    worker: Worker,
    names: Vec<CString>,
    inputs: Vec<CInput>,
    outputs: Vec<COutput>,
}

type ForkFn = unsafe extern "C" fn(*mut c_void) -> c_int;

fn type_code(ty: PortType) -> u32 {
    match ty {
        PortType::Bytes => 0,
        PortType::Text => 1,
        PortType::Json => 2,
    }
}

fn kind_code(kind: PortKind) -> u32 {
    match kind {
        PortKind::Plain => 0,
        PortKind::Stream => 1,
        PortKind::Many => 2,
    }
}

impl CWorker {
    /// Describes the current invocation in the structs of the header.
    fn describe(&mut self) -> Result<CCall, Fault> {
        let invocation =
            self.worker.current().ok_or_else(|| Fault::new(Code::Argument, "there is no invocation"))?;
        let mut hasher = DefaultHasher::new();
        self.names.clear();
        self.inputs.clear();
        self.outputs.clear();
        let mut name = |text: &str| {
            let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
            let pointer = text.as_ptr();
            let bytes = text.as_bytes().len() as u32;
            // Moving a CString leaves its heap bytes, and so the pointer, in place.
            self.names.push(text);
            (pointer, bytes)
        };
        for (index, input) in invocation.invoke.inputs.iter().enumerate() {
            let (state, view) = match invocation.peek(index)? {
                Some(Got::View(view)) => (1, Some(view)),
                Some(Got::Null) => (2, None),
                Some(Got::End) | None => (0, None),
            };
            let (data, bytes) = view.map_or((null(), 0), |View { data, bytes }| {
                (data.as_ptr().cast_const().cast::<c_void>(), bytes)
            });
            let shape = u32::from(matches!(input.value, InputValue::List { .. }));
            let ty = type_code(input.ty);
            (&input.name, ty, shape).hash(&mut hasher);
            let (name, name_bytes) = name(&input.name);
            self.inputs.push(CInput { name, data, bytes, name_bytes, ty, shape, state });
        }
        for output in &invocation.invoke.outputs {
            let (ty, kind) = (type_code(output.ty), kind_code(output.kind));
            (&output.name, ty, kind).hash(&mut hasher);
            let (name, name_bytes) = name(&output.name);
            let (bytes_max, items_max) = (output.bytes_max, output.items_max);
            self.outputs.push(COutput { name, bytes_max, name_bytes, ty, kind, items_max });
        }
        Ok(CCall {
            ctx: invocation,
            info: invocation.about(),
            inputs: self.inputs.as_ptr(),
            outputs: self.outputs.as_ptr(),
            inputs_len: self.inputs.len() as u32,
            outputs_len: self.outputs.len() as u32,
            signature: hasher.finish(),
        })
    }
}

/// The arguments after the program's own.
///
/// # Safety
/// `argv` points to `argc` C strings.
unsafe fn arguments(argc: c_int, argv: *const *const c_char) -> Result<Vec<OsString>, Fault> {
    let count = usize::try_from(argc).unwrap_or(0);
    if argv.is_null() && count > 0 {
        return Err(Fault::new(Code::Argument, "argv is null"));
    }
    let one = |index: usize| {
        // SAFETY: index < argc, and each element is a C string, by this function's contract.
        let text = unsafe { CStr::from_ptr(*argv.add(index)) };
        OsStr::from_bytes(text.to_bytes()).to_owned()
    };
    Ok((0..count).map(one).collect())
}

/// See `dflow_worker.h`.
///
/// # Safety
/// `argv` points to `argc` C strings, `zygote` is writable. The process has one thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_zygote_open(
    argc: c_int,
    argv: *const *const c_char,
    zygote: *mut *mut CZygote,
) -> c_int {
    guard(|| {
        if zygote.is_null() {
            return Err(Fault::new(Code::Argument, "the pointer to fill is null"));
        }
        // SAFETY: this function's contract is `arguments`'.
        let opened = Zygote::open(&unsafe { arguments(argc, argv)? })?;
        // SAFETY: not null, and writable by this function's contract.
        unsafe { zygote.write(Box::into_raw(Box::new(CZygote(Some(opened))))) };
        Ok(fault::OK)
    })
}

/// # Safety
/// `zygote` is null or came from `dflow_zygote_open`, and nobody else uses it.
unsafe fn opened<'a>(zygote: *mut CZygote) -> Result<&'a mut CZygote, Fault> {
    // SAFETY: by this function's contract; the box is never freed.
    unsafe { zygote.as_mut() }.ok_or_else(|| Fault::new(Code::Argument, "the zygote is null"))
}

/// See `dflow_worker.h`.
///
/// # Safety
/// `zygote` came from `dflow_zygote_open`, the texts are null or C strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_zygote_failed(
    zygote: *mut CZygote,
    message: *const c_char,
    traceback: *const c_char,
) -> c_int {
    guard(|| {
        // SAFETY: this function's contract is that of the calls.
        let (zygote, message) = unsafe { (opened(zygote)?, string(message, "the message")?) };
        let traceback = if traceback.is_null() {
            ""
        } else {
            // SAFETY: this function's contract is that of the call.
            unsafe { string(traceback, "the traceback")? }
        };
        match &zygote.0 {
            Some(zygote) => zygote.failed(message, traceback).map(|()| fault::OK),
            None => Err(Fault::new(Code::Argument, "the zygote serves already")),
        }
    })
}

/// See `dflow_worker.h`.
///
/// # Safety
/// `zygote` came from `dflow_zygote_open`, `fork_fn` forks as it should, `worker` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_zygote_serve(
    zygote: *mut CZygote,
    fork_fn: Option<ForkFn>,
    user: *mut c_void,
    worker: *mut *mut CWorker,
) -> c_int {
    guard(|| {
        // SAFETY: this function's contract is that of the call.
        let zygote = unsafe { opened(zygote)? }.0.take();
        let (Some(zygote), Some(fork_fn), false) = (zygote, fork_fn, worker.is_null()) else {
            return Err(Fault::new(Code::Argument, "the zygote is used up, or a pointer is null"));
        };
        let fork = || {
            // SAFETY: the caller vouches for its fork function and for `user`.
            match unsafe { fork_fn(user) } {
                pid @ 0.. => Ok(pid),
                _ => Err(io::Error::last_os_error()),
            }
        };
        match zygote.serve(fork)? {
            Served::NodeGone => Ok(fault::OK),
            Served::Worker(started) => {
                let started =
                    CWorker { worker: *started, names: Vec::new(), inputs: Vec::new(), outputs: Vec::new() };
                // SAFETY: not null, and writable by this function's contract.
                unsafe { worker.write(Box::into_raw(Box::new(started))) };
                Ok(fault::WORKER)
            }
        }
    })
}

/// # Safety
/// `worker` is null or came from `dflow_zygote_serve`, and no other call uses it at this time.
unsafe fn working<'a>(worker: *mut CWorker) -> Result<&'a mut CWorker, Fault> {
    // SAFETY: by this function's contract; the box is never freed.
    unsafe { worker.as_mut() }.ok_or_else(|| Fault::new(Code::Argument, "the worker is null"))
}

/// See `dflow_worker.h`.
///
/// # Safety
/// `worker` came from `dflow_zygote_serve`, `call` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_worker_next(worker: *mut CWorker, call: *mut CCall) -> c_int {
    guard(|| {
        // SAFETY: this function's contract is that of the call.
        let worker = unsafe { working(worker)? };
        if call.is_null() {
            return Err(Fault::new(Code::Argument, "the call to fill is null"));
        }
        if worker.worker.next_invocation()?.is_none() {
            return Ok(fault::END);
        }
        let described = worker.describe()?;
        // SAFETY: not null, and writable by this function's contract.
        unsafe { call.write(described) };
        Ok(fault::OK)
    })
}

/// See `dflow_worker.h`.
///
/// # Safety
/// `worker` came from `dflow_zygote_serve`, the texts are null or C strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_worker_end(
    worker: *mut CWorker,
    name: *const c_char,
    message: *const c_char,
) -> c_int {
    guard(|| {
        // SAFETY: this function's contract is that of the call.
        let worker = unsafe { working(worker)? };
        if worker.worker.current().is_none() {
            return Err(Fault::new(Code::Argument, "there is no invocation to end"));
        }
        let returned = if name.is_null() {
            Returned::Ok
        } else {
            let text = |text: *const c_char| {
                if text.is_null() {
                    return String::new();
                }
                // SAFETY: not null, and a C string by this function's contract.
                unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
            };
            Returned::Error { name: text(name), message: text(message) }
        };
        worker.worker.end(returned).map(|()| fault::OK)
    })
}

/// See `dflow_worker.h`.
///
/// # Safety
/// `worker` came from `dflow_zygote_serve`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_worker_end_exit(worker: *mut CWorker, code: c_int) -> c_int {
    guard(|| {
        // SAFETY: this function's contract is that of the call.
        let worker = unsafe { working(worker)? };
        if worker.worker.current().is_none() {
            return Err(Fault::new(Code::Argument, "there is no invocation to end"));
        }
        let returned = if code == 0 { Returned::Ok } else { Returned::Exit(code) };
        worker.worker.end(returned).map(|()| fault::OK)
    })
}

/// See `dflow_worker.h`.
///
/// # Safety
/// `worker` came from `dflow_zygote_serve`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_worker_taint(worker: *mut CWorker) -> c_int {
    guard(|| {
        // SAFETY: this function's contract is that of the call.
        unsafe { working(worker)? }.worker.taint();
        Ok(fault::OK)
    })
}

/// See `dflow_worker.h`.
///
/// # Safety
/// `argv` points to `argc` C strings. The process has one thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_zygote_main(argc: c_int, argv: *const *const c_char) -> c_int {
    let code = guard(|| {
        // SAFETY: this function's contract is `arguments`'.
        let zygote = Zygote::open(&unsafe { arguments(argc, argv)? })?;
        let function = match Function::load(zygote.args()) {
            Ok(function) => function,
            Err(message) => {
                zygote.failed(&message, "")?;
                return Ok(1);
            }
        };
        // SAFETY: this process has one thread, so the child may go on as if nothing had happened.
        let fork = || match unsafe { libc::fork() } {
            pid @ 0.. => Ok(pid),
            _ => Err(io::Error::last_os_error()),
        };
        match zygote.serve(fork)? {
            Served::NodeGone => Ok(0),
            Served::Worker(mut worker) => worker.work(|invocation| function.run(invocation)).map(|()| 0),
        }
    });
    if code < 0 {
        let message = fault::last_message(|text| text.to_string_lossy().into_owned());
        // Standard error is the node's pipe: the only place left to say it.
        eprintln!("dflow: {message}");
        return 1;
    }
    code
}
