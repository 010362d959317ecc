//! A scheduler, one run, and effects written short: `start 1[2]#3!` is attempt 3 of item 2 of step 1, early; `free 1.0`
//! releases port 0 of step 1; `free in0` a run input.
#![expect(unreachable_pub, reason = "shared by the tests of one file, and named after what they do")]

use dflow_core::graph::*;
use dflow_core::scheduler::*;
use dflow_proto::{InvocationId, ObjectKey, RunId, Tick};
use std::sync::Arc;

pub const RUN: RunId = RunId(7);

pub fn step(inputs: &[Source]) -> Step {
    let port = |source: &Source| InputPort {
        name: "in".into(),
        ty: PortType::Bytes,
        source: source.clone(),
        optional: false,
    };
    Step {
        name: String::new(),
        kind: StepKind::Call(0),
        inputs: inputs.iter().map(port).collect(),
        outputs: vec![output(PortKind::Plain)],
        when: None,
        foreach: None,
        after: Vec::new(),
        start: StartPolicy::FirstByte,
        retry: Retry::default(),
        timeout_ms: 0,
        cpu_milli: 0,
        estimate_us: 0,
        on_failure: OnFailure::Fail,
    }
}

pub fn output(kind: PortKind) -> OutputPort {
    OutputPort {
        name: "out".into(),
        ty: PortType::Bytes,
        kind,
        hint_bytes: 0,
        bytes_max: 0,
        items_max: 0,
        file: false,
    }
}

pub fn many() -> Step {
    Step { outputs: vec![output(PortKind::Many)], ..step(&[]) }
}

pub fn each(over: Source, inputs: &[Source]) -> Step {
    let json = matches!(over, Source::Const(_) | Source::Input(_));
    let tolerate = Tolerate::Count(0);
    let foreach = Foreach { over, json, parallel_max: 100, items_max: 100, tolerate };
    Step { foreach: Some(foreach), ..step(inputs) }
}

pub fn switch(cases: Vec<Case>) -> Step {
    Step { kind: StepKind::Switch(cases.into()), ..step(&[]) }
}

pub const fn from(step: u32) -> Source {
    Source::Output { step, port: 0 }
}

pub const fn gather(step: u32) -> Source {
    Source::Gather { step, port: 0 }
}

pub fn condition(reads: Vec<Source>, asks: Vec<u32>) -> Option<Condition> {
    Some(Condition { id: 0, reads, asks })
}

pub fn retry(retries_max: u32, on: ErrorClass) -> Retry {
    Retry {
        retries_max,
        backoff_ms: 10,
        factor_milli: 2000,
        backoff_ms_max: 15,
        jitter_milli: 0,
        on: vec![on],
    }
}

pub struct Rig {
    pub scheduler: Scheduler,
    pub graph: Graph,
    pub now: u64,
}

pub fn rig(steps: Vec<Step>) -> Rig {
    let mut steps = steps;
    for (i, step) in steps.iter_mut().enumerate() {
        step.name = format!("s{i}");
    }
    let function = Function { name: "f".into(), workers_max: 100, deterministic: false };
    let functions = vec![function.clone(), Function { deterministic: true, ..function }];
    let mut inputs = Vec::new();
    let input = RunInput { name: "x".into(), ty: PortType::Bytes };
    steps.iter().for_each(|step| {
        step.sources(|source| inputs.extend((*source == Source::Input(0)).then(|| input.clone())))
    });
    inputs.truncate(1);
    let graph = Graph { name: "t@1".into(), inputs, functions, steps, ..Graph::default() };
    Rig { scheduler: Scheduler::new(Capacity { cpu_milli: 4000, slots: 100 }), graph, now: 0 }
}

