//! A node that lies about RDMA: what it says to its peers' transports is changed, or kept back, on its way out. All
//! else of it is as it should be, so what it leads its peers into are the card's own refusals and silences.

use super::World;
use dflow_dataplane::transport::rdma::Rdma;
use dflow_dataplane::transport::rdma::discover::Choice;
use dflow_dataplane::transport::streams::{Outgoing, StreamEvent, StreamId, Streams, Target};
use dflow_dataplane::transport::tcp::Tcp;
use dflow_dataplane::transport::{Config, NodeId, OpenError, PollError, Wake};
use dflow_proto::Tick;
use dflow_proto::wire::pairing::Aside;
use dflow_proto::wire::{Frame, next_frame};
use dflow_shm::segment::Map;
use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// What becomes of an aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// It is said.
    AsItIs,
    /// This is said instead.
    Instead(Box<Aside<'static>>),
    /// Nothing is said.
    Nothing,
}

/// Decides what becomes of the asides of a node.
pub type Forge = Rc<RefCell<dyn FnMut(NodeId, &Aside<'_>) -> Said>>;

/// Soft-RoCE or a card, beside sockets over loopback, whose nodes say what a [`Forge`] lets them.
pub struct Forged(pub Choice, pub Forge);

impl World for Forged {
    type T = Rdma<Forging>;
    type Raw = Tcp;
    fn open(&mut self, config: Config) -> Self::T {
        let streams = Tcp::new().expect("sockets work");
        let forging = Forging { streams, node: config.node, forge: self.1.clone() };
        Rdma::new(forging, config, &self.0).expect("the card opens")
    }
    fn raw(&mut self) -> Tcp {
        Tcp::new().expect("sockets work")
    }
    fn any_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
    }
}

/// Streams that forge what is sent over them.
pub struct Forging {
    streams: Tcp,
    node: NodeId,
    forge: Forge,
}

impl Forging {
    /// Frames with their asides forged. A node hands over whole frames, or the header of a payload that comes behind.
    fn forged(&mut self, head: &[u8]) -> Vec<u8> {
        let (mut out, mut rest) = (Vec::with_capacity(head.len()), head);
        while let Ok(Some((frame, used))) = next_frame(rest) {
            let said = match &frame {
                Frame::Message(body) => {
                    let aside = Aside::decode(body).expect("all nodes of this world know RDMA");
                    (self.forge.borrow_mut())(self.node, &aside)
                }
                _ => Said::AsItIs,
            };
            match said {
                Said::AsItIs => out.extend_from_slice(&rest[..used]),
                Said::Instead(aside) => Frame::Message(&aside.encode()).encode(&mut out),
                Said::Nothing => {}
            }
            rest = &rest[used..];
        }
        out.extend_from_slice(rest);
        out
    }
}

impl Streams for Forging {
    fn send(&mut self, stream: StreamId, mut outgoing: Outgoing) {
        outgoing.head = self.forged(&outgoing.head);
        self.streams.send(stream, outgoing);
    }
    fn name(&self) -> &'static str {
        self.streams.name()
    }
    fn features(&self) -> Vec<String> {
        self.streams.features()
    }
    fn virtual_time(&self) -> bool {
        self.streams.virtual_time()
    }
    fn now(&self) -> Tick {
        self.streams.now()
    }
    fn random(&mut self) -> [u8; 32] {
        self.streams.random()
    }
    fn listen(&mut self, address: SocketAddr) -> Result<SocketAddr, OpenError> {
        self.streams.listen(address)
    }
    fn dial(&mut self, address: SocketAddr) -> StreamId {
        self.streams.dial(address)
    }
    fn receive(&mut self, stream: StreamId, target: Target) {
        self.streams.receive(stream, target);
    }
    fn interrupt(&mut self, stream: StreamId) {
        self.streams.interrupt(stream);
    }
    fn close(&mut self, stream: StreamId, abort: bool) {
        self.streams.close(stream, abort);
    }
    fn register(&mut self, map: &Arc<Map>, region: u32) {
        self.streams.register(map, region);
    }
    fn deregister(&mut self, region: u32) {
        self.streams.deregister(region);
    }
    fn wait(&mut self, events: &mut Vec<StreamEvent>, timeout: Duration) -> Result<(), PollError> {
        self.streams.wait(events, timeout)
    }
    fn watch(&mut self, fd: OwnedFd) -> Result<(), OpenError> {
        self.streams.watch(fd)
    }
    fn cut(&mut self, small: bool) {
        self.streams.cut(small);
    }
    fn waker(&self) -> Arc<dyn Wake> {
        self.streams.waker()
    }
}
