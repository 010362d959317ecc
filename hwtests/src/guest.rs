//! Runs tests where there is RDMA: on this machine, if it has a card, or in a guest kernel with Soft-RoCE.

use dflow_dataplane::transport::rdma::discover::Choice;
use dflow_dataplane::transport::rdma::look;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

/// Where a test runs.
pub enum Place {
    /// In this process: there is a card.
    Here(Choice),
    /// It ran in a guest, and passed.
    Passed,
    /// Nowhere.
    Skipped,
}

/// Whether this process runs in a guest.
pub fn is_guest() -> bool {
    std::env::var_os("DFLOW_GUEST").is_some()
}

/// Finds a place for the test `name` of the calling test binary: here if there is a card, else in a guest of
/// `nodes` nodes, where the same test is run by the same binary. Prints `SKIP rdma: why` where neither is possible.
///
/// # Panics
/// If the test fails in the guest; with its output.
pub fn place(name: &str, nodes: u32) -> Place {
    place_with_cards(name, nodes, 1)
}

/// The same, where each node of the guest has so many cards. A card of this machine will do, too: the test must look how
/// many there are.
///
/// # Panics
/// As [`place`].
#[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
pub fn place_with_cards(name: &str, nodes: u32, cards: u32) -> Place {
    match look(None, None) {
        Ok(choice) => return Place::Here(choice),
        Err(why) => assert!(!is_guest(), "the guest has no card: {why}"),
    }
    let test = std::env::current_exe().expect("the path of this test");
    let command =
        [test.to_str().expect("a path in UTF-8"), name, "--exact", "--nocapture", "--test-threads=1"];
    match run_in_guest(nodes, cards, &command) {
        (Some(0), output) => {
            // The harness begins its first line, which it has not ended when the test speaks.
            let begun = format!("test {name} ... ");
            output
                .lines()
                .map(|line| line.strip_prefix(&begun).unwrap_or(line))
                .filter(|line| line.starts_with("SKIP") || line.starts_with("rdma:"))
                .for_each(|line| println!("{line}"));
            assert!(output.contains("1 passed"), "{name} did not run in the guest:\n{output}");
            Place::Passed
        }
        (Some(125), output) => {
            println!("SKIP rdma: no card here, and {}", output.lines().last().unwrap_or("no guest"));
            Place::Skipped
        }
        (status, output) => panic!("{name} in the guest ended with {status:?}:\n{output}"),
    }
}

/// The card's own count of something, as `rdma statistic` names it. Soft-RoCE counts packets and refusals.
///
/// # Panics
/// If the card does not count it.
pub fn card_counter(device: &str, name: &str) -> u64 {
    let output = Command::new("rdma")
        .args(["-j", "statistic", "show", "link", &format!("{device}/1")])
        .output()
        .expect("iproute2 has `rdma`");
    let counters: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it answers in JSON");
    counters[0][name].as_u64().unwrap_or_else(|| panic!("{device} does not count {name}: {counters}"))
}

/// Runs a command in a guest of so many nodes, with so many cards each; its exit status, and its stdout and stderr.
pub fn run_in_guest(nodes: u32, cards: u32, command: &[&str]) -> (Option<i32>, String) {
    // One guest at a time: two would starve each other on a small machine.
    static GUEST: Mutex<()> = Mutex::new(());
    let _alone = GUEST.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/run");
    let output = Command::new(run)
        .args(["--nodes", &nodes.to_string(), "--cards", &cards.to_string(), "--timeout", "300", "--"])
        .args(command)
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("the guest's script starts");
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.code(), text)
}
