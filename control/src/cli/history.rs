//! `dflow ps`, `dflow show`, `dflow logs`: past runs of this machine, or runs of a node if one is named.

use super::exit::Exit;
use super::remote::{self, ServerArgs};
use crate::history::{
    FailureFacts, History, HistoryError, Outcome, RUNS_DEFAULT_MAX, RunRecord, Summary, default_dir,
};
use crate::text::{bytes_text, plain, table, time_text, utc_text};
use crate::trace::{EdgeBytes, Timeline, invocation_name};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;

/// How a run is named on the command line.
pub(super) const RUN_HELP: &str =
    "Its name, the beginning of its name, `last`, or `last~N` for the Nth before";

/// Where past runs are.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct PlaceArgs {
    /// Directory of past runs; default: $XDG_STATE_HOME/dflow or ~/.local/state/dflow
    #[arg(long = "state", value_name = "DIR", env = "DFLOW_STATE")]
    dir: Option<PathBuf>,
}

/// Whether and how a run is kept.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct KeepArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Keep no record of this run: neither `dflow ps` nor a report will know it
    #[arg(long)]
    no_history: bool,
    /// Past runs that are kept; the oldest go first
    #[arg(long, value_name = "N", env = "DFLOW_HISTORY_RUNS", default_value_t = RUNS_DEFAULT_MAX,
          value_parser = clap::value_parser!(u64).range(1..))]
    history_runs: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Form {
    /// For people
    #[default]
    Table,
    /// For scripts
    Json,
    /// For scripts, and easier to read
    Yaml,
}

