//! What the scheduler derives from a graph once, for all of its runs.

use crate::graph::{Edges, Graph, OnFailure, PortKind, Source, StepIndex, StepKind};
use alloc::{vec, vec::Vec};
use dflow_proto::limits::ITEMS_DEFAULT_MAX;

/// Bytes per microsecond that the critical path reckons with: a hand-over inside one node.
pub(super) const BANDWIDTH: u64 = 8_000;

/// No step, no case.
pub(super) const NONE: u32 = u32::MAX;

/// Why one step waits for another; several at once.
pub(super) mod because {
    /// It is the source of a required input or of the foreach.
    pub(crate) const REQUIRED: u8 = 1;
    /// It is the source of any input or of the foreach.
    pub(crate) const DATA: u8 = 2;
    /// A condition reads it.
    pub(crate) const READ: u8 = 4;
    /// A condition asks whether it was skipped.
    pub(crate) const ASK: u8 = 8;
    /// `after`.
    pub(crate) const AFTER: u8 = 16;
    /// It is the value of a case.
    pub(crate) const VALUE: u8 = 32;
    /// It holds the JSON list of the foreach.
    pub(crate) const LIST: u8 = 64;
}

/// A step that waits for another one.
#[derive(Clone, Copy)]
pub(super) struct Dependent {
    pub(super) step: StepIndex,
    pub(super) because: u8,
}

/// How a port is read. Every reader but `Items` holds the whole port until its step is done with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Input(u16),
    /// The foreach list; each instance holds its own item.
    Items,
    Condition,
    /// The JSON list of a foreach.
    List,
    Case(u16),
    Output,
}

#[derive(Clone, Copy)]
pub(super) struct PortReader {
    pub(super) step: StepIndex,
    pub(super) role: Role,
}

/// Where a port's state is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// One object an invocation: index among such ports of the step.
    One(u16),
    /// A list: index among the lists of the step.
    List(u16),
    /// The alias that a switch is.
    Alias,
    /// A list of an instance of a foreach: no reference can name it, so it is freed when sealed.
    Unread,
    /// A run input.
    RunInput(u16),
}

pub(super) struct PortPlan {
    pub(super) step: StepIndex,
    pub(super) port: u16,
    pub(super) keep: Keep,
    /// Readers that hold the whole port.
    pub(super) holds: u32,
    /// Readers that hold single items.
    pub(super) item_holds: u32,
    pub(super) items_max: u32,
}

/// What a foreach iterates.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    Nothing,
    /// Items of a `many` port: flat index of the port.
    Many(u32),
    /// Items of a foreach step: flat index of the port.
    Gather(u32),
    /// Elements of a JSON list: the step that produces it, or `NONE`.
    Json(u32),
}

pub(super) struct StepPlan {
    /// Microseconds to the end of the run: more goes first.
    pub(super) rank: u64,
    /// Index of the function, `NONE` for a switch.
    pub(super) function: u32,
    pub(super) over: Over,
    /// Inputs that come from steps, items not counted.
    pub(super) inputs: u32,
    /// Inputs that are the item.
    pub(super) item_inputs: u32,
    /// Distinct steps waited for, by reason.
    pub(super) required: u32,
    pub(super) data: u32,
    pub(super) conditions: u32,
    pub(super) after: u32,
    /// The graph alone says that it is certain to run: no condition stands before it. So every node knows, and none
    /// is told.
    pub(super) sure: bool,
    /// It may still be skipped once it is certain to run, since it or a precursor ignores failure.
    pub(super) late_skip: bool,
    /// The foreach list's step is read otherwise too, so items must be held until that is settled.
    pub(super) over_shared: bool,
    pub(super) ones: u16,
    pub(super) lists: u16,
    pub(super) items_max: u32,
    pub(super) parallel_max: u32,
}

/// Flat arrays over steps and ports. Ports are numbered step by step; run inputs come last.
pub(super) struct Plan {
    pub(super) steps: Vec<StepPlan>,
    pub(super) ports: Vec<PortPlan>,
    port_start: Vec<u32>,
    readers: Vec<PortReader>,
    reader_start: Vec<u32>,
    dependents: Vec<Dependent>,
    dependent_start: Vec<u32>,
    /// Per function: some of its invocations may, through others, wait for one of its own.
    pub(super) cyclic: Vec<bool>,
}

