//! Zygotes, their ends, and the built-in functions.

mod node;

use dflow_proto::link::{Command, Outcome, PortKind, Report};
use dflow_proto::zygote::{Exit, FromZygote};
use dflow_shm::spawn::RuntimeArgs;
use dflow_shm::table::Entry;
use node::{Node, alive, error, inline, library, one, output, until};

#[test]
fn a_killed_worker_is_reported_and_another_forked() {
    let mut node = Node::new();
    let zygote = node.builtin("noop");
    let one = node.fork(&zygote);
    assert_eq!(zygote.kill(&one), Exit::Signal(9));
    let mut two = node.fork(&zygote);
    let job = node.job(vec![], vec![output("out", PortKind::Plain)]);
    let done = node.run(&mut two, &job);
    assert_eq!(done.outcome, Some(Outcome::Ok));
    assert_eq!(done.sealed[0].2.bytes, 0);
    two.link.send(&Command::Retire).expect("room");
    assert_eq!(zygote.exited(&two), Exit::Code(0));
    assert!(!alive(one.pid) && !alive(two.pid));
}

#[test]
fn nothing_survives_a_node_that_was_killed() {
    let mut node = Node::new();
    let zygote = node.native(&library("native"), "daemonize");
    let mut worker = node.fork(&zygote);
    let idle = node.fork(&zygote);
    let job = node.job(vec![], vec![output("out", PortKind::Plain)]);
    let done = node.run(&mut worker, &job);
    assert!(done.tainted, "a process with a daemon of its own is not used again");
    let pid = String::from_utf8(node.bytes(done.sealed[0].2)).expect("text").parse().expect("a pid");
    assert!(alive(pid));
    let zygote_pid = zygote.child.id();
    let scratch = zygote.abandon();
    for pid in [pid, worker.pid, idle.pid, zygote_pid] {
        assert!(!alive(pid), "{pid} lives");
    }
    assert!(!scratch.exists());
}

#[test]
fn a_dead_workers_daemon_dies_with_it() {
    let mut node = Node::new();
    let zygote = node.native(&library("native"), "daemonize");
    let mut worker = node.fork(&zygote);
    let other = node.fork(&zygote);
    let job = node.job(vec![], vec![output("out", PortKind::Plain)]);
    let done = node.run(&mut worker, &job);
    let pid = String::from_utf8(node.bytes(done.sealed[0].2)).expect("text").parse().expect("a pid");
    assert_eq!(zygote.kill(&worker), Exit::Signal(9));
    until("the daemon is gone", || !alive(pid));
    assert!(alive(other.pid), "others are left alone");
}

#[test]
fn workers_die_with_a_zygote_that_was_killed() {
    let mut node = Node::new();
    let mut zygote = node.builtin("noop");
    let worker = node.fork(&zygote);
    zygote.child.kill().expect("a child");
    zygote.child.wait().expect("a child");
    until("the worker is gone", || !alive(worker.pid));
    let _ = std::fs::remove_dir_all(zygote.scratch);
}

#[test]
fn unknown_builtins_and_programs_are_not_loaded() {
    let node = Node::new();
    let exec = RuntimeArgs::Exec {
        command: vec!["no-such-program-here".into()],
        stdin: None,
        stdout: None,
        cwd: None,
    };
    for runtime in [RuntimeArgs::Builtin { handler: "nosuch".into() }, exec] {
        let zygote = node.zygote(runtime);
        let message = zygote.receive();
        assert!(matches!(message, FromZygote::LoadFailed { .. }), "{message:?}");
        zygote.abandon();
    }
}

