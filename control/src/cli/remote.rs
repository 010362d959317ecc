//! Commands that ask a node: deploy, submit, wait, get, cancel, nodes; and what `ps`, `show` and `logs`
//! do when there is a node to ask.

use super::exit::Exit;
use super::history::{Form, print};
use super::open::source;
use crate::api::types::{
    CancelRequest, InputInfo, LogEntry, NodeInfo, RunList, RunStatus, StepStatus, SubmitRequest, Submitted,
    WorkflowInfo,
};
use crate::bundle;
use crate::client::{Client, ClientError, escape};
use crate::daemon::config::Secret;
use crate::history::RunRecord;
use crate::text::{bytes_text, plain, table, time_text, utc_text};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// Which node is asked.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ServerArgs {
    /// The node to ask, as http://HOST:PORT
    #[arg(long, value_name = "URL", env = "DFLOW_SERVER")]
    server: Option<String>,
    /// A file with the secret of the nodes
    #[arg(long, value_name = "FILE", env = "DFLOW_SECRET_FILE")]
    secret_file: Option<PathBuf>,
}

impl ServerArgs {
    /// Whether a node is to be asked, and not the runs of this machine.
    pub(super) fn is_given(&self) -> bool {
        self.server.is_some()
    }

    pub(super) fn client(&self) -> Result<Client, Exit> {
        let secret = self.secret_file.as_deref().map(Secret::read).transpose().map_err(|error| {
            eprintln!("error: {error}");
            Exit::Usage
        })?;
        Client::new(self.server.as_deref().unwrap_or("127.0.0.1"), secret).map_err(told)
    }
}

/// Says what is wrong and returns the exit code for it.
pub(super) fn told(error: ClientError) -> Exit {
    eprintln!("error: {error}");
    match error {
        ClientError::Refused { status: 400..=499, .. } | ClientError::Address { .. } => Exit::Usage,
        _ => Exit::Environment,
    }
}

