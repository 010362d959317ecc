//! The engine of a node that belongs to a cluster.
//!
//! To those who read here, a producer on another node is a worker whose pipe is the network. An invocation that
//! another node executes gets a *stand-in*: an attempt without a process, with a page of its own, which the node
//! writes as bytes arrive. Tables, leases and holds then work as if the producer ran here.
//!
//! | file | concern |
//! |---|---|
//! | `experience` | what runs have cost, for placing the next |
//! | `recent` | what is remembered of the workflows used last |
//! | `load` | how busy the nodes are, for the same |
//! | `join` | which nodes a run is spread over; how it begins on all of them |
//! | `words` | what schedulers tell each other, held back until the bytes are here |
//! | `publish` | what others fetch from here |
//! | `arrive` | what is fetched: memory, pages, seals |
//! | `tidings` | what the home's people see of other nodes |

mod arrive;
mod experience;
mod join;
mod load;
mod publish;
mod recent;
mod tidings;
mod words;

pub(super) use arrive::StandIn;
pub(in crate::node) use join::Submission;

use super::Engine;
use crate::node::cluster::{ClusterConfig, PeerConfig};
use crate::node::net::{Command, Facts, Message, Net, NetEvent, Returned, Returns};
use crate::node::view::{Heard, Nodes, PeerView, Transfer};
use crate::workflow::Workflow;
use crossbeam::channel::Sender;
use dflow_core::placement::{HOME, Load, NodeIndex, Part, Place, Placement};
use dflow_core::scheduler::{Event, Word};
use dflow_dataplane::transfer::Moved;
use dflow_dataplane::transport::{NodeId, OpenError};
use dflow_proto::ids::ObjectKey;
use dflow_proto::{InvocationId, RunId, Tick};
use dflow_shm::segment::Map;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Events taken from the network before function processes are looked at again.
const EVENTS_A_TURN: usize = 1024;
/// Transfers that are kept until somebody counts them; older ones go uncounted.
const TRANSFERS_MAX: usize = 64 << 10;
/// Workflows of which is known that a peer has read them.
const READ_MAX: usize = 1024;

/// What the engine knows of other nodes.
pub(super) struct Cluster {
    pub(super) config: ClusterConfig,
    pub(super) net: Net,
    returns: Arc<Returns>,
    peers: BTreeMap<NodeId, Peer>,
    experience: experience::Experience,
    own: load::Own,
    /// Workflows that others have given this node to read: who runs one twice need not send its text twice.
    library: recent::Recent<Arc<Workflow>>,
    /// Runs submitted here that wait for nodes to join.
    joining: BTreeMap<RunId, join::Joining>,
    /// Runs of others that this node has joined and that have not begun.
    invited: BTreeMap<RunId, join::Invited>,
    /// Runs with words that have not left.
    talking: BTreeSet<RunId>,
    /// When words that wait for company leave without it.
    words_at: Option<Tick>,
    /// Published objects that still grow.
    growing: BTreeMap<ObjectKey, publish::Growing>,
    /// When they are looked at next, and how long they are then left alone.
    grow_at: Tick,
    grow_pause_us: u64,
    /// Published objects that some reader has not fetched yet.
    undelivered: BTreeSet<ObjectKey>,
    /// Objects on their way here.
    arrivals: BTreeMap<ObjectKey, arrive::Arrival>,
    /// Objects that are here and wait for the end of a void predecessor.
    late: Vec<arrive::Late>,
    /// When homes are told next what happened here.
    tidings_at: Tick,
    /// Messages of other engines.
    pub(super) heard: Heard,
    /// Objects that have come, to be counted.
    transfers: VecDeque<Transfer>,
}

/// Another node.
struct Peer {
    name: String,
    up: bool,
    /// What it has, once it has said so.
    facts: Option<Facts>,
    /// How busy it is.
    load: load::Told,
    /// Digests of workflows that it has read, as far as is known. It may have forgotten them, and says so then.
    read: BTreeSet<[u8; 32]>,
}

