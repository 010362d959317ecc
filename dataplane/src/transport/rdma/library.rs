//! The functions that libibverbs exports, found when the program runs.
//!
//! Nothing is linked: a program that was built with RDMA starts on machines without rdma-core, and says so. What
//! the header defines inline (`ibv_post_send`, `ibv_poll_cq` …) goes through the tables of an open device and is
//! called in `verbs`.

use rdma_sys::{
    ibv_comp_channel, ibv_context, ibv_cq, ibv_device, ibv_device_attr, ibv_gid_entry, ibv_mr, ibv_pd,
    ibv_port_attr, ibv_qp, ibv_qp_attr, ibv_qp_init_attr, ibv_srq, ibv_srq_init_attr,
};
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// The library's name, as its package installs it.
const LIBRARY: &str = "libibverbs.so.1";

/// What `ibv_get_async_event` fills in. Ours, since an event that is newer than the bindings' enum must not
/// become a value of it.
#[repr(C)]
pub(super) struct AsyncEvent {
    element: u64,
    pub(super) kind: c_uint,
}

impl AsyncEvent {
    pub(super) const fn empty() -> AsyncEvent {
        AsyncEvent { element: 0, kind: 0 }
    }

    /// The number of the port that it is about, if it is an event of a port.
    pub(super) fn port(&self) -> u32 {
        // An `int` at the beginning of a union.
        self.element.to_ne_bytes().first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }
}

macro_rules! library {
    ($($name:ident = $symbol:literal: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The exported functions, as `infiniband/verbs.h` declares them.
        pub(super) struct Library {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        fn load() -> Result<Library, String> {
            // SAFETY: libibverbs runs no initialisers that other threads could notice; it is what the package
            // rdma-core installs under this name.
            let library = unsafe { libloading::Library::new(LIBRARY) }
                .map_err(|error| format!("{LIBRARY} cannot be loaded ({error}): install rdma-core"))?;
            let loaded = Library {
                // SAFETY: the symbols have these types since libibverbs 1.11, whose functions are
                // declared so in its header; the library stays loaded by the `forget` below.
                $($name: unsafe {
                    *library
                        .get::<unsafe extern "C" fn($($argument),*) $(-> $result)?>($symbol)
                        .map_err(|error| format!("{LIBRARY} is too old: {error}"))?
                },)*
            };
            // Never unloaded: devices may be open until the process ends.
            std::mem::forget(library);
            Ok(loaded)
        }
    };
}

library! {
    get_device_list = b"ibv_get_device_list\0": fn(*mut c_int) -> *mut *mut ibv_device;
    free_device_list = b"ibv_free_device_list\0": fn(*mut *mut ibv_device);
    open_device = b"ibv_open_device\0": fn(*mut ibv_device) -> *mut ibv_context;
    close_device = b"ibv_close_device\0": fn(*mut ibv_context) -> c_int;
    query_device = b"ibv_query_device\0": fn(*mut ibv_context, *mut ibv_device_attr) -> c_int;
    query_port = b"ibv_query_port\0": fn(*mut ibv_context, u8, *mut ibv_port_attr) -> c_int;
    query_gid_table = b"_ibv_query_gid_table\0":
        fn(*mut ibv_context, *mut ibv_gid_entry, usize, u32, usize) -> isize;
    alloc_pd = b"ibv_alloc_pd\0": fn(*mut ibv_context) -> *mut ibv_pd;
    dealloc_pd = b"ibv_dealloc_pd\0": fn(*mut ibv_pd) -> c_int;
    reg_mr = b"ibv_reg_mr\0": fn(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
    dereg_mr = b"ibv_dereg_mr\0": fn(*mut ibv_mr) -> c_int;
    create_comp_channel = b"ibv_create_comp_channel\0": fn(*mut ibv_context) -> *mut ibv_comp_channel;
    destroy_comp_channel = b"ibv_destroy_comp_channel\0": fn(*mut ibv_comp_channel) -> c_int;
    create_cq = b"ibv_create_cq\0":
        fn(*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int) -> *mut ibv_cq;
    destroy_cq = b"ibv_destroy_cq\0": fn(*mut ibv_cq) -> c_int;
    get_cq_event = b"ibv_get_cq_event\0":
        fn(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
    ack_cq_events = b"ibv_ack_cq_events\0": fn(*mut ibv_cq, c_uint);
    create_srq = b"ibv_create_srq\0": fn(*mut ibv_pd, *mut ibv_srq_init_attr) -> *mut ibv_srq;
    destroy_srq = b"ibv_destroy_srq\0": fn(*mut ibv_srq) -> c_int;
    create_qp = b"ibv_create_qp\0": fn(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
    modify_qp = b"ibv_modify_qp\0": fn(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
    destroy_qp = b"ibv_destroy_qp\0": fn(*mut ibv_qp) -> c_int;
    get_async_event = b"ibv_get_async_event\0": fn(*mut ibv_context, *mut AsyncEvent) -> c_int;
    ack_async_event = b"ibv_ack_async_event\0": fn(*mut AsyncEvent);
    wc_status_str = b"ibv_wc_status_str\0": fn(c_uint) -> *const c_char;
}

/// The library, loaded once, or why it cannot be.
pub(super) fn library() -> Result<&'static Library, &'static str> {
    static LOADED: OnceLock<Result<Library, String>> = OnceLock::new();
    LOADED.get_or_init(load).as_ref().map_err(String::as_str)
}
