//! Several nodes in one process, over loopback: runs that lie on more than one of them.

#![allow(clippy::print_stdout, missing_docs)]

use dflow_control::node::{
    Given, Node, NodeConfig, OutputValue, RunFailure, RunHandle, RunSpec, Spread, SubmitError,
};
use dflow_control::workflow;
use dflow_core::placement::Place;
use dflow_hwtests::cluster::{Cluster, PATIENCE};
use dflow_proto::InvocationId;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

const FUNCTIONS: &str = r#"
import dflow, hashlib, os, time

def pid():
    return {"pid": os.getpid()}

def add(x):
    return {"sum": (x or 0) + 1}

def slow(ctx):
    with ctx.writer("data") as out:
        out.write(b"a" * 100000)
        deadline = time.time() + 30
        while not os.path.exists("SEEN") and time.time() < deadline:
            time.sleep(0.005)
        out.write(b"seen" if os.path.exists("SEEN") else b"late")

def reader(data: dflow.Stream):
    total, last = 0, b""
    for chunk in data:
        total += len(chunk)
        last = bytes(chunk)[-4:]
        open("SEEN", "w").close()
    return {"total": total, "last": last.decode()}

def big():
    return b"\x07" * (64 << 20)

def digest(data):
    return hashlib.sha256(data).hexdigest()

def pieces():
    for index in range(40):
        yield f"piece {index}"

def measure(piece: str, ctx):
    return {"item": ctx.item, "length": len(piece)}

def total(parts):
    return {"count": len(parts), "length": sum(part["length"] for part in parts)}

def flaky(ctx):
    with ctx.writer("data") as out:
        out.write(b"x" * 200000)
        time.sleep(0.3)
        if ctx.attempt == 1:
            os._exit(3)
        out.write(b"y" * 5)

def fails():
    raise ValueError("no such luck")

def sleeps():
    time.sleep(60)

def numbers():
    return [3, 1, 4, 1, 5]

def double(n):
    return {"twice": n * 2}

def sum_twice(parts):
    return {"sum": sum(part["twice"] for part in parts)}
"#;

/// Nodes whose functions are those above; `None` after saying what is missing.
fn start(count: usize, change: impl Fn(usize, &mut NodeConfig)) -> Option<Cluster> {
    let cluster = Cluster::start(count, change)?;
    let functions = FUNCTIONS.replace("SEEN", &cluster.scene.path("seen").display().to_string());
    cluster.scene.write("functions.py", &functions);
    Some(cluster)
}

/// Steps lie where `places` says, by their order in the file.
fn submit(cluster: &Cluster, body: &str, places: &[Place]) -> Result<RunHandle, SubmitError> {
    cluster.submit(spec(cluster, body, places))
}

fn spec(cluster: &Cluster, body: &str, places: &[Place]) -> RunSpec {
    let text = format!("apiVersion: dflow/v1\nkind: Workflow\nmetadata: {{name: test}}\n{body}");
    let dir = cluster.scene.path("");
    let workflow = workflow::parse(&text, "test.yaml", &dir).unwrap_or_else(|report| panic!("{report}"));
    let spread = cluster.spread(places);
    RunSpec { workflow: Arc::new(workflow), inputs: Vec::new(), start: None, spread }
}

fn run(cluster: &Cluster, body: &str, places: &[Place]) -> String {
    let handle = submit(cluster, body, places).expect("submitted");
    let result =
        handle.wait(Some(PATIENCE)).unwrap_or_else(|| panic!("still runs: {:#?}", handle.watch().view()));
    let outputs = result.unwrap_or_else(|error| panic!("{error}"));
    match &outputs[0].1 {
        OutputValue::Object(view) => String::from_utf8_lossy(view).into_owned(),
        other => panic!("{other:?}"),
    }
}

