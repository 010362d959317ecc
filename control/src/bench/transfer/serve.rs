//! The end that owns the bytes.

use super::client::{SOURCE, TARGET};
use super::pull::{Pull, stride};
use super::raw::{self, Ticket};
use super::talk::{Answer, Ask, send};
#[cfg(feature = "rdma")]
use super::verbs::{self, Serving};
use super::{TransferError, content, cpu_seconds};
use dflow_dataplane::transport::{Backend, Config, ConnectionId, Event, Region, Transport, open};
use dflow_shm::segment::Map;
#[cfg(feature = "rdma")]
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Serves measurements until the process ends; `ready` gets the address. One client after the other.
pub fn serve(config: Config, backend: Backend, ready: impl FnOnce(SocketAddr)) -> Result<(), TransferError> {
    #[cfg(feature = "rdma")]
    let (listen, wish) = (config.listen.map(|address| address.ip()), config.rdma_device.clone());
    let (transport, chosen) = open(config, backend)?;
    let Some(address) = transport.address() else {
        return Err(TransferError::Peer("the transport listens nowhere".into()));
    };
    let raw = raw::beside(address)?;
    eprintln!("{}: {}", chosen.name, chosen.reason);
    ready(address);
    let mut server = Server {
        transport,
        raw,
        owned: None,
        target: None,
        #[cfg(feature = "rdma")]
        cards: (listen, wish),
        #[cfg(feature = "rdma")]
        verbs: None,
    };
    let mut events = Vec::new();
    loop {
        server.transport.poll(&mut events, Duration::from_secs(1))?;
        for event in events.drain(..) {
            #[cfg(feature = "rdma")]
            if matches!(event, Event::Disconnected { .. }) {
                server.verbs = None;
            }
            let Event::Message { connection, bytes } = event else { continue };
            let answer = match serde_json::from_slice(&bytes) {
                Ok(ask) => server.asked(connection, ask),
                Err(error) => Err(TransferError::Peer(error.to_string())),
            };
            let answer = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => continue,
                Err(error) => Answer::Cannot { why: error.to_string() },
            };
            // A client that is gone needs no answer.
            let _ = send(server.transport.as_mut(), connection, &answer);
        }
    }
}

struct Server {
    transport: Box<dyn Transport>,
    raw: Ticket,
    /// What the client reads.
    owned: Option<Region>,
    /// Where the client's objects land.
    target: Option<(Region, Arc<Map>)>,
    /// Where this node listens, and which card is wished for: they decide which is measured.
    #[cfg(feature = "rdma")]
    cards: (Option<IpAddr>, Option<String>),
    /// A queue pair that is measured.
    #[cfg(feature = "rdma")]
    verbs: Option<Serving>,
}

impl Server {
    /// Does what is asked; the answer, if there is one.
    fn asked(&mut self, connection: ConnectionId, ask: Ask) -> Result<Option<Answer>, TransferError> {
        match ask {
            Ask::Own { bytes } => {
                self.give_back();
                let map = content::memory(SOURCE, bytes)?;
                content::fill(&map)?;
                // The transport keeps what is registered.
                let region = self.transport.register(&map);
                self.owned = Some(region);
                Ok(Some(Answer::Own { region, raw: self.raw }))
            }
            Ask::Cpu => Ok(Some(Answer::Cpu { seconds: cpu_seconds() })),
            Ask::Pull { region, bytes, depth, times } => {
                let target = self.target(stride(bytes).saturating_mul(depth))?;
                let transport = self.transport.as_mut();
                let (target, heard) = (&target, Vec::new());
                let mut pull = Pull { transport, connection, region, target, bytes, depth, heard };
                pull.round(times)?;
                // One of the places that were filled last.
                content::check(target, 0, bytes)?;
                Ok(Some(Answer::Pulled))
            }
            #[cfg(feature = "rdma")]
            Ask::Verbs { card, bytes } => {
                self.verbs = None;
                let port = verbs::port(self.cards.0, self.cards.1.as_deref())?;
                let (serving, card) = Serving::begin(port, card, bytes)?;
                self.verbs = Some(serving);
                Ok(Some(Answer::Verbs { card }))
            }
            Ask::Done => {
                self.give_back();
                Ok(None)
            }
        }
    }

    fn target(&mut self, bytes: u64) -> Result<Arc<Map>, TransferError> {
        if let Some((region, map)) = &self.target {
            if map.bytes() >= bytes {
                return Ok(map.clone());
            }
            self.transport.deregister(*region);
        }
        let map = content::memory(TARGET, bytes)?;
        self.target = Some((self.transport.register(&map), map.clone()));
        Ok(map)
    }

    fn give_back(&mut self) {
        let regions = self.owned.take().into_iter().chain(self.target.take().map(|(region, _)| region));
        for region in regions {
            self.transport.deregister(region);
        }
    }
}
