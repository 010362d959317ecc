use super::*;
use crate::graph::*;
use alloc::{format, string::String};

const TWO: [NodeFacts; 2] = [NodeFacts { cpu_milli: 1000 }, NodeFacts { cpu_milli: 1000 }];

fn step(name: usize, reads: &[u32], estimate_us: u64, hint_bytes: u64) -> Step {
    let input = |&of: &u32| InputPort {
        name: format!("i{of}"),
        ty: PortType::Bytes,
        source: Source::Output { step: of, port: 0 },
        optional: false,
    };
    let output = OutputPort {
        name: String::from("o"),
        ty: PortType::Bytes,
        kind: PortKind::Plain,
        hint_bytes,
        bytes_max: 0,
        items_max: 0,
        file: false,
    };
    Step {
        name: format!("s{name}"),
        kind: StepKind::Call(0),
        inputs: reads.iter().map(input).collect(),
        outputs: vec![output],
        when: None,
        foreach: None,
        after: Vec::new(),
        start: StartPolicy::FirstByte,
        retry: Retry::default(),
        timeout_ms: 0,
        cpu_milli: 1000,
        estimate_us,
        on_failure: OnFailure::Fail,
    }
}

fn graph(steps: &[(&[u32], u64, u64)]) -> Graph {
    let function = Function { name: String::from("f"), workers_max: 8, deterministic: false };
    let steps = steps.iter().enumerate().map(|(i, (reads, us, bytes))| step(i, reads, *us, *bytes));
    Graph { functions: vec![function], steps: steps.collect(), ..Graph::default() }
}

/// A list, and a foreach over it.
fn wide() -> Graph {
    let mut wide = graph(&[(&[], 0, 0), (&[0], 0, 0)]);
    wide.steps[1].foreach = Some(Foreach {
        over: Source::Output { step: 0, port: 0 },
        json: false,
        parallel_max: 0,
        items_max: 0,
        tolerate: Tolerate::Count(0),
    });
    wide
}

fn leads(draft: &Draft) -> Vec<NodeIndex> {
    draft.placement.steps.iter().map(Place::lead).collect()
}

#[test]
fn a_chain_stays_where_its_data_is() {
    let chain = graph(&[(&[], 0, 0), (&[0], 0, 0), (&[1], 0, 0), (&[2], 0, 0)]);
    let draft = place(&chain, &TWO, 50, Known::default()).unwrap();
    assert_eq!(leads(&draft), [0, 0, 0, 0]);
    assert_eq!(draft.times_us[3], (3 * UNKNOWN_US, 4 * UNKNOWN_US));
}

#[test]
fn branches_spread_when_that_ends_sooner() {
    let fan = graph(&[(&[], 1_000, 1_000), (&[0], 50_000, 0), (&[0], 50_000, 0), (&[1, 2], 1_000, 0)]);
    let draft = place(&fan, &TWO, 50, Known::default()).unwrap();
    let nodes = leads(&draft);
    assert_ne!(nodes[1], nodes[2], "{draft:?}");
    assert!(draft.times_us[3].1 < 100_000, "{draft:?}");
}

#[test]
fn large_data_keeps_branches_together() {
    let fan = graph(&[(&[], 1_000, 100_000_000), (&[0], 50_000, 0), (&[0], 50_000, 0)]);
    let draft = place(&fan, &TWO, 50, Known::default()).unwrap();
    assert_eq!(leads(&draft), [0, 0, 0]);
    assert_eq!(draft.moved_bytes, 0);
}

#[test]
fn larger_nodes_get_more_turns() {
    let nodes = |cpus: &[u32]| cpus.iter().map(|&cpu_milli| NodeFacts { cpu_milli }).collect::<Vec<_>>();
    assert_eq!(*turns(&nodes(&[2000, 4000, 1000])), [0, 1, 2, 0, 1, 1, 1]);
    assert_eq!(*turns(&nodes(&[0, 0])), [0, 1]);
}

#[test]
fn wishes_bind() {
    let chain = graph(&[(&[], 0, 0), (&[0], 0, 0), (&[1], 0, 0)]);
    let on = |node| Wish::Among(Box::new([node]));
    let wishes = [on(1), Wish::Anywhere, on(0)];
    let draft = place(&chain, &TWO, 50, Known { wishes: &wishes, ..Known::default() }).unwrap();
    assert_eq!(leads(&draft), [1, 1, 0]);

    let wide = wide();
    let hosts = |wish| {
        let wishes = [Wish::Anywhere, wish];
        let known = Known { wishes: &wishes, ..Known::default() };
        place(&wide, &TWO, 50, known).unwrap().placement.steps[1].hosts().to_vec()
    };
    assert_eq!(hosts(Wish::Anywhere), [0, 1]);
    assert_eq!(hosts(Wish::Together), [0]);
    assert_eq!(hosts(on(1)), [1]);
}

