//! The whole measurement: nodes, turns, and what is computed of the runs.

use super::cluster::Nodes;
use super::drive::{Driver, FAILURES_MAX, Sample};
use super::grouping::Profile;
use super::remote::RemoteStore;
use super::results::{Results, Row};
use super::stats::{Quantiles, Random};
use super::{BenchError, Contender, Load, Plan, Subject, System, Way};
use crate::history::{Facts, Printed, RunRecord, graph_facts, input_facts};
use crate::node::{Baseline, Crossing, Journal, Node, NodeConfig, Overlaps, Processes, RunView, Traffic};
use crate::trace::Timeline;
use dflow_core::graph::StartPolicy;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Turns of each contender.
const BLOCKS: u32 = 10;
/// Runs of each contender that are looked at closely.
const TRACED_MAX: u32 = 20;

/// A contender that takes part.
struct Contestant {
    contender: Contender,
    nodes: Nodes,
    config: NodeConfig,
    start: Option<StartPolicy>,
    baseline: Option<Arc<Baseline>>,
    store: Option<RemoteStore>,
    /// What it had moved to and from its store before anything was measured, and between its nodes.
    moved: (u64, u64, u64),
    crossed: u64,
    samples: Vec<Sample>,
    failures: Vec<(usize, String)>,
    /// CPU time of this process during its turns, load generator included.
    node_cpu_us: u64,
    /// Time of its turns.
    wall_us: u64,
    /// The last of its runs, if they failed.
    in_a_row: u32,
    given_up: bool,
    /// The node for which it is.
    lost: Option<String>,
}

/// Measures. `say` is told what happens, for people.
///
/// # Errors
/// When there is nobody to measure. What goes wrong later stands in the results.
pub fn measure(plan: &Plan, say: &mut dyn FnMut(&str)) -> Result<Results, BenchError> {
    if plan.cold && plan.load != (Load::Closed { clients: 1 }) {
        return Err(BenchError::ColdLoad);
    }
    let mut results = Results::new(plan);
    let interrupted = |done| BenchError::Interrupted { done, runs: plan.runs };
    let placed = plan
        .contenders
        .iter()
        .any(|c| matches!(c.way, Way::Imitated(System::Faasflow | System::FaasflowRedis)));
    let places = if placed { places(plan, say)? } else { BTreeMap::new() };
    let mut contestants = Vec::new();
    for contender in &plan.contenders {
        let entered = enter(plan, contender, &places);
        if plan.interrupted() {
            return Err(interrupted(0));
        }
        match entered {
            Ok(contestant) => contestants.push(contestant),
            Err(why) => {
                say(&format!("{}: left out: {why}", contender.name));
                results.left_out.push((contender.name.clone(), why));
            }
        }
    }
    if contestants.is_empty() {
        let whys: Vec<_> = results.left_out.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        return Err(BenchError::Nobody(whys.join("; ")));
    }
    for contestant in &mut contestants {
        warm_up(plan, contestant, say);
        if plan.interrupted() {
            return Err(interrupted(0));
        }
    }
    let per_block = plan.runs.div_ceil(BLOCKS).max(1);
    let mut done = 0;
    // Whoever is given up is not waited for.
    while done < plan.runs && !contestants.iter().all(|c| c.given_up) {
        let runs = per_block.min(plan.runs - done);
        if done > 0 {
            // Whoever comes first after a pause would otherwise always be the same.
            contestants.rotate_left(1);
        }
        for contestant in contestants.iter_mut().filter(|c| !c.given_up) {
            // All see the same arrivals.
            let mut random = Random::new(plan.seed.wrapping_add(u64::from(done)));
            take_turn(plan, contestant, done, runs, &mut random, say);
            if plan.interrupted() {
                return Err(interrupted(done));
            }
        }
        done += runs;
        say(&format!("{done} of {} runs each", plan.runs));
    }
    for contender in &plan.contenders {
        if let Some(at) = contestants.iter().position(|c| c.contender == *contender) {
            let contestant = contestants.swap_remove(at);
            report(plan, contestant, &mut results);
        }
    }
    results.finish();
    Ok(results)
}

/// Where FaaSFlow would put each step: from one run on a node as it is.
fn places(plan: &Plan, say: &mut dyn FnMut(&str)) -> Result<BTreeMap<String, Vec<u32>>, BenchError> {
    say("a run of each workflow, for the times and sizes that steps are placed by");
    let node = |source| BenchError::Node { contender: "the placing run".into(), source };
    let node = Node::start(plan.node.clone()).map_err(node)?;
    let nodes = Nodes { all: vec![node], link: None, shaped: false };
    let mut places = BTreeMap::new();
    for (index, subject) in plan.subjects.iter().enumerate() {
        let subjects = std::slice::from_ref(subject);
        let driver = Driver {
            nodes: &nodes,
            subjects,
            start: None,
            cold: false,
            patience: plan.patience,
            interrupts: &plan.interrupts,
            in_a_row: 0,
            traced: 2,
        };
        // The first run starts processes, and its times would tell of that.
        let block = driver.block(Load::Closed { clients: 1 }, 0, 2, &mut Random::new(0));
        if let Some((view, journal)) = block.samples.into_iter().last().and_then(|sample| sample.trace) {
            let record = record(subject, &plan.node, None, &view, &journal);
            let profile = Profile::of(&record, &Timeline::of(&record));
            let place = profile.place(plan.workers, plan.worker_cpus, plan.link_bytes_per_s as f64);
            places.insert(subject.workflow.name.clone(), place);
        } else if let Some((_, why)) = block.failures.first() {
            say(&format!("{}: no placing run: {why}", plan.subjects[index].name));
        }
    }
    Ok(places)
}

