//! How streams become connections.

use super::Engine;
use super::state::{Connection, Phase, Stream};
use crate::transport::streams::{StreamId, Streams};
use crate::transport::{Broken, ConnectionId, Epoch, Event, NodeId};
use dflow_proto::Tick;
use dflow_proto::wire::LANES_MAX;
use dflow_proto::wire::handshake::{Acceptor, Agreed, HandshakeError, Refusal, Role};

impl<S: Streams> Engine<S> {
    pub(super) fn accepted(&mut self, id: StreamId) {
        let streams_max = self.config.connections_max.saturating_mul(1 + usize::from(LANES_MAX));
        if self.sockets.len() >= streams_max {
            self.streams.close(id, true);
            return;
        }
        let acceptor = Acceptor::new(self.config.identity(), self.streams.random());
        let deadline = self.streams.now().after_ms(self.config.handshake_ms_max);
        self.sockets.insert(id, Stream::new(None, 0, Phase::Accepting(acceptor), deadline));
        self.note_deadline(deadline);
        self.receive(id);
    }

    /// A stream that we dialled has shaken hands.
    pub(super) fn stream_dialled(&mut self, id: StreamId, agreed: Agreed) -> Result<(), Broken> {
        let stream = self.sockets.get(&id).expect("the caller holds it");
        let (key, lane) = (stream.connection.expect("a dialled stream has a connection"), stream.lane);
        if lane > 0 {
            self.lane_joined(key, lane, id);
            return Ok(());
        }
        if self.epochs.get(&agreed.node).is_some_and(|newest| *newest > agreed.epoch) {
            return Err(Broken::Superseded);
        }
        let now = self.streams.now();
        let c = self.connections.get_mut(key).expect("its stream is alive");
        if c.wanted != NodeId(0) && c.wanted != agreed.node {
            return Err(HandshakeError::Refused(Refusal::WrongNode { have: agreed.node.0 }).into());
        }
        c.agreed = Some(agreed);
        c.credit = agreed.message_credit_bytes.into();
        c.heard = now;
        let address = c.dialled.expect("this end dialled");
        self.observe(agreed.node, agreed.epoch);
        for lane in 1..=self.config.lanes {
            let role = Role::Lane { session: agreed.session, lane };
            let stream = self.dial_stream(key, address, agreed.node, role);
            if let Some(c) = self.connections.get_mut(key) {
                c.streams.push(stream);
            }
        }
        Ok(())
    }

    /// A peer has proven itself on a stream that it dialled.
    pub(super) fn admit(&mut self, id: StreamId) -> Result<(), Refusal> {
        let stream = self.sockets.get_mut(&id).expect("the caller holds it");
        let Phase::Accepting(acceptor) = &stream.phase else { unreachable!("it was accepting") };
        let hello = acceptor.hello().expect("proven");
        let (node, epoch, role) = (hello.identity.node, hello.identity.epoch, hello.role);
        if let Some(newest) = self.epochs.get(&node)
            && *newest > epoch
        {
            return Err(Refusal::StaleEpoch { have: newest.0 });
        }
        let (session, key) = match role {
            Role::Control { .. } => {
                if self.connections.len() >= self.config.connections_max {
                    return Err(Refusal::Busy { connections: self.connections.len() as u32 });
                }
                let random = self.streams.random();
                (u64::from_le_bytes(random[..8].try_into().expect("eight of them")) | 1, None)
            }
            Role::Lane { session, lane } => {
                let key = *self.sessions.get(&session).ok_or(Refusal::NoSession)?;
                let c = self.connections.get(key).ok_or(Refusal::NoSession)?;
                let free = c.lanes.get(usize::from(lane) - 1).is_some_and(|lane| lane.stream.is_none());
                if !c.is_alive() || c.peer() != Some((node, epoch)) || !free {
                    return Err(Refusal::NoSession);
                }
                (session, Some(key))
            }
        };
        let (requests, credit) = (self.config.requests_max, self.config.message_credit_bytes);
        let (frame, agreed) =
            acceptor.welcome(session, requests, credit, &self.config.secret).expect("proven");
        frame.encode(&mut stream.greeting);
        stream.phase = Phase::Open;
        match (role, key) {
            (Role::Lane { lane, .. }, Some(key)) => {
                (stream.connection, stream.lane) = (Some(key), lane);
                self.connections.get_mut(key).expect("looked up above").streams.push(id);
                self.lane_joined(key, lane, id);
            }
            (Role::Control { lanes }, _) => {
                let now = self.streams.now();
                let deadline = now.after_ms(self.config.handshake_ms_max);
                let mut c = Connection::new(None, lanes, deadline);
                c.agreed = Some(agreed);
                c.credit = credit.into();
                c.heard = now;
                c.streams.push(id);
                let key = self.connections.insert(c);
                stream.connection = Some(key);
                self.sessions.insert(session, key);
                self.note_deadline(deadline);
                self.observe(node, epoch);
            }
            (Role::Lane { .. }, None) => unreachable!("a lane found its connection"),
        }
        Ok(())
    }

    /// Remembers the newest incarnation of a node, and drops connections to older ones.
    pub(super) fn observe(&mut self, node: NodeId, epoch: Epoch) {
        self.epochs.insert(node, epoch);
        let stale = |c: &Connection| c.peer().is_some_and(|(n, e)| n == node && e < epoch);
        let stale: Vec<u64> = self.connections.iter().filter(|(_, c)| stale(c)).map(|(key, _)| key).collect();
        for key in stale {
            self.drop_connection(key, Broken::Superseded, true);
        }
    }

    pub(super) fn lane_joined(&mut self, key: u64, lane: u16, id: StreamId) {
        let now = self.streams.now();
        let Some(c) = self.connections.get_mut(key) else { return };
        let lane = &mut c.lanes[usize::from(lane) - 1];
        (lane.stream, lane.moved) = (Some(id), now);
        if c.lanes.iter().all(|lane| lane.stream.is_some()) {
            self.opened(key);
        }
    }

    pub(super) fn opened(&mut self, key: u64) {
        let ping = self.streams.now().after_ms(self.config.ping_ms);
        let c = self.connections.get_mut(key).expect("the caller holds it");
        c.open = true;
        c.deadline = Tick(u64::MAX);
        let (node, epoch) = c.peer().expect("agreed before its lanes join");
        let dialled = c.dialled.is_some();
        let connection = ConnectionId(key);
        self.found.push_back(Event::Connected { connection, node, epoch, dialled });
        let early = std::mem::take(&mut c.early);
        self.found.extend(early.into_iter().map(|bytes| Event::Message { connection, bytes }));
        // The peer may have spent what it had, and waits.
        self.give_credit(key);
        self.note_deadline(ping);
    }
}
