//! The life of a run as the engine sees it: submit, deliver, forget.

use super::cluster::Shared;
use super::values::Parked;
use super::{Engine, Phase, RunState};
use crate::node::Done;
use crate::node::error::RunFailure;
use crate::node::object::{Keep, ObjectView, OutputValue};
use crate::node::pool::Job;
use crate::node::stage::Staged;
use crate::node::view::Watch;
use crate::workflow::Workflow;
use dflow_core::graph::{Source, StartPolicy, StepKind};
use dflow_core::placement::{Load, Part};
use dflow_core::scheduler::{Event, Resolved, RunError};
use dflow_proto::store::{Leased, Owner};
use dflow_proto::{ObjectKey, RunId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Why outputs were not handed over.
enum Undelivered {
    /// One is on its way back from disk.
    Later,
    Failed(RunFailure),
}

impl Engine {
    /// Begins an opened run whose inputs are written.
    pub(super) fn submit(
        &mut self,
        workflow: Arc<Workflow>,
        start: Option<StartPolicy>,
        Staged { run, inputs }: Staged,
        done: Done,
        shared: Option<Box<Shared>>,
        load: Load,
    ) -> Watch {
        for (index, extent) in inputs.into_iter().enumerate() {
            let key = ObjectKey::input(run, index as u16);
            if let Err(error) = self.store.seal(key, Owner::inputs(run), extent) {
                // The extents came from `stage` and this thread wrote none of them down wrongly.
                unreachable!("an input's own grant was refused: {error}");
            }
        }
        let journal = self.config.journal;
        let watch = self.enter(run, workflow, start, Some(done), shared, journal);
        self.take_on(run, load);
        watch
    }

    /// Begins this node's part of a run that was submitted to another.
    pub(super) fn take_part(
        &mut self,
        run: RunId,
        workflow: Arc<Workflow>,
        start: Option<StartPolicy>,
        shared: Box<Shared>,
        load: Load,
    ) {
        // What happens here is known at the home by the journal alone.
        self.enter(run, workflow, start, None, Some(shared), true);
        self.take_on(run, load);
        self.expect_tidings();
    }

    fn enter(
        &mut self,
        run: RunId,
        workflow: Arc<Workflow>,
        start: Option<StartPolicy>,
        done: Option<Done>,
        shared: Option<Box<Shared>>,
        journal: bool,
    ) -> Watch {
        // Imitated systems know nothing but control flow.
        let start = if self.remote.is_some() { Some(StartPolicy::AllReady) } else { start };
        let mut watch = Watch::new(run, &workflow.graph, self.now(), journal);
        let mut part = None;
        if let (Some(shared), Some(cluster)) = (&shared, &self.cluster) {
            watch = watch.over(shared.view(cluster));
            part = Some(shared.part());
        }
        let pools: Vec<_> =
            workflow.functions.iter().map(|f| self.pools.find(f, &workflow.source_dir)).collect();
        self.warm_first(&workflow, &pools, part.as_ref());
        let steps = workflow.graph.steps.len();
        let graph = workflow.graph.clone();
        let state = RunState {
            workflow,
            watch: watch.clone(),
            pools,
            lists: BTreeMap::new(),
            wrote: vec![0; steps],
            done,
            outputs: Vec::new(),
            shared,
            load: Load::default(),
        };
        self.runs.insert(run, state);
        self.events.push_back(Event::Submit { run, graph, start, part });
        watch
    }

    /// Loads the functions of the steps that need nothing but inputs, and keeps each pool's
    /// declared minimum, before the scheduler has said a word.
    fn warm_first(&mut self, workflow: &Workflow, pools: &[crate::node::pool::PoolId], part: Option<&Part>) {
        if !self.config.overlaps.cold_start {
            return;
        }
        let here = |index: usize| part.is_none_or(|p| p.placement.steps[index].hosts().contains(&p.me));
        let steps = || workflow.graph.steps.iter().enumerate().filter(|(index, _)| here(*index));
        let used: BTreeSet<u32> = steps().filter_map(|(_, step)| step.function()).collect();
        for function in used {
            let min_warm = workflow.functions[function as usize].pool.min_warm;
            self.pools.warm(pools[function as usize], min_warm);
        }
        for (_, step) in steps() {
            let from_steps = |s: &Source| matches!(s, Source::Output { .. } | Source::Gather { .. });
            if let StepKind::Call(function) = step.kind
                && !step.inputs.iter().any(|i| from_steps(&i.source))
            {
                self.pools.warm(pools[function as usize], 1);
            }
        }
    }

    /// Hands the result to whoever waits for it, once all outputs are in memory. They stay leased
    /// until the last view of them is gone.
    pub(super) fn deliver(&mut self, run: RunId, result: Result<(), RunError>) {
        let Some(state) = self.runs.get(&run) else { return };
        let workflow = state.workflow.clone();
        let keep = Keep::new(run, self.sender.clone());
        let outputs: Result<Vec<_>, Undelivered> = match result {
            Err(error) => Err(Undelivered::Failed(RunFailure::Run(error))),
            Ok(()) => {
                let outputs = workflow.graph.outputs.iter();
                let value = |(name, source)| {
                    Ok((String::clone(name), self.output(run, &workflow, name, source, &keep)?))
                };
                outputs.map(|o| (&o.name, &o.source)).map(value).collect()
            }
        };
        let result = match outputs {
            Err(Undelivered::Later) => {
                keep.disarm();
                self.parked.push(Parked::Deliver(run));
                return;
            }
            Err(Undelivered::Failed(failure)) => Err(failure),
            Ok(outputs) => Ok(outputs),
        };
        let kept = result.is_ok();
        if kept {
            self.learn_of(run);
        }
        let done = self.runs.get_mut(&run).and_then(|s| s.done.take());
        let taken = done.is_some_and(|done| done(result));
        if !kept || !taken {
            // Nobody holds outputs. This thread must not send itself the request by which a program's
            // last view ends the run: its own queue may be full.
            keep.disarm();
            self.forgotten.push(run);
        }
    }

    fn output(
        &mut self,
        run: RunId,
        workflow: &Workflow,
        name: &str,
        source: &Source,
        keep: &Arc<Keep>,
    ) -> Result<OutputValue, Undelivered> {
        match self.scheduler.resolve_source(run, source) {
            Resolved::Object(object) => Ok(OutputValue::Object(self.view(run, name, object.key, keep)?)),
            Resolved::List { items, .. } => {
                let views: Result<Vec<_>, _> =
                    items.into_iter().map(|item| self.view(run, name, item.key, keep)).collect();
                Ok(OutputValue::List(views?))
            }
            Resolved::Const(id) => {
                Ok(OutputValue::Object(ObjectView::owned(workflow.constants[id as usize].bytes.clone())))
            }
            // After a good end nothing is pending; what is not there was skipped.
            Resolved::Null | Resolved::Pending | Resolved::Follow { .. } | Resolved::Element { .. } => {
                Ok(OutputValue::Null)
            }
        }
    }

    fn view(
        &mut self,
        run: RunId,
        name: &str,
        key: ObjectKey,
        keep: &Arc<Keep>,
    ) -> Result<ObjectView, Undelivered> {
        let lost = |why: String| Undelivered::Failed(RunFailure::Output { name: name.into(), why });
        let (lease, extent) = match self.store.lease(key) {
            Leased::Ready(lease, extent) => (lease, Some(extent)),
            Leased::Restoring(lease) => (lease, None),
            Leased::Missing => return Err(lost("it is no longer in the store".into())),
        };
        if let Some(state) = self.runs.get_mut(&run) {
            state.outputs.push(lease);
        }
        let extent = extent.ok_or(Undelivered::Later)?;
        let map =
            self.store.arena().map_of(extent.segment).ok_or_else(|| lost("its memory is gone".into()))?;
        ObjectView::mapped(map, extent, keep.clone()).map_err(|e| lost(e.to_string()))
    }

    /// The program has dropped the outputs, or never began the run: all of it goes.
    pub(super) fn forget(&mut self, run: RunId) {
        if self.runs.get(&run).is_some_and(|state| state.shared.is_some()) {
            self.forget_shared(run);
        }
        self.drop_load(run);
        if let Some(state) = self.runs.remove(&run) {
            for lease in state.outputs {
                self.store.unlease(lease);
            }
            self.scheduler.forget(run, &mut self.effects);
            let effects = std::mem::take(&mut self.effects);
            effects.into_iter().for_each(|effect| self.apply(effect));
        }
        self.forget_aside(run);
        self.store.drop_run(run);
    }

    /// The attempt has its memory: find it a process.
    pub(super) fn want_worker(&mut self, job: Job) {
        let Some(state) = self.runs.get(&job.0) else { return };
        let StepKind::Call(function) = state.workflow.graph.steps[job.1.step as usize].kind else { return };
        let pool = state.pools[function as usize];
        if let Some(attempt) = self.attempts.get_mut(&job) {
            attempt.phase = Phase::Worker;
        }
        if self.hold_before_process(job, self.pools.has_idle(pool)) {
            return;
        }
        match self.pools.request(pool, job) {
            Some(worker) => self.dispatch(worker, job),
            None => {
                if let Some(attempt) = self.attempts.get_mut(&job) {
                    attempt.cold = true;
                }
            }
        }
    }
}
