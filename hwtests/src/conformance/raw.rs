//! A peer that writes bytes by hand: what no node of ours would say.

use super::{Bed, World};
use dflow_dataplane::transport::Transport;
use dflow_dataplane::transport::streams::{Outgoing, StreamEvent, StreamId, Streams, Target};
use dflow_dataplane::transport::{Epoch, NodeId, Secret};
use dflow_proto::wire::handshake::{AcceptStep, Acceptor, DialStep, Dialer, Identity, Role};
use dflow_proto::wire::{Frame, next_frame};
use std::collections::BTreeMap;
use std::time::Duration;

/// One stream of a raw peer.
#[derive(Default)]
pub struct RawStream {
    /// Received and not taken.
    pub received: Vec<u8>,
    /// Dialled successfully, or accepted.
    pub open: bool,
    /// Its other end closed it, or it failed.
    pub ended: bool,
}

/// See the [module](self).
pub struct Raw<S: Streams> {
    streams: S,
    /// By stream.
    pub state: BTreeMap<StreamId, RawStream>,
    /// Accepted, in order.
    pub accepted: Vec<StreamId>,
    queue: BTreeMap<StreamId, Vec<Vec<u8>>>,
    sending: BTreeMap<StreamId, bool>,
}

impl<S: Streams> Raw<S> {
    /// A peer without streams.
    pub fn new(streams: S) -> Raw<S> {
        Raw {
            streams,
            state: BTreeMap::new(),
            accepted: Vec::new(),
            queue: BTreeMap::new(),
            sending: BTreeMap::new(),
        }
    }

    /// Listens.
    pub fn listen(&mut self, address: std::net::SocketAddr) -> std::net::SocketAddr {
        self.streams.listen(address).expect("it can listen")
    }

    /// Dials.
    pub fn dial(&mut self, address: std::net::SocketAddr) -> StreamId {
        let stream = self.streams.dial(address);
        self.state.insert(stream, RawStream::default());
        stream
    }

    /// Sends bytes, after those before them.
    pub fn send(&mut self, stream: StreamId, bytes: Vec<u8>) {
        self.queue.entry(stream).or_default().push(bytes);
        self.pump(stream);
    }

    /// Sends a frame.
    pub fn say(&mut self, stream: StreamId, frame: &Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.send(stream, bytes);
    }

    /// Vanishes from a stream.
    pub fn close(&mut self, stream: StreamId, abort: bool) {
        self.streams.close(stream, abort);
    }

    fn pump(&mut self, stream: StreamId) {
        let ready = self.state.get(&stream).is_some_and(|state| state.open && !state.ended);
        if !ready || self.sending.get(&stream).copied().unwrap_or(false) {
            return;
        }
        let queue = self.queue.entry(stream).or_default();
        if !queue.is_empty() {
            self.sending.insert(stream, true);
            self.streams.send(stream, Outgoing::plain(queue.remove(0)));
        }
    }

    fn listen_on(&mut self, stream: StreamId) {
        let buffer = vec![0; 64 << 10];
        let to = buffer.len();
        self.streams.receive(stream, Target::Buffer { buffer, at: 0, to });
    }

    /// Moves everything along.
    pub fn poll(&mut self) {
        let mut events = Vec::new();
        self.streams.wait(&mut events, Duration::ZERO).expect("the event queue works");
        for event in events {
            match event {
                StreamEvent::Accepted(stream) => {
                    self.state.insert(stream, RawStream { open: true, ..RawStream::default() });
                    self.accepted.push(stream);
                    self.listen_on(stream);
                }
                StreamEvent::Dialled(stream, result) => {
                    let state = self.state.get_mut(&stream).expect("dialled");
                    (state.open, state.ended) = (result.is_ok(), result.is_err());
                    if result.is_ok() {
                        self.listen_on(stream);
                        self.pump(stream);
                    }
                }
                StreamEvent::Received { stream, target, bytes, result } => {
                    let Target::Buffer { buffer, .. } = target else { continue };
                    let state = self.state.get_mut(&stream).expect("known");
                    state.received.extend_from_slice(&buffer[..bytes]);
                    state.ended |= result.is_err();
                    if result.is_ok() {
                        self.listen_on(stream);
                    }
                }
                StreamEvent::Sent { stream, result, .. } => {
                    self.sending.insert(stream, false);
                    if result.is_ok() {
                        self.pump(stream);
                    }
                }
                StreamEvent::Woken | StreamEvent::Watched => {}
                StreamEvent::Closed(stream) => {
                    self.state.entry(stream).or_default().ended = true;
                }
            }
        }
    }

