//! Which node of a run does what.
//!
//! Nodes are numbered within a run; number 0 is its home, where it was submitted. A placement is made once,
//! by the home, and every participant is given all of it: whoever needs to know where an object comes from or
//! goes to computes it, and nobody asks.

mod load;
mod place;

pub use load::{Load, loads};
pub use place::{Cost, Draft, Known, NodeFacts, Wish, place};

use crate::graph::StepIndex;
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use serde::{Deserialize, Serialize};

/// A node's number within one run; [`HOME`] is where the run was submitted.
pub type NodeIndex = u16;

/// The node that answers for the run.
pub const HOME: NodeIndex = 0;

/// Where one step lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// All of it on one node.
    On(NodeIndex),
    /// A foreach step: item `i` is executed by `hosts[i % hosts.len()]`, and `lead` decides for the step as
    /// a whole. A node may be named several times, to be given a larger share.
    Spread {
        /// Decides on the step's fate, its width, its retries.
        lead: NodeIndex,
        /// Who executes its items; not empty.
        hosts: Box<[NodeIndex]>,
    },
}

/// Where every step of a run lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Number of nodes that take part.
    pub nodes: u16,
    /// One entry a step.
    pub steps: Vec<Place>,
}

/// One node's share of a run.
#[derive(Clone, Debug)]
pub struct Part {
    /// The whole placement.
    pub placement: Arc<Placement>,
    /// This node.
    pub me: NodeIndex,
}

impl Place {
    /// Who decides for the step.
    pub const fn lead(&self) -> NodeIndex {
        match self {
            Place::On(node) | Place::Spread { lead: node, .. } => *node,
        }
    }

    /// Who executes an item; a step without foreach has item 0.
    pub fn host(&self, item: u32) -> NodeIndex {
        match self {
            Place::On(node) => *node,
            Place::Spread { hosts, .. } => hosts[item as usize % hosts.len()],
        }
    }

    /// Who executes some item.
    pub fn hosts(&self) -> &[NodeIndex] {
        match self {
            Place::On(node) => core::slice::from_ref(node),
            Place::Spread { hosts, .. } => hosts,
        }
    }
}

impl Placement {
    /// Everything on the home.
    pub fn alone(steps: usize) -> Placement {
        Placement { nodes: 1, steps: (0..steps).map(|_| Place::On(HOME)).collect() }
    }

    /// Where `step` lies.
    pub fn of(&self, step: StepIndex) -> &Place {
        &self.steps[step as usize]
    }

    /// Whether it fits a graph of `steps` steps and names only nodes that take part. What a peer sent is
    /// checked before it is used.
    pub fn fits(&self, steps: usize) -> bool {
        let known = |node: &NodeIndex| *node < self.nodes;
        self.nodes > 0
            && self.steps.len() == steps
            && self.steps.iter().all(|place| {
                known(&place.lead()) && !place.hosts().is_empty() && place.hosts().iter().all(known)
            })
    }
}
