//! Programs as functions.

mod node;

use dflow_proto::link::{InputValue, Outcome, PortKind};
use dflow_shm::segment::Segment;
use dflow_shm::table::{ChunkNeeded, Entry};
use node::{Done, Job, Node, Worker, error, inline, one, output};

fn run(node: &mut Node, worker: &mut Worker, job: &Job) -> Done {
    let done = node.run(worker, job);
    assert_eq!(done.outcome, Some(Outcome::Ok));
    done
}

#[test]
fn files_in_and_out() {
    let mut node = Node::new();
    let script =
        "tr a-z A-Z < \"$1\" > \"$2\"; printf %s \"$3:$DFLOW_STEP:$DFLOW_IN_TIMES\" > \"$DFLOW_OUT_NOTE\"";
    let command = ["sh", "-c", script, "sh", "{in.text}", "{out.big}", "n={in.times}"];
    let zygote = node.exec(&command, None, None);
    let mut worker = node.fork(&zygote);
    // A small object lies among others and is copied; a large one is a segment of its own.
    let small = node.put(b"small");
    let large = vec![b'l'; 200_000];
    let segment = Segment::create(dflow_proto::SegmentId(1), "object", 200_000).expect("a memfd");
    let whole = dflow_proto::ids::Extent { segment: segment.id(), offset: 0, bytes: 200_000 };
    segment.map_node().expect("maps").part_mut(whole).expect("in bounds").copy_in(0, &large);
    worker.show(&segment, false);
    node.segments.push(segment);
    for (extent, text) in [(small, b"small".to_vec()), (whole, large)] {
        let outputs = vec![output("big", PortKind::Plain), output("note", PortKind::Plain)];
        let job = node.job(vec![("text", one(0)), ("times", inline("3"))], outputs);
        let done = run(&mut node, &mut worker, &job.set(0, Entry::Sealed(extent)));
        assert_eq!(node.bytes(done.sealed[0].2), text.to_ascii_uppercase());
        assert_eq!(node.bytes(done.sealed[1].2), b"n=3:step:3");
        let adopted = done.sealed[0].2.segment.0 > 0;
        assert_eq!(adopted, text.len() > 100_000, "a large output becomes a segment as it is");
    }
    let left: Vec<_> = std::fs::read_dir(&zygote.scratch).expect("a directory").collect();
    assert!(left.is_empty(), "an ended invocation leaves no files");
    assert!(!zygote.abandon().exists());
}

#[test]
fn standard_input_and_output_are_ports() {
    let mut node = Node::new();
    let zygote = node.exec(&["tr", "a-z", "A-Z"], Some("text"), Some("out"));
    let mut worker = node.fork(&zygote);
    let text = "abc\n".repeat(100_000);
    for kind in [PortKind::Plain, PortKind::Stream] {
        let extent = node.put(text.as_bytes());
        let job = node.job(vec![("text", one(0))], vec![output("out", kind)]);
        let done = run(&mut node, &mut worker, &job.set(0, Entry::Sealed(extent)));
        assert_eq!(node.bytes(done.sealed[0].2), text.to_uppercase().as_bytes());
        assert_eq!(
            done.first_bytes.is_empty(),
            kind == PortKind::Plain,
            "a stream is readable while it grows"
        );
    }
    let job = node.job(vec![("text", inline("value"))], vec![output("out", PortKind::Plain)]);
    let done = run(&mut node, &mut worker, &job);
    assert_eq!(node.bytes(done.sealed[0].2), b"VALUE");
    let mut job = node.job(vec![("text", inline("value"))], vec![output("out", PortKind::Stream)]);
    job.invoke.outputs[0].bytes_max = 3;
    assert_eq!(error(&node.run(&mut worker, &job)).0, "OutputTooLarge");
}

#[test]
fn a_directory_is_a_list() {
    let mut node = Node::new();
    let script = "for i in 000 001 002 003; do echo $i > {out.parts}/p$i.txt; done; echo last > {out.parts}/z; \
                  head -c 100000 /dev/zero > {out.parts}/a";
    let zygote = node.exec(&["sh", "-c", script], None, None);
    let mut worker = node.fork(&zygote);
    let job = node.job(vec![], vec![output("parts", PortKind::Many)]);
    let done = run(&mut node, &mut worker, &job);
    assert_eq!(done.pinned, [(0, 6)]);
    assert_eq!(done.sealed[4].2.bytes, 100_000, "a numbered series comes first");
    let items: Vec<Vec<u8>> = done.sealed.iter().map(|(_, _, extent)| node.bytes(*extent)).collect();
    for (index, text) in ["000\n", "001\n", "002\n", "003\n"].iter().enumerate() {
        assert_eq!(items[index], text.as_bytes());
    }
    assert_eq!(items[5], b"last\n", "then the rest by name");
}

#[test]
fn a_list_is_a_directory() {
    let mut node = Node::new();
    let zygote = node.exec(&["cat", "{in.parts}"], None, Some("out"));
    let mut worker = node.fork(&zygote);
    let mut job =
        node.job(vec![("parts", InputValue::List { index: 0 })], vec![output("out", PortKind::Plain)]);
    job.table.set_list(0);
    for part in ["one ", "two ", "three"] {
        let entry = Entry::Sealed(node.put(part.as_bytes()));
        if let Err(ChunkNeeded { bytes }) = job.table.append(0, entry) {
            let chunk = node.alloc(bytes);
            job.table.add_chunk(0, node.map.part_mut(chunk).expect("in bounds"));
            job.table.append(0, entry).expect("room");
        }
    }
    job.table.pin(0);
    let done = run(&mut node, &mut worker, &job);
    assert_eq!(node.bytes(done.sealed[0].2), b"one two three", "each item is one word of the command");
}

#[test]
fn how_a_program_ends_is_how_the_invocation_ends() {
    let mut node = Node::new();
    let cases = [
        ("exit 75", Outcome::Exit { code: 75 }),
        ("kill -TERM $$", Outcome::Signal { signal: 15 }),
        ("exit 0", Outcome::Ok),
    ];
    for (script, outcome) in cases {
        let zygote = node.exec(&["sh", "-c", script], None, None);
        let mut worker = node.fork(&zygote);
        let job = node.job(vec![], vec![]);
        assert_eq!(node.run(&mut worker, &job).outcome, Some(outcome), "{script}");
    }
    let zygote = node.exec(&["true"], None, None);
    let mut worker = node.fork(&zygote);
    let job = node.job(vec![], vec![output("out", PortKind::Plain)]);
    assert_eq!(error(&node.run(&mut worker, &job)).0, "OutputMissing");
}

#[test]
fn a_process_left_behind_is_told() {
    let mut node = Node::new();
    let zygote = node.exec(&["sh", "-c", "sleep 60 & echo started"], None, None);
    let mut worker = node.fork(&zygote);
    let job = node.job(vec![], vec![]);
    assert!(node.run(&mut worker, &job).tainted);
    assert_eq!(node.printed(), "started\n");
}
