//! Which backend a node uses, and why.

use super::engine::Engine;
use super::tcp::Tcp;
use super::uring::{Probe, Uring};
use super::{Config, OpenError, Transport};

/// What is wished for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// io_uring where it is allowed, else plain sockets.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// Plain sockets.
    Tcp,
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The backend's name.
    pub name: &'static str,
    /// Why this one, for logs and `doctor`.
    pub reason: String,
}

/// Opens a transport between machines. It belongs to the calling thread, which must be the one that polls it.
pub fn open(config: Config, backend: Backend) -> Result<(Box<dyn Transport>, Chosen), OpenError> {
    let probe = match backend {
        Backend::Tcp => Err("plain sockets were asked for".to_owned()),
        Backend::Auto | Backend::Uring => Probe::look(),
    };
    match probe {
        Ok(probe) => {
            let streams = Uring::new(probe.clone(), config.zero_copy)?;
            let reason =
                format!("io_uring works: {}", super::streams::Streams::features(&streams).join(", "));
            let chosen = Chosen { name: "uring", reason };
            tracing::info!(transport = chosen.name, reason = chosen.reason, "transport chosen");
            Ok((Box::new(Engine::new(streams, config)?), chosen))
        }
        Err(reason) if backend == Backend::Uring => {
            let source = std::io::Error::new(std::io::ErrorKind::Unsupported, reason);
            Err(OpenError::Os { what: "use io_uring", source })
        }
        Err(reason) => {
            let chosen = Chosen { name: "tcp", reason };
            tracing::info!(transport = chosen.name, reason = chosen.reason, "transport chosen");
            Ok((Box::new(Engine::new(Tcp::new()?, config)?), chosen))
        }
    }
}
