//! Workflows that this node has read for others: who runs one twice need not send its text twice.

use crate::workflow::Workflow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Workflows that are kept; the one that was not used for longest goes first.
const WORKFLOWS_MAX: usize = 256;

/// By digest.
#[derive(Default)]
pub(super) struct Library {
    workflows: BTreeMap<[u8; 32], (u64, Arc<Workflow>)>,
    uses: u64,
}

impl Library {
    /// The workflow of this digest, if it is here.
    pub(super) fn find(&mut self, digest: &[u8; 32]) -> Option<Arc<Workflow>> {
        self.uses += 1;
        let (used, workflow) = self.workflows.get_mut(digest)?;
        *used = self.uses;
        Some(workflow.clone())
    }

    /// Takes in a workflow, if it is not here.
    pub(super) fn keep(&mut self, workflow: Arc<Workflow>) {
        self.uses += 1;
        self.workflows.entry(workflow.digest).or_insert((self.uses, workflow));
        if self.workflows.len() > WORKFLOWS_MAX {
            let oldest = self.workflows.iter().min_by_key(|(_, (used, _))| *used).map(|(digest, _)| *digest);
            oldest.map(|digest| self.workflows.remove(&digest));
        }
    }
}
