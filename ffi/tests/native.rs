//! Native functions in real forked workers.

mod node;

use dflow_proto::link::{InputValue, Outcome, PortKind, PortType};
use dflow_proto::zygote::{Exit, FromZygote};
use dflow_shm::spawn::RuntimeArgs;
use dflow_shm::table::Entry;
use node::{Job, Node, Worker, Zygote, error, inline, library, one, output};

fn start(symbol: &str) -> (Node, Zygote, Worker) {
    let mut node = Node::new();
    let zygote = node.native(&library("native"), symbol);
    let worker = node.fork(&zygote);
    (node, zygote, worker)
}

fn sealed_input(node: &mut Node, data: &[u8], kind: PortKind) -> Job {
    let extent = node.put(data);
    node.job(vec![("text", one(0))], vec![output("out", kind)]).set(0, Entry::Sealed(extent))
}

#[test]
fn one_worker_runs_many_invocations() {
    let (mut node, _zygote, mut worker) = start("upper");
    for n in 0..50 {
        let text = format!("abc {n}");
        let job = sealed_input(&mut node, text.as_bytes(), PortKind::Plain);
        let done = node.run(&mut worker, &job);
        assert_eq!(done.outcome, Some(Outcome::Ok));
        assert_eq!(node.bytes(done.sealed[0].2), text.to_uppercase().as_bytes());
        assert!(job.invoke.allotment.contains(&done.sealed[0].2), "small outputs need no round trip");
        assert_eq!((done.reserves, done.blocked, done.tainted), (0, 0, false));
    }
    assert!(node.printed().starts_with("test/step attempt 1: 5 bytes\n"));
}

#[test]
fn large_puts_are_followed_and_reserved_ones_filled_in_place() {
    let (mut node, _zygote, mut worker) = start("upper");
    let data = vec![b'z'; 9 << 20];
    let job = sealed_input(&mut node, &data, PortKind::Plain);
    let done = node.run(&mut worker, &job);
    assert_eq!(done.outcome, Some(Outcome::Ok));
    assert_eq!(done.first_bytes, [0], "readers may follow the copy");
    assert_eq!(node.bytes(done.sealed[0].2), vec![b'Z'; 9 << 20]);

    let (mut node, _zygote, mut worker) = start("fill");
    for bytes in [10_u64, 40_000, 3 << 20] {
        let job =
            node.job(vec![("bytes", inline(&bytes.to_string()))], vec![output("out", PortKind::Stream)]);
        let done = node.run(&mut worker, &job);
        assert_eq!(done.outcome, Some(Outcome::Ok));
        let expected: Vec<u8> = (0..bytes).map(|i| (i * 31) as u8).collect();
        assert_eq!(node.bytes(done.sealed[0].2), expected);
        assert_eq!(done.reserves, u32::from(bytes > 60_000), "the allotment is used where it suffices");
    }
}

#[test]
fn a_grant_made_beforehand_is_used_or_given_back() {
    let (mut node, _zygote, mut worker) = start("fill");
    for (hint, used) in [(4_u64 << 20, true), (8192, false)] {
        let grant = node.alloc(hint);
        let bytes = (1 << 20).to_string();
        let mut job = node.job(vec![("bytes", inline(&bytes))], vec![output("out", PortKind::Plain)]);
        job.invoke.outputs[0].granted = Some(grant);
        let done = node.run(&mut worker, &job);
        assert_eq!(done.outcome, Some(Outcome::Ok));
        assert_eq!(grant.contains(&done.sealed[0].2), used);
        assert_eq!((done.reserves, done.unused.len()), if used { (0, 0) } else { (1, 1) });
    }
}

#[test]
fn a_list_outgrows_its_first_allotment() {
    let (mut node, _zygote, mut worker) = start("lines");
    let text: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
    let job = sealed_input(&mut node, text.as_bytes(), PortKind::Many);
    let done = node.run(&mut worker, &job);
    assert_eq!(done.outcome, Some(Outcome::Ok));
    assert_eq!(done.pinned, [(0, 20_000)]);
    assert!(done.extends <= 6 && done.reserves == 0, "{} extensions", done.extends);
    assert_eq!(done.sealed.len(), 20_000);
    for (index, (_, item, extent)) in done.sealed.iter().enumerate() {
        assert_eq!(*item as usize, index);
        assert_eq!(node.bytes(*extent), format!("line {index}\n").as_bytes());
    }
    let job = sealed_input(&mut node, b"", PortKind::Many);
    let done = node.run(&mut worker, &job);
    assert_eq!((done.outcome, done.pinned), (Some(Outcome::Ok), vec![(0, 0)]));
}

