use super::*;
use crate::graph::*;
use alloc::{format, string::String};

const ONE: NodeFacts = NodeFacts { cpu_milli: 1000, load: Load { work_us: 0, width_milli: 0 } };
const TWO: [NodeFacts; 2] = [ONE; 2];

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
    let nodes =
        |cpus: &[u32]| cpus.iter().map(|&cpu_milli| NodeFacts { cpu_milli, ..ONE }).collect::<Vec<_>>();
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

#[test]
fn items_are_dealt_to_who_is_free_first() {
    let wide = wide();
    let hosts = |nodes: &[NodeFacts], items, list_bytes| {
        let costs = [
            Cost { run_us: 1_000, items: 1, bytes: Box::new([list_bytes]) },
            Cost { run_us: 20_000, items, bytes: Box::new([8]) },
        ];
        let known = Known { costs: &costs, ..Known::default() };
        place(&wide, nodes, 50, known).unwrap().placement.steps[1].hosts().to_vec()
    };
    assert_eq!(hosts(&TWO, 8, 8), [0, 1], "in turns, and the pattern is told once");
    let larger = [ONE, NodeFacts { cpu_milli: 3000, ..ONE }];
    assert_eq!(hosts(&larger, 8, 8), [1, 1, 1, 0], "led by the larger");
    // Busy for as long as two items take, with its one core.
    let busy = NodeFacts { load: Load { work_us: 40_000, width_milli: 5_000 }, ..ONE };
    let dealt = hosts(&[ONE, busy], 8, 8);
    assert_eq!(dealt.iter().filter(|node| **node == 1).count(), 3, "{dealt:?}");
    // Each item takes as long on the link as on a core: while one moves, one is done at home.
    let dealt = hosts(&[ONE; 3], 6, 6_000_000);
    assert!(dealt.iter().filter(|node| **node == 0).count() >= 3, "{dealt:?}");
}

#[test]
fn a_run_goes_where_there_is_room() {
    let cost = |run_us, bytes| Cost { run_us, items: 1, bytes: Box::new([bytes]) };
    let chain = graph(&[(&[], 0, 0), (&[0], 0, 0)]);
    let costs = [cost(10_000, 1_000), cost(10_000, 1_000)];
    let known = Known { costs: &costs, ..Known::default() };
    let over = |home: Load, other: Load| {
        let nodes = [NodeFacts { load: home, ..ONE }, NodeFacts { load: other, ..ONE }];
        leads(&place(&chain, &nodes, 50, known).unwrap())
    };
    let load = |work_us| Load { work_us, width_milli: 1000 };
    assert_eq!(over(load(0), load(0)), [0, 0]);
    assert_eq!(over(load(30_000), load(0)), [1, 1]);
    assert_eq!(over(load(30_000), load(30_000)), [0, 0]);
    assert_eq!(over(load(2_000), load(0)), [0, 0], "the wait is shorter than what spreading must gain");
}

#[test]
fn loads_tell_who_was_given_how_much() {
    let cost = |run_us, items| Cost { run_us, items, bytes: Box::new([0]) };
    let wide = wide();
    let hosts = Box::new([0, 1, 1]);
    let steps = vec![Place::On(0), Place::Spread { lead: 0, hosts }];
    let placement = Placement { nodes: 2, steps };
    let loads = super::super::loads(&wide, &[cost(1_000, 1), cost(3_000, 6)], &placement);
    // The longest way is 4 ms; of 18 ms of items a third stays.
    assert_eq!(loads[0], Load { work_us: 7_000, width_milli: 1_750 });
    assert_eq!(loads[1], Load { work_us: 12_000, width_milli: 3_000 });
}

#[test]
fn what_a_run_hands_back_has_to_come_home() {
    let mut one = graph(&[(&[], 0, 0)]);
    let costs = [Cost { run_us: 100_000, items: 1, bytes: Box::new([4_000_000]) }];
    let known = Known { costs: &costs, ..Known::default() };
    let busy = NodeFacts { load: Load { work_us: 60_000, width_milli: 1000 }, ..ONE };
    assert_eq!(leads(&place(&one, &[busy, ONE], 50, known).unwrap()), [1], "100 ms instead of 160");
    let source = Source::Output { step: 0, port: 0 };
    one.outputs.push(RunOutput { name: String::from("o"), source });
    let draft = place(&one, &[busy, ONE], 50, known).unwrap();
    assert_eq!((leads(&draft), draft.ends_us()), (vec![0], 160_000), "the output is on its link for 80 ms");
}
