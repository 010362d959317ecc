//! A node as a service, asked over HTTP and by the command line: real processes on loopback.

#![allow(missing_docs)]

use dflow_control::client::Client;
use dflow_hwtests::daemon::{Daemon, free_address};
use dflow_hwtests::run::{Ended, Going, Scene};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{ChildStderr, Command};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const HEAD: &str = "apiVersion: dflow/v1\nkind: Workflow\nmetadata: {name: NAME, version: \"1\"}\n";
const NOOP: &str = "steps:\n  a: {function: {runtime: builtin, handler: noop}}\n";
/// Two steps that pass their input on.
const COPY: &str = r#"
inputs:
  text: {type: bytes}
functions:
  copy: {runtime: exec, command: [sh, -c, "echo copying >&2; cat {in.text}"], stdout: data, outputs: {data: {type: bytes}}}
steps:
  a: {function: copy, in: {text: inputs.text}}
  b: {function: copy, in: {text: steps.a.data}}
outputs:
  data: {from: steps.b.data}
"#;
/// A list whose items are worked on, and a fan-in.
const FAN: &str = r#"
functions:
  make: {runtime: builtin, handler: synthetic, outputs: {piece: {type: bytes, many: true}}}
  work: {runtime: builtin, handler: synthetic, outputs: {sum: {type: bytes}}}
steps:
  make: {function: make, in: {spec: {value: {out: [{port: piece, bytes: 100000, items: 12}]}}}}
  work: {function: work, foreach: {item: piece, over: steps.make.piece}, in: {piece: item.piece, spec: {value: {compute_ms: 20}}}}
  join: {function: work, in: {sums: "steps.work.sum[*]", spec: {value: {}}}}
outputs:
  sum: {from: steps.join.sum}
"#;

/// Writes a workflow file of this name.
fn flow(scene: &Scene, name: &str, body: &str) -> String {
    let file = format!("{name}.yaml");
    scene.write(&file, &format!("{}{body}", HEAD.replace("NAME", name)));
    file
}

/// A workflow whose only step goes on until something is written to the returned pipe.
fn gated(scene: &Scene, name: &str) -> (String, PathBuf) {
    let gate = scene.path(&format!("{name}.gate"));
    assert!(Command::new("mkfifo").arg(&gate).status().expect("mkfifo").success());
    let gate_text = gate.display();
    let body = format!(
        "functions:\n  f: {{runtime: exec, command: [sh, -c, \"cat {gate_text}\"], stdout: data, outputs: {{data: {{type: bytes}}}}}}\n\
         steps:\n  a: {{function: f}}\noutputs:\n  data: {{from: steps.a.data}}\n"
    );
    (flow(scene, name, &body), gate)
}