fn fail(cluster: &Cluster, body: &str, places: &[Place]) -> String {
    let handle = submit(cluster, body, places).expect("submitted");
    match handle.wait(Some(PATIENCE)).expect("it ends") {
        Err(RunFailure::Run(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// A function of the file above.
fn function(name: &str, outputs: &str) -> String {
    format!("  {name}: {{runtime: python, handler: \"functions.py:{name}\", outputs: {{{outputs}}}}}\n")
}

fn on(nodes: &[u16]) -> Vec<Place> {
    nodes.iter().map(|node| Place::On(*node)).collect()
}

fn spread(lead: u16, hosts: &[u16]) -> Place {
    Place::Spread { lead, hosts: hosts.into() }
}

#[test]
fn a_chain_goes_to_and_fro() {
    let Some(cluster) = start(2, |_, _| {}) else { return };
    let mut body = format!("functions:\n{}steps:\n", function("add", "sum: json"));
    for step in 0..6 {
        let input = if step == 0 { "0".into() } else { format!("steps.s{}.sum", step - 1) };
        let wrapped = if step == 0 { "{value: 0}".into() } else { input };
        body.push_str(&format!("  s{step}: {{function: add, in: {{x: {wrapped}}}}}\n"));
    }
    body.push_str("outputs:\n  result: {from: steps.s5.sum}\n");
    // Each step adds to a document, so numbers are taken out first.
    let source = FUNCTIONS.replace("return {\"sum\": (x or 0) + 1}", "return (x or 0) + 1");
    cluster.scene.write("functions.py", &source);
    assert_eq!(run(&cluster, &body, &on(&[0, 1, 0, 1, 0, 1])), "6");
    assert_eq!(run(&cluster, &body, &on(&[1, 1, 0, 0, 1, 0])), "6", "again, with warm functions");
}

#[test]
fn steps_lie_where_they_ask_to() {
    let Some(cluster) = start(3, |index, config| {
        if let (Some(cluster), 2) = (&mut config.cluster, index) {
            cluster.labels = vec!["disk".into()];
        }
    }) else {
        return;
    };
    let body = |first: &str| {
        format!(
            "functions:\n{}{}{}steps:\n  first: {{function: pid, placement: {{prefer: \"{first}\"}}}}\n  \
             pieces: {{function: pieces, placement: {{prefer: \"label:bob\"}}}}\n  \
             each: {{function: measure, foreach: {{item: p, over: steps.pieces.piece}}, in: {{piece: item.p}}, \
             placement: {{prefer: pack}}}}\noutputs:\n  result: {{from: steps.first.out}}\n",
            function("pid", "out: json"),
            function("pieces", "piece: {type: string, many: true}"),
            function("measure", "part: json"),
        )
    };
    let handle = submit(&cluster, &body("label:disk"), &[]).expect("submitted");
    handle.wait(Some(PATIENCE)).expect("it ends").unwrap_or_else(|error| panic!("{error}"));
    let watch = handle.watch();
    let nodes = watch.nodes().expect("it lies on several");
    let host = |step, item| nodes.of(InvocationId { step, item });
    assert_eq!((host(0, 0), host(1, 0)), (Some("cem"), Some("bob")));
    let hosts: BTreeSet<_> = (0..40).map(|item| host(2, item)).collect();
    assert_eq!(hosts.len(), 1, "all items together: {hosts:?}");
    // What happened there is known here, and who it was.
    assert_eq!(watch.view().steps.iter().map(|step| step.done).collect::<Vec<_>>(), [1, 1, 40]);

    let error = submit(&cluster, &body("label:gpu"), &[]).err().expect("nobody has it").to_string();
    assert!(
        error.contains("step first asks for a node labelled gpu") && error.contains("ada, bob, cem"),
        "{error}"
    );
}

#[test]
fn a_run_goes_where_there_is_room() {
    let Some(cluster) = start(3, |_, config| config.cpu_milli = 1000) else { return };
    // It says that it takes long, and is over soon.
    let body = "functions:\n  f: {runtime: builtin, handler: synthetic, outputs: {o: json}}\nsteps:\n  \
                only: {function: f, estimate: 60s, in: {spec: {sleep_ms: 300, out: [{port: o}]}}}\n\
                outputs:\n  result: {from: steps.only.o}\n";
    let host = |handle: &RunHandle| {
        let only = InvocationId { step: 0, item: 0 };
        handle.watch().nodes().and_then(|nodes| nodes.of(only).map(str::to_owned))
    };
    let begin = || submit(&cluster, body, &[]).expect("submitted");
    let handles = [begin(), begin(), begin()];
    let hosts: Vec<_> = handles.iter().map(host).collect();
    assert_eq!(hosts, [None, Some("bob".into()), Some("cem".into())], "the home, then who has nothing to do");
    let outputs = handles.each_ref().map(|handle| handle.wait(Some(PATIENCE)).expect("it ends"));
    assert!(outputs.iter().all(Result::is_ok), "{outputs:?}");
    // Their outputs are held on to, which is no work.
    let at_bob = cluster.nodes[1].submit(spec(&cluster, body, &[])).expect("submitted");
    assert_eq!(host(&at_bob), None, "where it was submitted");
    at_bob.wait(Some(PATIENCE)).expect("it ends").unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn peers_know_what_a_node_has_still_to_do() {
    let Some(cluster) = start(2, |_, _| {}) else { return };
    let body = format!(
        "functions:\n{}steps:\n  sleeps: {{function: sleeps, estimate: 60s}}\n",
        function("sleeps", "x: json"),
    );
    // As each node assumes it of both.
    let until = |holds: fn(u64) -> bool| {
        let begun = Instant::now();
        let at_bob = |node: &Node| {
            let peers = node.peers().expect("lives");
            assert!(peers.iter().all(|peer| peer.name == "bob" || peer.work_us == 0), "{peers:?}");
            peers.iter().any(|peer| peer.name == "bob" && holds(peer.work_us))
        };
        while !cluster.nodes.iter().all(at_bob) {
            assert!(begun.elapsed() < PATIENCE, "they do not come to know it");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let handle = submit(&cluster, &body, &on(&[1])).expect("submitted");
    until(|work_us| 0 < work_us && work_us <= 60_000_000);
    handle.cancel("enough");
    assert!(handle.wait(Some(PATIENCE)).expect("it ends").is_err());
    until(|work_us| work_us == 0);
}

#[test]
fn a_consumer_reads_while_its_producer_elsewhere_writes() {
    let Some(cluster) = start(2, |_, _| {}) else { return };
    let body = format!(
        "functions:\n{}{}steps:\n  slow: {{function: slow}}\n  reader: {{function: reader, in: {{data: steps.slow.data}}}}\n\
         outputs:\n  result: {{from: steps.reader.seen}}\n",
        function("slow", "data: {type: bytes, stream: true, size_hint: 1MiB}"),
        function("reader", "seen: json"),
    );
    let result = run(&cluster, &body, &on(&[1, 0]));
    assert!(result.contains("100004") && result.contains("seen"), "{result}");
}

#[test]
fn what_comes_before_a_node_has_begun_is_kept() {
    let Some(cluster) = start(3, |_, _| {}) else { return };
    // It begins when its input is there, which takes long enough for the other to have put, and to be rid of, what it reads.
    cluster.scene.write("long", &"x".repeat(200 << 20));
    for bytes in [10, 100_000] {
        let body = format!(
            "inputs:\n  long: {{type: bytes}}\nfunctions:\n  \
             f: {{runtime: builtin, handler: synthetic, outputs: {{o: bytes}}}}\nsteps:\n  \
             quick: {{function: f, in: {{spec: {{out: [{{port: o, bytes: {bytes}}}]}}}}}}\n  \
             late: {{function: f, in: {{spec: {{out: [{{port: o, bytes: 1}}]}}, x: inputs.long}}}}\n  \
             last: {{function: f, in: {{spec: {{out: [{{port: o, bytes: 7}}]}}, x: steps.quick.o}}}}\n\
             outputs:\n  result: {{from: steps.last.o}}\n"
        );
        let inputs = vec![("long".into(), Given::File(cluster.scene.path("long")))];
        let spec = RunSpec { inputs, ..spec(&cluster, &body, &on(&[2, 1, 1])) };
        let handle = cluster.submit(spec).expect("submitted");
        let result =
            handle.wait(Some(PATIENCE)).unwrap_or_else(|| panic!("it hangs: {:#?}", handle.watch().view()));
        assert!(result.is_ok(), "{result:?}");
    }
}

#[test]
fn a_large_object_crosses_whole() {
    let Some(cluster) = start(3, |_, _| {}) else { return };
    let body = format!(
        "functions:\n{}{}steps:\n  big: {{function: big}}\n  one: {{function: digest, in: {{data: steps.big.data}}}}\n  \
         two: {{function: digest, in: {{data: steps.big.data}}}}\noutputs:\n  result: {{from: steps.one.sum}}\n  other: {{from: steps.two.sum}}\n",
        function("big", "data: bytes"),
        function("digest", "sum: text"),
    );
    let here = run(&cluster, &body, &on(&[0, 0, 0]));
    assert_eq!(run(&cluster, &body, &on(&[1, 0, 2])), here);
}

fn fan() -> String {
    format!(
        "functions:\n{}{}{}steps:\n  pieces: {{function: pieces}}\n  \
         measure: {{function: measure, foreach: {{item: each, over: steps.pieces.piece}}, in: {{piece: item.each}}}}\n  \
         total: {{function: total, in: {{parts: \"steps.measure.part[*]\"}}}}\noutputs:\n  result: {{from: steps.total.all}}\n",
        function("pieces", "piece: {type: text, many: true}"),
        function("measure", "part: json"),
        function("total", "all: json"),
    )
}

#[test]
fn a_foreach_is_spread_and_gathered() {
    let Some(cluster) = start(3, |_, _| {}) else { return };
    let here = run(&cluster, &fan(), &on(&[0, 0, 0]));
    assert!(here.contains("40"), "{here}");
    let places = [Place::On(1), spread(2, &[0, 1, 2]), Place::On(0)];
    assert_eq!(run(&cluster, &fan(), &places), here);
    // Nodes that execute items and decide nothing tell all of it before the run's end, too.
    let handle =
        submit(&cluster, &fan(), &[Place::On(0), spread(0, &[1, 2]), Place::On(0)]).expect("submitted");
    handle.wait(Some(PATIENCE)).expect("it ends").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(handle.watch().view().steps.iter().map(|step| step.done).collect::<Vec<_>>(), [1, 40, 1]);
    let places = [Place::On(2), spread(0, &[1, 2]), Place::On(1)];
    assert_eq!(run(&cluster, &fan(), &places), here);
    assert_eq!(run(&cluster, &fan(), &[]), here, "as it is placed by default");
}

#[test]
fn a_json_list_is_spread() {
    let Some(cluster) = start(2, |_, _| {}) else { return };
    let body = format!(
        "functions:\n{}{}{}steps:\n  numbers: {{function: numbers}}\n  \
         double: {{function: double, foreach: {{item: each, over: steps.numbers.list}}, in: {{n: item.each}}}}\n  \
         sum: {{function: sum_twice, in: {{parts: \"steps.double.part[*]\"}}}}\noutputs:\n  result: {{from: steps.sum.all}}\n",
        function("numbers", "list: json"),
        function("double", "part: json"),
        function("sum_twice", "all: json"),
    );
    let result = run(&cluster, &body, &[Place::On(1), spread(0, &[0, 1]), Place::On(1)]);
    assert!(result.contains("28"), "{result}");
}

#[test]
fn a_producer_that_dies_takes_its_reader_elsewhere_with_it() {
    let Some(cluster) = start(2, |_, _| {}) else { return };
    let body = format!(
        "functions:\n{}{}steps:\n  flaky: {{function: flaky, retry: {{max: 2, backoff: 1ms, on: [crash]}}}}\n  \
         reader: {{function: reader, in: {{data: steps.flaky.data}}}}\noutputs:\n  result: {{from: steps.reader.seen}}\n",
        function("flaky", "data: {type: bytes, stream: true, size_hint: 1MiB}"),
        function("reader", "seen: json"),
    );
    let result = run(&cluster, &body, &on(&[1, 0]));
    assert!(result.contains("200005"), "{result}");
}

#[test]
fn a_failure_elsewhere_is_the_runs_and_stops_the_rest() {
    let Some(cluster) = start(2, |_, _| {}) else { return };
    let body = format!(
        "functions:\n{}{}steps:\n  fails: {{function: fails}}\n  sleeps: {{function: sleeps}}\n\
         outputs:\n  result: {{from: steps.fails.x}}\n  other: {{from: steps.sleeps.x}}\n",
        function("fails", "x: json"),
        function("sleeps", "x: json"),
    );
    let begun = Instant::now();
    let error = fail(&cluster, &body, &on(&[1, 0]));
    assert!(error.contains("step fails failed") && error.contains("no such luck"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(45), "what runs is stopped");
}

#[test]
fn a_run_is_cancelled_everywhere() {
    let Some(cluster) = start(2, |_, _| {}) else { return };
    let body = format!(
        "functions:\n{}steps:\n  sleeps: {{function: sleeps}}\noutputs:\n  result: {{from: steps.sleeps.x}}\n",
        function("sleeps", "x: json"),
    );
    let handle = submit(&cluster, &body, &on(&[1])).expect("submitted");
    let begun = Instant::now();
    while cluster.nodes[1].stats().expect("lives").load.slots_used == 0 {
        assert!(begun.elapsed() < PATIENCE, "it does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    handle.cancel("enough");
    match handle.wait(Some(PATIENCE)).expect("it ends") {
        Err(RunFailure::Run(error)) => assert!(error.to_string().contains("enough"), "{error}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(cluster.nodes[1].stats().expect("lives").load.slots_used, 0);
}

#[test]
fn a_node_that_goes_fails_the_run_by_its_name() {
    let Some(mut cluster) = start(2, |_, _| {}) else { return };
    let body = format!(
        "functions:\n{}steps:\n  sleeps: {{function: sleeps}}\noutputs:\n  result: {{from: steps.sleeps.x}}\n",
        function("sleeps", "x: json"),
    );
    let handle = submit(&cluster, &body, &on(&[1])).expect("submitted");
    drop(cluster.nodes.pop());
    match handle.wait(Some(PATIENCE)).expect("it ends") {
        Err(RunFailure::Run(error)) => assert!(error.to_string().contains("node bob"), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_that_lacks_a_file_refuses() {
    let Some(cluster) = start(2, |_, _| {}) else { return };
    let body = "functions:\n  f: {runtime: exec, command: [./not-there], outputs: {x: text}, stdout: x}\n\
                steps:\n  f: {function: f}\noutputs:\n  result: {from: steps.f.x}\n";
    match submit(&cluster, body, &on(&[1])) {
        Err(error) => {
            let error = error.to_string();
            assert!(error.contains("node bob") && error.contains("not-there"), "{error}");
        }
        Ok(_) => panic!("it was taken"),
    }
}

#[test]
fn a_store_without_room_fails_the_run() {
    let small = |index: usize, config: &mut NodeConfig| {
        if index == 0 {
            config.store_bytes = 32 << 20;
        }
    };
    let Some(cluster) = start(2, small) else { return };
    let body = format!(
        "functions:\n{}{}steps:\n  big: {{function: big}}\n  digest: {{function: digest, in: {{data: steps.big.data}}}}\n\
         outputs:\n  result: {{from: steps.digest.sum}}\n",
        function("big", "data: bytes"),
        function("digest", "sum: text"),
    );
    let error = fail(&cluster, &body, &on(&[1, 0]));
    assert!(error.contains("output data of step big cannot be fetched"), "{error}");
}

#[test]
fn what_the_home_hears_does_not_grow_with_the_graph() {
    let Some(cluster) = start(3, |_, _| {}) else { return };
    // A chain between two other nodes: its words pass the home by.
    let chain = |steps: usize| {
        let mut body =
            format!("functions:\n{}steps:\n", "  f: {runtime: builtin, handler: noop, outputs: {o: json}}\n");
        for step in 0..steps {
            let after = if step == 0 { String::new() } else { format!(", after: [s{}]", step - 1) };
            body.push_str(&format!("  s{step}: {{function: f{after}}}\n"));
        }
        let places: Vec<Place> = (0..steps).map(|step| Place::On(1 + (step % 2) as u16)).collect();
        let before = cluster.nodes[0].stats().expect("it lives").heard;
        let handle = submit(&cluster, &body, &places).expect("submitted");
        handle.wait(Some(PATIENCE)).expect("it ends").unwrap_or_else(|error| panic!("{error}"));
        assert!(handle.watch().view().steps.iter().all(|step| step.done == 1));
        let heard = cluster.nodes[0].stats().expect("it lives").heard;
        heard.words - before.words
    };
    // From each: that it takes part, and that its part is done.
    assert_eq!((chain(4), chain(40), chain(400)), (4, 4, 4));
}

#[test]
fn a_node_that_has_forgotten_a_workflow_asks_for_it_again() {
    let Some(cluster) = start(2, |_, _| {}) else { return };
    let function = "functions:\n  f: {runtime: builtin, handler: noop, outputs: {o: json}}\n";
    // Workflows that differ in nothing but a remark; what the home hears of each.
    let heard = |remark: usize| {
        let before = cluster.nodes[0].stats().expect("it lives").heard.words;
        let body = format!("# {remark}\n{function}steps:\n  s: {{function: f}}\n");
        let handle = submit(&cluster, &body, &on(&[1])).expect("submitted");
        handle.wait(Some(PATIENCE)).expect("it ends").unwrap_or_else(|error| panic!("{error}"));
        cluster.nodes[0].stats().expect("it lives").heard.words - before
    };
    // That the other takes part, and that its part is done.
    assert_eq!([heard(0), heard(0)], [2, 2]);
    // It keeps 256 workflows.
    (1..=256).for_each(|remark| assert_eq!(heard(remark), 2));
    assert_eq!(heard(0), 3, "and that it has not read the workflow");
    assert_eq!(heard(0), 2);
}

#[test]
fn an_engine_that_dies_says_why() {
    let Some(cluster) = start(1, |_, _| {}) else { return };
    let node = &cluster.nodes[0];
    assert_eq!(node.death(), None);
    let text = "apiVersion: dflow/v1\nkind: Workflow\nmetadata: {name: test}\n\
                steps:\n  a: {function: {runtime: builtin, handler: noop}}\n";
    let workflow = workflow::parse(text, "test.yaml", &cluster.scene.path("")).expect("a workflow");
    let spec =
        RunSpec { workflow: Arc::new(workflow), inputs: Vec::new(), start: None, spread: Spread::Auto };
    // The end of a run is told on the engine's thread.
    node.begin(spec, Box::new(|_| panic!("no way on"))).expect("begun");
    let begun = Instant::now();
    let why = loop {
        if let Some(why) = node.death() {
            break why;
        }
        assert!(begun.elapsed() < PATIENCE, "the engine lives");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(why, "no way on");
    assert!(node.stats().is_none());
}