#[test]
fn limits_of_ports_hold() {
    let (mut node, _zygote, mut worker) = start("lines");
    let mut job = sealed_input(&mut node, b"a\nb\nc\n", PortKind::Many);
    job.invoke.outputs[0].items_max = 2;
    let done = node.run(&mut worker, &job);
    assert_eq!(error(&done), ("TooManyItems", "output \"out\" has more than its max_items of 2"));
    let mut job = sealed_input(&mut node, b"abcdef\n", PortKind::Many);
    job.invoke.outputs[0].bytes_max = 5;
    let done = node.run(&mut worker, &job);
    assert_eq!(error(&done).0, "OutputTooLarge");
    // The worker is as good as before.
    let job = sealed_input(&mut node, b"abcdef\n", PortKind::Many);
    assert_eq!(node.run(&mut worker, &job).outcome, Some(Outcome::Ok));
}

#[test]
fn failures_have_their_class() {
    let cases = [
        ("put_twice", "PutTwice", "was put before"),
        ("put_never", "OutputMissing", "\"out\" was never put"),
        ("put_too_much", "OutputTooLarge", "reserve more"),
        ("reserve_only", "OutputMissing", "reserved but never sealed"),
        ("own_error", "Sour", "the milk is sour"),
    ];
    for (symbol, name, text) in cases {
        let (mut node, _zygote, mut worker) = start(symbol);
        let job = node.job(vec![("bytes", inline("300000"))], vec![output("out", PortKind::Plain)]);
        let done = node.run(&mut worker, &job);
        let (class, message) = error(&done);
        assert_eq!(class, name, "{symbol}");
        assert!(message.contains(text), "{symbol}: {message}");
        assert_eq!(done.unused.len(), usize::from(symbol == "reserve_only"), "an unsealed grant goes back");
    }
    let (mut node, _zygote, mut worker) = start("own_status");
    let job = node.job(vec![], vec![]);
    assert_eq!(node.run(&mut worker, &job).outcome, Some(Outcome::Exit { code: 17 }));
}

#[test]
fn stray_writes_fault_in_the_function_that_makes_them() {
    for symbol in ["write_after_seal", "write_to_input"] {
        let (mut node, zygote, mut worker) = start(symbol);
        let job = sealed_input(&mut node, b"text", PortKind::Plain);
        worker.link.send(&dflow_proto::link::Command::Invoke(job.invoke.clone())).expect("room");
        assert_eq!(zygote.exited(&worker), Exit::Signal(11), "{symbol}");
    }
}

#[test]
fn every_visible_misuse_is_a_code() {
    let (mut node, _zygote, mut worker) = start("misuse");
    let extent = node.put(b"text");
    let inputs = vec![("text", one(0)), ("list", InputValue::List { index: 1 }), ("none", InputValue::Null)];
    let job = node.job(inputs, vec![output("out", PortKind::Plain)]).set(0, Entry::Sealed(extent));
    let done = node.run(&mut worker, &job);
    assert_eq!(done.outcome, Some(Outcome::Ok));
}

#[test]
fn parameters_are_text() {
    let (mut node, _zygote, mut worker) = start("fill");
    let mut job = node.job(vec![("bytes", inline("\"1\\u0032\""))], vec![output("out", PortKind::Plain)]);
    job.invoke.inputs[0].ty = PortType::Json;
    let done = node.run(&mut worker, &job);
    assert_eq!(done.sealed[0].2.bytes, 12);
}

#[test]
fn what_cannot_be_loaded_says_so() {
    let node = Node::new();
    let cases = [
        (std::path::PathBuf::from("/nonexistent/lib.so"), "f", "cannot open the shared library"),
        (library("native"), "nosuch", "has no symbol nosuch"),
    ];
    for (library, symbol, text) in cases {
        let zygote = node.zygote(RuntimeArgs::Native { library, symbol: symbol.into() });
        match zygote.receive() {
            FromZygote::LoadFailed { message, .. } => assert!(message.contains(text), "{message}"),
            other => panic!("{other:?}"),
        }
        assert!(zygote.is_closed());
        assert!(!zygote.abandon().exists(), "no scratch directory is left");
    }
}
