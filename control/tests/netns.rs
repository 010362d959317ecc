//! Labs: namespaces that reach each other, and of which nothing is left.

#![expect(clippy::print_stdout, reason = "what is skipped is said")]

use dflow_control::netns::{Lab, LabError};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What tells this test's binary to be the owner of a lab.
const OWNER: &str = "DFLOW_TEST_LAB_OWNER";

fn lab(nodes: usize, bandwidth: Option<u64>) -> Option<Lab> {
    match Lab::new(nodes, bandwidth) {
        Ok(lab) => Some(lab),
        Err(why @ (LabError::NotRoot { .. } | LabError::NotPermitted { .. } | LabError::Missing { .. })) => {
            println!("SKIP network namespaces: {why}");
            None
        }
        Err(other) => panic!("{other}"),
    }
}

fn namespaces() -> String {
    let output = Command::new("ip").args(["netns", "list"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Sends `bytes` from one node to another. Seconds it took.
fn send(lab: &Lab, from: usize, to: usize, bytes: usize) -> f64 {
    std::thread::scope(|scope| {
        let (told, listening) = std::sync::mpsc::sync_channel(1);
        scope.spawn(move || {
            lab.enter_thread(to).unwrap();
            let listener = TcpListener::bind((lab.address(to), 0)).unwrap();
            told.send(listener.local_addr().unwrap()).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            assert_eq!(all.len(), bytes);
            stream.write_all(&[1]).unwrap();
        });
        let sender = scope.spawn(move || {
            lab.enter_thread(from).unwrap();
            let mut stream = TcpStream::connect(listening.recv().unwrap()).unwrap();
            let started = Instant::now();
            stream.write_all(&vec![7; bytes]).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            stream.read_exact(&mut [0]).unwrap();
            started.elapsed().as_secs_f64()
        });
        sender.join().unwrap()
    })
}

#[test]
fn nodes_reach_each_other_and_leave_nothing() {
    for nodes in [2, 3] {
        let Some(lab) = lab(nodes, None) else { return };
        let mut inside = Command::new("ip");
        inside.args(["-o", "-4", "addr", "show", "dev", "eth0"]);
        lab.enter(1, &mut inside);
        let shown = String::from_utf8(inside.output().unwrap().stdout).unwrap();
        assert!(shown.contains(&lab.address(1).to_string()), "{shown}");
        send(&lab, 0, nodes - 1, 1 << 20);
        // Left running on purpose.
        let mut sleeper = Command::new("sleep");
        sleeper.arg("600");
        lab.enter(0, &mut sleeper);
        let mut sleeper = sleeper.spawn().unwrap();
        let name = lab.namespace(0).to_owned();
        assert!(namespaces().contains(&name));
        drop(lab);
        assert!(!namespaces().contains(&name));
        assert!(!sleeper.wait().unwrap().success(), "ended with its node");
    }
}

#[test]
fn a_shaped_link_keeps_its_bandwidth() {
    let Some(lab) = lab(2, Some(10_000_000)) else { return };
    // Half a second's worth; what is quick is only the first burst.
    let shaped_s = send(&lab, 0, 1, 5_000_000);
    assert!(shaped_s > 0.4, "{shaped_s} s");
    lab.set_bandwidth(0, None).unwrap();
    let free_s = send(&lab, 0, 1, 5_000_000);
    assert!(free_s < shaped_s, "{free_s} s without, {shaped_s} s with");
}

#[test]
fn a_killed_owner_leaves_nothing() {
    if std::env::var_os(OWNER).is_some() {
        if let Some(lab) = lab(3, None) {
            println!("made {}", lab.namespace(0));
            std::thread::sleep(Duration::from_secs(60));
        }
        return;
    }
    if lab(1, None).is_none() {
        return;
    }
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_owner_leaves_nothing", "--nocapture"])
        .env(OWNER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let name = lines.find_map(|line| Some(line.unwrap().split_once("made ")?.1.to_owned())).unwrap();
    assert!(namespaces().contains(&name));
    owner.kill().unwrap();
    owner.wait().unwrap();
    let give_up = Instant::now() + Duration::from_secs(20);
    while namespaces().contains(&name) {
        assert!(Instant::now() < give_up, "{name} is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_cannot_be_is_refused() {
    assert!(matches!(Lab::new(0, None), Err(LabError::Nodes { nodes: 0 })));
    let Some(lab) = lab(2, None) else { return };
    assert!(matches!(lab.set_bandwidth(0, Some(10)), Err(LabError::Bandwidth { bytes_per_s: 10 })));
}