impl Peer {
    fn new(name: String) -> Peer {
        Peer { name, up: false, facts: None, load: load::Told::default(), read: BTreeSet::new() }
    }

    fn has_read(&self, digest: &[u8; 32]) -> bool {
        self.read.contains(digest)
    }

    fn note_read(&mut self, digest: [u8; 32]) {
        if self.read.len() >= READ_MAX {
            self.read.clear();
        }
        self.read.insert(digest);
    }
}

/// A run that is shared with other nodes.
pub(super) struct Shared {
    /// By their number in the run.
    nodes: Vec<NodeId>,
    me: NodeIndex,
    placement: Arc<Placement>,
    /// Words of this turn, by whom they are for.
    out: BTreeMap<NodeIndex, Vec<Word>>,
    /// Words that wait for the bytes they speak of.
    held: BTreeMap<InvocationId, Vec<(NodeIndex, Word)>>,
    /// Attempts up to these are void.
    void: BTreeMap<InvocationId, u32>,
    /// Objects that came and of which the scheduler has not heard yet: the attempts that put them.
    unheard: BTreeMap<ObjectKey, u32>,
    /// At the home: inputs that others read, until they were told to begin.
    inputs: BTreeMap<NodeIndex, Vec<u16>>,
    began: Tick,
    /// For the home's people.
    fates: Vec<crate::node::net::Fate>,
}

impl Shared {
    fn new(nodes: Vec<NodeId>, me: NodeIndex, placement: Arc<Placement>, began: Tick) -> Box<Shared> {
        Box::new(Shared {
            nodes,
            me,
            placement,
            out: BTreeMap::new(),
            held: BTreeMap::new(),
            void: BTreeMap::new(),
            unheard: BTreeMap::new(),
            inputs: BTreeMap::new(),
            began,
            fates: Vec::new(),
        })
    }

    pub(super) fn is_home(&self) -> bool {
        self.me == HOME
    }

    /// For the scheduler.
    pub(super) fn part(&self) -> Part {
        Part { placement: self.placement.clone(), me: self.me }
    }

    /// For people.
    pub(super) fn view(&self, cluster: &Cluster) -> Nodes {
        let names = self.nodes.iter().map(|node| cluster.name(*node)).collect();
        Nodes { names, placement: self.placement.clone() }
    }

    fn index(&self, node: NodeId) -> Option<NodeIndex> {
        self.nodes.iter().position(|other| *other == node).map(|index| index as NodeIndex)
    }

    /// The node that puts an object.
    fn source(&self, key: ObjectKey) -> Option<NodeId> {
        let index = match key.invocation.step {
            ObjectKey::INPUT_STEP => HOME,
            step => self
                .placement
                .steps
                .get(step as usize)
                .map(|place: &Place| place.host(key.invocation.item))?,
        };
        self.nodes.get(usize::from(index)).copied()
    }
}

impl Cluster {
    pub(super) fn start(
        config: ClusterConfig,
        main: Arc<Map>,
        doorbell: Arc<OwnedFd>,
        engine: BorrowedFd<'_>,
        spin_us: u32,
    ) -> Result<Cluster, OpenError> {
        let net = Net::start(&config, main, doorbell.clone(), engine, spin_us)?;
        let mut cluster = Cluster {
            net,
            returns: Returns::new(doorbell),
            peers: BTreeMap::new(),
            experience: experience::Experience::default(),
            own: load::Own::default(),
            library: recent::Recent::default(),
            joining: BTreeMap::new(),
            invited: BTreeMap::new(),
            talking: BTreeSet::new(),
            words_at: None,
            growing: BTreeMap::new(),
            grow_at: Tick(0),
            grow_pause_us: 0,
            undelivered: BTreeSet::new(),
            arrivals: BTreeMap::new(),
            late: Vec::new(),
            tidings_at: Tick(0),
            heard: Heard::default(),
            transfers: VecDeque::new(),
            config,
        };
        for peer in cluster.config.peers.clone() {
            cluster.know(&peer);
        }
        Ok(cluster)
    }

