//! What the home's people see of other nodes: records of what happened there, told now and then, and before the
//! end of the run.
//!
//! Clocks of nodes have nothing in common: times travel as distances from the beginning of a node's part, which
//! at the home counts as the beginning of the run. What that is wrong by is the time a message takes.

use super::super::Engine;
use crate::node::net::{Fate, Message};
use crate::node::view::{Failed, Journal, Record};
use dflow_core::placement::HOME;
use dflow_core::scheduler::Note;
use dflow_dataplane::transport::NodeId;
use dflow_proto::{RunId, Tick};

/// Homes are told this often. Milliseconds.
const TIDINGS_MS: u64 = 1_000;
/// Records of one message.
const RECORDS_MAX: usize = 20_000;

impl Engine {
    /// Something became of a step; the home of another's run will want to know.
    pub(in super::super) fn note_for_home(&mut self, run: RunId, note: &Note) {
        let Some(shared) = self.runs.get_mut(&run).and_then(|state| state.shared.as_mut()) else { return };
        if shared.is_home() {
            return;
        }
        shared.fates.push(match note {
            Note::Expanded { step, items, .. } => Fate::Items { step: *step, items: *items },
            Note::Skipped { step } => Fate::Skipped { step: *step },
            Note::Retrying { invocation, .. } => Fate::Retried { step: invocation.step },
            Note::Failed { invocation, .. } => Fate::Failed { step: invocation.step },
            Note::StepDone { step } => Fate::Done { step: *step },
        });
    }

    /// Tells all homes what happened here; the next time is set while there are any.
    pub(super) fn tell_homes(&mut self) {
        let away = |state: &super::super::RunState| state.shared.as_ref().is_some_and(|s| !s.is_home());
        let runs: Vec<RunId> =
            self.runs.iter().filter(|(_, state)| away(state)).map(|(run, _)| *run).collect();
        let next = if runs.is_empty() { Tick(0) } else { self.now().after_ms(TIDINGS_MS) };
        runs.into_iter().for_each(|run| self.tell_home(run));
        if let Some(cluster) = &mut self.cluster {
            cluster.tidings_at = next;
        }
    }

    /// A run of another's begins here: its home will be told.
    pub(in super::super) fn expect_tidings(&mut self) {
        let at = self.now().after_ms(TIDINGS_MS);
        if let Some(cluster) = &mut self.cluster
            && cluster.tidings_at == Tick(0)
        {
            cluster.tidings_at = at;
        }
    }

    /// Tells the home of a run what happened here since it was told last.
    pub(in super::super) fn tell_home(&mut self, run: RunId) {
        let (Some(state), Some(cluster)) = (self.runs.get_mut(&run), &mut self.cluster) else { return };
        let Some(shared) = state.shared.as_mut().filter(|shared| !shared.is_home()) else { return };
        let Journal { mut records, mut failures, .. } = state.watch.take_journal();
        let fates = std::mem::take(&mut shared.fates);
        let began = shared.began;
        records.iter_mut().for_each(|record| record.at = Tick(record.at.since_us(began)));
        failures.iter_mut().for_each(|failed| failed.at = Tick(failed.at.since_us(began)));
        let home = shared.nodes[usize::from(HOME)];
        if !failures.is_empty() || !fates.is_empty() {
            cluster.say(home, &Message::Happened { run, records: Vec::new(), failures, fates });
        }
        let mut records = records.into_iter().peekable();
        while records.peek().is_some() {
            let records = records.by_ref().take(RECORDS_MAX).collect();
            let (failures, fates) = Default::default();
            cluster.say(home, &Message::Happened { run, records, failures, fates });
        }
    }

    /// A node tells what happened there.
    pub(super) fn heard_tidings(
        &mut self,
        from: NodeId,
        run: RunId,
        records: Vec<Record>,
        failures: Vec<Failed>,
        fates: &[Fate],
    ) {
        let Some(state) = self.runs.get(&run) else { return };
        let Some(shared) = state.shared.as_ref().filter(|s| s.is_home() && s.index(from).is_some()) else {
            return;
        };
        let steps = state.workflow.graph.steps.len() as u32;
        let at = |at: Tick| Tick(shared.began.0.saturating_add(at.0));
        for record in records.into_iter().filter(|record| record.invocation.step < steps) {
            state.watch.record(Record { at: at(record.at), ..record });
        }
        for failed in failures.into_iter().filter(|failed| failed.invocation.step < steps) {
            state.watch.failed(Failed { at: at(failed.at), ..failed });
        }
        for fate in fates {
            let (Fate::Items { step, .. }
            | Fate::Skipped { step }
            | Fate::Retried { step }
            | Fate::Failed { step }
            | Fate::Done { step }) = *fate;
            if step >= steps {
                continue;
            }
            state.watch.step(step, |view| match fate {
                Fate::Items { items, .. } => view.items = Some(*items),
                Fate::Skipped { .. } => view.skipped = true,
                Fate::Retried { .. } => view.retried += 1,
                Fate::Failed { .. } => view.failed += 1,
                Fate::Done { .. } => view.complete = true,
            });
        }
    }
}
