//! `dflow plan`: where the steps of a workflow would lie on several nodes, without running it.

use super::exit::Exit;
use super::open::open;
use crate::workflow::{Placement, StepSpec};
use dflow_core::placement::{Known, Load, NodeFacts, Place, Wish, place};
use std::io::Write;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct PlanArgs {
    /// Workflow file (dflow/v1, YAML or JSON)
    file: PathBuf,
    /// Nodes; number 0 is the one the run is submitted to
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1024), value_name = "N")]
    nodes: u16,
    /// Cores of each
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024), value_name = "K")]
    cpus: u32,
    /// What a link between two nodes carries, in megabytes a second
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..), value_name = "MB/S")]
    bandwidth: u64,
}

pub(super) fn run(args: &PlanArgs) -> Exit {
    let workflow = match open(&args.file) {
        Ok(workflow) => workflow,
        Err(code) => return code,
    };
    let nodes = vec![NodeFacts { cpu_milli: args.cpus * 1000, load: Load::default() }; args.nodes.into()];
    // Which node has which label is not known here.
    let together =
        |step: &StepSpec| if step.placement == Placement::Pack { Wish::Together } else { Wish::Anywhere };
    let wishes: Vec<Wish> = workflow.steps.iter().map(together).collect();
    let known = Known { wishes: &wishes, ..Known::default() };
    // A megabyte a second is a byte a microsecond.
    let draft = match place(&workflow.graph, &nodes, args.bandwidth, known) {
        Ok(draft) => draft,
        Err(error) => {
            eprintln!("error: {error}");
            return Exit::Usage;
        }
    };
    let mut text = format!("{:<32} {:>6} {:>12} {:>12}\n", "STEP", "NODE", "START", "END");
    for ((step, place), (start, end)) in
        workflow.graph.steps.iter().zip(&draft.placement.steps).zip(&draft.times_us)
    {
        let node = match place {
            Place::On(node) => node.to_string(),
            Place::Spread { lead, .. } => format!("{lead}*"),
        };
        let ms = |us: &u64| format!("{:.1} ms", *us as f64 / 1000.0);
        text += &format!("{:<32} {node:>6} {:>12} {:>12}\n", step.name, ms(start), ms(end));
    }
    text += &format!(
        "ends after {:.1} ms by the estimates of the file; {} bytes cross between nodes\n* led there, its items dealt out over several nodes\n",
        draft.ends_us() as f64 / 1000.0,
        draft.moved_bytes
    );
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            eprintln!("error: cannot write to stdout: {error}");
            Exit::Output
        }
    }
}
