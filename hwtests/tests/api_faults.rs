//! What a node bears: too many clients, too much data, clocks that are wrong, peers that are not what they should be.

#![allow(clippy::print_stdout, missing_docs)]

use dflow_hwtests::daemon::{Daemon, Starting, free_address};
use dflow_hwtests::run::{Ended, Scene};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Longest wait, on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const HEAD: &str = "apiVersion: dflow/v1\nkind: Workflow\nmetadata: {name: NAME, version: \"1\"}\n";
const NOOP: &str = "steps:\n  a: {function: {runtime: builtin, handler: noop}}\n";

/// Writes a workflow file of this name.
fn flow(scene: &Scene, name: &str, body: &str) -> String {
    let file = format!("{name}.yaml");
    scene.write(&file, &format!("{}{body}", HEAD.replace("NAME", name)));
    file
}

fn cli(scene: &Scene, node: &Daemon, args: &[&str]) -> Ended {
    scene.start(&[args, &["--server", &node.api]].concat()).end()
}

/// A value of `/metrics`.
fn metric(node: &Daemon, line: &str) -> u64 {
    let text = node.get("/metrics").body;
    let found = text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse::<f64>().ok());
    found.unwrap_or_else(|| panic!("no {line}: {text}")) as u64
}

#[test]
fn ten_thousand_submissions_at_once_are_all_answered() {
    const CLIENTS: usize = 10_000;
    let limit = getrlimit(Resource::Nofile);
    let wanted = CLIENTS as u64 + 500;
    if limit.maximum.is_some_and(|maximum| maximum < wanted) {
        return println!("SKIP ten thousand submissions: at most {:?} open files are allowed", limit.maximum);
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit }).expect("below the maximum");
    let scene = Scene::new();
    // Few may be under way at a time, so that many are told to come back.
    let node = Daemon::start(&scene, "ada", &["--runs-max", "500", "--history-runs", "0"]);
    assert_eq!(cli(&scene, &node, &["deploy", &flow(&scene, "noop", NOOP)]).code, 0);
    // All are connected and have asked before any answer is read.
    let clients: Vec<TcpStream> = std::thread::scope(|scope| {
        let begin = || -> Vec<TcpStream> {
            let body = "Content-Type: application/json\r\n";
            (0..CLIENTS / 20)
                .map(|_| node.send("POST", "/v1/runs", body, br#"{"workflow": "noop"}"#))
                .collect()
        };
        let threads: Vec<_> = (0..20).map(|_| scope.spawn(begin)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    let (mut taken, mut told_to_come_back) = (0, 0);
    for mut client in clients {
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer");
        match answer.split(' ').nth(1) {
            Some("201") => taken += 1,
            Some("429" | "503") if answer.to_ascii_lowercase().contains("retry-after") => {
                told_to_come_back += 1
            }
            _ => panic!("{answer}"),
        }
    }
    assert_eq!(taken + told_to_come_back, CLIENTS);
    println!("{taken} were taken, {told_to_come_back} told to come back");
    assert!(taken >= 500, "{taken}");
    assert_eq!(metric(&node, "dflow_runs_submitted_total{node=\"ada\"}"), taken as u64);
    let begun = Instant::now();
    while metric(&node, "dflow_runs_ended_total{node=\"ada\",result=\"done\"}") < taken as u64 {
        assert!(begun.elapsed() < PATIENCE, "not all end");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(cli(&scene, &node, &["submit", "noop", "--watch"]).code, 0, "the node is as it was");
    node.stop();
    scene.assert_nothing_left();
}

/// Sends zeros as the value of an input until all are sent or the node has had enough; its answer.
fn send_zeros(node: &Daemon, run: &str, bytes: u64, told: bool) -> String {
    let mut stream = TcpStream::connect(&node.api).expect("the node accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time that is not zero");
    let length = if told { format!("Content-Length: {bytes}") } else { "Transfer-Encoding: chunked".into() };
    let head = format!(
        "PUT /v1/runs/{run}/inputs/text HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{length}\r\n\r\n",
        node.api
    );
    stream.write_all(head.as_bytes()).expect("the node reads");
    let zeros = vec![0_u8; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let piece = &zeros[..left.min(1 << 20) as usize];
        let sent = if told {
            stream.write_all(piece)
        } else {
            let head = format!("{:x}\r\n", piece.len());
            stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(piece))
                .and_then(|()| stream.write_all(b"\r\n"))
        };
        // A node that refuses closes, with its answer before that.
        match sent {
            Ok(()) => left -= piece.len() as u64,
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let mut answer = Vec::new();
    // What was sent in vain resets the connection, behind the answer.
    let _ = stream.read_to_end(&mut answer);
    assert!(left > 0, "all of it was read");
    String::from_utf8_lossy(&answer).into_owned()
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process");
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("a number")
}

#[test]
fn ten_gigabytes_of_zeros_are_refused_and_disturb_nobody() {
    const BYTES: u64 = 10_000_000_000;
    let scene = Scene::new();
    let body = "inputs:\n  text: {type: bytes}\nsteps:\n  a: {function: {runtime: builtin, handler: noop}, in: {x: inputs.text}}\n";
    let file = flow(&scene, "takes", body);
    let noop = flow(&scene, "noop", NOOP);
    // More than an input may be; and as much as one may be, with a store that is too small.
    for (args, status) in
        [(&["--input-max", "64MiB"][..], "413"), (&["--input-max", "20GiB", "--spill", "none"], "507")]
    {
        let node = Daemon::start(&scene, "ada", args);
        assert_eq!(cli(&scene, &node, &["deploy", &file]).code, 0);
        let before = resident_kib(node.pid());
        // Without a length it waits in a file for its end, up to what an input may be and the store could hold.
        for told in [true, false] {
            let open = node.post("/v1/runs?open=true", r#"{"workflow": "takes"}"#);
            let run: Value = serde_json::from_str(&open.body).expect("JSON");
            let run = run["run"].as_str().expect("a run").to_owned();
            let answer = std::thread::scope(|scope| {
                let sending = scope.spawn(|| send_zeros(&node, &run, BYTES, told));
                // Meanwhile others are served.
                assert_eq!(cli(&scene, &node, &["submit", &noop, "--watch"]).code, 0);
                sending.join().expect("no panic")
            });
            let first = answer.lines().next().unwrap_or_default();
            assert!(first.contains(status), "{args:?}, told {told}: {answer}");
            assert!(answer.contains("error"), "{answer}");
            assert_eq!(node.post(&format!("/v1/runs/{run}/cancel"), "{}").status, 200);
        }
        let after = resident_kib(node.pid());
        assert!(after < before + (300 << 10), "{before} KiB became {after} KiB");
        node.stop();
    }
    scene.assert_nothing_left();
}

/// Two nodes that know each other; `change` has the last word on the second's command.
fn two(scene: &Scene, change: impl FnOnce(Command) -> Command) -> [Daemon; 2] {
    let names = ["ada", "bob"];
    let ends: Vec<(String, String)> = names.iter().map(|_| (free_address(), free_address())).collect();
    let command = |own: usize| {
        let other = 1 - own;
        let peers = format!("{}={},{}", names[other], ends[other].0, ends[other].1);
        let args = ["--data", &ends[own].0, "--peers", &peers, "--cpus", "1"];
        Daemon::command(scene, (names[own], &ends[own].1), &args)
    };
    let first = Daemon::spawn(command(0));
    let second = Daemon::spawn(change(command(1)));
    [first, second].map(Starting::ready)
}

fn until_connected(scene: &Scene, node: &Daemon, count: usize) {
    let begun = Instant::now();
    loop {
        let nodes = cli(scene, node, &["nodes", "-o", "json"]);
        let nodes: Value = serde_json::from_slice(&nodes.stdout).unwrap_or_default();
        // Each answers, and has a link to another.
        let is_up = |node: &&Value| node["state"] == "ready" && node["links"][0].is_object();
        let up = nodes.as_array().into_iter().flatten().filter(is_up).count();
        if up == count {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{nodes}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn clocks_an_hour_apart_are_no_matter() {
    let scene = Scene::new();
    let tried =
        Command::new("unshare").args(["-T", "--monotonic", "3600", "--boottime", "3600", "true"]).output();
    let monotonic = tried.is_ok_and(|tried| tried.status.success());
    let fake = Path::new("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1");
    if !monotonic || !fake.exists() {
        return println!("SKIP clocks apart: time namespaces need root, the wall clock needs libfaketime");
    }
    let nodes = two(&scene, |node| {
        let mut command = Command::new("unshare");
        command.args(["-T", "--monotonic", "3600", "--boottime", "3600", "--"]);
        command.arg(node.get_program()).args(node.get_args());
        command.current_dir(scene.path(""));
        for (name, value) in node.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("LD_PRELOAD", fake).env("FAKETIME", "+1h").env("DONT_FAKE_MONOTONIC", "1");
        command
    });
    until_connected(&scene, &nodes[0], 2);
    let body = "functions:\n  f: {runtime: exec, command: [sh, -c, \"head -c 2000000 /dev/zero\"], stdout: data, outputs: {data: {type: bytes}}}\n  \
                g: {runtime: exec, command: [sh, -c, \"wc -c < {in.data}\"], stdout: count, outputs: {count: {type: text}}}\n\
                steps:\n  a: {function: f, placement: {prefer: \"label:bob\"}}\n  \
                b: {function: g, in: {data: steps.a.data}, placement: {prefer: \"label:ada\"}}\n\
                outputs:\n  count: {from: steps.b.count}\n";
    let file = flow(&scene, "far", body);
    for home in &nodes {
        let ended = cli(&scene, home, &["submit", &file, "--watch", "-o", "json"]);
        assert_eq!(ended.code, 0, "{ended}");
        let run: Value = serde_json::from_slice(&ended.stdout).expect("JSON");
        let name = run["run"].as_str().expect("its name").to_owned();
        assert_eq!(cli(&scene, home, &["get", &name, "count"]).text().trim(), "2000000");
        // All of the run happened within its own time, wherever it happened.
        let record = home.get(&format!("/v1/runs/{}/record", name));
        assert_eq!(record.status, 200, "{record:?}");
        let record: Value = serde_json::from_str(&record.body).expect("JSON");
        let end_us = record["summary"]["makespan_us"].as_u64().expect("how long it took");
        let events = record["events"].as_array().expect("events");
        let latest = events.iter().filter_map(|event| event["at_us"].as_u64()).max().expect("times");
        assert!(!events.is_empty() && latest <= end_us + 1_000_000, "{latest} of {end_us}");
    }
    nodes.into_iter().for_each(Daemon::stop);
    scene.assert_nothing_left();
}

#[test]
fn peers_that_do_not_agree_are_told() {
    let scene = Scene::new();
    // The second calls itself by the first's name.
    let data = [free_address(), free_address()];
    let first = Daemon::command(
        &scene,
        ("ada", "127.0.0.1:0"),
        &["--data", &data[0], "--peers", &format!("bob={}", data[1])],
    );
    let first = Daemon::spawn(first).ready();
    let peers = format!("ada={}", data[0]);
    let twin = ["--data", &data[1], "--peers", &peers, "--state", &scene.path("twin").display().to_string()];
    let mut command = scene.dflow(&["node", "--name", "ada", "--api", "127.0.0.1:0"]);
    command.args(twin);
    Daemon::spawn(command).end().expect(2, &["ada", "name"]);
    // A third that nobody was told of.
    let stranger =
        Daemon::begin(&scene, "cem", &["--data", &data[1], "--peers", &format!("ada={}", data[0])]).ready();
    std::thread::sleep(Duration::from_millis(1500));
    let nodes = cli(&scene, &first, &["nodes", "-o", "json"]);
    let nodes: Value = serde_json::from_slice(&nodes.stdout).expect("JSON");
    let states: Vec<_> = nodes
        .as_array()
        .expect("a list")
        .iter()
        .map(|node| (node["name"].clone(), node["state"].clone()))
        .collect();
    assert!(states.iter().all(|(name, state)| name == "ada" || state != "ready"), "{states:?}");
    // It goes on alone.
    assert_eq!(cli(&scene, &first, &["submit", &flow(&scene, "noop", NOOP), "--watch"]).code, 0);
    // And what nobody can host is refused with what there is.
    let nowhere =
        "steps:\n  a: {function: {runtime: builtin, handler: noop}, placement: {prefer: \"label:gpu\"}}\n";
    cli(&scene, &first, &["submit", &flow(&scene, "nowhere", nowhere)]).expect(2, &["labelled gpu", "ada"]);
    first.stop();
    stranger.stop();
    scene.assert_nothing_left();
}