impl Rig {
    pub fn slots(mut self, slots: u32) -> Self {
        self.scheduler = Scheduler::new(Capacity { cpu_milli: 4000, slots });
        self
    }
    #[track_caller]
    pub fn submit(&mut self, expected: &[&str]) {
        self.submit_as(None, expected);
    }
    #[track_caller]
    pub fn submit_as(&mut self, start: Option<StartPolicy>, expected: &[&str]) {
        let graph = Arc::new(self.graph.clone());
        self.tell(Event::Submit { run: RUN, graph, start, part: None }, expected);
    }
    #[track_caller]
    pub fn tell(&mut self, event: Event, expected: &[&str]) {
        let mut effects = Vec::new();
        self.scheduler.handle(Tick(self.now), event, &mut effects);
        let got: Vec<String> = effects.iter().filter_map(short).collect();
        assert_eq!(got, expected);
    }
    #[track_caller]
    pub fn begin(&mut self, step: u32, item: u32, expected: &[&str]) {
        self.tell(Event::FirstByte(put(step, item, 0, 1)), expected);
    }
    #[track_caller]
    pub fn seal(&mut self, step: u32, item: u32, expected: &[&str]) {
        self.tell(Event::Sealed(put(step, item, 0, 1)), expected);
    }
    /// Seals item `element` of the list that step `step` puts.
    #[track_caller]
    pub fn append(&mut self, step: u32, element: u32, expected: &[&str]) {
        self.tell(Event::Sealed(put(step, 0, element, 1)), expected);
    }
    #[track_caller]
    pub fn pin(&mut self, step: u32, count: u32, expected: &[&str]) {
        let invocation = InvocationId { step, item: 0 };
        self.tell(Event::Pinned { run: RUN, invocation, attempt: 1, port: 0, count }, expected);
    }
    #[track_caller]
    pub fn end(&mut self, step: u32, item: u32, expected: &[&str]) {
        self.end_as(step, item, 1, Outcome::Ok, expected);
    }
    #[track_caller]
    pub fn end_as(&mut self, step: u32, item: u32, attempt: u32, outcome: Outcome, expected: &[&str]) {
        self.tell(
            Event::Ended { run: RUN, invocation: InvocationId { step, item }, attempt, outcome },
            expected,
        );
    }
    #[track_caller]
    pub fn fail(&mut self, step: u32, item: u32, attempt: u32, expected: &[&str]) {
        self.end_as(step, item, attempt, crash(), expected);
    }
    #[track_caller]
    pub fn decide(&mut self, step: u32, result: u32, expected: &[&str]) {
        self.tell(Event::Evaluated { run: RUN, step, result: Ok(result) }, expected);
    }
    #[track_caller]
    pub fn measure(&mut self, step: u32, items: u32, expected: &[&str]) {
        self.tell(Event::ListLength { run: RUN, step, result: Ok(items) }, expected);
    }
    #[track_caller]
    pub fn wake_at(&mut self, us: u64, expected: &[&str]) {
        assert_eq!(self.scheduler.deadline(), Some(Tick(us)));
        self.now = us;
        self.tell(Event::Wake, expected);
    }
    #[track_caller]
    pub fn forget(&mut self, expected: &[&str]) {
        let mut effects = Vec::new();
        self.scheduler.forget(RUN, &mut effects);
        assert_eq!(effects.iter().filter_map(short).collect::<Vec<_>>(), expected);
        assert_eq!(self.scheduler.load(), Load::default());
    }
}

pub fn put(step: u32, item: u32, element: u32, attempt: u32) -> Put {
    let invocation = InvocationId { step, item };
    Put { key: ObjectKey { run: RUN, invocation, port: 0, item: element }, attempt, bytes: 1 }
}

pub fn crash() -> Outcome {
    Outcome::Failed(Failure { class: ErrorClass::Crash, message: "killed".into() })
}

pub fn name(id: InvocationId) -> String {
    if id.item == 0 { format!("{}", id.step) } else { format!("{}[{}]", id.step, id.item) }
}

/// Notes for people and warm-ups have tests of their own.
pub fn short(effect: &Effect) -> Option<String> {
    Some(match effect {
        Effect::Start { invocation, attempt, early, .. } => {
            format!("start {}#{attempt}{}", name(*invocation), if *early { "!" } else { "" })
        }
        Effect::Evaluate { step, .. } => format!("evaluate {step}"),
        Effect::MeasureList { step, .. } => format!("measure {step}"),
        Effect::Relink { invocation, input, .. } => format!("relink {}.{input}", name(*invocation)),
        Effect::Stop { invocation, why, .. } => format!("stop {} {why:?}", name(*invocation)),
        Effect::Release(key) if key.invocation.step == ObjectKey::INPUT_STEP => {
            format!("free in{}", key.port)
        }
        Effect::Release(key) if key.item > 0 => {
            format!("free {}.{}.{}", name(key.invocation), key.port, key.item)
        }
        Effect::Release(key) => format!("free {}.{}", name(key.invocation), key.port),
        Effect::Note { note: Note::Skipped { step }, .. } => format!("skip {step}"),
        Effect::RunEnded { result: Ok(()), .. } => "over".into(),
        Effect::RunEnded { result: Err(error), .. } => format!("over: {error}"),
        Effect::Note { .. } | Effect::Warm { .. } | Effect::Tell { .. } | Effect::Publish { .. } => {
            return None;
        }
    })
}
