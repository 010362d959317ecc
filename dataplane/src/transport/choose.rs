//! Which backend a node uses, and why.

use super::engine::Engine;
use super::streams::Streams;
use super::tcp::Tcp;
use super::uring::{Probe, Uring};
use super::{Config, OpenError, Transport};

/// What is wished for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// RDMA where there is a card, beside io_uring where it is allowed, else plain sockets.
    #[default]
    Auto,
    /// RDMA beside the best streams, or an error.
    Rdma,
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
///
/// What carries the data is decided anew for each peer; [`Transport::path`] tells.
pub fn open(config: Config, backend: Backend) -> Result<(Box<dyn Transport>, Chosen), OpenError> {
    let probe = match backend {
        Backend::Tcp => Err("plain sockets were asked for".to_owned()),
        Backend::Auto | Backend::Rdma | Backend::Uring => Probe::look(),
    };
    let (transport, chosen) = match probe {
        Ok(probe) => {
            let streams = Uring::new(probe.clone(), config.zero_copy)?;
            let reason = format!("io_uring works: {}", streams.features().join(", "));
            over(streams, config, backend, Chosen { name: "uring", reason })?
        }
        Err(reason) if backend == Backend::Uring => {
            let source = std::io::Error::new(std::io::ErrorKind::Unsupported, reason);
            return Err(OpenError::Os { what: "use io_uring", source });
        }
        Err(reason) => over(Tcp::new()?, config, backend, Chosen { name: "tcp", reason })?,
    };
    tracing::info!(transport = chosen.name, reason = chosen.reason, "transport chosen");
    Ok((transport, chosen))
}

/// `streams`, with RDMA beside them where it is wished for and there.
#[cfg(feature = "rdma")]
fn over<S: Streams + 'static>(
    streams: S,
    config: Config,
    backend: Backend,
    below: Chosen,
) -> Result<(Box<dyn Transport>, Chosen), OpenError> {
    use super::rdma::{Rdma, look};
    if matches!(backend, Backend::Uring | Backend::Tcp) {
        return Ok((Box::new(Engine::new(streams, config)?), below));
    }
    let listen = config.listen.map(|address| address.ip());
    match look(listen, config.rdma_device.as_deref()) {
        Ok(choice) => {
            let reason = format!("{choice}; beside it {}: {}", below.name, below.reason);
            let rdma = Rdma::new(streams, config, &choice)?;
            Ok((Box::new(rdma), Chosen { name: "rdma", reason }))
        }
        Err(error) if backend == Backend::Rdma => Err(error.into()),
        Err(error) => {
            let reason = format!("{}; no RDMA: {error}", below.reason);
            Ok((Box::new(Engine::new(streams, config)?), Chosen { reason, ..below }))
        }
    }
}

/// `streams` alone.
#[cfg(not(feature = "rdma"))]
fn over<S: Streams + 'static>(
    streams: S,
    config: Config,
    backend: Backend,
    below: Chosen,
) -> Result<(Box<dyn Transport>, Chosen), OpenError> {
    if backend == Backend::Rdma {
        let source = std::io::Error::new(std::io::ErrorKind::Unsupported, "built without the feature `rdma`");
        return Err(OpenError::Os { what: "use RDMA", source });
    }
    Ok((Box::new(Engine::new(streams, config)?), below))
}
