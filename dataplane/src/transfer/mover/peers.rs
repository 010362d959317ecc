//! Who the peers are, and what is said to them.

use super::super::Moved;
use super::super::talk::{Talk, Unheard};
use super::Mover;
use crate::transport::{Broken, ConnectionId, Epoch, NodeId, Op, Transport};
use dflow_proto::Tick;
use dflow_proto::transfer::{Event, PeerId};
use dflow_proto::wire::notice::Notice;
use dflow_proto::wire::{Malformed, WIRE_MESSAGE_BYTES_MAX};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

/// How long a connection attempt may take. Milliseconds.
const CONNECT_MS_MAX: u64 = 3_000;
/// How long after a failed attempt the next one begins. Milliseconds.
const RECONNECT_MS: u64 = 100;
/// How long a message may take to leave. Milliseconds.
const SEND_MS_MAX: u64 = 30_000;
/// Bytes of notices that wait for one peer; one that lets more gather is cut off and finds out by asking.
const OUTBOX_BYTES_MAX: usize = 64 << 20;

#[derive(Default)]
pub(super) struct Peer {
    pub(super) address: Option<SocketAddr>,
    pub(super) connection: Option<ConnectionId>,
    dialling: Option<ConnectionId>,
    /// Not before then.
    pub(super) redial_at: Tick,
    /// Dialled also when there is nothing to tell it.
    keep: bool,
    /// Its incarnation when it was last here.
    epoch: Option<Epoch>,
    pub(super) talk: Talk,
    /// Encoded notices that wait for a connection, or for room in the transport.
    pub(super) outbox: VecDeque<Vec<u8>>,
    outbox_bytes: usize,
}

impl<T: Transport> Mover<T> {
    /// Says where a node is. It is dialled when there is something to tell it.
    pub fn add_peer(&mut self, node: NodeId, address: SocketAddr) {
        self.peers.entry(node).or_default().address = Some(address);
    }

    /// Keeps a connection to a node open from now on, by dialling it again and again, beginning `after`.
    pub fn keep_connected(&mut self, node: NodeId, after: Duration) {
        let at = Tick(self.transport.now().0 + after.as_micros() as u64);
        let peer = self.peers.entry(node).or_default();
        (peer.keep, peer.redial_at) = (true, at);
    }

    /// Tells a node's program something, see [`Moved::Said`]. What was said and announced to one node before is
    /// heard before, as long as the connection holds.
    pub fn say(&mut self, node: NodeId, word: &[u8]) -> Result<(), Unheard> {
        let notices = self.peers.entry(node).or_default().talk.say(word)?;
        notices.iter().for_each(|notice| self.tell(node, notice));
        Ok(())
    }

    pub(super) fn connected(&mut self, connection: ConnectionId, node: NodeId, epoch: Epoch) {
        self.connections.insert(connection, node);
        let peer = self.peers.entry(node).or_default();
        if peer.dialling == Some(connection) {
            peer.dialling = None;
        }
        if peer.epoch.replace(epoch).is_some_and(|before| before != epoch) {
            // Another incarnation has heard nothing, and what the old one said is over.
            peer.talk = Talk::default();
            peer.outbox.clear();
            peer.outbox_bytes = 0;
        }
        // Of two that were dialled at once the first stays in use: notices keep their order only within
        // one connection.
        if peer.connection.is_none() {
            peer.connection = Some(connection);
            self.found.push(Moved::Up { node, epoch });
            self.say_again(node);
        }
        // The peer's end may have been open a little earlier.
        for message in self.early.remove(&connection).unwrap_or_default() {
            self.read(connection, node, &message);
        }
    }

    /// What was said on a connection that is gone may not have been heard.
    pub(super) fn say_again(&mut self, node: NodeId) {
        let notices = self.peers.get_mut(&node).map(|peer| peer.talk.again()).unwrap_or_default();
        notices.iter().for_each(|notice| self.tell(node, notice));
    }

    /// A peer that garbles its notices is not believed any more; nothing else is harmed.
    pub(super) fn garbles(&mut self, connection: ConnectionId, node: NodeId, error: Malformed) {
        tracing::warn!(node = node.0, %error, "closing a connection that garbles");
        self.transport.close(connection);
    }

    pub(super) fn disconnected(&mut self, connection: ConnectionId, why: Broken) {
        let now = self.transport.now();
        self.early.remove(&connection);
        let known = self.connections.remove(&connection);
        let dialled = self.peers.iter().find(|(_, peer)| peer.dialling == Some(connection));
        let Some(node) = known.or(dialled.map(|(node, _)| *node)) else { return };
        // Notices that were on their way are lost, also if another connection to that node is left (both ends may
        // have dialled): what it holds is asked for anew.
        self.give(Event::PeerGone { peer: PeerId(node.0) });
        let other = self.connections.iter().find(|(_, other)| **other == node).map(|(id, _)| *id);
        let peer = self.peers.entry(node).or_default();
        if peer.dialling == Some(connection) {
            peer.dialling = None;
            peer.redial_at = now.after_ms(RECONNECT_MS);
        }
        if peer.connection == Some(connection) {
            peer.connection = other;
            match other {
                Some(_) => self.say_again(node),
                None => self.found.push(Moved::Down { node, why }),
            }
        }
    }

    /// Queues a notice for a node, joined with others that wait.
    pub(super) fn tell(&mut self, node: NodeId, notice: &Notice) {
        let peer = self.peers.entry(node).or_default();
        // Words have a bound of their own.
        if peer.outbox_bytes > OUTBOX_BYTES_MAX && !matches!(notice, Notice::Say { .. }) {
            return;
        }
        let mut bytes = Vec::new();
        notice.encode(&mut bytes);
        peer.outbox_bytes += bytes.len();
        match peer.outbox.back_mut() {
            Some(last) if last.len() + bytes.len() <= WIRE_MESSAGE_BYTES_MAX / 2 => last.append(&mut bytes),
            _ => peer.outbox.push_back(bytes),
        }
    }

    /// Sends what waits, dials where it must.
    pub(super) fn flush(&mut self) {
        self.read_on();
        for (node, notice) in self.holdings.news() {
            self.tell(node, &notice);
        }
        let now = self.transport.now();
        let due = |(node, peer): (&NodeId, &mut Peer)| {
            peer.connection?;
            Some((*node, peer.talk.ack(now)?))
        };
        let acks: Vec<_> = self.peers.iter_mut().filter_map(due).collect();
        for (node, notice) in acks {
            self.tell(node, &notice);
        }
        for (node, peer) in &mut self.peers {
            if peer.must_dial()
                && peer.redial_at <= now
                && let Some(address) = peer.address
            {
                let deadline = now.after_ms(CONNECT_MS_MAX);
                peer.dialling = Some(self.transport.connect(address, Some(*node), deadline));
            }
            let Some(connection) = peer.connection else { continue };
            while let Some(message) = peer.outbox.pop_front() {
                let bytes = message.len();
                let op = Op::Send { connection, message, deadline: now.after_ms(SEND_MS_MAX), tag: 0 };
                match self.transport.submit(op) {
                    Ok(_) => peer.outbox_bytes -= bytes,
                    Err(refused) => {
                        if let Op::Send { message, .. } = *refused.op {
                            peer.outbox.push_front(message);
                        }
                        break;
                    }
                }
            }
        }
    }
}

impl Peer {
    pub(super) fn must_dial(&self) -> bool {
        self.connection.is_none()
            && self.dialling.is_none()
            && (self.keep || !self.outbox.is_empty())
            && self.address.is_some()
    }
}