fn code(result: Result<Exit, Exit>) -> Exit {
    result.unwrap_or_else(|code| code)
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
With the workflow file go the files that its functions name by relative paths, and what stands under `files:`;
without `files:`, the .py files beside it. Absolute paths must be on every node. Peers of the node get it, too.")]
pub(super) struct DeployArgs {
    /// Workflow file, or a WfFormat trace or FaaSFlow file
    file: PathBuf,
    /// Replace what is deployed under the same name and version
    #[arg(long)]
    replace: bool,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Form,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) fn deploy(args: &DeployArgs) -> Exit {
    code((|| {
        let client = args.server.client()?;
        let info = deploy_file(&client, &args.file, args.replace)?;
        if args.output != Form::Table {
            return Ok(args.output.print(&info));
        }
        Ok(print(&format!("{}\n", info.workflow)))
    })())
}

fn deploy_file(client: &Client, file: &Path, replace: bool) -> Result<WorkflowInfo, Exit> {
    let (workflow, text) = source(file)?;
    let packed = match text {
        None => bundle::pack(file, &workflow),
        Some(text) => {
            let name = file.with_extension("yaml");
            bundle::pack_text(text.as_bytes(), Path::new(name.file_name().unwrap_or_default()), &workflow)
        }
    };
    let mut packed = packed.map_err(|error| {
        eprintln!("error: {error}");
        Exit::Usage
    })?;
    let path = format!("/v1/workflows?replace={replace}");
    let info: WorkflowInfo =
        client.send(("POST", &path), "application/x-tar", packed.bytes, &mut packed.file).map_err(told)?;
    eprintln!(
        "deployed {} at {} ({} files, {})",
        info.workflow,
        client.server(),
        info.files,
        bytes_text(info.bytes)
    );
    eprint!("{}", info.warnings);
    for peer in &info.missing_on {
        eprintln!("warning: node {peer} could not be given it; deploy again when it answers");
    }
    Ok(info)
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dflow submit count -i text=@some.txt --watch
  dflow submit count.yaml -i text=@some.txt    (deploys the file first)")]
pub(super) struct SubmitArgs {
    /// A deployed workflow (`name@version`, or `name` for the last), or a file, which is deployed first
    workflow: String,
    /// An input: NAME=VALUE, or NAME=@FILE for a file's content; repeatable
    #[arg(short, long = "input", value_name = "NAME=VALUE")]
    inputs: Vec<String>,
    /// When invocations may start, overriding the file: eager, first-byte, all-ready, or first:K
    #[arg(long, value_name = "POLICY")]
    start: Option<String>,
    /// Follow the run to its end
    #[arg(short, long)]
    watch: bool,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Form,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) fn submit(args: &SubmitArgs) -> Exit {
    code((|| {
        let client = args.server.client()?;
        let file = Path::new(&args.workflow);
        let workflow = match file.extension().is_some() && file.is_file() {
            true => deploy_file(&client, file, false)?.workflow,
            false => args.workflow.clone(),
        };
        let run = begin(&client, workflow, args)?;
        if !args.watch {
            if args.output != Form::Table {
                return Ok(args.output.print(&run));
            }
            return Ok(print(&format!("{}\n", run.run)));
        }
        eprintln!("run {}", run.run);
        watch(&client, &run.run)?;
        finished(&client, &run.run, args.output)
    })())
}

/// Opens the run, sends its inputs one by one as their bytes are, begins it.
fn begin(client: &Client, workflow: String, args: &SubmitArgs) -> Result<Submitted, Exit> {
    let request = SubmitRequest { workflow, start: args.start.clone(), ..SubmitRequest::default() };
    if args.inputs.is_empty() {
        return client.post("/v1/runs", &request).map_err(told);
    }
    let open: Submitted = client.post("/v1/runs?open=true", &request).map_err(told)?;
    let path = format!("/v1/runs/{}", escape(&open.run));
    let sent = args.inputs.iter().try_for_each(|pair| put(client, &path, pair));
    let begun = sent.and_then(|()| client.post(&format!("{path}/begin"), &()).map_err(told));
    if begun.is_err() {
        let reason = "its inputs could not be sent".to_owned();
        // The node forgets it anyway, a little later.
        let _ = client.post::<RunStatus>(&format!("{path}/cancel"), &CancelRequest { reason });
    }
    begun
}

fn put(client: &Client, path: &str, pair: &str) -> Result<(), Exit> {
    let Some((name, value)) = pair.split_once('=') else {
        eprintln!("error: --input {pair}: expected NAME=VALUE or NAME=@FILE");
        return Err(Exit::Usage);
    };
    let path = format!("{path}/inputs/{}", escape(name));
    let kind = "application/octet-stream";
    let sent: Result<InputInfo, _> = match value.strip_prefix('@') {
        None => client.send(("PUT", &path), kind, value.len() as u64, &mut value.as_bytes()),
        Some(file) => {
            let opened = File::open(file).and_then(|f| Ok((f.metadata()?.len(), f)));
            let (bytes, mut file) = opened.map_err(|error| {
                eprintln!("error: input {name}: cannot read {file}: {error}");
                Exit::Usage
            })?;
            client.send(("PUT", &path), kind, bytes, &mut file)
        }
    };
    sent.map(drop).map_err(told)
}

/// Shows each change of a run's steps until its end.
fn watch(client: &Client, run: &str) -> Result<(), Exit> {
    client
        .follow(&format!("/v1/runs/{}/events", escape(run)), |event| {
            if event.name == "step"
                && let Ok(step) = serde_json::from_str::<StepStatus>(&event.data)
            {
                let items = step.items.map(|n| format!(" {}/{n} items", step.done)).unwrap_or_default();
                eprintln!("{:<24} {:<16}{items} {}", plain(&step.name), step.state, bytes_text(step.bytes));
            }
            event.name != "end"
        })
        .map_err(told)
}

/// Shows how a run ended, and ends as it did.
fn finished(client: &Client, run: &str, form: Form) -> Result<Exit, Exit> {
    let status: RunStatus = client.get(&format!("/v1/runs/{}", escape(run))).map_err(told)?;
    if form == Form::Table {
        let summary = &status.summary;
        eprintln!("{} in {}", summary.state, time_text(summary.elapsed_us));
        summary.error.iter().for_each(|error| eprintln!("error: {error}"));
        let hint = |o: &crate::api::types::OutputInfo| {
            o.bytes.map(|bytes| format!("{} ({}): dflow get {run} {}\n", o.name, bytes_text(bytes), o.name))
        };
        print(&status.outputs.iter().filter_map(hint).collect::<String>());
    } else {
        form.print(&status);
    }
    Ok(match status.summary.state.as_str() {
        "done" => Exit::Ok,
        "deadline" => Exit::Deadline,
        _ => Exit::Failed,
    })
}

#[derive(Debug, clap::Args)]
pub(super) struct WaitArgs {
    /// The run
    run: String,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Form,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) fn wait(args: &WaitArgs) -> Exit {
    code((|| {
        let client = args.server.client()?;
        loop {
            let path = format!("/v1/runs/{}?wait_s=30", escape(&args.run));
            let status: RunStatus = client.get(&path).map_err(told)?;
            if status.is_over() {
                return finished(&client, &status.summary.run, args.output);
            }
        }
    })())
}

#[derive(Debug, clap::Args)]
pub(super) struct CancelArgs {
    /// The run
    run: String,
    /// Why, for whoever asks about the run
    #[arg(long, default_value = "by request")]
    reason: String,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) fn cancel(args: &CancelArgs) -> Exit {
    code((|| {
        let client = args.server.client()?;
        let request = CancelRequest { reason: args.reason.clone() };
        let status: RunStatus =
            client.post(&format!("/v1/runs/{}/cancel", escape(&args.run)), &request).map_err(told)?;
        if status.is_over() {
            eprintln!("run {} has ended: {}", status.summary.run, status.summary.state);
        } else {
            eprintln!("run {} is told to end", status.summary.run);
        }
        Ok(Exit::Ok)
    })())
}

#[derive(Debug, clap::Args)]
pub(super) struct GetArgs {
    /// The run
    run: String,
    /// An output, or NAME/ITEM for one item of a list; without one, all go to -o
    name: Option<String>,
    /// A file for one output, a directory for all; default: stdout
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) fn get(args: &GetArgs) -> Exit {
    code((|| {
        let client = args.server.client()?;
        let path = format!("/v1/runs/{}", escape(&args.run));
        let status: RunStatus = client.get(&path).map_err(told)?;
        let wanted = |name: &str| args.name.as_deref().is_none_or(|n| n == name);
        let single = args.name.as_deref().is_some_and(|n| n.contains('/'));
        if single
            || (args.name.is_some() && status.outputs.iter().all(|o| o.items.is_none() || !wanted(&o.name)))
        {
            let name = args.name.as_deref().unwrap_or_default();
            return fetch(&client, &path, name, args.output.as_deref()).map(|()| Exit::Ok);
        }
        let outputs: Vec<_> = status.outputs.iter().filter(|o| wanted(&o.name)).collect();
        if outputs.is_empty() {
            eprintln!(
                "error: run {} is {} and has no outputs to fetch",
                status.summary.run, status.summary.state
            );
            return Err(Exit::Failed);
        }
        let Some(dir) = &args.output else {
            let names: Vec<&str> = outputs.iter().map(|o| o.name.as_str()).collect();
            eprintln!("error: several objects ({}): name one, or give a directory with -o", names.join(", "));
            return Err(Exit::Usage);
        };
        for output in outputs {
            match &output.items {
                Some(items) => {
                    make_dir(&dir.join(&output.name))?;
                    for item in 0..items.len() {
                        let target = dir.join(&output.name).join(format!("{item:06}"));
                        fetch(&client, &path, &format!("{}/{item}", output.name), Some(&target))?;
                    }
                }
                None if output.bytes.is_some() => {
                    make_dir(dir)?;
                    fetch(&client, &path, &output.name, Some(&dir.join(&output.name)))?;
                }
                None => {}
            }
        }
        Ok(Exit::Ok)
    })())
}

fn make_dir(dir: &Path) -> Result<(), Exit> {
    fs::create_dir_all(dir).map_err(|error| {
        eprintln!("error: cannot make {}: {error}", dir.display());
        Exit::Output
    })
}

/// Copies one object to a file or stdout as it comes.
fn fetch(client: &Client, run: &str, name: &str, target: Option<&Path>) -> Result<(), Exit> {
    let name = name.split('/').map(escape).collect::<Vec<_>>().join("/");
    let Some(mut object) = client.read(&format!("{run}/outputs/{name}")).map_err(told)? else {
        eprintln!("{name}: null (skipped)");
        return Ok(());
    };
    let copied = match target {
        Some(path) => File::create(path).and_then(|mut file| io::copy(&mut object, &mut file)),
        None => io::copy(&mut object, &mut io::stdout().lock()),
    };
    copied.map(drop).map_err(|error| {
        let target = target.map_or_else(|| "stdout".to_owned(), |p| p.display().to_string());
        eprintln!("error: cannot copy {name} to {target}: {error}");
        Exit::Output
    })
}

#[derive(Debug, clap::Args)]
pub(super) struct NodesArgs {
    #[arg(short, long, value_enum, default_value = "table")]
    output: Form,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) fn nodes(args: &NodesArgs) -> Exit {
    code((|| {
        let nodes: Vec<NodeInfo> = args.server.client()?.get("/v1/nodes").map_err(told)?;
        if args.output != Form::Table {
            return Ok(args.output.print(&nodes));
        }
        let row = |n: &NodeInfo| {
            let clock = match n.clock_ahead_us {
                0 => String::new(),
                us => format!("{}{}", if us > 0 { "+" } else { "-" }, time_text(us.unsigned_abs())),
            };
            vec![
                n.name.clone(),
                plain(&n.state),
                n.api.clone(),
                n.runs.to_string(),
                format!("{}/{}", n.cpu_milli_used as f64 / 1e3, f64::from(n.cpu_milli) / 1e3),
                format!("{}/{}", n.slots_used, n.slots),
                n.workers.to_string(),
                format!("{}/{}", bytes_text(n.store_used_bytes), bytes_text(n.store_bytes)),
                clock,
                // As the node sees it that was asked.
                nodes[0]
                    .links
                    .iter()
                    .find(|link| link.peer == n.name)
                    .map_or(String::new(), |l| l.transport.clone()),
            ]
        };
        let head = ["NODE", "STATE", "API", ">RUNS", ">CPUS", ">SLOTS", ">WORKERS", ">STORE", ">CLOCK", "BY"];
        Ok(print(&table(&head, &nodes.iter().map(row).collect::<Vec<_>>())))
    })())
}

/// `dflow ps` of a node.
pub(super) fn ps(server: &ServerArgs, max: usize, form: Form) -> Exit {
    code((|| {
        let list: RunList = server.client()?.get(&format!("/v1/runs?max={max}")).map_err(told)?;
        for name in &list.silent {
            eprintln!("warning: node {name} does not answer; its runs are not listed");
        }
        if form != Form::Table {
            return Ok(form.print(&list));
        }
        let row = |r: &crate::api::types::RunSummary| {
            vec![
                r.run.clone(),
                plain(&r.workflow),
                r.state.clone(),
                utc_text(r.submitted_unix_us),
                time_text(r.elapsed_us),
                bytes_text(r.bytes),
                r.home.clone(),
            ]
        };
        let head = ["RUN", "WORKFLOW", "STATE", "SUBMITTED", ">TOOK", ">BYTES", "HOME"];
        Ok(print(&table(&head, &list.runs.iter().map(row).collect::<Vec<_>>())))
    })())
}

/// The record of a run that has ended.
pub(super) fn record(server: &ServerArgs, run: &str) -> Result<RunRecord, Exit> {
    server.client()?.get(&format!("/v1/runs/{}/record", escape(run))).map_err(told)
}

/// A run that has not ended, shown as it is; `None` if it has.
pub(super) fn show_live(server: &ServerArgs, run: &str, form: Form) -> Result<Option<Exit>, Exit> {
    let status: RunStatus = server.client()?.get(&format!("/v1/runs/{}", escape(run))).map_err(told)?;
    if status.is_over() {
        return Ok(None);
    }
    if form != Form::Table {
        return Ok(Some(form.print(&status)));
    }
    let s = &status.summary;
    let mut out = format!(
        "run        {}\nworkflow   {}\nhome       {}\nstate      {}, for {}\n\n",
        s.run,
        plain(&s.workflow),
        s.home,
        s.state,
        time_text(s.elapsed_us)
    );
    let row = |s: &StepStatus| {
        let items = s.items.map(|n| n.to_string()).unwrap_or_default();
        let counts = [s.running, s.done, s.failed, s.retried].map(|n| n.to_string());
        [vec![plain(&s.name), s.state.clone(), items], counts.to_vec(), vec![bytes_text(s.bytes)]].concat()
    };
    let head = ["STEP", "STATE", ">ITEMS", ">RUNNING", ">DONE", ">FAILED", ">RETRIED", ">BYTES"];
    out.push_str(&table(&head, &status.steps.iter().map(row).collect::<Vec<_>>()));
    Ok(Some(print(&out)))
}

/// `dflow logs` of a node: lines as they come.
pub(super) fn logs(server: &ServerArgs, run: &str, step: Option<&str>, follow: bool) -> Exit {
    code((|| {
        let step = step.map(|step| format!("&step={}", escape(step))).unwrap_or_default();
        let path = format!("/v1/runs/{}/logs?follow={follow}{step}", escape(run));
        let Some(lines) = server.client()?.read(&path).map_err(told)? else { return Ok(Exit::Ok) };
        let mut out = io::stdout().lock();
        for line in BufReader::new(lines).lines() {
            let line = line.map_err(|error| {
                eprintln!("error: the node's answer broke off: {error}");
                Exit::Environment
            })?;
            let Ok(LogEntry { step, text }) = serde_json::from_str(&line) else { continue };
            // A reader that has seen enough, such as `head`, is no failure.
            if writeln!(out, "{} | {}", plain(&step), plain(&text)).and_then(|()| out.flush()).is_err() {
                break;
            }
        }
        Ok(Exit::Ok)
    })())
}
