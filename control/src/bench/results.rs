//! What a measurement gave, for people and for programs.

use super::stats::Quantiles;
use super::{Load, Plan, chart};
use crate::text::{bytes_text, table, time_text};
use crate::trace::{Overlaps, Timeline};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The format of the JSON document.
const SCHEMA: &str = "dflow-bench-workflow/1";

/// One contender on one workflow.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// The workflow's file, without folder and extension.
    pub workflow: String,
    /// The contender.
    pub contender: String,
    /// From when a run was due to its result in the caller's hands.
    pub latency_us: Quantiles,
    /// From submission to end.
    pub makespan_us: Quantiles,
    /// Bytes that the steps of a run put (median).
    pub bytes: u64,
    /// CPU time of the functions of a run, by their own clocks (median; 0 without a journal).
    pub cpu_us: u64,
    /// Invocations of a run (median; 0 without a journal).
    pub invocations: u64,
    /// CPU time of the node and the load generator, a run (mean over all workflows).
    pub node_cpu_us: u64,
    /// Bytes to and from the remote store, and triggers over the link, a run (means over all workflows).
    pub stored_bytes: u64,
    /// See there.
    pub fetched_bytes: u64,
    /// See there.
    pub triggers: u64,
    /// Bytes that passed from one of its nodes to another, a run (mean over all workflows).
    pub crossed_bytes: u64,
    /// What lies between it and its remote store, or between its nodes.
    pub link: Option<String>,
    /// So many such links are shaped to the plan's bytes a second.
    pub links: u32,
    /// How long it was under load, and runs of all workflows that ended well meanwhile.
    pub wall_us: u64,
    /// See there.
    pub ended: u64,
    /// Messages of runs that failed, and how often.
    pub failures: BTreeMap<String, u32>,
    /// It failed too often in a row, and was not measured to the end.
    pub given_up: bool,
    /// The node that it lost, if that is why.
    pub lost: Option<String>,
    /// Of the outputs' contents, of the runs that were looked at.
    pub(super) digests: Vec<u64>,
    /// The runs whose journal was looked at.
    pub traced: usize,
    /// The longest chain of work (median of those).
    pub critical_path_us: u64,
    /// All work, spread over all CPU tokens (median).
    pub work_us: u64,
    /// Attempts that had to wait for a process (mean).
    pub cold_starts: f64,
    /// How often each overlap shows, and how long at least one invocation shows it (means).
    pub overlaps: [(f64, f64); 4],
}

impl Row {
    /// Takes in what the journals of some runs tell.
    pub(super) fn look_at(&mut self, timelines: &[Timeline]) {
        self.traced = timelines.len();
        let count = timelines.len().max(1) as f64;
        let median = |of: fn(&Timeline) -> u64| Quantiles::of(timelines.iter().map(of).collect()).p50;
        self.critical_path_us = median(|t| t.bound.path_us);
        self.work_us = median(|t| t.bound.work_us);
        let cold = |t: &Timeline| t.attempts.iter().filter(|a| a.cold).count() as f64;
        self.cold_starts = timelines.iter().map(cold).sum::<f64>() / count;
        for (index, (shows, wall_us)) in self.overlaps.iter_mut().enumerate() {
            let share = |t: &Timeline| t.overlaps.shares[index];
            *shows = timelines.iter().map(|t| share(t).count as f64).sum::<f64>() / count;
            *wall_us = timelines.iter().map(|t| share(t).wall_us as f64).sum::<f64>() / count;
        }
    }

    /// The shortest that its runs could have been by their own work: critical path, or work on all cores.
    pub fn bound_us(&self) -> u64 {
        self.critical_path_us.max(self.work_us)
    }

    /// Runs of all workflows that ended well in a second under load.
    pub fn runs_per_s(&self) -> f64 {
        if self.wall_us == 0 { 0.0 } else { self.ended as f64 * 1e6 / self.wall_us as f64 }
    }

    fn failed(&self) -> u32 {
        self.failures.values().sum()
    }
}

/// A whole measurement.
#[derive(Clone, Debug)]
pub struct Results {
    /// By contender, then by workflow, in the order of the plan.
    pub rows: Vec<Row>,
    /// Contenders that could not take part, and why.
    pub left_out: Vec<(String, String)>,
    /// Outputs that differ between contenders: workflow, contender.
    pub differ: Vec<(String, String)>,
    load: Load,
    cold: bool,
    cpus: f64,
    nodes: u32,
    link_bytes_per_s: u64,
    workers: (u32, u32),
    seed: u64,
    reference: String,
}

impl Results {
    pub(super) fn new(plan: &Plan) -> Results {
        Results {
            rows: Vec::new(),
            left_out: Vec::new(),
            differ: Vec::new(),
            load: plan.load,
            cold: plan.cold,
            cpus: f64::from(plan.node.cpu_milli * plan.nodes) / 1000.0,
            nodes: plan.nodes,
            link_bytes_per_s: plan.link_bytes_per_s,
            workers: (plan.workers, plan.worker_cpus),
            seed: plan.seed,
            reference: plan.contenders.first().map(|c| c.name.clone()).unwrap_or_default(),
        }
    }