fn enter(
    plan: &Plan,
    contender: &Contender,
    places: &BTreeMap<String, Vec<u32>>,
) -> Result<Contestant, String> {
    let mut config = plan.node.clone();
    let (mut start, mut baseline, mut store) = (None, None, None);
    let ahead_off = Overlaps { cold_start: false, ..Overlaps::ALL };
    match contender.way {
        Way::Start(policy) => start = policy,
        Way::Without(overlaps) => config.overlaps = overlaps,
        Way::Untraced => config.journal = false,
        Way::SameStore => {
            start = Some(StartPolicy::AllReady);
            config.overlaps = ahead_off;
        }
        Way::Imitated(system) => {
            let remote = RemoteStore::start(system, plan.link_bytes_per_s).map_err(|e| e.to_string())?;
            if system == System::Knix {
                // One sandbox is on one worker.
                config.cpu_milli = config.cpu_milli.min(plan.worker_cpus * 1000);
            }
            let between = matches!(system, System::Faasflow | System::FaasflowRedis);
            let imitated = Arc::new(Baseline {
                name: contender.name.clone(),
                remote: remote.at,
                lab: remote.lab.clone(),
                // A function worker of KNIX has loaded its function, and forks for every message
                // (`_fork_and_handle_message` of its FunctionWorker.py).
                processes: if system == System::Knix { Processes::OneEach } else { Processes::Runtimes },
                crossing: if between { Crossing::BetweenWorkers } else { Crossing::Every },
                workers: places.clone(),
                traffic: Traffic::default(),
            });
            config.overlaps = ahead_off;
            config.baseline = Some(imitated.clone());
            (baseline, store) = (Some(imitated), Some(remote));
        }
    }
    let nodes = match contender.way {
        // A run is in one sandbox, so its workers have nothing to do with each other.
        Way::Imitated(System::Knix) => Nodes::apart(&config, plan.nodes)?,
        Way::Imitated(_) => {
            // Its workers are virtual: one node has the cores of all.
            config.cpu_milli *= plan.nodes;
            config.slots *= plan.nodes;
            config.idle_max *= plan.nodes;
            Nodes::apart(&config, 1)?
        }
        _ => {
            let nodes = Nodes::joined(&config, plan.nodes, plan.link_bytes_per_s, &plan.interrupts)?;
            // For its journals, which are of all of them.
            config.cpu_milli *= plan.nodes;
            nodes
        }
    };
    Ok(Contestant {
        contender: contender.clone(),
        nodes,
        config,
        start,
        baseline,
        store,
        moved: (0, 0, 0),
        crossed: 0,
        samples: Vec::new(),
        failures: Vec::new(),
        node_cpu_us: 0,
        wall_us: 0,
        in_a_row: 0,
        given_up: false,
        lost: None,
    })
}

fn driver<'a>(plan: &'a Plan, contestant: &'a Contestant, traced: u32) -> Driver<'a> {
    Driver {
        nodes: &contestant.nodes,
        subjects: &plan.subjects,
        start: contestant.start,
        cold: plan.cold,
        patience: plan.patience,
        interrupts: &plan.interrupts,
        in_a_row: contestant.in_a_row,
        traced,
    }
}

fn warm_up(plan: &Plan, contestant: &mut Contestant, say: &mut dyn FnMut(&str)) {
    // As many on each node.
    let runs = plan.warmups * (plan.subjects.len() * contestant.nodes.all.len()) as u32;
    // By the load itself, so that there are as many processes as it will want.
    let block = driver(plan, contestant, 0).block(plan.load, 0, runs, &mut Random::new(0));
    contestant.moved = contestant.baseline.as_ref().map_or((0, 0, 0), |b| b.traffic.totals());
    contestant.crossed = contestant.nodes.moved_bytes();
    contestant.in_a_row = block.in_a_row;
    if !plan.interrupted() {
        note_failures(contestant, block.failures, say);
        note_lost(contestant, say);
    }
}

