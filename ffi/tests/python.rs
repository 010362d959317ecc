//! Python functions in real forked workers.

mod node;

use dflow_proto::link::{InputValue, Outcome, PortKind};
use dflow_proto::zygote::FromZygote;
use dflow_shm::spawn::RuntimeArgs;
use dflow_shm::table::Entry;
use node::{Done, Node, Worker, Zygote, error, one, output};
use std::path::Path;

fn handler(function: &str) -> RuntimeArgs {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/functions/functions.py");
    RuntimeArgs::Python { handler: format!("{}:{function}", file.display()), path: Vec::new() }
}

/// `None`, with a note, where there is no python3.
fn start(function: &str) -> Option<(Node, Zygote, Worker)> {
    if std::process::Command::new("python3").arg("-c").arg("").status().is_err() {
        eprintln!("SKIP python function {function}: no python3 on the PATH");
        return None;
    }
    let mut node = Node::new();
    let zygote = node.ready(handler(function));
    let worker = node.fork(&zygote);
    Some((node, zygote, worker))
}

fn call(node: &mut Node, worker: &mut Worker, text: &[u8], kinds: &[(&str, PortKind)]) -> Done {
    let extent = node.put(text);
    let outputs = kinds.iter().map(|(name, kind)| output(name, *kind)).collect();
    let job = node.job(vec![("text", one(0))], outputs).set(0, Entry::Sealed(extent));
    node.run(worker, &job)
}

const PLAIN: [(&str, PortKind); 1] = [("out", PortKind::Plain)];

#[test]
fn values_go_in_and_come_out() {
    let Some((mut node, _zygote, mut worker)) = start("upper") else { return };
    for size in [5, 50_000, 5_000_000] {
        let done = call(&mut node, &mut worker, &vec![b'a'; size], &PLAIN);
        assert_eq!(done.outcome, Some(Outcome::Ok));
        assert_eq!(node.bytes(done.sealed[0].2), vec![b'A'; size]);
        assert!(!done.tainted);
    }
    assert!(node.printed().contains("upper was called\n"), "what is printed is flushed at the end");

    let Some((mut node, _zygote, mut worker)) = start("two") else { return };
    let ports = [("a", PortKind::Plain), ("b", PortKind::Plain)];
    let done = call(&mut node, &mut worker, b"xy", &ports);
    assert_eq!(done.outcome, Some(Outcome::Ok));
    let values: Vec<_> = done.sealed.iter().map(|(port, _, extent)| (*port, node.bytes(*extent))).collect();
    assert_eq!(values, [(0, b"xy".to_vec()), (1, vec![0, 0])]);
}

#[test]
fn generators_and_lists_stream() {
    let Some((mut node, _zygote, mut producer)) = start("lines") else { return };
    let text: String = (0..300).map(|n| format!("{n}\n")).collect();
    let done = call(&mut node, &mut producer, text.as_bytes(), &[("out", PortKind::Many)]);
    assert_eq!((done.outcome, done.pinned), (Some(Outcome::Ok), vec![(0, 300)]));
    let zygote = node.ready(handler("join"));
    let mut consumer = node.fork(&zygote);

    let extent = node.put(text.as_bytes());
    let outputs = vec![output("out", PortKind::Many)];
    let first = node.job(vec![("text", one(0))], outputs).set(0, Entry::Sealed(extent));
    let list = InputValue::List { index: 0 };
    let follow = Entry::Follow { page: first.invoke.allotment, port: 0 };
    let second = node.job(vec![("parts", list)], vec![output("out", PortKind::Plain)]).set(0, follow);
    consumer.link.send(&dflow_proto::link::Command::Invoke(second.invoke.clone())).expect("room");
    assert_eq!(node.run(&mut producer, &first).outcome, Some(Outcome::Ok));
    let done = node.finish(&mut consumer);
    assert_eq!(done.outcome, Some(Outcome::Ok));
    assert_eq!(node.bytes(done.sealed[0].2), text.as_bytes());
}

#[test]
fn failures_have_their_class() {
    let Some((mut node, _zygote, mut worker)) = start("raises") else { return };
    let done = call(&mut node, &mut worker, b"x", &PLAIN);
    let (name, message) = error(&done);
    assert_eq!(name, "KeyError");
    assert!(message.contains("no such thing") && message.contains("functions.py"), "{message}");

    let Some((mut node, _zygote, mut worker)) = start("exits") else { return };
    assert_eq!(call(&mut node, &mut worker, b"x", &PLAIN).outcome, Some(Outcome::Exit { code: 75 }));

    let Some((mut node, _zygote, mut worker)) = start("leaves_a_child") else { return };
    assert!(call(&mut node, &mut worker, b"x", &PLAIN).tainted);
}

#[test]
fn workers_are_processes_of_their_own() {
    let Some((mut node, zygote, mut one)) = start("pid") else { return };
    let mut two = node.fork(&zygote);
    for worker in [&mut one, &mut two] {
        let done = call(&mut node, worker, b"", &[("out", PortKind::Plain)]);
        assert_eq!(node.bytes(done.sealed[0].2), worker.pid.to_string().as_bytes());
    }
    let pids = [one.pid, two.pid, zygote.child.id()];
    zygote.abandon();
    assert!(pids.iter().all(|pid| !node::alive(*pid)), "nothing survives the node");
}

#[test]
fn what_cannot_be_imported_says_so() {
    if start("upper").is_none() {
        return;
    }
    let node = Node::new();
    let zygote = node.zygote(handler("no_such_function"));
    let message = zygote.receive();
    let FromZygote::LoadFailed { message, .. } = message else { panic!("{message:?}") };
    assert!(message.contains("no_such_function"), "{message}");
    assert!(!zygote.abandon().exists());
}
