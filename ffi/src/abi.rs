//! The exported functions of `dflow.h`. Each checks its pointers, calls the method of the same name,
//! and turns the result into a code; no panic leaves it.

use crate::fault::{self, Code, Fault, code_name, last_message, remember};
use crate::input::{Got, View};
use crate::invocation::Invocation;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null;

/// `dflow_view`.
#[repr(C)]
pub struct CView {
    /// First byte.
    data: *const c_void,
    /// How many.
    bytes: u64,
}

/// `dflow_info`.
#[repr(C)]
#[derive(Debug)]
pub struct CInfo {
    pub(crate) run: u64,
    pub(crate) workflow: *const c_char,
    pub(crate) step: *const c_char,
    pub(crate) step_index: u32,
    pub(crate) item: u32,
    pub(crate) attempt: u32,
    pub(crate) threads: u32,
    pub(crate) timeout_ms: u64,
}

// SAFETY: the pointers are into the CStrings of the Invocation that owns the struct, which are never
// changed.
unsafe impl Send for CInfo {}
// SAFETY: as for Send: what they point to is never changed while the struct lives.
unsafe impl Sync for CInfo {}

/// Runs the body of an exported function.
pub(crate) fn guard(body: impl FnOnce() -> Result<c_int, Fault>) -> c_int {
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        Err(Fault::new(Code::Node, "libdflow failed inside; its message is on standard error"))
    });
    result.unwrap_or_else(|fault| {
        remember(&fault.message);
        fault.code as c_int
    })
}

/// The context behind a pointer of the caller's.
///
/// # Safety
/// `ctx` is null or what the function was called with, and the function has not returned.
pub(crate) unsafe fn context<'a>(ctx: *const Invocation) -> Result<&'a Invocation, Fault> {
    // SAFETY: by this function's contract; the worker keeps the Invocation in place until the end.
    unsafe { ctx.as_ref() }.ok_or_else(|| Fault::new(Code::Argument, "the context is null"))
}

/// The text behind a pointer of the caller's.
///
/// # Safety
/// `text` is null or a NUL-terminated string that lives as long as the call.
pub(crate) unsafe fn string<'a>(text: *const c_char, what: &str) -> Result<&'a str, Fault> {
    if text.is_null() {
        return Err(Fault::new(Code::Argument, format!("{what} is null")));
    }
    // SAFETY: not null, and by this function's contract.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Fault::new(Code::Argument, format!("{what} is not UTF-8")))
}

/// A port index of the caller's: the error of a lookup passes through.
fn index(port: c_int) -> Result<usize, Fault> {
    if let Ok(index) = usize::try_from(port) {
        return Ok(index);
    }
    // The message of the lookup that failed is still this thread's last.
    let message = last_message(|text| text.to_string_lossy().into_owned());
    let code = if port == Code::Argument as c_int { Code::Argument } else { Code::Name };
    Err(Fault::new(code, if message.is_empty() { format!("no port {port}") } else { message }))
}

/// Writes a result to the caller's view.
///
/// # Safety
/// `view` is null or points to a writable `dflow_view`.
unsafe fn give(got: Got, view: *mut CView) -> Result<c_int, Fault> {
    if view.is_null() {
        return Err(Fault::new(Code::Argument, "the view to fill is null"));
    }
    let (code, bytes, data) = match got {
        Got::View(View { data, bytes }) => (fault::OK, bytes, data.as_ptr().cast_const().cast()),
        Got::Null => (fault::NULL, 0, c"".as_ptr().cast()),
        Got::End => (fault::END, 0, c"".as_ptr().cast()),
    };
    // SAFETY: not null, and by this function's contract.
    unsafe { view.write(CView { data, bytes }) };
    Ok(code)
}

/// See `dflow.h`.
///
/// # Safety
/// As `dflow.h` says: `ctx` is the function's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_about(ctx: *const Invocation) -> *const CInfo {
    // SAFETY: this function's contract is `context`'s.
    match unsafe { context(ctx) } {
        Ok(invocation) => invocation.about(),
        Err(fault) => {
            remember(&fault.message);
            null()
        }
    }
}