    /// Compares what contenders delivered.
    pub(super) fn finish(&mut self) {
        for row in &self.rows {
            let wanted = self.reference_of(row).and_then(|r| r.digests.first());
            if row.digests.iter().any(|digest| Some(digest) != wanted) {
                self.differ.push((row.workflow.clone(), row.contender.clone()));
            }
        }
    }

    /// The first contender's row of the same workflow.
    fn reference_of(&self, row: &Row) -> Option<&Row> {
        self.rows.iter().find(|r| r.contender == self.reference && r.workflow == row.workflow)
    }

    /// How its latency compares with the first contender's: the first's p50 and p99 as shares of its own.
    pub fn against(&self, row: &Row) -> Option<(f64, f64)> {
        let reference = self.reference_of(row).filter(|r| r.contender != row.contender)?;
        let share = |of: fn(&Quantiles) -> u64| {
            (of(&row.latency_us) > 0).then(|| of(&reference.latency_us) as f64 / of(&row.latency_us) as f64)
        };
        Some((share(|q| q.p50)?, share(|q| q.p99)?))
    }

    /// Bytes that the steps of all its workflows put in a second under load: what its functions could hand each other.
    pub fn put_bytes_per_s(&self, row: &Row) -> f64 {
        let rows = self.rows.iter().filter(|other| other.contender == row.contender);
        let bytes: u64 = rows.map(|row| row.bytes * row.latency_us.samples as u64).sum();
        if row.wall_us == 0 { 0.0 } else { bytes as f64 * 1e6 / row.wall_us as f64 }
    }

    /// The least a run's crossing bytes need on shaped links, each way at once and all links alike, in microseconds.
    pub fn link_us(&self, row: &Row) -> Option<u64> {
        (row.links > 0).then(|| {
            let bytes = row.stored_bytes.max(row.fetched_bytes).max(row.crossed_bytes / u64::from(row.links));
            bytes.saturating_mul(1_000_000) / self.link_bytes_per_s.max(1)
        })
    }

    /// Whether every contender was measured to the end and all runs ended well.
    pub fn complete(&self) -> bool {
        self.left_out.is_empty() && self.rows.iter().all(|row| row.failures.is_empty() && !row.given_up)
    }

    fn load_text(&self) -> String {
        let pools = if self.cold { ", cold pools" } else { "" };
        match self.load {
            Load::Closed { clients } => format!("closed loop, {clients} at a time{pools}"),
            Load::Open { per_s, poisson } => {
                let how = if poisson { "at random (Poisson)" } else { "evenly" };
                format!("open loop, {per_s} a second {how}{pools}")
            }
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let nodes = if self.nodes > 1 { format!(" on {} nodes", self.nodes) } else { String::new() };
        let mut out = format!("{}, {} CPU tokens{nodes}\n\n", self.load_text(), self.cpus);
        let mut unsound = false;
        let rows: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| {
                let q = &row.latency_us;
                unsound |= !q.p99_is_sound();
                let mark = if q.p99_is_sound() { "" } else { "*" };
                let ratio = |x: u64, y: u64| {
                    if y == 0 { "-".to_owned() } else { format!("{:.2}x", x as f64 / y as f64) }
                };
                let against =
                    self.against(row).map_or("-".into(), |(_, p99)| format!("{:+.0} %", (p99 - 1.0) * 100.0));
                vec![
                    row.workflow.clone(),
                    row.contender.clone(),
                    format!("{}{}", q.samples, if row.given_up { " (given up)" } else { "" }),
                    row.failed().to_string(),
                    time_text(q.p50),
                    time_text(q.p90),
                    format!("{}{mark}", time_text(q.p99)),
                    time_text(q.p999),
                    time_text(row.makespan_us.p50),
                    time_text(row.bound_us()),
                    ratio(row.makespan_us.p50, row.bound_us()),
                    against,
                ]
            })
            .collect();
        let head = [
            "WORKFLOW",
            "CONTENDER",
            ">RUNS",
            ">FAILED",
            ">P50",
            ">P90",
            ">P99",
            ">P99.9",
            ">MAKESPAN",
            ">BOUND",
            ">OF BOUND",
            ">FIRST'S P99",
        ];
        out.push_str(&table(&head, &rows));
        if unsound {
            out.push_str("* fewer than 1,000 samples: little more than the largest\n");
        }
        out.push_str("BOUND: the longest chain of work, or all work on all cores, whichever is longer, of the runs themselves.\n");
        out.push_str(&format!("FIRST'S P99: how far {}'s is below (-) or above.\n\n", self.reference));
        out.push_str(&self.costs_text());
        out.push_str(&self.overlaps_text());
        for (name, why) in &self.left_out {
            out.push_str(&format!("left out: {name}: {why}\n"));
        }
        for row in &self.rows {
            if let Some(why) = &row.lost {
                out.push_str(&format!("given up: {} {}: {why}\n", row.contender, row.workflow));
            }
            for (why, count) in &row.failures {
                out.push_str(&format!("failed: {} {}: {count} times: {why}\n", row.contender, row.workflow));
            }
        }
        for (workflow, contender) in &self.differ {
            out.push_str(&format!("DIFFERENT OUTPUTS: {contender} {workflow}\n"));
        }
        out
    }