impl Plan {
    /// `graph` must have passed [`Graph::check`] and `order` be its topological order.
    pub(super) fn new(graph: &Graph, order: &[StepIndex], rank: &[u64]) -> Self {
        let edges = Edges::new(graph);
        let (mut ports, port_start) = lay_out(graph);
        let inputs_start = port_start[graph.steps.len()];
        let flat = |source: &Source| flat_port(&port_start, inputs_start, source);

        let mut count = vec![0u32; ports.len() + 1];
        graph.readers(|source, _| {
            if let Some(p) = flat(source) {
                count[p as usize + 1] += 1;
            }
        });
        for p in 0..ports.len() {
            count[p + 1] += count[p];
        }
        let reader_start = count.clone();
        let total = count[ports.len()] as usize;
        let mut readers = vec![PortReader { step: 0, role: Role::Output }; total];
        graph.readers(|source, reader| {
            let Some(p) = flat(source) else { return };
            let reader = port_reader(graph, reader);
            match reader.role {
                Role::Items => ports[p as usize].item_holds += 1,
                _ => ports[p as usize].holds += 1,
            }
            readers[count[p as usize] as usize] = reader;
            count[p as usize] += 1;
        });

        let mut steps: Vec<StepPlan> = Vec::with_capacity(graph.steps.len());
        let mut reasons: Vec<u8> = vec![0; graph.steps.len()];
        let mut dependent_start: Vec<u32> = vec![0];
        for s in 0..graph.steps.len() {
            dependent_start.push(dependent_start[s] + edges.behind(s as u32).len() as u32);
        }
        let mut fill = dependent_start.clone();
        let mut dependents =
            vec![Dependent { step: 0, because: 0 }; dependent_start[graph.steps.len()] as usize];
        for s in 0..graph.steps.len() {
            steps.push(plan_step(graph, s, rank[s], &flat));
            mark_reasons(graph, s, &mut reasons);
            for &b in edges.before(s as u32) {
                let because = core::mem::take(&mut reasons[b as usize]);
                let plan = &mut steps[s];
                plan.required += u32::from(because & because::REQUIRED != 0);
                plan.data += u32::from(because & because::DATA != 0);
                plan.conditions +=
                    u32::from(because & because::READ != 0) + u32::from(because & because::ASK != 0);
                plan.after += u32::from(because & because::AFTER != 0);
                dependents[fill[b as usize] as usize] = Dependent { step: s as u32, because };
                fill[b as usize] += 1;
            }
        }
        let mut plan = Plan {
            steps,
            ports,
            port_start,
            readers,
            reader_start,
            dependents,
            dependent_start,
            cyclic: cyclic_functions(graph, &edges),
        };
        for &s in order {
            let own = graph.steps[s as usize].on_failure == OnFailure::Ignore;
            plan.steps[s as usize].late_skip |= own;
            let (late_skip, sure) = (plan.steps[s as usize].late_skip, plan.steps[s as usize].sure);
            for i in plan.dependent_start[s as usize]..plan.dependent_start[s as usize + 1] {
                let d = plan.dependents[i as usize];
                let dependent = &mut plan.steps[d.step as usize];
                dependent.late_skip |= late_skip && d.because & (because::REQUIRED | because::VALUE) != 0;
                dependent.sure &= sure || d.because & because::REQUIRED == 0;
            }
        }
        plan
    }

    /// Flat index of a port of a step.
    pub(super) fn port(&self, step: StepIndex, port: u16) -> u32 {
        self.port_start[step as usize] + u32::from(port)
    }
    /// Flat indices of a step's ports.
    pub(super) fn ports_of(&self, step: StepIndex) -> core::ops::Range<u32> {
        self.port_start[step as usize]..self.port_start[step as usize + 1]
    }
    /// Flat indices of the run inputs.
    pub(super) fn run_inputs(&self) -> core::ops::Range<u32> {
        self.port_start[self.steps.len()]..self.ports.len() as u32
    }
    /// Flat index of what a source names; `None` for constants and items.
    pub(super) fn source_port(&self, source: &Source) -> Option<u32> {
        flat_port(&self.port_start, self.port_start[self.steps.len()], source)
    }
    pub(super) fn readers(&self, port: u32) -> &[PortReader] {
        &self.readers
            [self.reader_start[port as usize] as usize..self.reader_start[port as usize + 1] as usize]
    }
    pub(super) fn dependents(&self, step: StepIndex) -> &[Dependent] {
        let s = step as usize;
        &self.dependents[self.dependent_start[s] as usize..self.dependent_start[s + 1] as usize]
    }
}