fn take_turn(
    plan: &Plan,
    contestant: &mut Contestant,
    first: u32,
    runs: u32,
    random: &mut Random,
    say: &mut dyn FnMut(&str),
) {
    let looked_at = contestant.samples.iter().filter(|s| s.trace.is_some()).count() as u32;
    let per_block = TRACED_MAX.div_ceil(BLOCKS).max(plan.subjects.len() as u32);
    let traced = (TRACED_MAX.max(plan.subjects.len() as u32)).saturating_sub(looked_at).min(per_block);
    let (cpu_us, begun) = (own_cpu_us(), std::time::Instant::now());
    let block = driver(plan, contestant, traced).block(plan.load, first, runs, random);
    contestant.node_cpu_us += own_cpu_us().saturating_sub(cpu_us);
    contestant.wall_us += begun.elapsed().as_micros() as u64;
    contestant.in_a_row = block.in_a_row;
    if plan.interrupted() {
        return;
    }
    note_failures(contestant, block.failures, say);
    // Some of the block's runs were on fewer nodes than the figures would say.
    if !note_lost(contestant, say) {
        contestant.samples.extend(block.samples);
    }
}

/// Gives a contender up that has lost a node; whether it has.
fn note_lost(contestant: &mut Contestant, say: &mut dyn FnMut(&str)) -> bool {
    contestant.lost = contestant.nodes.lost();
    if let Some(why) = &contestant.lost {
        say(&format!("{}: {why}: given up; the others go on", contestant.contender.name));
        contestant.given_up = true;
    }
    contestant.lost.is_some()
}

fn note_failures(contestant: &mut Contestant, failures: Vec<(usize, String)>, say: &mut dyn FnMut(&str)) {
    let Some((_, last)) = failures.last() else { return };
    let name = &contestant.contender.name;
    say(&format!("{name}: {} runs failed; the last: {last}", failures.len()));
    if contestant.in_a_row >= FAILURES_MAX {
        say(&format!("{name}: given up; the others go on"));
        contestant.given_up = true;
    }
    contestant.failures.extend(failures);
}

fn report(plan: &Plan, contestant: Contestant, results: &mut Results) {
    let runs = contestant.samples.len().max(1) as u64;
    let (stored, fetched, triggers) = contestant.baseline.as_ref().map_or((0, 0, 0), |b| b.traffic.totals());
    let moved = contestant.moved;
    let (stored, fetched, triggers) = (stored - moved.0, fetched - moved.1, triggers - moved.2);
    let crossed = contestant.nodes.moved_bytes().saturating_sub(contestant.crossed);
    let store = contestant.store.as_ref();
    for (index, subject) in plan.subjects.iter().enumerate() {
        let samples: Vec<&Sample> = contestant.samples.iter().filter(|s| s.subject == index).collect();
        let of = |value: fn(&Sample) -> u64| Quantiles::of(samples.iter().map(|s| value(s)).collect());
        let mut row = Row {
            workflow: subject.name.clone(),
            contender: contestant.contender.name.clone(),
            latency_us: of(|s| s.latency_us),
            makespan_us: of(|s| s.makespan_us),
            bytes: of(|s| s.bytes).p50,
            cpu_us: of(|s| s.cpu_us).p50,
            invocations: of(|s| s.invocations).p50,
            node_cpu_us: contestant.node_cpu_us / runs,
            stored_bytes: stored / runs,
            fetched_bytes: fetched / runs,
            triggers: triggers / runs,
            crossed_bytes: crossed / runs,
            links: if contestant.nodes.shaped {
                contestant.nodes.all.len() as u32
            } else {
                u32::from(store.is_some_and(|store| store.lab.is_some()))
            },
            link: store.map(|store| store.link.clone()).or_else(|| contestant.nodes.link.clone()),
            wall_us: contestant.wall_us,
            ended: runs,
            given_up: contestant.given_up,
            lost: contestant.lost.clone(),
            ..Row::default()
        };
        for (_, why) in contestant.failures.iter().filter(|(of, _)| *of == index) {
            *row.failures.entry(why.clone()).or_insert(0) += 1;
        }
        row.digests.extend(samples.iter().filter_map(|s| s.digest));
        let mut timelines = Vec::new();
        for (view, journal) in samples.iter().filter_map(|s| s.trace.as_ref()) {
            let record = record(subject, &contestant.config, contestant.start, view, journal);
            timelines.push(Timeline::of(&record));
        }
        if contestant.config.journal {
            row.look_at(&timelines);
        }
        results.rows.push(row);
    }
}

fn record(
    subject: &Subject,
    config: &NodeConfig,
    start: Option<StartPolicy>,
    view: &RunView,
    journal: &Journal,
) -> RunRecord {
    let facts = Facts {
        run: String::new(),
        file: subject.workflow.file.clone(),
        workflow: &subject.workflow,
        graph: &graph_facts(&subject.workflow),
        start: start.or(config.baseline.is_some().then_some(StartPolicy::AllReady)),
        inputs: input_facts(&subject.workflow, &subject.inputs),
        node: config,
        age: Duration::ZERO,
        view,
        journal,
        failure: None,
        printed: Printed::default(),
        nodes: None,
    };
    facts.record()
}

/// CPU time of this process so far, in microseconds, to a hundredth of a second.
fn own_cpu_us() -> u64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name may have spaces; what comes after its bracket has none.
    let fields: Vec<&str> = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    let per_s = rustix::param::clock_ticks_per_second().max(1);
    (ticks(11) + ticks(12)) * 1_000_000 / per_s
}
