//! The project's workloads, over several nodes: what they deliver is what they deliver on one.

#![allow(clippy::print_stdout, missing_docs)]

use dflow_control::bench;
use dflow_control::node::{Given, OutputValue, RunSpec, Spread, What};
use dflow_control::workflow::{self, Workflow};
use dflow_core::placement::Place;
use dflow_hwtests::cluster::{Cluster, PATIENCE};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// What each output holds, item by item.
type Outputs = Vec<(String, Vec<Vec<u8>>)>;

struct Load {
    workflow: Arc<Workflow>,
    inputs: Vec<(String, Given)>,
}

fn workload(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("hwtests lies in the root")
        .join("benches/workloads")
        .join(path)
}

fn load(file: &str, inputs: Vec<(&str, Given)>) -> Load {
    let workflow = workflow::load(&workload(file)).unwrap_or_else(|report| panic!("{report}"));
    let inputs = inputs.into_iter().map(|(name, given)| (name.to_owned(), given)).collect();
    Load { workflow: Arc::new(workflow), inputs }
}

/// Runs it, and counts the invocations that ended well.
fn run(cluster: &Cluster, load: &Load, spread: Spread) -> (Outputs, usize) {
    let Load { workflow, inputs } = load;
    let spec = RunSpec { workflow: workflow.clone(), inputs: inputs.clone(), start: None, spread };
    let handle = cluster.submit(spec).unwrap_or_else(|error| panic!("{}: {error}", workflow.name));
    let ended = handle.wait(Some(PATIENCE));
    let ended = ended.unwrap_or_else(|| panic!("still runs: {:#?}", handle.watch().view()));
    let outputs = ended.unwrap_or_else(|error| panic!("{}: {error}", workflow.name));
    let bytes = |value: OutputValue| match value {
        OutputValue::Null => Vec::new(),
        OutputValue::Object(view) => vec![view.to_vec()],
        OutputValue::List(views) => views.iter().map(|view| view.to_vec()).collect(),
    };
    let outputs = outputs.into_iter().map(|(name, value)| (name, bytes(value))).collect();
    let records = handle.watch().take_journal().records;
    (outputs, records.iter().filter(|r| matches!(r.what, What::Ended { ok: true, .. })).count())
}

/// Each step on another node than the one before, items everywhere: the most that can cross.
fn scattered(workflow: &Workflow, nodes: u16) -> Vec<Place> {
    let place = |(at, each): (usize, bool)| {
        let node = at as u16 % nodes;
        if each { Place::Spread { lead: node, hosts: (0..nodes).collect() } } else { Place::On(node) }
    };
    workflow.graph.steps.iter().map(|step| step.foreach.is_some()).enumerate().map(place).collect()
}

fn same_on_several(loads: &[Load]) {
    for nodes in [2, 3] {
        let Some(cluster) = Cluster::start(nodes, |_, config| config.cpu_milli = 4000) else { return };
        for load in loads {
            let name = &load.workflow.name;
            let (here, count) = run(&cluster, load, Spread::Home);
            assert!(
                here.iter().any(|(_, items)| items.iter().any(|item| !item.is_empty())),
                "{name}: nothing"
            );
            // The second is placed by what the first has shown.
            for _ in 0..2 {
                let (placed, placed_count) = run(&cluster, load, Spread::Auto);
                assert!(placed == here, "{name}: another result where it pays, of {nodes} nodes");
                assert_eq!(placed_count, count, "{name}: invocations, of {nodes} nodes");
            }
            let places = scattered(&load.workflow, nodes as u16);
            let (there, there_count) = run(&cluster, load, cluster.spread(&places));
            assert!(there == here, "{name}: another result, scattered over {nodes} nodes");
            assert_eq!(there_count, count, "{name}: invocations, scattered over {nodes} nodes");
        }
    }
}

#[test]
fn traces_over_two_and_three_nodes() {
    let scientific = ["cycles", "epigenomics", "genome", "soykb"].map(|name| (name, "inner", 40));
    let real = ["video", "recognizer", "fileprocessing", "wordcount"].map(|name| (name, "trace", 3));
    let loads = [scientific, real].concat().into_iter().map(|(name, form, more_than)| {
        let load = load(&format!("{name}/{name}-{form}.yaml"), Vec::new());
        let workflow = Arc::into_inner(load.workflow).expect("nobody else has it");
        let (workflow, steps) = bench::scale(workflow, 0.01, 0.01);
        assert!(steps > more_than, "{name}: {steps} steps");
        Load { workflow: Arc::new(workflow), inputs: Vec::new() }
    });
    let loads: Vec<_> = loads.collect();
    same_on_several(&loads);
}

/// Makes the input of a workload, or says what is missing.
fn gathered(name: &str, arguments: &[&str]) -> bool {
    let made =
        Command::new(workload(&format!("{name}/gather"))).args(arguments).stdin(Stdio::null()).output();
    match made {
        Ok(made) if made.status.success() => true,
        Ok(made) => {
            let said = String::from_utf8_lossy(&made.stderr).trim().replace('\n', " ");
            println!("SKIP {name} over several nodes: {said}");
            false
        }
        Err(error) => {
            println!("SKIP {name} over several nodes: {error}");
            false
        }
    }
}

#[test]
fn real_applications_over_two_and_three_nodes() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let text = |name: &str| path(name).display().to_string();
    let mut loads = Vec::new();
    if gathered("wordcount", &[&text("words.txt"), "--mb", "2", "--mb-min", "0.1"]) {
        let inputs = vec![("text", Given::File(path("words.txt"))), ("shards", Given::Text("5".into()))];
        loads.push(load("wordcount/wordcount.yaml", inputs));
    }
    let programs = |name: &str, all: &[&str]| {
        let dirs: Vec<PathBuf> = std::env::var_os("PATH")
            .iter()
            .flat_map(|path| std::env::split_paths(path).collect::<Vec<_>>())
            .collect();
        let missing = all.iter().find(|program| !dirs.iter().any(|dir| dir.join(program).is_file()));
        if let Some(program) = missing {
            println!("SKIP {name} over several nodes: {program} is missing; ./setup workloads");
        }
        missing.is_none()
    };
    if programs("fileprocessing", &["cmark"]) && gathered("fileprocessing", &[&text("in.md"), "--mb", "1"]) {
        loads
            .push(load("fileprocessing/fileprocessing.yaml", vec![("markdown", Given::File(path("in.md")))]));
    }
    if programs("recognizer", &["ffmpeg", "tesseract"]) && gathered("recognizer", &[&text("pages")]) {
        let inputs = vec![
            ("image", Given::File(path("pages/clean.png"))),
            ("words", Given::File(path("pages/words.txt"))),
        ];
        loads.push(load("recognizer/recognizer.yaml", inputs));
    }
    if programs("video", &["ffmpeg"]) && gathered("video", &[&text("in.mkv"), "4"]) {
        let inputs = vec![("video", Given::File(path("in.mkv"))), ("piece_s", Given::Text("2".into()))];
        loads.push(load("video/video.yaml", inputs));
    }
    same_on_several(&loads);
}