fn flat_port(port_start: &[u32], inputs_start: u32, source: &Source) -> Option<u32> {
    match *source {
        Source::Output { step, port } | Source::Gather { step, port } => {
            Some(port_start[step as usize] + u32::from(port))
        }
        Source::Input(i) => Some(inputs_start + u32::from(i)),
        Source::Const(_) | Source::Item => None,
    }
}

fn lay_out(graph: &Graph) -> (Vec<PortPlan>, Vec<u32>) {
    let (mut ports, mut port_start) = (Vec::new(), Vec::with_capacity(graph.steps.len() + 1));
    for (s, step) in graph.steps.iter().enumerate() {
        port_start.push(ports.len() as u32);
        let (mut ones, mut lists) = (0, 0);
        for (p, port) in step.outputs.iter().enumerate() {
            let keep = match (&step.kind, port.kind) {
                (StepKind::Switch(_), _) => Keep::Alias,
                (_, PortKind::Many) if step.foreach.is_some() => Keep::Unread,
                (_, PortKind::Many) => {
                    lists += 1;
                    Keep::List(lists - 1)
                }
                _ => {
                    ones += 1;
                    Keep::One(ones - 1)
                }
            };
            let items_max = if port.items_max == 0 { ITEMS_DEFAULT_MAX } else { port.items_max };
            ports.push(PortPlan { step: s as u32, port: p as u16, keep, holds: 0, item_holds: 0, items_max });
        }
    }
    port_start.push(ports.len() as u32);
    for i in 0..graph.inputs.len() as u16 {
        let keep = Keep::RunInput(i);
        ports.push(PortPlan { step: NONE, port: i, keep, holds: 0, item_holds: 0, items_max: 0 });
    }
    (ports, port_start)
}

fn port_reader(graph: &Graph, reader: crate::graph::Reader) -> PortReader {
    use crate::graph::Reader;
    match reader {
        Reader::Input { step, input } => PortReader { step, role: Role::Input(input) },
        Reader::Condition(step) => PortReader { step, role: Role::Condition },
        Reader::Case { step, case } => PortReader { step, role: Role::Case(case) },
        Reader::Output(_) => PortReader { step: NONE, role: Role::Output },
        Reader::Over(step) => {
            let json = graph.steps[step as usize].foreach.as_ref().is_some_and(|each| each.json);
            PortReader { step, role: if json { Role::List } else { Role::Items } }
        }
    }
}

fn plan_step(graph: &Graph, s: usize, rank: u64, flat: &impl Fn(&Source) -> Option<u32>) -> StepPlan {
    let step = &graph.steps[s];
    let from_step = |source: &Source| source.step().is_some();
    let over = match &step.foreach {
        None => Over::Nothing,
        Some(each) if each.json => Over::Json(each.over.step().unwrap_or(NONE)),
        Some(each) => match (&each.over, flat(&each.over)) {
            (Source::Gather { .. }, Some(p)) => Over::Gather(p),
            (_, Some(p)) => Over::Many(p),
            (_, None) => Over::Json(NONE),
        },
    };
    let over_step = step.foreach.as_ref().and_then(|each| each.over.step());
    let ones_of =
        |many: bool| step.outputs.iter().filter(|p| (p.kind == PortKind::Many) == many).count() as u16;
    let switch = step.function().is_none();
    let items_max = step.foreach.as_ref().map_or(1, |each| each.items_max);
    StepPlan {
        rank,
        function: step.function().unwrap_or(NONE),
        over,
        inputs: step.inputs.iter().filter(|i| from_step(&i.source)).count() as u32,
        item_inputs: step.inputs.iter().filter(|i| i.source == Source::Item).count() as u32,
        required: 0,
        data: 0,
        conditions: 0,
        after: 0,
        sure: !switch && step.when.is_none(),
        late_skip: false,
        over_shared: matches!(over, Over::Gather(_))
            && step.inputs.iter().any(|i| i.source.step().is_some() && i.source.step() == over_step),
        ones: if switch { 0 } else { ones_of(false) },
        lists: if switch || step.foreach.is_some() { 0 } else { ones_of(true) },
        items_max: if items_max == 0 { ITEMS_DEFAULT_MAX } else { items_max },
        parallel_max: step.foreach.as_ref().map_or(u32::MAX, |each| each.parallel_max),
    }
}

