//! Hand-overs from function process to function process, past the node.

mod node;

use dflow_proto::link::{Command, InputValue, Outcome, PortKind, Report};
use dflow_shm::page::SlotState;
use dflow_shm::table::Entry;
use node::{Done, Job, Node, Worker, inline, library, one, output};
use std::time::Duration;

/// A worker that runs `symbol`; its zygote must live as long.
fn worker(node: &mut Node, symbol: &str) -> (node::Zygote, Worker) {
    let zygote = node.native(&library("native"), symbol);
    let worker = node.fork(&zygote);
    (zygote, worker)
}

/// Invokes a consumer and waits until it sleeps in its get.
fn invoke_and_block(node: &mut Node, worker: &mut Worker, job: &Job) {
    worker.link.send(&Command::Invoke(job.invoke.clone())).expect("room");
    while node.next_report(worker) != Report::Blocked {}
    // The report comes just before the futex call.
    std::thread::sleep(Duration::from_millis(20));
}

fn text(node: &Node, done: &Done) -> String {
    assert_eq!(done.outcome, Some(Outcome::Ok));
    String::from_utf8(node.bytes(done.sealed[0].2)).expect("text")
}

#[test]
fn a_put_wakes_the_reader_without_the_node() {
    let mut node = Node::new();
    let (_zp, mut producer) = worker(&mut node, "upper");
    let (_zc, mut consumer) = worker(&mut node, "upper");
    let extent = node.put(b"through");
    let first = node.job(vec![("text", one(0))], vec![output("out", PortKind::Plain)]);
    let first = first.set(0, Entry::Sealed(extent));
    let page = Entry::Page { page: first.invoke.allotment, port: 0, item: None };
    let second = node.job(vec![("text", one(0))], vec![output("out", PortKind::Plain)]).set(0, page);
    invoke_and_block(&mut node, &mut consumer, &second);
    producer.link.send(&Command::Invoke(first.invoke.clone())).expect("room");
    // The node does nothing at all here: the consumer ends because the producer woke it.
    let done = node.finish(&mut consumer);
    assert_eq!(text(&node, &done), "THROUGH");
    assert!(done.times.wait_us >= 20_000 && done.times.wait_us <= done.times.total_us);
    assert_eq!(node.finish(&mut producer).outcome, Some(Outcome::Ok));
}

#[test]
fn a_reader_follows_a_growing_object() {
    let mut node = Node::new();
    let (_zp, mut producer) = worker(&mut node, "fill");
    let (_zc, mut consumer) = worker(&mut node, "follow");
    let bytes = inline("20000");
    let first = node.job(vec![("bytes", bytes)], vec![output("out", PortKind::Stream)]);
    let page = Entry::Page { page: first.invoke.allotment, port: 0, item: None };
    let second = node.job(vec![("text", one(0))], vec![output("out", PortKind::Plain)]).set(0, page);
    invoke_and_block(&mut node, &mut consumer, &second);
    let produced = node.run(&mut producer, &first);
    let whole = node.bytes(produced.sealed[0].2);
    let done = node.finish(&mut consumer);
    assert_eq!(done.outcome, Some(Outcome::Ok));
    let mut seen = node.bytes(done.sealed[0].2);
    seen.pop();
    // Bars mark where reads ended; the bytes themselves contain some too.
    let mut left = whole.iter().peekable();
    for byte in &seen {
        if left.peek() == Some(&byte) {
            left.next();
        } else {
            assert_eq!(*byte, b'|');
        }
    }
    assert_eq!(left.next(), None);
}

#[test]
fn items_flow_one_by_one_and_the_count_ends_them() {
    let mut node = Node::new();
    let (_zp, mut producer) = worker(&mut node, "lines");
    let (_zc, mut consumer) = worker(&mut node, "join");
    let lines: String = (0..500).map(|n| format!("{n}\n")).collect();
    let extent = node.put(lines.as_bytes());
    let first = node.job(vec![("text", one(0))], vec![output("out", PortKind::Many)]);
    let first = first.set(0, Entry::Sealed(extent));
    let follow = Entry::Follow { page: first.invoke.allotment, port: 0 };
    let list = InputValue::List { index: 0 };
    let second = node.job(vec![("list", list)], vec![output("out", PortKind::Plain)]).set(0, follow);
    invoke_and_block(&mut node, &mut consumer, &second);
    assert_eq!(node.run(&mut producer, &first).outcome, Some(Outcome::Ok));
    let done = node.finish(&mut consumer);
    assert_eq!(text(&node, &done), format!("{lines}(500)"));
}

#[test]
fn a_dead_producers_reader_continues_with_the_next_attempt() {
    let mut node = Node::new();
    let (zp, producer) = worker(&mut node, "upper");
    let (_zc, mut consumer) = worker(&mut node, "upper");
    let first = node.job(vec![("text", one(0))], vec![output("out", PortKind::Plain)]);
    let page = Entry::Page { page: first.invoke.allotment, port: 0, item: None };
    let mut second = node.job(vec![("text", one(0))], vec![output("out", PortKind::Plain)]).set(0, page);
    invoke_and_block(&mut node, &mut consumer, &second);
    zp.kill(&producer);
    second.table.set(0, Entry::Pending);
    second.table.wake();
    first.page.poke(SlotState::Failed);
    std::thread::sleep(Duration::from_millis(20));
    let extent = node.put(b"second try");
    second.table.set(0, Entry::Sealed(extent));
    second.table.wake();
    let done = node.finish(&mut consumer);
    assert_eq!(text(&node, &done), "SECOND TRY");

    // And one that will never be ends the invocation as poisoned.
    let mut third = node.job(vec![("text", one(0))], vec![output("out", PortKind::Plain)]);
    invoke_and_block(&mut node, &mut consumer, &third);
    third.table.set(0, Entry::Failed);
    third.table.wake();
    assert_eq!(node.finish(&mut consumer).outcome, Some(Outcome::Poisoned));
}

#[test]
fn an_object_of_its_own_is_shown_when_it_is_named() {
    let mut node = Node::new();
    let (_zp, mut producer) = worker(&mut node, "upper");
    let (_zc, mut consumer) = worker(&mut node, "upper");
    let extent = node.put(&[b'q'; 100_000]);
    let mut first = node.job(vec![("text", one(0))], vec![output("out", PortKind::Plain)]);
    first.invoke.outputs[0].file = true;
    let first = first.set(0, Entry::Sealed(extent));
    let done = node.run(&mut producer, &first);
    let object = done.sealed[0].2;
    assert_eq!((object.segment.0, object.offset, object.bytes), (1, 0, 100_000));
    assert_eq!(node.segments[0].file_bytes().expect("a size"), 100_000);
    let second = node.job(vec![("text", one(0))], vec![output("out", PortKind::Plain)]);
    let second = second.set(0, Entry::Sealed(object));
    worker_sees_late(&mut node, &mut consumer, &second);
}

/// Invokes with an input in a segment that is only shown afterwards.
fn worker_sees_late(node: &mut Node, consumer: &mut Worker, job: &Job) {
    consumer.link.send(&Command::Invoke(job.invoke.clone())).expect("room");
    std::thread::sleep(Duration::from_millis(20));
    consumer.show(&node.segments[0], false);
    let done = node.finish(consumer);
    assert_eq!(text(node, &done), "Q".repeat(100_000));
}