impl Form {
    /// Prints a value for scripts.
    pub(super) fn print(self, value: &impl serde::Serialize) -> Exit {
        // Plain data always encodes.
        let value = serde_json::to_value(value).unwrap_or_default();
        match self {
            Form::Yaml => print(&serde_saphyr::to_string(&value).unwrap_or_default()),
            Form::Table | Form::Json => print(&format!("{value:#}\n")),
        }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct PsArgs {
    /// Most runs to list
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    number: usize,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Form,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    #[arg(help = RUN_HELP, default_value = "last")]
    run: String,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Form,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct LogsArgs {
    #[arg(help = RUN_HELP, default_value = "last")]
    run: String,
    /// Only this step: its name, or `name[item]` for one item of a foreach
    step: Option<String>,
    /// Go on until the run ends; only of a node
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    server: ServerArgs,
}

impl PlaceArgs {
    fn history(&self) -> Result<History, HistoryError> {
        self.dir.clone().or_else(default_dir).map(History::at).ok_or(HistoryError::NoPlace)
    }

    /// The run of this name: of the node, if one is given, else of this machine.
    pub(super) fn load_from(&self, server: &ServerArgs, run: &str) -> Result<RunRecord, Exit> {
        if server.is_given() { remote::record(server, run) } else { self.load(run) }
    }

    /// The run of this name, or the exit code after having said why there is none.
    pub(super) fn load(&self, run: &str) -> Result<RunRecord, Exit> {
        self.history().and_then(|history| history.load(run)).map_err(told)
    }
}

impl KeepArgs {
    /// Whether the run is to be kept.
    pub(super) fn wanted(&self) -> bool {
        !self.no_history
    }

    /// Writes the record down. What cannot be written costs a warning, and the result of the run stays
    /// what it is.
    pub(super) fn save(&self, record: &RunRecord, quiet: bool) {
        let keeping =
            |history: History| history.keeping(self.history_runs, crate::history::BYTES_DEFAULT_MAX);
        match self.place.history().map(keeping).and_then(|history| history.save(record)) {
            Ok(run) if !quiet => eprintln!("run {run}   (dflow show {run}, dflow report {run})"),
            Ok(_) => {}
            Err(error) => eprintln!("warning: this run is not kept: {error} (--no-history for no record)"),
        }
    }
}

fn told(error: HistoryError) -> Exit {
    eprintln!("error: {error}");
    match error {
        HistoryError::NoRun { .. } | HistoryError::Ambiguous { .. } | HistoryError::Empty { .. } => {
            Exit::Usage
        }
        _ => Exit::Environment,
    }
}

/// Prints a command's product.
pub(super) fn print(text: &str) -> Exit {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // A reader that has seen enough, such as `head`, is no failure.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("error: cannot write to stdout: {error}");
            Exit::Output
        }
        _ => Exit::Ok,
    }
}

pub(super) fn ps(args: &PsArgs) -> Exit {
    if args.server.is_given() {
        return remote::ps(&args.server, args.number, args.output);
    }
    let summaries = match args.place.history().and_then(|history| history.list(args.number)) {
        Ok(summaries) => summaries,
        Err(error) => return told(error),
    };
    if args.output != Form::Table {
        return args.output.print(&summaries.iter().map(summary_json).collect::<Vec<Value>>());
    }
    let row = |s: &Summary| {
        vec![
            s.run.clone(),
            plain(&s.workflow),
            s.outcome.word().to_owned(),
            utc_text(s.started_unix_us),
            time_text(s.makespan_us),
            s.attempts.to_string(),
            bytes_text(s.bytes),
            plain(&s.file),
        ]
    };
    let rows: Vec<Vec<String>> = summaries.iter().map(row).collect();
    let head = ["RUN", "WORKFLOW", "RESULT", "STARTED", ">TOOK", ">ATTEMPTS", ">BYTES", "FILE"];
    print(&table(&head, &rows))
}

fn summary_json(s: &Summary) -> Value {
    json!({
        "run": s.run, "workflow": s.workflow, "file": s.file, "result": s.outcome.word(),
        "error": s.outcome.message(), "started": utc_text(s.started_unix_us),
        "started_unix_us": s.started_unix_us, "makespan_us": s.makespan_us, "steps": s.steps,
        "attempts": s.attempts, "bytes": s.bytes,
    })
}

pub(super) fn show(args: &ShowArgs) -> Exit {
    if args.server.is_given() {
        match remote::show_live(&args.server, &args.run, args.output) {
            Ok(None) => {}
            Ok(Some(code)) | Err(code) => return code,
        }
    }
    let record = match args.place.load_from(&args.server, &args.run) {
        Ok(record) => record,
        Err(code) => return code,
    };
    let timeline = Timeline::of(&record);
    match args.output {
        Form::Json | Form::Yaml => args.output.print(&show_json(&record, &timeline)),
        Form::Table => print(&show_text(&record, &timeline)),
    }
}

fn show_json(record: &RunRecord, timeline: &Timeline) -> Value {
    let steps = record.steps.iter().map(|s| {
        json!({
            "name": s.name, "state": s.state, "items": s.items, "done": s.done, "failed": s.failed,
            "retried": s.retried, "bytes": s.bytes, "start_us": s.start_us, "end_us": s.end_us,
        })
    });
    let inputs = record.inputs.iter().map(|i| json!({"name": i.name, "bytes": i.bytes, "file": i.file}));
    let failures = record.failures.iter().map(|f| {
        json!({
            "at_us": f.at_us, "invocation": invocation_name(&record.graph, f.step, f.item),
            "attempt": f.attempt, "message": f.message, "retried": f.retried,
        })
    });
    let edges = timeline.edges.iter().map(|e| {
        let (from, port, to) = edge_names(record, e);
        json!({"from": from, "port": port, "to": to, "objects": e.objects, "readers": e.readers, "bytes": e.bytes})
    });
    let overlaps = timeline.overlaps.shares.iter().zip(crate::trace::Overlaps::NAMES).map(|(share, name)| {
        json!({"name": name, "count": share.count, "total_us": share.total_us, "wall_us": share.wall_us})
    });
    let mut shown = summary_json(&record.summary);
    shown["inputs"] = inputs.collect();
    shown["steps_table"] = steps.collect();
    shown["failures"] = failures.collect();
    shown["edges"] = edges.collect();
    shown["overlaps"] = overlaps.collect();
    shown["critical_path_us"] = timeline.bound.path_us.into();
    shown["work_per_cores_us"] = timeline.bound.work_us.into();
    shown["ideal_bound_us"] = timeline.bound.us().into();
    shown["start"] = record.start.map(|s| s.to_string()).into();
    shown["node"] = json!({
        "host": record.node.host, "cpu_milli": record.node.cpu_milli, "slots": record.node.slots,
        "store_bytes": record.node.store_bytes, "version": record.node.version,
    });
    shown["events_dropped"] = record.events_dropped.into();
    shown["log_lines"] = record.logs.len().into();
    shown
}

/// The names of producing step, port and reading step.
pub(super) fn edge_names<'r>(record: &'r RunRecord, edge: &EdgeBytes) -> (&'r str, &'r str, &'r str) {
    let step = |step: u32| record.graph.steps.get(step as usize);
    let name = |index: u32| step(index).map_or("", |s| s.name.as_str());
    let port = step(edge.from).and_then(|s| s.outputs.get(usize::from(edge.port)));
    (name(edge.from), port.map_or("", |p| p.name.as_str()), name(edge.to))
}