    fn know(&mut self, peer: &PeerConfig) {
        self.peers.entry(peer.node).or_insert_with(|| Peer::new(String::new())).name = peer.name.clone();
    }

    fn say(&mut self, node: NodeId, message: &Message) {
        self.net.command(Command::Say { node, message: message.encode() });
    }

    /// What people call a node.
    pub(super) fn name(&self, node: NodeId) -> String {
        match self.peers.get(&node) {
            _ if node == self.config.node => self.config.name.clone(),
            Some(peer) if !peer.name.is_empty() => peer.name.clone(),
            _ => format!("number {}", node.0),
        }
    }

    /// Every node that is known, this one first.
    pub(super) fn view(&self, own: &Facts, now: Tick) -> Vec<PeerView> {
        let view = |node: NodeId, name: &str, up, facts: &Facts| PeerView {
            node: node.0,
            name: name.into(),
            up,
            cpu_milli: facts.cpu_milli,
            slots: facts.slots,
            store_bytes: facts.store_bytes,
            work_us: self.load_of(node, facts.cpu_milli, now).work_us,
            link: None,
        };
        let others = self.peers.iter().map(|(node, peer)| {
            view(*node, &peer.name, peer.up, peer.facts.as_ref().unwrap_or(&Facts::default()))
        });
        [view(self.config.node, &self.config.name, true, own)].into_iter().chain(others).collect()
    }

    /// An object has come from a node, and how long after it was announced.
    fn count_transfer(&mut self, from: NodeId, bytes: u64, us: u64) {
        if self.transfers.len() >= TRANSFERS_MAX {
            self.transfers.pop_front();
        }
        let peer = self.name(from);
        self.transfers.push_back(Transfer { peer, bytes, us });
    }

    /// What has come since this was asked for.
    pub(super) fn take_transfers(&mut self) -> Vec<Transfer> {
        std::mem::take(&mut self.transfers).into()
    }

    /// When something must be looked at, whatever comes.
    pub(super) fn deadline(&self) -> Option<Tick> {
        let grow = (!self.growing.is_empty()).then_some(self.grow_at);
        let joins = self.joining.values().map(|joining| joining.deadline);
        joins.chain(grow).chain(self.tidings_due()).chain(self.words_at).chain(self.own.tell_at).min()
    }

    fn tidings_due(&self) -> Option<Tick> {
        (self.tidings_at > Tick(0)).then_some(self.tidings_at)
    }
}

impl Engine {
    /// What this node offers others.
    pub(super) fn facts(&self) -> Facts {
        let (cpu_milli, slots) = (self.config.cpu_milli, self.config.slots);
        let labels = self.cluster.as_ref().map(|cluster| cluster.config.labels.clone()).unwrap_or_default();
        Facts { cpu_milli, slots, store_bytes: self.config.store_bytes, labels }
    }

    /// Tells of all nodes of the cluster. The links are the courier's to look at, so it answers.
    pub(super) fn tell_peers(&mut self, reply: Sender<Vec<PeerView>>) {
        let (facts, now) = (self.facts(), self.now());
        match &mut self.cluster {
            Some(cluster) => {
                let views = cluster.view(&facts, now);
                cluster.net.command(Command::Links { views, reply });
                cluster.net.ring();
            }
            // Who no longer listens needs no answer.
            None => drop(reply.send(Vec::new())),
        }
    }