    fn costs_text(&self) -> String {
        let row = |row: &Row| {
            let link = self.link_us(row).map(time_text).unwrap_or_default();
            vec![
                row.workflow.clone(),
                row.contender.clone(),
                row.invocations.to_string(),
                bytes_text(row.bytes),
                time_text(row.cpu_us),
                time_text(row.node_cpu_us),
                format!("{:.1}", row.cold_starts),
                bytes_text(row.stored_bytes),
                bytes_text(row.fetched_bytes + row.crossed_bytes),
                row.triggers.to_string(),
                link,
                format!("{:.1}", row.runs_per_s()),
                bytes_text(self.put_bytes_per_s(row) as u64),
            ]
        };
        let rows: Vec<_> = self.rows.iter().map(row).collect();
        let head = [
            "A RUN OF",
            "COSTS",
            ">INVOCATIONS",
            ">BYTES PUT",
            ">FUNCTION CPU",
            ">NODE CPU",
            ">COLD",
            ">STORED",
            ">FETCHED",
            ">TRIGGERS",
            ">LINK BOUND",
            ">RUNS/S",
            ">PUT/S",
        ];
        format!("{}\n", table(&head, &rows))
    }

    fn overlaps_text(&self) -> String {
        let mut out =
            String::from("Overlaps (how often in a run; how long at least one invocation shows it):\n");
        let rows = self.rows.iter().filter(|row| row.traced > 0).map(|row| {
            let share = |(shows, wall_us): &(f64, f64)| format!("{shows:.1}; {}", time_text(*wall_us as u64));
            let own = [row.workflow.clone(), row.contender.clone()];
            own.into_iter().chain(row.overlaps.iter().map(share)).collect()
        });
        let rows: Vec<Vec<String>> = rows.collect();
        out.push_str(&table(
            &["WORKFLOW", "CONTENDER", ">COLD START", ">FAN-IN", ">STREAMING", ">HAND-OVER"],
            &rows,
        ));
        out.push('\n');
        out
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let load = match self.load {
            Load::Closed { clients } => json!({"kind": "closed", "clients": clients}),
            Load::Open { per_s, poisson } => {
                json!({"kind": "open", "per_s": per_s, "arrivals": if poisson { "poisson" } else { "fixed" }})
            }
        };
        let row = |row: &Row| {
            let overlaps = row.overlaps.iter().zip(Overlaps::NAMES).zip(crate::node::Overlaps::NAMES);
            let overlaps = overlaps.map(|(((shows, wall_us), what), name)| {
                json!({"name": name, "what": what, "count": shows, "wall_us": wall_us})
            });
            let against = self.against(row);
            json!({
                "workflow": row.workflow, "contender": row.contender, "failed": row.failed(),
                "failures": row.failures, "given_up": row.given_up,
                "lost": row.lost,
                "latency_us": row.latency_us.json(), "makespan_us": row.makespan_us.json(),
                "bytes": row.bytes, "invocations": row.invocations,
                "cpu_us": {"functions": row.cpu_us, "node": row.node_cpu_us},
                "cold_starts": row.cold_starts,
                "bound_us": {
                    "critical_path": row.critical_path_us, "work": row.work_us, "ideal": row.bound_us(),
                    "link": self.link_us(row),
                },
                "remote": row.link.as_ref().map(|link| json!({
                    "link": link, "links": row.links, "stored_bytes": row.stored_bytes,
                    "fetched_bytes": row.fetched_bytes, "crossed_bytes": row.crossed_bytes,
                    "triggers": row.triggers,
                })),
                "runs_per_s": row.runs_per_s(), "put_bytes_per_s": self.put_bytes_per_s(row),
                "overlaps": overlaps.collect::<Vec<_>>(), "traced_runs": row.traced,
                "first_as_share_of_this": against.map(|(p50, p99)| json!({"p50": p50, "p99": p99})),
            })
        };
        let left_out = self.left_out.iter().map(|(name, why)| json!({"contender": name, "why": why}));
        let differ = self.differ.iter().map(|(w, c)| json!({"workflow": w, "contender": c}));
        json!({
            "schema": SCHEMA, "version": env!("CARGO_PKG_VERSION"),
            "machine": {"host": rustix::system::uname().nodename().to_string_lossy(),
                "cores": std::thread::available_parallelism().map_or(1, |n| n.get())},
            "load": load, "cold": self.cold, "cpus": self.cpus, "nodes": self.nodes, "seed": self.seed,
            "link_bytes_per_s": self.link_bytes_per_s,
            "workers": {"count": self.workers.0, "cpus": self.workers.1},
            "first": self.reference, "results": self.rows.iter().map(row).collect::<Vec<_>>(),
            "left_out": left_out.collect::<Vec<_>>(), "different_outputs": differ.collect::<Vec<_>>(),
        })
    }

    /// A chart of latencies.
    pub fn svg(&self) -> String {
        chart::draw(&format!("Latency: {}", self.load_text()), &self.rows)
    }
}
