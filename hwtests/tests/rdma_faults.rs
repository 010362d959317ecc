//! What happens when the parts of RDMA between two nodes are taken away while transfers are under way. The faults are
//! real, so they need a guest of their own; `DFLOW_GUEST` names one.

#![expect(clippy::print_stdout, reason = "its processes tell each other and the test on their stdout")]
#![cfg(feature = "rdma")]

use dflow_dataplane::transport::rdma::{CardError, look, try_out};
use dflow_dataplane::transport::{OpError, Transport};
use dflow_hwtests::guest::{Place, is_guest, place};
use dflow_hwtests::two_nodes::{
    BYTES, Owner, PIECE, ROLE, Reader, be_the_owner, segment, shell, start_shell,
};
use std::process::Command;
use std::time::{Duration, Instant};

/// How often each fault is repeated.
const TIMES: usize = 3;
/// No transfer may stand still for longer when RDMA is taken from it.
const LOST_MAX: Duration = Duration::from_secs(1);

/// Tells the gaps that a fault left, none of which may be too long.
fn judge(what: &str, mut gaps: Vec<Duration>) {
    gaps.sort();
    let ms: Vec<u128> = gaps.iter().map(Duration::as_millis).collect();
    println!("rdma: {what}: median gap {} ms, of {ms:?}", ms[ms.len() / 2]);
    assert!(gaps.iter().all(|gap| *gap <= LOST_MAX), "{what}: {ms:?} ms");
}

#[test]
fn faults() {
    match std::env::var(ROLE).as_deref() {
        Ok("owner") => return be_the_owner(),
        Ok("little-memory") => return have_little_memory(),
        _ => {}
    }
    let Place::Here(_) = place("faults", 2) else { return };
    if !is_guest() {
        println!("SKIP rdma faults: they would take this machine's network down; a guest is needed");
        return;
    }
    let owner = Owner::start("faults");
    let mut reader = Reader::connect();
    assert_eq!(reader.path(), "rdma", "{:?}", reader.transport.path(reader.connection));

    let (card, _) = reader.read_through("undisturbed", || None);
    assert_eq!(card, BYTES);

    let loss = "for n in 0 1; do on $n tc qdisc add dev eth0 root netem loss 1% delay 200us; done";
    let (card, _) = reader.read_through("with 1% of packets lost", || Some(start_shell(loss)));
    assert!(card > 0);
    shell("for n in 0 1; do on $n tc qdisc del dev eth0 root; done");
    reader.until_on_rdma();

    let mut gaps = Vec::new();
    for _ in 0..TIMES {
        let remove = || Some(start_shell("rdma link delete rxe0"));
        let (_, streams) = reader.read_through("card removed", remove);
        assert!(streams > 0 && reader.path() != "rdma");
        gaps.push(reader.gap);
        shell("rdma link add rxe0 type rxe netdev eth0");
        reader.until_on_rdma();
        let (card, _) = reader.read_through("card added again", || None);
        assert_eq!(card, BYTES);
    }
    judge("card removed", gaps);

    let mut gaps = Vec::new();
    for _ in 0..TIMES {
        reader.read_through("port down for a while", || {
            Some(start_shell("ip link set eth0 down; sleep 0.3; ip link set eth0 up"))
        });
        gaps.push(reader.gap);
        reader.until_on_rdma();
    }
    judge("port down for 0.3 s", gaps);
    assert!(reader.transport.stats().downgrades >= 2 * TIMES as u64);

    reader.start_reads();
    reader.until_completed(3);
    drop(owner);
    reader.until_completed((BYTES / PIECE) as usize);
    let lost = reader.completions.iter().filter(|completion| completion.result == Err(OpError::Disconnected));
    println!("rdma: peer killed: {} of {} reads were lost with it", lost.count(), reader.completions.len());
    assert!(reader.completions.iter().all(|completion| completion.lease.is_some()), "each lease comes back");
    let end = Instant::now() + Duration::from_secs(30);
    while !reader.ended {
        assert!(Instant::now() < end, "its end is told");
        reader.poll();
    }
    drop(reader);
    starve();
}

/// Starts this test with little lockable memory, as a user with the usual limit would.
fn starve() {
    let test = std::env::current_exe().expect("the path of this test");
    let script = r#"ulimit -l 64; exec setpriv --bounding-set -ipc_lock --inh-caps -ipc_lock "$0" "$@""#;
    let child = Command::new("bash")
        .args(["-c", script])
        .arg(test)
        .args(["faults", "--exact", "--nocapture"])
        .env(ROLE, "little-memory")
        .output()
        .expect("a shell");
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{text}{}", String::from_utf8_lossy(&child.stderr));
    text.lines().filter(|line| line.starts_with("rdma:")).for_each(|line| println!("{line}"));
}

fn have_little_memory() {
    let choice = look(None, None).expect("the card is there");
    let error = try_out(&choice, &segment(1, BYTES)).expect_err("it cannot be locked");
    println!("\nrdma: little memory: {error}");
    assert!(
        matches!(error, CardError::MemLock { have_bytes: 65_536, need_bytes } if need_bytes > 65_536),
        "{error}"
    );
    assert!(error.to_string().contains("ulimit -l unlimited"), "{error}");
}