fn mark_reasons(graph: &Graph, s: usize, reasons: &mut [u8]) {
    let step = &graph.steps[s];
    let mut mark = |source: &Source, because: u8| {
        if let Some(of) = source.step() {
            reasons[of as usize] |= because;
        }
    };
    for input in &step.inputs {
        mark(&input.source, if input.optional { because::DATA } else { because::DATA | because::REQUIRED });
    }
    if let Some(each) = &step.foreach {
        let list = if each.json { because::LIST } else { 0 };
        mark(&each.over, because::DATA | because::REQUIRED | list);
    }
    if let StepKind::Switch(cases) = &step.kind {
        cases.iter().for_each(|case| mark(&case.value, because::VALUE));
    }
    step.conditions(|condition| {
        condition.reads.iter().for_each(|read| mark(read, because::READ));
        condition.asks.iter().for_each(|&asked| reasons_ask(asked, &mut mark));
    });
    for &after in &step.after {
        mark(&Source::Output { step: after, port: 0 }, because::AFTER);
    }
}

fn reasons_ask(asked: StepIndex, mark: &mut impl FnMut(&Source, u8)) {
    mark(&Source::Output { step: asked, port: 0 }, because::ASK);
}

/// Functions that lie on a cycle of "a step of f waits for a step of g". Transitive waits are paths
/// in this graph of functions, so what is not on a cycle can never wait for itself.
fn cyclic_functions(graph: &Graph, edges: &Edges) -> Vec<bool> {
    // A switch passes the wait on: it gets a vertex of its own behind those of the functions.
    let functions = graph.functions.len();
    let vertex = |s: usize| graph.steps[s].function().map_or(functions + s, |f| f as usize);
    let mut next: Vec<(u32, u32)> = Vec::new();
    for s in 0..graph.steps.len() {
        next.extend(edges.before(s as u32).iter().map(|&b| (vertex(s) as u32, vertex(b as usize) as u32)));
    }
    next.sort_unstable();
    next.dedup();
    let vertices = functions + graph.steps.len();
    let mut start = vec![0usize; vertices + 1];
    for &(from, _) in &next {
        start[from as usize + 1] += 1;
    }
    for v in 0..vertices {
        start[v + 1] += start[v];
    }
    let mut cyclic = vec![false; functions];
    components(
        vertices,
        |v| &next[start[v]..start[v + 1]],
        |component| {
            let itself =
                |v: u32| next[start[v as usize]..start[v as usize + 1]].binary_search(&(v, v)).is_ok();
            if component.len() > 1 || itself(component[0]) {
                for &v in component.iter().filter(|&&v| (v as usize) < functions) {
                    cyclic[v as usize] = true;
                }
            }
        },
    );
    cyclic
}

/// Strongly connected components (Tarjan's algorithm with a stack of its own, since a graph may be
/// deep). `next(v)` are the edges out of `v`; `found` gets each component.
fn components<'a>(vertices: usize, next: impl Fn(usize) -> &'a [(u32, u32)], mut found: impl FnMut(&[u32])) {
    let mut seen = vec![0u32; vertices];
    let mut low = vec![0u32; vertices];
    let mut open = vec![false; vertices];
    let (mut stack, mut walk, mut clock) = (Vec::new(), Vec::new(), 0u32);
    for root in 0..vertices {
        if seen[root] != 0 {
            continue;
        }
        walk.push((root, 0usize));
        while let Some(&mut (v, ref mut at)) = walk.last_mut() {
            if *at == 0 && seen[v] == 0 {
                clock += 1;
                seen[v] = clock;
                low[v] = clock;
                open[v] = true;
                stack.push(v as u32);
            }
            if let Some(&(_, to)) = next(v).get(*at) {
                *at += 1;
                let to = to as usize;
                if seen[to] == 0 {
                    walk.push((to, 0));
                } else if open[to] {
                    low[v] = low[v].min(seen[to]);
                }
                continue;
            }
            walk.pop();
            if let Some(&(parent, _)) = walk.last() {
                low[parent] = low[parent].min(low[v]);
            }
            if low[v] == seen[v] {
                let from = stack.iter().rposition(|&w| w as usize == v).unwrap_or(0);
                stack[from..].iter().for_each(|&w| open[w as usize] = false);
                found(&stack[from..]);
                stack.truncate(from);
            }
        }
    }
}