fn show_text(record: &RunRecord, timeline: &Timeline) -> String {
    let s = &record.summary;
    let mut out = String::new();
    let mut fact = |name: &str, value: String| out.push_str(&format!("{name:<10} {value}\n"));
    fact("run", s.run.clone());
    fact("workflow", format!("{} ({})", plain(&s.workflow), plain(&s.file)));
    fact("started", format!("{} on {}", utc_text(s.started_unix_us), plain(&record.node.host)));
    fact("result", s.outcome.word().to_owned());
    if let Outcome::Failed(text) | Outcome::Cancelled(text) | Outcome::Deadline(text) = &s.outcome {
        text.lines().for_each(|line| fact("", plain(line)));
    }
    let bound = timeline.bound;
    let cores = f64::from(record.node.cpu_milli) / 1000.0;
    fact("took", time_text(s.makespan_us));
    fact(
        "at least",
        format!(
            "{} (critical path {}, work on {cores} cores {})",
            time_text(bound.us()),
            time_text(bound.path_us),
            time_text(bound.work_us)
        ),
    );
    if let Some(start) = record.start {
        fact("start", format!("{start} (command line)"));
    }
    for input in &record.inputs {
        let file = input.file.as_ref().map(|f| format!(", {}", plain(f))).unwrap_or_default();
        fact("input", format!("{} ({}{file})", plain(&input.name), bytes_text(input.bytes)));
    }
    let row = |s: &crate::history::StepRow| {
        let time = |us: Option<u64>| us.map(time_text).unwrap_or_default();
        let items = s.items.map(|n| n.to_string()).unwrap_or_default();
        vec![
            plain(&s.name),
            s.state.clone(),
            items,
            s.done.to_string(),
            s.failed.to_string(),
            s.retried.to_string(),
            bytes_text(s.bytes),
            time(s.start_us),
            time(s.end_us),
        ]
    };
    let rows: Vec<_> = record.steps.iter().map(row).collect();
    let head = ["STEP", "STATE", ">ITEMS", ">DONE", ">FAILED", ">RETRIED", ">BYTES", ">FROM", ">UNTIL"];
    out.push('\n');
    out.push_str(&table(&head, &rows));
    for failure in &record.failures {
        out.push_str(&failure_text(record, failure));
    }
    out
}

fn failure_text(record: &RunRecord, failure: &FailureFacts) -> String {
    let name = plain(&invocation_name(&record.graph, failure.step, failure.item));
    let then = if failure.retried { " (tried again)" } else { "" };
    let message: Vec<String> = failure.message.lines().map(|line| format!("  {}\n", plain(line))).collect();
    format!(
        "\n{name}, attempt {}, at {}{then}:\n{}",
        failure.attempt,
        time_text(failure.at_us),
        message.concat()
    )
}

pub(super) fn logs(args: &LogsArgs) -> Exit {
    if args.server.is_given() {
        return remote::logs(&args.server, &args.run, args.step.as_deref(), args.follow);
    }
    let record = match args.place.load_from(&args.server, &args.run) {
        Ok(record) => record,
        Err(code) => return code,
    };
    let wanted = args.step.as_deref();
    let base = |step: &str| step.split_once('[').map_or(step.to_owned(), |(name, _)| name.to_owned());
    if let Some(step) = wanted
        && !record.graph.steps.iter().any(|s| s.name == base(step))
    {
        let names: Vec<&str> = record.graph.steps.iter().map(|s| s.name.as_str()).collect();
        let near = names
            .iter()
            .max_by(|a, b| strsim::jaro_winkler(a, step).total_cmp(&strsim::jaro_winkler(b, step)));
        let near = near.map(|n| format!("; did you mean {n:?}?")).unwrap_or_default();
        eprintln!("error: run {} has no step {step:?}{near}", record.summary.run);
        return Exit::Usage;
    }
    let mut out = String::new();
    if record.logs_dropped > 0 {
        eprintln!("({} earlier lines were not kept)", record.logs_dropped);
    }
    for line in &record.logs {
        if wanted.is_none_or(|wanted| line.step == wanted || base(&line.step) == wanted) {
            out.push_str(&format!("{} | {}\n", plain(&line.step), plain(&line.text)));
        }
    }
    print(&out)
}
