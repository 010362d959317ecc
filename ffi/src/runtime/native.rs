//! Functions of shared libraries.

use crate::fault::{self, code_name};
use crate::invocation::{Invocation, Returned};
use std::ffi::{CStr, CString, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `int dflow_main(dflow_ctx *)`.
type Main = unsafe extern "C" fn(*const Invocation) -> c_int;

/// A function found in a library. The library stays open for the life of the process.
pub(crate) struct Native {
    main: Main,
}

impl Native {
    /// Opens the library with all its symbols bound, so that nothing is left to fail later.
    pub(crate) fn load(library: &Path, symbol: &str) -> Result<Native, String> {
        let shown = library.display();
        let bad = |_| format!("{shown}: a path or symbol with a zero byte");
        let path = CString::new(library.as_os_str().as_bytes()).map_err(bad)?;
        let name = CString::new(symbol).map_err(bad)?;
        // SAFETY: dlopen reads a NUL-terminated path. It runs the library's initialisers, which is
        // what the workflow's author asked for.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            return Err(format!(
                "cannot open the shared library {shown}: {}; check `library` in the workflow file and `ldd` on it",
                dl_error()
            ));
        }
        // SAFETY: `handle` is open and stays so; `name` is NUL-terminated.
        let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
        if address.is_null() {
            return Err(format!(
                "the shared library {shown} has no symbol {symbol}: {}; export `int {symbol}(dflow_ctx *)` \
                 (in C++ as extern \"C\") or name another as `symbol`",
                dl_error()
            ));
        }
        // SAFETY: the workflow's author declares that this symbol is a function of the type that
        // dflow.h gives. Object and function pointers have one form on all targets that have dlsym.
        let main = unsafe { std::mem::transmute::<*mut libc::c_void, Main>(address) };
        Ok(Native { main })
    }

    pub(crate) fn run(&self, invocation: &Invocation) -> Returned {
        // SAFETY: the function gets a context that lives until it returns, as dflow.h promises.
        let code = unsafe { (self.main)(invocation) };
        // What it printed must be in the node's pipe before the invocation is over.
        // SAFETY: fflush(NULL) flushes all of C's open output streams.
        unsafe { libc::fflush(std::ptr::null_mut()) };
        match (code, code_name(code)) {
            (fault::OK, _) => Returned::Ok,
            (..0, Some(name)) => Returned::Error {
                name: name.to_string_lossy().into_owned(),
                message: fault::last_message(|text| text.to_string_lossy().into_owned()),
            },
            _ => Returned::Exit(code),
        }
    }
}

fn dl_error() -> String {
    // SAFETY: dlerror returns null or a NUL-terminated string that lives until the next dl call of
    // this thread; it is copied at once.
    unsafe {
        let text = libc::dlerror();
        if text.is_null() {
            "unknown error".into()
        } else {
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    }
}
