//! What this kernel lets us do.

use io_uring::{IoUring, opcode};
use std::io;

/// Submissions that wait for one system call.
const ENTRIES: u32 = 1024;
/// Completions that the ring holds; beyond that the kernel keeps a list.
const COMPLETIONS: u32 = 8192;
/// Sockets the ring knows by number; others are looked up at each call.
pub(super) const FILES: u32 = 8192;

/// What the kernel offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The strongest setup that it accepts.
    pub setup: Setup,
    /// Sockets can be registered.
    pub files: bool,
    /// `sendmsg` without a copy exists.
    pub zero_copy: bool,
}

/// How the ring is set up, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// One issuer, completions on request (Linux 6.1).
    Deferred,
    /// Completions without interrupting (Linux 5.19).
    Cooperative,
    /// Neither.
    Plain,
}

impl Setup {
    const ALL: [Setup; 3] = [Setup::Deferred, Setup::Cooperative, Setup::Plain];

    pub(super) fn build(self) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS).setup_clamp().dontfork();
        match self {
            Setup::Deferred => {
                builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
            }
            Setup::Cooperative => {
                builder.setup_coop_taskrun().setup_taskrun_flag();
            }
            Setup::Plain => {}
        }
        builder.build(ENTRIES)
    }
}

impl Probe {
    /// Tries what this kernel and its rules allow. The error says why io_uring cannot be used.
    pub fn look() -> Result<Probe, String> {
        let mut refused = String::new();
        for setup in Setup::ALL {
            let ring = match setup.build() {
                Ok(ring) => ring,
                Err(error) => {
                    refused = format!("io_uring_setup: {error}");
                    if error.raw_os_error() == Some(libc::EINVAL) {
                        continue;
                    }
                    break;
                }
            };
            if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
                return Err("the kernel's io_uring is too old: Linux 5.11 is needed".to_owned());
            }
            let mut known = io_uring::Probe::new();
            if let Err(error) = ring.submitter().register_probe(&mut known) {
                return Err(format!("io_uring_register: {error}"));
            }
            for (code, name) in [
                (opcode::Recv::CODE, "recv"),
                (opcode::SendMsg::CODE, "sendmsg"),
                (opcode::AsyncCancel::CODE, "cancel"),
                (opcode::PollAdd::CODE, "poll"),
            ] {
                if !known.is_supported(code) {
                    return Err(format!("the kernel's io_uring has no {name}"));
                }
            }
            let zero_copy = known.is_supported(opcode::SendMsgZc::CODE);
            let files = ring.submitter().register_files_sparse(FILES).is_ok();
            return Ok(Probe { setup, files, zero_copy });
        }
        Err(refused)
    }
}