#[test]
fn synthetic_writes_the_same_bytes_and_sums_them() {
    let mut node = Node::new();
    let zygote = node.builtin("synthetic");
    let mut worker = node.fork(&zygote);
    let spec = r#"{"seed": 7, "out": [{"port": "big", "bytes": 300000}, {"port": "many", "bytes": 50, "items": 40}]}"#;
    let mut results = Vec::new();
    for _ in 0..2 {
        let outputs = vec![output("big", PortKind::Stream), output("many", PortKind::Many)];
        let job = node.job(vec![("spec", inline(spec))], outputs);
        let done = node.run(&mut worker, &job);
        assert_eq!(done.outcome, Some(Outcome::Ok));
        assert_eq!(done.pinned, [(1, 40)]);
        results.push(done.sealed.iter().map(|(_, _, extent)| node.bytes(*extent)).collect::<Vec<_>>());
    }
    assert_eq!(results[0], results[1]);
    assert_ne!(results[0][1], results[0][2], "items differ");

    let extent = node.put(&results[0][0]);
    let mut sums = Vec::new();
    for _ in 0..2 {
        let job = node.job(vec![("data", one(0))], vec![output("sum", PortKind::Plain)]);
        let done = node.run(&mut worker, &job.set(0, Entry::Sealed(extent)));
        sums.push(String::from_utf8(node.bytes(done.sealed[0].2)).expect("text"));
    }
    assert_eq!(sums[0], sums[1]);
    assert!(sums[0].starts_with("{\"bytes\": 300000, \"sum\": \""), "{}", sums[0]);
}

#[test]
fn synthetic_faults_end_as_they_should() {
    let mut node = Node::new();
    let zygote = node.builtin("synthetic");
    for (spec, exit) in [(r#"{"exit": 3}"#, Exit::Code(3)), (r#"{"crash": true}"#, Exit::Signal(11))] {
        let mut worker = node.fork(&zygote);
        let job = node.job(vec![("spec", inline(spec))], vec![]);
        worker.link.send(&Command::Invoke(job.invoke.clone())).expect("room");
        assert_eq!(zygote.exited(&worker), exit, "{spec}");
    }
    let mut worker = node.fork(&zygote);
    let mut job = node.job(vec![("spec", inline(r#"{"fail": "Odd", "attempts": 1}"#))], vec![]);
    assert_eq!(error(&node.run(&mut worker, &job)).0, "Odd");
    job = node.job(vec![("spec", inline(r#"{"fail": "Odd", "attempts": 1}"#))], vec![]);
    job.invoke.attempt = 2;
    assert_eq!(node.run(&mut worker, &job).outcome, Some(Outcome::Ok));
    job = node.job(vec![("spec", inline(r#"{"child_ms": 60000}"#))], vec![]);
    assert!(node.run(&mut worker, &job).tainted);
    job = node.job(vec![("spec", inline(r#"{"sleep_ms": "#))], vec![]);
    assert_eq!(error(&node.run(&mut worker, &job)).0, "DFLOW_E_ARGUMENT");
}

#[test]
fn log_prints_its_inputs() {
    let mut node = Node::new();
    let zygote = node.builtin("log");
    let mut worker = node.fork(&zygote);
    let job = node.job(vec![("message", inline("hello"))], vec![]);
    assert_eq!(node.run(&mut worker, &job).outcome, Some(Outcome::Ok));
    assert_eq!(node.printed(), "message: hello\n");
}

#[test]
fn a_worker_that_waits_for_memory_gives_its_token_back() {
    let mut node = Node::new();
    let zygote = node.builtin("synthetic");
    let mut worker = node.fork(&zygote);
    let spec = r#"{"out": [{"port": "out", "bytes": 1000000}]}"#;
    let job = node.job(vec![("spec", inline(spec))], vec![output("out", PortKind::Plain)]);
    worker.link.send(&Command::Invoke(job.invoke.clone())).expect("room");
    let ticket = loop {
        if let Report::Reserve { ticket, .. } = node.next_report(&mut worker) {
            break ticket;
        }
    };
    assert_eq!(node.next_report(&mut worker), Report::Blocked);
    let extent = node.alloc(1_000_000);
    worker.link.send(&Command::Granted { ticket, extent }).expect("room");
    assert_eq!(node.next_report(&mut worker), Report::Resumed);
    assert_eq!(node.finish(&mut worker).outcome, Some(Outcome::Ok));
}