    /// Whether the network has something to tell.
    pub(super) fn net_waits(&self) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| cluster.net.has_news())
    }

    /// Waits in the network if it is polled by this thread; whether it is.
    pub(super) fn poll_net(&mut self, wait: Duration) -> bool {
        self.cluster.as_mut().is_some_and(|cluster| cluster.net.poll(wait))
    }

    /// Whether other nodes take part in some run.
    pub(super) fn awaits_others(&self) -> bool {
        self.cluster.is_some() && self.runs.values().any(|state| state.shared.is_some())
    }

    /// Another node of the cluster exists.
    pub(super) fn add_peer(&mut self, peer: PeerConfig) {
        if let Some(cluster) = &mut self.cluster
            && peer.node != cluster.config.node
        {
            cluster.know(&peer);
            cluster.net.command(Command::Peer(peer));
        }
    }

    /// Takes in what came over the network, and does what is due.
    pub(super) fn take_net_events(&mut self) {
        let now = self.now();
        let Some(cluster) = &mut self.cluster else { return };
        let events = cluster.net.take(EVENTS_A_TURN);
        for returned in cluster.returns.take() {
            match returned {
                Returned::Lease(lease) => self.store.unlease(lease),
                Returned::Hold(hold) => self.store.unhold(hold),
            }
        }
        let looks = !cluster.growing.is_empty() && cluster.grow_at <= now;
        let tells = cluster.tidings_due().is_some_and(|at| at <= now);
        for event in events {
            self.net_event(event);
        }
        if looks {
            self.look_at_growing();
        }
        if tells {
            self.tell_homes();
        }
        self.give_up_joining(now);
    }

    fn net_event(&mut self, event: NetEvent) {
        match event {
            NetEvent::Lost { node, why } => self.node_lost(node, &why),
            NetEvent::Moved(moved) => match self.invited_for(&moved) {
                None => self.moved(moved),
                Some((run, invited)) => {
                    if !invited.keep_moved(moved) {
                        self.run_broken(run, "it was given too much before it could begin".into());
                    }
                }
            },
        }
    }

    /// The run for which something came that it must begin to know of; its own inputs come before.
    fn invited_for(&mut self, moved: &Moved) -> Option<(RunId, &mut join::Invited)> {
        let (Moved::Reserve { key, .. }
        | Moved::Inline { key, .. }
        | Moved::Advanced { key, .. }
        | Moved::Arrived { key, .. }
        | Moved::Void { key, .. }
        | Moved::Failed { key, .. }) = moved
        else {
            return None;
        };
        let invited = &mut self.cluster.as_mut()?.invited;
        let of = (key.invocation.step != ObjectKey::INPUT_STEP).then_some(key.run)?;
        Some((of, invited.get_mut(&of)?))
    }

    fn moved(&mut self, moved: Moved) {
        match moved {
            Moved::Up { node, .. } => {
                let hello = Message::Hello(self.facts());
                let Some(cluster) = &mut self.cluster else { return };
                cluster.peers.entry(node).or_insert_with(|| Peer::new(String::new())).up = true;
                cluster.say(node, &hello);
                if cluster.own.load != Load::default() {
                    cluster.say(node, &Message::Busy(cluster.own.load));
                }
            }
            Moved::Down { node, .. } => {
                if let Some(peer) = self.cluster.as_mut().and_then(|c| c.peers.get_mut(&node)) {
                    peer.up = false;
                }
            }
            Moved::Said { node, bytes } => match Message::decode(&bytes) {
                Ok(message) => self.message(node, message),
                Err(error) => {
                    self.node_lost(node, &format!("it said what this version does not understand: {error}"))
                }
            },
            Moved::Reserve { key, attempt, bytes } => self.landing_wanted(key, attempt, bytes),
            Moved::Inline { key, attempt, bytes } => self.came_inline(key, attempt, bytes),
            Moved::Advanced { key, attempt, watermark } => self.came_more(key, attempt, watermark),
            Moved::Arrived { key, attempt, size } => self.came_whole(key, attempt, size),
            Moved::Void { key, attempt } => self.landing_void(key, attempt),
            Moved::Failed { key, why } => self.fetch_failed(key, &why),
            Moved::Seek { key } => self.seek(key),
            Moved::Released { key } => self.delivered(key),
            // It comes to those who read it as soon as it exists.
            Moved::Wanted { .. } => {}
        }
    }

    fn message(&mut self, from: NodeId, message: Message) {
        if let Some(cluster) = &mut self.cluster {
            match message {
                Message::Hello(_) | Message::Busy(_) => {}
                Message::Happened { .. } => cluster.heard.tidings += 1,
                _ => cluster.heard.words += 1,
            }
        }
        match message {
            Message::Hello(facts) => {
                if let Some(peer) = self.cluster.as_mut().and_then(|c| c.peers.get_mut(&from)) {
                    peer.facts = Some(facts);
                }
            }
            Message::Busy(load) => self.heard_load(from, load),
            Message::Join(join) => self.asked_to_join(from, *join),
            Message::Joined { run } => self.joined(from, run),
            Message::Unread { run } => self.unread_by(from, run),
            Message::Refused { run, why } => self.refused_by(from, run, &why),
            Message::Begin { run, inputs } => self.told_to_begin(from, run, &inputs),
            Message::Leave { run } => self.leave(from, run),
            Message::Words { run, words } => self.hear_words(from, run, words),
            Message::Broken { run, why } => self.broken_at(from, run, &why),
            Message::Happened { run, records, failures, fates } => {
                self.heard_tidings(from, run, records, failures, &fates);
            }
        }
    }

    /// A node is gone, and with it all that it had of the runs it took part in.
    fn node_lost(&mut self, node: NodeId, why: &str) {
        let Some(cluster) = &mut self.cluster else { return };
        if let Some(peer) = cluster.peers.get_mut(&node) {
            peer.facts = None;
            peer.load = load::Told::default();
            peer.read.clear();
        }
        let name = cluster.name(node);
        tracing::warn!(name, why, "node lost");
        let orphans = cluster.invited.extract_if(.., |_, invited| invited.is_with(node));
        let orphans: Vec<RunId> = orphans.map(|(run, _)| run).collect();
        let joining: Vec<RunId> =
            cluster.joining.iter().filter(|(_, j)| j.is_with(node)).map(|(run, _)| *run).collect();
        for run in orphans {
            self.forget_shared(run);
            self.forgotten.push(run);
        }
        for run in joining {
            self.refused_by(node, run, &format!("the connection to it ended: {why}"));
        }
        for (run, state) in &self.runs {
            if let Some(index) = state.shared.as_ref().and_then(|shared| shared.index(node)) {
                let why = format!("node {name}: {why}");
                self.events.push_back(Event::Lost { run: *run, node: index, why });
            }
        }
    }

    /// This node cannot do its part of a run.
    fn run_broken(&mut self, run: RunId, why: String) {
        let Some(cluster) = &mut self.cluster else { return };
        let home =
            match (self.runs.get(&run).and_then(|state| state.shared.as_ref()), cluster.invited.get(&run)) {
                (Some(shared), _) if shared.is_home() => {
                    let reason = format!("node {}: {why}", cluster.config.name);
                    return self.events.push_back(Event::Cancel { run, reason });
                }
                (Some(shared), _) => shared.nodes[usize::from(HOME)],
                (None, Some(invited)) => invited.home(),
                (None, None) => return,
            };
        cluster.say(home, &Message::Broken { run, why });
    }

    fn broken_at(&mut self, from: NodeId, run: RunId, why: &str) {
        let shared = self.runs.get(&run).and_then(|state| state.shared.as_ref());
        let Some(cluster) = &self.cluster else { return };
        if shared.is_some_and(|shared| shared.is_home() && shared.index(from).is_some()) {
            let reason = format!("node {}: {why}", cluster.name(from));
            self.events.push_back(Event::Cancel { run, reason });
        }
    }

    /// A shared run is over here: the network forgets it.
    pub(super) fn forget_shared(&mut self, run: RunId) {
        let Some(cluster) = &mut self.cluster else { return };
        cluster.talking.remove(&run);
        cluster.growing.retain(|key, _| key.run != run);
        cluster.undelivered.retain(|key| key.run != run);
        cluster.arrivals.retain(|key, _| key.run != run);
        cluster.late.retain(|late| late.key.run != run);
        cluster.net.command(Command::Drop { run });
        self.waiting.retain(|_, waiter| waiter.arrives_for() != Some(run));
        self.retire_all(run);
    }
}