#[test]
fn what_would_have_to_come_back_stays() {
    // Each branch would end sooner elsewhere, and the join would then wait for its output to come back.
    let graph = graph(&[(&[], 0, 0), (&[0], 0, 0), (&[0], 0, 0), (&[1, 2], 0, 0)]);
    let cost = |run_us, bytes| Cost { run_us, items: 1, bytes: Box::new([bytes]) };
    let costs = [cost(1_000, 500_000), cost(12_000, 1_500_000), cost(12_000, 1_500_000), cost(1_000, 0)];
    let place = |bandwidth| {
        let known = Known { costs: &costs, ..Known::default() };
        leads(&place(&graph, &TWO, bandwidth, known).unwrap())
    };
    assert_eq!(place(50), [0, 0, 0, 0], "26 ms, instead of 1 + 12 + 30 + 1");
    assert_ne!(place(5_000)[1], place(5_000)[2]);
}

#[test]
fn a_link_carries_one_transfer_after_the_other() {
    // One output of 10 ms on the link, and three readers of 15 ms for two cores.
    let cost = |run_us, bytes| Cost { run_us, items: 1, bytes: Box::new([bytes]) };
    let fan = graph(&[(&[], 0, 0), (&[0], 0, 0), (&[0], 0, 0), (&[0], 0, 0)]);
    let costs = [cost(1_000, 500_000), cost(15_000, 0), cost(15_000, 0), cost(15_000, 0)];
    let known = Known { costs: &costs, ..Known::default() };
    let draft = place(&fan, &TWO, 50, known).unwrap();
    // One copy serves all of its readers there.
    assert_eq!(draft.moved_bytes, 500_000, "{draft:?}");
    let chain = graph(&[(&[], 0, 0), (&[], 0, 0), (&[0, 1], 0, 0)]);
    let costs = [cost(50_000, 2_000_000), cost(50_000, 1_000_000), cost(1_000, 0)];
    let draft = place(&chain, &TWO, 50, Known { costs: &costs, ..Known::default() }).unwrap();
    // Two steps side by side; the smaller output is the one that moves.
    assert_ne!(leads(&draft)[0], leads(&draft)[1]);
    assert_eq!((leads(&draft)[2], draft.moved_bytes), (leads(&draft)[0], 1_000_000), "{draft:?}");
}

#[test]
fn absurd_times_and_sizes_are_the_largest_there_are() {
    let mut wide = wide();
    wide.steps.extend(graph(&[(&[1], 0, 0), (&[0, 1], 0, 0), (&[2, 3], 0, 0)]).steps);
    let wild = [u64::MAX, u64::MAX / 2, u64::MAX / 100, 1];
    for (run_us, bytes) in wild.iter().flat_map(|run_us| wild.map(|bytes| (*run_us, bytes))) {
        for items in [0, 1, 3, u64::MAX] {
            let cost = Cost { run_us, items, bytes: Box::new([bytes, bytes]) };
            let costs = vec![cost; wide.steps.len()];
            for wish in [Wish::Anywhere, Wish::Among(Box::new([1])), Wish::Among(Box::new([0, 1]))] {
                let wishes = [Wish::Anywhere, wish];
                let known = Known { costs: &costs, inputs: &[u64::MAX], wishes: &wishes };
                let draft = place(&wide, &TWO, 1, known).unwrap();
                assert!(draft.times_us.iter().all(|(start, end)| start <= end), "{draft:?}");
                assert!(draft.ends_us() >= run_us, "{draft:?}");
            }
        }
    }
}

#[test]
fn items_are_dealt_out_where_that_pays() {
    let wide = wide();
    let hosts = |run_us, list_bytes| {
        let costs = [
            Cost { run_us: 1_000, items: 1, bytes: Box::new([list_bytes]) },
            Cost { run_us, items: 8, bytes: Box::new([8]) },
        ];
        let known = Known { costs: &costs, ..Known::default() };
        place(&wide, &TWO, 50, known).unwrap().placement.steps[1].hosts().len()
    };
    assert_eq!(hosts(20_000, 8_000), 2, "80 ms saved, nothing to move");
    assert_eq!(hosts(20_000, 80_000_000), 1, "80 ms saved, 800 ms of moving");
    assert_eq!(hosts(10, 8), 1, "40 us saved, a hand-over of 200");
}