/// `dflow` as a client of the node.
fn cli(scene: &Scene, node: &Daemon, args: &[&str]) -> Ended {
    let server = format!("http://{}", node.api);
    let at = args.len().min(1);
    let all = [&args[..at], &["--server", &server], &args[at..]].concat();
    scene.start(&all).end()
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn told(ended: &Ended) -> Value {
    parsed(&ended.text())
}

/// Deploys a file and begins a run without inputs.
fn submit(scene: &Scene, node: &Daemon, file: &str) -> String {
    cli(scene, node, &["submit", file]).text()
}

/// All events of a run, until `stop` says so or they end.
fn events(client: &Client, run: &str, stop: impl Fn(&str, &Value) -> bool) -> Vec<(String, Value)> {
    let mut seen = Vec::new();
    let follow = client.follow(&format!("/v1/runs/{run}/events"), |event| {
        let data = parsed(&event.data);
        let go_on = !stop(&event.name, &data);
        seen.push((event.name, data));
        go_on
    });
    follow.expect("a stream of events");
    seen
}

/// Waits until the run's step `a` is at work.
fn until_running(client: &Client, run: &str) {
    let running = |step: &Value| step["state"] == "running";
    let seen = events(client, run, |_, data| {
        running(data) || data["steps"].as_array().is_some_and(|steps| steps.iter().any(running))
    });
    assert!(seen.iter().all(|(name, _)| name != "end"), "{seen:?}");
}

fn open_gate(gate: &PathBuf) {
    // Opening waits for the reader: the step, which is at work.
    OpenOptions::new().write(true).open(gate).and_then(|mut g| g.write_all(b"through")).expect("a pipe");
}

#[test]
fn a_run_is_submitted_followed_and_fetched() {
    let scene = Scene::new();
    let node = Daemon::start(&scene, "ada", &[]);
    assert_eq!(parsed(&node.get("/v1/health").body)["state"], "ready");
    // Not a multiple of anything, and no two pages alike.
    let input: Vec<u8> =
        (0_u32..(16 << 20) + 5).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(scene.path("in.bin"), &input).expect("room for it");
    let file = flow(&scene, "copy", COPY);
    let run = cli(&scene, &node, &["submit", &file, "-i", "text=@in.bin"]).text();
    let client = node.client();
    let seen = events(&client, &run, |_, _| false);
    let names: Vec<&str> = seen.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((names.first(), names.last()), (Some(&"run"), Some(&"end")), "{names:?}");
    let (_, end) = seen.last().expect("an end");
    assert_eq!(
        (&end["state"], &end["home"], &end["workflow"]),
        (&json!("done"), &json!("ada"), &json!("copy@1"))
    );
    assert_eq!(end["outputs"], json!([{"name": "data", "type": "bytes", "bytes": input.len()}]));
    let mut output = Vec::new();
    let body = client.read(&format!("/v1/runs/{run}/outputs/data")).expect("an answer").expect("no null");
    body.take(1 << 30).read_to_end(&mut output).expect("all of it");
    assert!(output == input, "{} bytes for {}", output.len(), input.len());
    assert_eq!(cli(&scene, &node, &["get", &run, "data", "-o", "out.bin"]).code, 0);
    assert!(fs::read(scene.path("out.bin")).expect("a file") == input);
    let part = node.ask("GET", &format!("/v1/runs/{run}/outputs/data"), "Range: bytes=3-4\r\n", b"");
    assert_eq!((part.status, part.body), (206, String::from_utf8_lossy(&input[3..5]).into_owned()));
    assert_eq!(cli(&scene, &node, &["logs", &run]).text(), "a | copying\nb | copying");

    let objects = parsed(&node.get("/v1/objects").body);
    assert!(objects.as_array().is_some_and(|o| o.iter().any(|o| o["bytes"] == input.len())), "{objects}");
    let pools = parsed(&node.get("/v1/pools").body);
    assert_eq!((&pools[0]["function"], &pools[0]["state"]), (&json!("copy"), &json!("serving")), "{pools}");
    let nodes = parsed(&node.get("/v1/nodes").body);
    assert_eq!((&nodes[0]["name"], &nodes[0]["state"]), (&json!("ada"), &json!("ready")), "{nodes}");
    let listed = told(&cli(&scene, &node, &["ps", "-o", "json"]));
    assert_eq!((&listed["runs"][0]["run"], listed["runs"].as_array().map(Vec::len)), (&json!(run), Some(1)));
    let described = parsed(&node.get("/openapi.json").body);
    assert!(described["openapi"].as_str().is_some_and(|v| v.starts_with("3.")), "{described}");
    assert!(described["paths"]["/v1/runs/{run}/events"]["get"].is_object());
    metrics_count_the_run(&node.get("/metrics").body);
    node.stop();
    scene.assert_nothing_left();
}

/// Each line is a comment or a name, labels and a number; one run was begun and has ended well.
fn metrics_count_the_run(text: &str) {
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        assert!(name.starts_with("dflow_") && value.parse::<f64>().is_ok(), "{line}");
    }
    for wanted in [
        "dflow_runs_submitted_total{node=\"ada\"} 1",
        "dflow_runs_ended_total{node=\"ada\",result=\"done\"} 1",
        "dflow_runs_under_way{node=\"ada\"} 0",
    ] {
        assert!(text.lines().any(|line| line == wanted), "{wanted} is missing:\n{text}");
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[test]
fn a_service_manager_is_told() {
    let scene = Scene::new();
    let socket = UnixDatagram::bind(scene.path("notify")).expect("a socket");
    socket.set_read_timeout(Some(std::time::Duration::from_secs(60))).expect("a time that is not zero");
    let path = scene.path("notify").display().to_string();
    let node = Daemon::begin_at(&scene, ("ada", "127.0.0.1:0"), &[], &[("NOTIFY_SOCKET", &path)]).ready();
    let heard = || {
        let mut bytes = [0; 64];
        let count = socket.recv(&mut bytes).expect("a word of the node");
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    };
    assert_eq!(heard(), "READY=1");
    node.terminate();
    assert_eq!(heard(), "STOPPING=1");
    node.end().expect(0, &[]);
}

#[test]
fn what_is_wrong_is_told_and_disturbs_nothing() {
    let scene = Scene::new();
    let node = Daemon::start(&scene, "ada", &["--input-max", "1MiB"]);
    let deploy = |file: &str| cli(&scene, &node, &["deploy", file, "-o", "json"]);
    let noop = flow(&scene, "noop", NOOP);
    assert_eq!(told(&deploy(&noop))["workflow"], "noop@1");
    // The same again is no change; other content of that name and version is refused, unless asked for.
    assert_eq!(deploy(&noop).code, 0);
    flow(&scene, "noop", &NOOP.replace("a:", "b:"));
    deploy(&noop).expect(2, &["noop@1 is deployed already", "--replace"]);
    assert_eq!(cli(&scene, &node, &["deploy", &noop, "--replace"]).code, 0);
    let bad = flow(&scene, "bad", "stebs:\n  a: {}\n");
    deploy(&bad).expect(2, &["bad.yaml:4:1", "did you mean `steps`"]);
    let yaml = fs::read(scene.path(&bad)).expect("a file");
    let answer = node.ask("POST", "/v1/workflows", "Content-Type: application/yaml\r\n", &yaml);
    assert!(answer.status == 422 && answer.body.contains(":4:1"), "{answer:?}");

    let table = [
        (r#"{"workflow": "nop"}"#, 404, "did you mean"),
        (r#"{"workflow": "noop@2"}"#, 404, "noop@1"),
        (r#"{"workflow": "noop", "inputs": {"x": 1}}"#, 400, "x"),
        (r#"{"workflow": "noop", "start": "soon"}"#, 400, "first-byte"),
        (r#"{"workflow": "noop", "flow": 1}"#, 400, "unknown field `flow`"),
        (r#"{"workflow"#, 400, "JSON"),
        ("", 400, ""),
    ];
    for (body, status, word) in table {
        let answer = node.post("/v1/runs", body);
        assert!(answer.status == status && answer.body.contains(word), "{body}: {answer:?}");
        assert!(parsed(&answer.body)["error"]["code"].is_string(), "{answer:?}");
    }
    let untyped = node.ask("POST", "/v1/runs", "", b"{}");
    assert_eq!(untyped.status, 415, "{untyped:?}");
    for (path, status) in [("/v1/runs/nosuch", 404), ("/v1/runs/nosuch/outputs/a", 404), ("/v1/nosuch", 404)]
    {
        assert_eq!(node.get(path).status, status, "{path}");
    }
    assert_eq!(node.ask("PUT", "/v1/runs", "", b"").status, 405);

    // Larger than a request may be, and than an input may be.
    let large = node.post("/v1/runs", &format!(r#"{{"workflow": "{}"}}"#, "x".repeat(17 << 20)));
    assert_eq!(large.status, 413, "{large:?}");
    let file = flow(&scene, "copy", COPY);
    assert_eq!(deploy(&file).code, 0);
    let open = node.post("/v1/runs?open=true", r#"{"workflow": "copy"}"#);
    let run = parsed(&open.body)["run"].as_str().expect("a run").to_owned();
    let path = format!("/v1/runs/{run}/inputs/text");
    let large = node.ask("PUT", &path, "", &vec![0; (1 << 20) + 1]);
    assert!(large.status == 413 && large.body.contains("1048576"), "{large:?}");
    assert_eq!(node.ask("PUT", &format!("/v1/runs/{run}/inputs/txt"), "", b"x").status, 400);
    // The run takes a smaller one after that.
    assert_eq!(node.ask("PUT", &path, "", b"small").status, 200);
    assert_eq!(node.post(&format!("/v1/runs/{run}/begin"), "null").status, 200);
    assert_eq!(cli(&scene, &node, &["wait", &run]).code, 0);
    assert_eq!(cli(&scene, &node, &["get", &run, "data"]).text(), "small");

    // A page of another site, by its own name or by its origin.
    let site = node.ask("GET", "/v1/node", "Origin: http://evil.example\r\n", b"");
    assert_eq!(site.status, 403, "{site:?}");
    node.stop();
    scene.assert_nothing_left();
}

#[test]
fn the_command_line_ends_as_the_run_did() {
    let scene = Scene::new();
    let node = Daemon::start(&scene, "ada", &[]);
    let fails = "functions:\n  f: {runtime: exec, command: [sh, -c, \"echo oh dear >&2; exit 3\"]}\nsteps:\n  a: {function: f}\n";
    let (noop, fails) = (flow(&scene, "noop", NOOP), flow(&scene, "fails", fails));
    let done = told(&cli(&scene, &node, &["submit", &noop, "--watch", "-o", "json"]));
    assert_eq!((&done["state"], &done["steps"][0]["done"]), (&json!("done"), &json!(1)), "{done}");
    let failed = cli(&scene, &node, &["submit", &fails, "--watch", "-o", "json"]);
    assert_eq!(failed.code, 1, "{failed}");
    let failed = parsed(&String::from_utf8_lossy(&failed.stdout));
    assert!(failed["state"] == "failed" && failed["error"].is_string(), "{failed}");
    cli(&scene, &node, &["wait", "last"]).expect(1, &["failed"]);
    cli(&scene, &node, &["submit", "nop"]).expect(2, &["did you mean"]);
    cli(&scene, &node, &["wait", "nosuch"]).expect(2, &["no such run", "dflow ps"]);
    cli(&scene, &node, &["get", "last", "x"]).expect(2, &["has no outputs"]);
    let (slow, _gate) = gated(&scene, "slow");
    let run = submit(&scene, &node, &slow);
    until_running(&node.client(), &run);
    // Told to end, or, if that was quick, ended.
    cli(&scene, &node, &["cancel", &run, "--reason", "enough of it"]).expect(0, &[&run]);
    cli(&scene, &node, &["wait", &run]).expect(1, &["cancelled", "enough of it"]);
    cli(&scene, &node, &["cancel", &run]).expect(0, &["has ended: cancelled"]);
    let shown = told(&cli(&scene, &node, &["show", &run, "-o", "json"]));
    assert_eq!(shown["result"], "cancelled", "{shown}");
    let nodes = told(&cli(&scene, &node, &["nodes", "-o", "json"]));
    assert_eq!((&nodes[0]["name"], &nodes[0]["runs"]), (&json!("ada"), &json!(0)), "{nodes}");
    node.stop();
    let gone = free_address();
    scene.start(&["nodes", "--server", &gone]).end().expect(3, &["does not answer", "dflow node"]);
    scene.assert_nothing_left();
}

#[test]
fn a_client_that_goes_away_in_the_middle_of_a_result_costs_nothing() {
    let scene = Scene::new();
    let node = Daemon::start(&scene, "ada", &[]);
    let body = "functions:\n  f: {runtime: exec, command: [sh, -c, \"head -c 50000000 /dev/zero\"], stdout: data, outputs: {data: {type: bytes}}}\n\
                steps:\n  a: {function: f}\noutputs:\n  data: {from: steps.a.data}\n";
    let run = submit(&scene, &node, &flow(&scene, "zeros", body));
    cli(&scene, &node, &["wait", &run]).expect(0, &[]);
    let path = format!("/v1/runs/{run}/outputs/data");
    for _ in 0..10 {
        let mut stream = node.send("GET", &path, "", b"");
        let mut some = [0; 1000];
        stream.read_exact(&mut some).expect("the beginning");
    }
    // One that neither reads nor goes away.
    let idle = node.send("GET", &path, "", b"");
    let got = cli(&scene, &node, &["get", &run, "data"]);
    assert!(got.code == 0 && got.stdout.len() == 50_000_000, "{got}");
    drop(idle);
    node.stop();
    scene.assert_nothing_left();
}

#[test]
fn told_to_end_a_node_lets_its_runs_finish() {
    let scene = Scene::new();
    let node = Daemon::start(&scene, "ada", &["--drain-s", "60"]);
    let (slow, gate) = gated(&scene, "slow");
    let run = submit(&scene, &node, &slow);
    let client = node.client();
    until_running(&client, &run);
    let following = {
        let (client, run) = (client.clone(), run.clone());
        std::thread::spawn(move || events(&client, &run, |_, _| false))
    };
    node.terminate();
    // Each answer comes after a look at the same flag; the signal is on its way.
    while node.get("/v1/health").status == 200 {}
    let refused = node.post("/v1/runs", r#"{"workflow": "slow"}"#);
    assert!(refused.status == 503 && refused.body.contains("draining"), "{refused:?}");
    open_gate(&gate);
    let seen = following.join().expect("no panic");
    let (name, end) = seen.last().expect("events");
    assert_eq!((name.as_str(), &end["state"]), ("end", &json!("done")), "{seen:?}");
    node.end().expect(0, &[]);
    scene.assert_nothing_left();
}

#[test]
fn a_drain_ends_in_time() {
    let scene = Scene::new();
    let node = Daemon::start(&scene, "ada", &["--drain-s", "0"]);
    let (slow, _gate) = gated(&scene, "slow");
    let run = submit(&scene, &node, &slow);
    until_running(&node.client(), &run);
    node.terminate();
    node.end().expect(0, &["cancelled"]);
    scene.assert_nothing_left();
}

#[test]
fn a_node_that_cannot_start_says_why() {
    let scene = Scene::new();
    scene.write("typo.toml", "cpus = 2\nslotss = 3\n");
    let config = scene.path("typo.toml").display().to_string();
    for check in [&["--config", &config, "--check"][..], &["--config", &config]] {
        Daemon::begin(&scene, "ada", check)
            .end()
            .expect(2, &["typo.toml:2", "`slotss`", "did you mean `slots`"]);
    }
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("a bound one").to_string();
    Daemon::begin_at(&scene, ("ada", &address), &[], &[])
        .end()
        .expect(3, &[&address, "another program has the port"]);
    Daemon::begin_at(&scene, ("ada", "0.0.0.0:0"), &[], &[]).end().expect(2, &["secret"]);
    let node = Daemon::start(&scene, "ada", &[]);
    Daemon::begin(&scene, "ada", &[]).end().expect(3, &["is in use by another node"]);
    node.stop();
    scene.start(&["node", "--check"]).end().expect(0, &["is good"]);
    scene.assert_nothing_left();
}

/// A file with a secret.
fn secret(scene: &Scene) -> String {
    let path = scene.write("secret", "correct-horse-battery-staple\n");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its own file");
    path.display().to_string()
}

#[test]
fn a_node_with_a_secret_asks_for_it() {
    let scene = Scene::new();
    let file = secret(&scene);
    let node = Daemon::start(&scene, "ada", &["--secret-file", &file]);
    assert_eq!(node.get("/v1/node").status, 401);
    let with =
        |secret: &str| node.ask("GET", "/v1/node", &format!("Authorization: Bearer {secret}\r\n"), b"");
    assert_eq!(with("correct horse batter").status, 401);
    assert_eq!(with("correct-horse-battery-staple").status, 200);
    cli(&scene, &node, &["nodes"]).expect(2, &["--secret-file"]);
    assert!(cli(&scene, &node, &["nodes", "--secret-file", &file]).text().contains("ada"));
    node.stop();
}

/// Three nodes that know each other.
fn three(scene: &Scene) -> Vec<Daemon> {
    let names = ["ada", "bob", "cem"];
    let ends: Vec<(String, String)> = names.iter().map(|_| (free_address(), free_address())).collect();
    let begin = |own: usize| {
        let others = (0..names.len()).filter(|other| *other != own);
        let peers: Vec<String> =
            others.map(|o| format!("{}={},{}", names[o], ends[o].0, ends[o].1)).collect();
        let peers = peers.join(" ");
        let args = ["--data", &ends[own].0, "--peers", &peers, "--cpus", "1"];
        Daemon::begin_at(scene, (names[own], &ends[own].1), &args, &[])
    };
    let starting: Vec<_> = (0..names.len()).map(begin).collect();
    starting.into_iter().map(dflow_hwtests::daemon::Starting::ready).collect()
}

#[test]
fn three_nodes_give_the_result_of_one() {
    let scene = Scene::new();
    let file = flow(&scene, "fan", FAN);
    let alone = scene.start(&["run", "-q", &file, "-o", "alone"]).end();
    assert_eq!(alone.code, 0, "{alone}");
    let nodes = three(&scene);
    let listed = told(&cli(&scene, &nodes[1], &["nodes", "-o", "json"]));
    let states: Vec<&Value> = listed.as_array().expect("a list").iter().map(|n| &n["state"]).collect();
    assert_eq!(states, ["ready"; 3], "{listed}");
    let connected =
        || parsed(&nodes[0].get("/v1/node").body)["links"].as_array().is_some_and(|l| l.len() == 2);
    let begun = Instant::now();
    while !connected() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the nodes do not find each other");
        std::thread::sleep(Duration::from_millis(5));
    }
    let submitted = cli(&scene, &nodes[0], &["submit", &file, "--watch", "-o", "json"]);
    let status = told(&submitted);
    assert_eq!((&status["state"], &status["home"]), (&json!("done"), &json!("ada")), "{submitted}");
    let run = status["run"].as_str().expect("a name").to_owned();
    // Any node is asked about it.
    for node in &nodes {
        let got = cli(&scene, node, &["get", &run, "sum"]);
        let wanted = fs::read(scene.path("alone/sum")).or_else(|_| fs::read(scene.path("alone")));
        assert_eq!((got.code, &got.stdout), (0, &wanted.expect("the result of one node")), "{got}");
        let list = told(&cli(&scene, node, &["ps", "-o", "json"]));
        assert_eq!(list["runs"][0]["run"], json!(run), "{list}");
    }
    // Its items were dealt out.
    let works = |node: &&Daemon| {
        let pools = parsed(&node.get("/v1/pools").body);
        pools.as_array().is_some_and(|p| p.iter().any(|p| p["function"] == "work" && p["state"] == "serving"))
    };
    assert!(nodes.iter().filter(works).count() > 1, "only one node worked");
    nodes.into_iter().for_each(Daemon::stop);
    scene.assert_nothing_left();
}

#[test]
fn idle_processes_are_kept_up_to_a_limit() {
    let scene = Scene::new();
    let node = Daemon::start(&scene, "ada", &["--cpus", "8", "--idle-max", "3"]);
    let file = flow(&scene, "fan", FAN);
    // The second run is served by what the first one left, and by new ones.
    for _ in 0..2 {
        cli(&scene, &node, &["submit", &file, "--watch"]).expect(0, &[]);
        let begun = Instant::now();
        loop {
            let pools = parsed(&node.get("/v1/pools").body);
            let sum = |key: &str| {
                let pools = pools.as_array().expect("a list").iter();
                pools.map(|p| p[key].as_u64().expect("a number")).sum::<u64>()
            };
            if (sum("workers"), sum("idle")) == (3, 3) {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "more or fewer are kept: {pools}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    node.stop();
    scene.assert_nothing_left();
}

/// Held by tests that start clusters to try out: two that look for free ports at the same moment find the same, and each removes what
/// dead ones left.
static TRIES: Mutex<()> = Mutex::new(());

/// A cluster to try out, and what it told of itself.
struct Tried {
    going: Going,
    address: String,
    secret: String,
    /// What must come before commands.
    within: Vec<String>,
    /// Kept open: who has nobody to tell has failed.
    _stderr: BufReader<ChildStderr>,
}

/// Starts `dflow dev`, and waits until it is up.
fn dev(scene: &Scene, args: &[&str]) -> Tried {
    let mut going = scene.start(&[&["dev", "--nodes", "2", "--store", "64MiB"], args].concat());
    let mut stderr = BufReader::new(going.child.stderr.take().expect("piped"));
    let (mut address, mut secret, mut within, mut line) =
        (String::new(), String::new(), Vec::new(), String::new());
    while stderr.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        if let Some(rest) = line.trim().strip_prefix("export DFLOW_SERVER=") {
            let (server, file) = rest.split_once(" DFLOW_SECRET_FILE=").expect("both are told");
            (address, secret) = (server.into(), file.into());
        } else if let Some(words) = line.trim().strip_suffix("dflow nodes") {
            within = words.split_whitespace().map(str::to_owned).collect();
        } else if line.starts_with("Ctrl-C") {
            return Tried { going, address, secret, within, _stderr: stderr };
        }
        line.clear();
    }
    panic!("dflow dev {args:?} did not come up: {:?}", going.child.wait());
}

#[test]
fn clusters_for_trying_out_stand_side_by_side() {
    let _alone = TRIES.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = Scene::new();
    let mut clusters = vec![dev(&scene, &[]), dev(&scene, &[])];
    if rustix::process::geteuid().is_root() {
        clusters.push(dev(&scene, &["--bandwidth", "50"]));
    } else {
        println!("SKIP dflow dev --bandwidth: network namespaces need root");
    }
    assert_ne!(clusters[0].address, clusters[1].address);
    for Tried { going, address, secret, within, .. } in &clusters {
        let nodes = scene.dflow(&["nodes", "-o", "json", "--server", address]);
        let mut command = std::process::Command::new(within.first().map_or("env", String::as_str));
        command.args(within.iter().skip(1)).arg(nodes.get_program()).args(nodes.get_args());
        let output = command.env("DFLOW_SECRET_FILE", secret).output().expect("starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let nodes = parsed(&String::from_utf8_lossy(&output.stdout));
        let states: Vec<_> = nodes.as_array().expect("a list").iter().map(|node| &node["state"]).collect();
        assert_eq!(states, [&json!("ready"), &json!("ready")], "{nodes}");
        let pid = Pid::from_raw(going.child.id() as i32).expect("a process has a number");
        kill_process(pid, Signal::TERM).expect("this test's own child");
    }
    for mut cluster in clusters {
        cluster.going.child.wait().expect("its own child");
    }
    scene.assert_nothing_left();
}

#[test]
fn a_cluster_for_trying_out_that_is_killed_leaves_no_node_and_the_next_removes_its_folder() {
    let _alone = TRIES.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = Scene::new();
    let mut killed = dev(&scene, &[]);
    killed.going.child.kill().expect("this test's own child");
    killed.going.child.wait().expect("its own child");
    scene.assert_nothing_left();
    assert!(std::path::Path::new(&killed.secret).exists());
    let mut next = dev(&scene, &[]);
    assert!(!std::path::Path::new(&killed.secret).exists());
    let pid = Pid::from_raw(next.going.child.id() as i32).expect("a process has a number");
    kill_process(pid, Signal::TERM).expect("this test's own child");
    next.going.child.wait().expect("its own child");
    assert!(!std::path::Path::new(&next.secret).exists());
    scene.assert_nothing_left();
}