/// See `dflow.h`.
///
/// # Safety
/// As `dflow.h` says: `ctx` is the function's own, `name` a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_in(ctx: *const Invocation, name: *const c_char) -> c_int {
    // SAFETY: this function's contract is that of the two calls.
    guard(|| unsafe { Ok(context(ctx)?.input_index(string(name, "the input's name")?)? as c_int) })
}

/// See `dflow.h`.
///
/// # Safety
/// As `dflow.h` says: `ctx` is the function's own, `name` a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_out(ctx: *const Invocation, name: *const c_char) -> c_int {
    // SAFETY: this function's contract is that of the two calls.
    guard(|| unsafe { Ok(context(ctx)?.output_index(string(name, "the output's name")?)? as c_int) })
}

/// See `dflow.h`.
///
/// # Safety
/// As `dflow.h` says: `ctx` is the function's own, `view` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_get(ctx: *const Invocation, input: c_int, view: *mut CView) -> c_int {
    // SAFETY: this function's contract is that of the two calls.
    guard(|| unsafe { give(context(ctx)?.get(index(input)?)?, view) })
}

/// See `dflow.h`.
///
/// # Safety
/// As `dflow.h` says: `ctx` is the function's own, `view` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_get_item(
    ctx: *const Invocation,
    input: c_int,
    item: u32,
    view: *mut CView,
) -> c_int {
    // SAFETY: this function's contract is that of the two calls.
    guard(|| unsafe { give(context(ctx)?.get_item(index(input)?, item)?, view) })
}

/// See `dflow.h`.
///
/// # Safety
/// As `dflow.h` says: `ctx` is the function's own, `view` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_next(ctx: *const Invocation, input: c_int, view: *mut CView) -> c_int {
    // SAFETY: this function's contract is that of the two calls.
    guard(|| unsafe { give(context(ctx)?.next(index(input)?)?, view) })
}

/// See `dflow.h`.
///
/// # Safety
/// As `dflow.h` says: `ctx` is the function's own, `count` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_count(ctx: *const Invocation, input: c_int, count: *mut u32) -> c_int {
    guard(|| {
        // SAFETY: this function's contract is `context`'s.
        let known = unsafe { context(ctx)? }.count(index(input)?)?;
        if count.is_null() {
            return Err(Fault::new(Code::Argument, "the count to fill is null"));
        }
        // SAFETY: not null, and writable by this function's contract.
        unsafe { count.write(known.unwrap_or(0)) };
        Ok(if known.is_some() { fault::OK } else { fault::NULL })
    })
}

/// See `dflow.h`.
///
/// # Safety
/// As `dflow.h` says: `ctx` is the function's own, `view` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_read(
    ctx: *const Invocation,
    input: c_int,
    item: u32,
    offset: u64,
    bytes_min: u64,
    view: *mut CView,
) -> c_int {
    // SAFETY: this function's contract is that of the two calls.
    guard(|| unsafe { give(context(ctx)?.read(index(input)?, item, offset, bytes_min)?, view) })
}

/// See `dflow.h`.
///
/// # Safety
/// As `dflow.h` says: `ctx` is the function's own, `name` a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_param(ctx: *const Invocation, name: *const c_char) -> *const c_char {
    let mut text = null();
    guard(|| {
        // SAFETY: this function's contract is that of the two calls.
        let found = unsafe { context(ctx)?.param(string(name, "the input's name")?)? };
        match found {
            // The text lives in the invocation until it ends.
            Some(found) => text = found.as_ptr().cast_const().cast(),
            None => remember("the input was skipped"),
        }
        Ok(fault::OK)
    });
    text
}

