//! `dflow-zygote LIBDFLOW ARGS..`: opens libdflow and calls its `dflow_zygote_main`.
//!
//! It links nothing of libdflow itself, so that a function library linked with `-ldflow` finds one
//! and the same instance.

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

type Main = unsafe extern "C" fn(c_int, *const *const c_char) -> c_int;

fn main() -> ExitCode {
    let args: Vec<CString> =
        std::env::args_os().skip(1).filter_map(|arg| CString::new(arg.as_bytes()).ok()).collect();
    let Some((library, rest)) = args.split_first() else {
        eprintln!(
            "dflow-zygote: started without the path of libdflow.so; it is a part of dflow and not for use by hand"
        );
        return ExitCode::from(2);
    };
    let main = match open(library) {
        Ok(main) => main,
        Err(message) => {
            eprintln!("dflow-zygote: cannot use {}: {message}", library.to_string_lossy());
            return ExitCode::from(2);
        }
    };
    let pointers: Vec<*const c_char> = rest.iter().map(|arg| arg.as_ptr()).collect();
    // SAFETY: `pointers` are that many C strings, alive until the end of this function, and this
    // process has one thread, as dflow_zygote_main asks.
    let code = unsafe { main(pointers.len() as c_int, pointers.as_ptr()) };
    ExitCode::from(code as u8)
}

fn open(library: &CStr) -> Result<Main, String> {
    // SAFETY: dlopen and dlsym read C strings; dlerror's text is copied at once. The library is the
    // libdflow.so of this installation, whose dflow_zygote_main has the type Main.
    unsafe {
        let error = || {
            let text = libc::dlerror();
            if text.is_null() {
                "unknown error".into()
            } else {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        };
        let handle = libc::dlopen(library.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL);
        if handle.is_null() {
            return Err(error());
        }
        let main = libc::dlsym(handle, c"dflow_zygote_main".as_ptr());
        if main.is_null() {
            return Err(error());
        }
        Ok(std::mem::transmute::<*mut libc::c_void, Main>(main))
    }
}
