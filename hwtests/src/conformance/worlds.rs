//! The worlds there are.

use super::World;
use dflow_dataplane::transport::engine::Engine;
use dflow_dataplane::transport::faulty::{Faults, Faulty};
use dflow_dataplane::transport::sim::{SimConfig, SimNet, SimStreams};
use dflow_dataplane::transport::tcp::Tcp;
use dflow_dataplane::transport::uring::{Probe, Uring};
use dflow_dataplane::transport::{Backend, Config, Transport, open};
use std::net::{Ipv4Addr, SocketAddr};

/// Virtual time.
pub struct Sim(pub SimNet);

impl Sim {
    /// A network whose every turn follows from `seed`.
    pub fn new(seed: u64) -> Sim {
        Sim(SimNet::new(SimConfig::new(seed)))
    }
}

impl World for Sim {
    type T = Engine<SimStreams>;
    type Raw = SimStreams;
    fn open(&mut self, config: Config) -> Self::T {
        Engine::new(self.0.endpoint(), config).expect("the configuration is sound")
    }
    fn raw(&mut self) -> SimStreams {
        self.0.endpoint()
    }
    fn any_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
    }
}

/// Sockets and epoll over loopback.
pub struct OnTcp;

impl World for OnTcp {
    type T = Engine<Tcp>;
    type Raw = Tcp;
    fn open(&mut self, config: Config) -> Self::T {
        Engine::new(Tcp::new().expect("sockets work"), config).expect("the configuration is sound")
    }
    fn raw(&mut self) -> Tcp {
        Tcp::new().expect("sockets work")
    }
    fn any_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
    }
}

/// io_uring over loopback.
pub struct OnUring(pub Probe);

impl OnUring {
    /// The world, or why io_uring cannot be used here.
    pub fn new() -> Result<OnUring, String> {
        Probe::look().map(OnUring)
    }
}

impl World for OnUring {
    type T = Engine<Uring>;
    type Raw = Tcp;
    fn open(&mut self, config: Config) -> Self::T {
        let streams = Uring::new(self.0.clone(), config.zero_copy).expect("as probed");
        Engine::new(streams, config).expect("the configuration is sound")
    }
    fn raw(&mut self) -> Tcp {
        Tcp::new().expect("sockets work")
    }
    fn any_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
    }
}

/// RDMA beside sockets over loopback, on whatever card there is.
#[cfg(feature = "rdma")]
pub struct OnRdma(pub dflow_dataplane::transport::rdma::discover::Choice);

#[cfg(feature = "rdma")]
impl World for OnRdma {
    type T = dflow_dataplane::transport::rdma::Rdma<Tcp>;
    type Raw = Tcp;
    fn open(&mut self, config: Config) -> Self::T {
        let streams = Tcp::new().expect("sockets work");
        dflow_dataplane::transport::rdma::Rdma::new(streams, config, &self.0).expect("the card opens")
    }
    fn raw(&mut self) -> Tcp {
        Tcp::new().expect("sockets work")
    }
    fn any_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
    }
}

/// The same beside io_uring.
#[cfg(feature = "rdma")]
pub struct OnRdmaAndUring(pub dflow_dataplane::transport::rdma::discover::Choice, pub Probe);

#[cfg(feature = "rdma")]
impl World for OnRdmaAndUring {
    type T = dflow_dataplane::transport::rdma::Rdma<Uring>;
    type Raw = Tcp;
    fn open(&mut self, config: Config) -> Self::T {
        let streams = Uring::new(self.1.clone(), config.zero_copy).expect("as probed");
        dflow_dataplane::transport::rdma::Rdma::new(streams, config, &self.0).expect("the card opens")
    }
    fn raw(&mut self) -> Tcp {
        Tcp::new().expect("sockets work")
    }
    fn any_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
    }
}

/// Whatever a node would choose here.
pub struct OnChosen;

impl World for OnChosen {
    type T = Box<dyn Transport>;
    type Raw = Tcp;
    fn open(&mut self, config: Config) -> Self::T {
        open(config, Backend::Auto).expect("the configuration is sound").0
    }
    fn raw(&mut self) -> Tcp {
        Tcp::new().expect("sockets work")
    }
    fn any_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
    }
}

/// Any of them, failing on purpose.
pub struct Failing<W>(pub W, pub Faults);

impl<W: World> World for Failing<W>
where
    W::T: Transport,
{
    type T = Faulty<W::T>;
    type Raw = W::Raw;
    fn open(&mut self, config: Config) -> Self::T {
        // Each node has its own luck.
        let faults = Faults { seed: self.1.seed.wrapping_add(config.node.0), ..self.1 };
        Faulty::new(self.0.open(config), faults)
    }
    fn raw(&mut self) -> W::Raw {
        self.0.raw()
    }
    fn any_address(&self) -> SocketAddr {
        self.0.any_address()
    }
}