/// See `dflow.h`.
///
/// # Safety
/// As `dflow.h` says: `ctx` is the function's own, `data` readable for `bytes` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_put(
    ctx: *const Invocation,
    output: c_int,
    data: *const c_void,
    bytes: u64,
) -> c_int {
    guard(|| {
        // SAFETY: this function's contract is `context`'s.
        let invocation = unsafe { context(ctx)? };
        let output = index(output)?;
        if bytes == 0 {
            return invocation.put(output, &[]).map(|()| fault::OK);
        }
        let bytes = usize::try_from(bytes).ok().filter(|bytes| isize::try_from(*bytes).is_ok());
        let (Some(bytes), false) = (bytes, data.is_null()) else {
            return Err(Fault::new(Code::Argument, "the data to put is null, or longer than memory"));
        };
        // SAFETY: not null, not longer than the address space, and readable by this function's
        // contract.
        let data = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), bytes) };
        invocation.put(output, data).map(|()| fault::OK)
    })
}

/// See `dflow.h`.
///
/// # Safety
/// As `dflow.h` says: `ctx` is the function's own, `data` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_reserve(
    ctx: *const Invocation,
    output: c_int,
    bytes_max: u64,
    data: *mut *mut c_void,
) -> c_int {
    guard(|| {
        if data.is_null() {
            return Err(Fault::new(Code::Argument, "the pointer to fill is null"));
        }
        // SAFETY: this function's contract is `context`'s.
        let memory = unsafe { context(ctx)? }.reserve(index(output)?, bytes_max)?;
        // SAFETY: not null, and writable by this function's contract.
        unsafe { data.write(memory.as_ptr().cast()) };
        Ok(fault::OK)
    })
}

/// See `dflow.h`.
///
/// # Safety
/// As `dflow.h` says: `ctx` is the function's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_commit(ctx: *const Invocation, output: c_int, watermark: u64) -> c_int {
    // SAFETY: this function's contract is `context`'s.
    guard(|| unsafe { context(ctx)? }.commit(index(output)?, watermark).map(|()| fault::OK))
}

/// See `dflow.h`.
///
/// # Safety
/// As `dflow.h` says: `ctx` is the function's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_seal(ctx: *const Invocation, output: c_int, bytes: u64) -> c_int {
    // SAFETY: this function's contract is `context`'s.
    guard(|| unsafe { context(ctx)? }.seal(index(output)?, bytes).map(|()| fault::OK))
}

/// See `dflow.h`.
///
/// # Safety
/// As `dflow.h` says: `ctx` is the function's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_close(ctx: *const Invocation, output: c_int) -> c_int {
    // SAFETY: this function's contract is `context`'s.
    guard(|| unsafe { context(ctx)? }.close(index(output)?).map(|()| fault::OK))
}

/// See `dflow.h`.
///
/// # Safety
/// As `dflow.h` says: `ctx` is the function's own, the others null or C strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dflow_fail(
    ctx: *const Invocation,
    name: *const c_char,
    message: *const c_char,
) -> c_int {
    guard(|| {
        let text = |text: *const c_char, or: &str| {
            if text.is_null() {
                return or.to_owned();
            }
            // SAFETY: not null, and a C string by this function's contract.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        let (name, message) = (text(name, "Error"), text(message, ""));
        // SAFETY: this function's contract is `context`'s.
        unsafe { context(ctx)? }.fail(&name, &message);
        Err(Fault::new(Code::Failed, format!("{name}: {message}")))
    })
}

/// See `dflow.h`.
#[unsafe(no_mangle)]
pub extern "C" fn dflow_strerror(code: c_int) -> *const c_char {
    code_name(code).unwrap_or(c"an unknown code").as_ptr()
}

/// See `dflow.h`.
#[unsafe(no_mangle)]
pub extern "C" fn dflow_last_error() -> *const c_char {
    thread_local! {
        // The caller's copy: the message itself is replaced by the thread's next fault.
        static SHOWN: RefCell<Option<CString>> = const { RefCell::new(None) };
    }
    let message = last_message(CStr::to_owned);
    SHOWN.with(|shown| shown.borrow_mut().insert(message).as_ptr())
}