    /// The next frame that came on `stream`, owned as its bytes.
    fn take_frame(&mut self, stream: StreamId) -> Option<Vec<u8>> {
        let state = self.state.get_mut(&stream)?;
        let used = next_frame(&state.received).expect("nodes send well-formed frames")?.1;
        Some(state.received.drain(..used).collect())
    }
}

fn identity() -> Identity {
    Identity { cluster: "conformance".to_owned(), node: NodeId(66), epoch: Epoch(1), capabilities: 1 }
}

impl<W: World> Bed<W> {
    /// Polls the nodes and `raw` until `done`.
    pub fn until_raw(
        &mut self,
        raw: &mut Raw<W::Raw>,
        what: &str,
        mut done: impl FnMut(&mut Bed<W>, &mut Raw<W::Raw>) -> bool,
    ) {
        let give_up = self.nodes[0].in_ms(30_000);
        while !done(self, raw) {
            self.step(usize::MAX);
            raw.poll();
            assert!(self.nodes[0].transport.now() < give_up, "did not happen: {what}");
        }
    }

    /// A raw peer's stream with node 0, hands shaken in `role`.
    pub fn shake_hands(&mut self, raw: &mut Raw<W::Raw>, role: Role) -> (StreamId, u64) {
        let address = self.nodes[0].transport.address().expect("all nodes listen");
        let stream = raw.dial(address);
        let (mut dialer, hello) = Dialer::new(identity(), NodeId(0), role, [3; 32]);
        raw.say(stream, &hello);
        let mut session = None;
        self.until_raw(raw, "hands are shaken", |_, raw| {
            if let Some(bytes) = raw.take_frame(stream) {
                let (frame, _) = next_frame(&bytes).expect("well formed").expect("whole");
                match dialer.receive(&frame, &Secret::new("for tests")).expect("it is let in") {
                    DialStep::Send(frame) => raw.say(stream, &frame),
                    DialStep::Open(agreed) => session = Some(agreed.session),
                }
            }
            session.is_some()
        });
        (stream, session.expect("agreed"))
    }

    /// Node 0 connects to a raw peer with one lane, whose control stream and lane are answered.
    pub fn be_dialled(&mut self, raw: &mut Raw<W::Raw>) -> (super::ConnectionId, StreamId, StreamId) {
        let address = raw.listen(self.world.any_address());
        let deadline = self.nodes[0].in_ms(20_000);
        let connection = self.nodes[0].transport.connect(address, None, deadline);
        let mut acceptors: BTreeMap<StreamId, Acceptor> = BTreeMap::new();
        self.until_raw(raw, "the raw peer is dialled", |bed, raw| {
            for stream in raw.accepted.clone() {
                let acceptor = acceptors.entry(stream).or_insert_with(|| Acceptor::new(identity(), [4; 32]));
                let Some(bytes) = raw.take_frame(stream) else { continue };
                let (frame, _) = next_frame(&bytes).expect("well formed").expect("whole");
                let secret = Secret::new("for tests");
                match acceptor.receive(&frame, &secret).expect("nodes shake hands well") {
                    AcceptStep::Send(frame) => raw.say(stream, &frame),
                    AcceptStep::Proven => {
                        let (frame, _) = acceptor.welcome(5, 100, 1 << 20, &secret).expect("proven");
                        raw.say(stream, &frame);
                    }
                    AcceptStep::Refuse(refusal) => panic!("{refusal}"),
                }
            }
            bed.nodes[0].connected.contains_key(&connection)
        });
        (connection, raw.accepted[0], raw.accepted[1])
    }

    /// The next request for data that node 0 sent to the raw peer.
    pub fn next_request(
        &mut self,
        raw: &mut Raw<W::Raw>,
        control: StreamId,
    ) -> dflow_proto::wire::ReadRequest {
        let mut request = None;
        self.until_raw(raw, "a request comes", |_, raw| {
            if let Some(bytes) = raw.take_frame(control)
                && let Some((Frame::Read(read), _)) = next_frame(&bytes).expect("well formed")
            {
                request = Some(read);
            }
            request.is_some()
        });
        request.expect("it came")
    }
}
