//! Workflows over two nodes whose outputs cross by RDMA, also when the card is taken away in mid-transfer. The fault is
//! real, so it needs a guest; `DFLOW_GUEST` names one.

#![expect(clippy::print_stdout, reason = "it tells what carried the bytes")]
#![cfg(feature = "rdma")]

use dflow_control::node::{
    ClusterConfig, LinkView, Node, NodeConfig, OutputValue, PeerConfig, RunSpec, Spread,
};
use dflow_control::workflow;
use dflow_core::placement::{Place as Lies, Placement};
use dflow_dataplane::transport::{Epoch, NodeId, Secret};
use dflow_hwtests::guest::{Place, is_guest, place};
use dflow_hwtests::run::Scene;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the other process is asked to be.
const ROLE: &str = "DFLOW_TEST_RDMA_ROLE";
const NAMES: [&str; 2] = ["ada", "bob"];
const ADDRESSES: [&str; 2] = ["10.77.0.1:7731", "10.77.0.2:7731"];
const PATIENCE: Duration = Duration::from_secs(100);
const BYTES: u64 = 192 << 20;

const FUNCTIONS: &str = r#"
import hashlib

def produce(mib: int, ctx):
    with ctx.writer("data") as out:
        for index in range(mib):
            out.write(hashlib.sha256(str(index).encode()).digest() * 32768)

def digest(data):
    return hashlib.sha256(data).hexdigest()

def check(mib: int, there: str):
    here = hashlib.sha256()
    for index in range(mib):
        here.update(hashlib.sha256(str(index).encode()).digest() * 32768)
    return "equal" if here.hexdigest() == there else "different"
"#;

fn start(index: usize) -> Node {
    let address = |i: usize| ADDRESSES[i].parse().expect("an address");
    let node = |i: usize| NodeId(i as u64 + 1);
    let mut cluster = ClusterConfig::new("rdma", node(index), NAMES[index], Epoch(1), address(index));
    cluster.secret = Secret::new("for tests");
    let other = 1 - index;
    cluster.peers =
        vec![PeerConfig { node: node(other), name: NAMES[other].into(), address: address(other) }];
    let config = NodeConfig {
        cluster: Some(cluster),
        cpu_milli: 2000,
        store_bytes: 512 << 20,
        prefault_bytes: 8 << 20,
        ..NodeConfig::default()
    };
    Node::start(config).expect("a node")
}

/// The other node's process, killed when it is dropped.
struct Other(Child);

impl Other {
    fn start() -> Other {
        let test = std::env::current_exe().expect("the path of this test");
        let mut command = Command::new("on");
        command.arg("1").arg(test).args(["workflows", "--exact", "--nocapture"]).env(ROLE, "other");
        Other(command.spawn().expect("the guest has `on`"))
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn link(node: &Node) -> LinkView {
    let peers = node.peers().expect("the engine lives");
    peers.into_iter().find_map(|peer| peer.link).unwrap_or_default()
}

fn until(what: &str, node: &Node, is: impl Fn(&LinkView) -> bool) {
    let begun = Instant::now();
    while !is(&link(node)) {
        assert!(begun.elapsed() < PATIENCE, "{what}: {:?}", link(node));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Produces on the other node, reads and checks here, while `fault` happens: what this node read over RDMA and over
/// streams meanwhile.
fn run(node: &Node, scene: &Scene, fault: impl FnOnce(&LinkView)) -> (u64, u64) {
    let function = |name: &str, output: &str| {
        format!("  {name}: {{runtime: python, handler: \"functions.py:{name}\", outputs: {{{output}}}}}\n")
    };
    let text = format!(
        "apiVersion: dflow/v1\nkind: Workflow\nmetadata: {{name: rdma}}\nfunctions:\n{}{}{}\
         steps:\n  produce: {{function: produce, in: {{mib: {mib}}}}}\n  \
         digest: {{function: digest, in: {{data: steps.produce.data}}}}\n  \
         check: {{function: check, in: {{mib: {mib}, there: steps.digest.out}}}}\n\
         outputs:\n  result: {{from: steps.check.out}}\n",
        function("produce", "data: {type: bytes}"),
        function("digest", "out: {type: text}"),
        function("check", "out: {type: text}"),
        mib = BYTES >> 20,
    );
    let workflow = workflow::parse(&text, "rdma.yaml", &scene.path("")).unwrap_or_else(|e| panic!("{e}"));
    let placement = Placement { nodes: 2, steps: vec![Lies::On(1), Lies::On(0), Lies::On(0)] };
    let spread = Spread::Given { nodes: NAMES.map(Into::into).to_vec(), placement };
    let before = link(node);
    let spec = RunSpec { workflow: Arc::new(workflow), inputs: Vec::new(), start: None, spread };
    let handle = node.submit(spec).expect("submitted");
    fault(&before);
    let result = handle.wait(Some(PATIENCE)).unwrap_or_else(|| panic!("still runs: {:?}", link(node)));
    let outputs = result.unwrap_or_else(|error| panic!("{error}"));
    let OutputValue::Object(view) = &outputs[0].1 else { panic!("{outputs:?}") };
    assert_eq!(String::from_utf8_lossy(view), "equal");
    let after = link(node);
    let read = (after.rdma_bytes - before.rdma_bytes, after.stream_bytes - before.stream_bytes);
    println!(
        "rdma: a run read {} bytes by RDMA, {} by streams; now {}: {}",
        read.0, read.1, after.transport, after.why
    );
    read
}

fn shell(script: &str) {
    assert!(Command::new("sh").args(["-c", script]).status().expect("a shell").success(), "{script}");
}

#[test]
fn workflows() {
    if std::env::var(ROLE).is_ok() {
        let _node = start(1);
        // Killed by the test, which is not to wait for it in vain.
        return std::thread::sleep(4 * PATIENCE);
    }
    if let Some(path) = NodeConfig::default().libexec.missing() {
        println!("SKIP rdma workflows: {} is not built", path.display());
        return;
    }
    let Place::Here(_) = place("workflows", 2) else { return };
    if !is_guest() {
        println!("SKIP rdma workflows: they would take this machine's card away; a guest is needed");
        return;
    }
    let scene = Scene::new();
    scene.write("functions.py", FUNCTIONS);
    let other = Other::start();
    let node = start(0);
    let up = |node: &Node| node.peers().expect("the engine lives").iter().all(|p| p.up && p.slots > 0);
    let begun = Instant::now();
    while !up(&node) {
        assert!(begun.elapsed() < PATIENCE, "the nodes do not find each other: {:?}", node.peers());
        std::thread::sleep(Duration::from_millis(5));
    }
    until("RDMA is chosen", &node, |link| link.transport == "rdma");

    let (card, streams) = run(&node, &scene, |_| {});
    assert_eq!((card, streams), (BYTES, 0), "all of it came by RDMA");

    let (card, streams) = run(&node, &scene, |before| {
        until("bytes come by RDMA", &node, |link| link.rdma_bytes > before.rdma_bytes);
        shell("rdma link delete rxe0");
    });
    assert_eq!(card + streams, BYTES, "each byte came once");
    assert!(card > 0 && streams > 0, "{card} by RDMA, {streams} by streams");
    assert_ne!(link(&node).transport, "rdma");

    shell("rdma link add rxe0 type rxe netdev eth0");
    until("RDMA comes back", &node, |link| link.transport == "rdma");
    let (card, _) = run(&node, &scene, |_| {});
    assert!(card > 0, "it is used again");
    drop(node);
    drop(other);
}
