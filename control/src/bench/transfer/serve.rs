//! The end that owns the bytes.

use super::talk::{Answer, Ask, send};
use super::{TransferError, content, cpu_seconds, raw};
use dflow_dataplane::transport::{Backend, Config, Event, open};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// Serves measurements until the process ends; `ready` gets the address. One client after the other.
pub fn serve(config: Config, backend: Backend, ready: impl FnOnce(SocketAddr)) -> Result<(), TransferError> {
    let (mut transport, chosen) = open(config, backend)?;
    let Some(address) = transport.address() else {
        return Err(TransferError::Peer("the transport listens nowhere".into()));
    };
    // The next port, so that a firewall can be opened ahead.
    let beside = SocketAddr::new(address.ip(), address.port().wrapping_add(1).max(1));
    let any = SocketAddr::new(address.ip(), 0);
    let sockets =
        TcpListener::bind(beside).or_else(|_| TcpListener::bind(any)).map_err(TransferError::Raw)?;
    let raw_port = sockets.local_addr().map_err(TransferError::Raw)?.port();
    std::thread::spawn(move || raw::serve(&sockets));
    eprintln!("{}: {}", chosen.name, chosen.reason);
    ready(address);
    let mut owned = None;
    let mut events = Vec::new();
    loop {
        transport.poll(&mut events, Duration::from_secs(1))?;
        for event in events.drain(..) {
            let Event::Message { connection, bytes } = event else { continue };
            let answer = match serde_json::from_slice(&bytes) {
                Ok(Ask::Own { bytes }) => match content::memory(bytes) {
                    Ok(map) => {
                        content::fill(&map)?;
                        if let Some((region, _)) = owned.take() {
                            transport.deregister(region);
                        }
                        let region = transport.register(&map);
                        owned = Some((region, map));
                        Answer::Own { region, raw_port }
                    }
                    Err(error) => Answer::Cannot { why: error.to_string() },
                },
                Ok(Ask::Cpu) => Answer::Cpu { seconds: cpu_seconds() },
                Ok(Ask::Done) => {
                    if let Some((region, _)) = owned.take() {
                        transport.deregister(region);
                    }
                    continue;
                }
                Err(error) => Answer::Cannot { why: error.to_string() },
            };
            // A client that is gone needs no answer.
            let _ = send(transport.as_mut(), connection, &answer);
        }
    }
}
