//! Every transport is held to the same laws.

use dflow_dataplane::transport::faulty::Faults;
use dflow_dataplane::transport::uring::Probe;
use dflow_dataplane::transport::{Backend, Config, Epoch, NodeId, Secret, Transport, open};
use dflow_hwtests::conformance::worlds::{Failing, OnChosen, OnTcp, OnUring, Sim};
use dflow_hwtests::conformance::{World, faults, forbid, laws};
use dflow_proto::wire::{Frame, next_frame, notice};

/// io_uring's world, or a line that says why there is none.
#[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
fn uring() -> Option<OnUring> {
    OnUring::new().inspect_err(|why| println!("SKIP transport over io_uring: {why}")).ok()
}

/// One law in every world.
macro_rules! law {
    ($($module:ident::$law:ident),* $(,)?) => {
        mod on_sim {
            use super::*;
            $(#[test] fn $law() {
                for seed in 0..3 {
                    $module::$law(Sim::new(seed));
                }
            })*
        }
        mod on_tcp {
            use super::*;
            $(#[test] fn $law() {
                $module::$law(OnTcp);
            })*
        }
        mod on_uring {
            use super::*;
            $(#[test] fn $law() {
                if let Some(world) = uring() {
                    $module::$law(world);
                }
            })*
        }
        mod on_stalling_sim {
            use super::*;
            $(#[test] fn $law() {
                $module::$law(Failing(Sim::new(4), Faults::stalls(1)));
            })*
        }
        mod on_stalling_tcp {
            use super::*;
            $(#[test] fn $law() {
                $module::$law(Failing(OnTcp, Faults::stalls(2)));
            })*
        }
        mod on_stalling_uring {
            use super::*;
            $(#[test] fn $law() {
                if let Some(world) = uring() {
                    $module::$law(Failing(world, Faults::stalls(3)));
                }
            })*
        }
    };
}

law!(
    laws::reads_bring_the_bytes,
    laws::both_ways,
    laws::ten_thousand_reads,
    laws::messages_in_order,
    laws::a_greeting_is_heard,
    laws::full_is_pressure,
    laws::regions_are_checked,
    laws::strangers_are_refused,
    laws::a_restarted_node_replaces_itself,
    laws::cancels,
    laws::small_overtakes_bulk,
    laws::close_completes_everything,
    laws::a_waker_wakes,
    laws::a_watched_descriptor_wakes,
    faults::a_peer_dies,
    faults::a_peer_hangs,
    faults::late_answers_are_dropped,
    faults::dials_end,
    faults::garbage_at_the_door,
    faults::misbehaviour_inside,
    faults::a_lying_owner,
    faults::severed_anywhere,
);

fn storm<W: World>(make: impl Fn() -> W, seeds: u64) {
    for seed in 1..=seeds {
        faults::a_storm_is_survived(Failing(make(), Faults::storm(seed)));
    }
}

#[test]
fn a_storm_in_simulation() {
    storm(|| Sim::new(9), 10);
}

#[test]
fn a_storm_over_tcp() {
    storm(|| OnTcp, 3);
}

#[test]
fn a_storm_over_uring() {
    if uring().is_some() {
        storm(|| uring().expect("it was there"), 3);
    }
}

/// Set in the process that must do without io_uring.
const FORBIDDEN: &str = "DFLOW_TEST_IO_URING_FORBIDDEN";

#[test]
fn without_io_uring_plain_sockets_are_chosen() {
    let name = "without_io_uring_plain_sockets_are_chosen";
    if std::env::var_os(FORBIDDEN).is_none() {
        // A filter cannot be taken off again, so it is put on a process of its own.
        let test = std::env::current_exe().expect("the path of this test");
        let child = std::process::Command::new(test)
            .args([name, "--exact", "--nocapture"])
            .env(FORBIDDEN, "1")
            .output();
        let output = child.expect("the test starts itself");
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if let Some(line) = text.lines().find(|line| line.starts_with("SKIP")) {
            println!("{line}");
        }
        assert!(output.status.success(), "{text}");
        return;
    }
    if let Err(error) = forbid::forbid_io_uring() {
        println!("SKIP transport with io_uring forbidden: no seccomp filter: {error}");
        return;
    }
    let why = Probe::look().expect_err("it is forbidden");
    assert!(why.contains("io_uring_setup"), "{why}");
    let config = || Config::new("conformance", NodeId(1), Epoch(1), Secret::new("for tests"));
    let (transport, chosen) = open(config(), Backend::Auto).expect("plain sockets work");
    assert_eq!((transport.capabilities().name, chosen.name), ("tcp", "tcp"));
    assert!(chosen.reason.starts_with(&why), "{}", chosen.reason);
    assert!(open(config(), Backend::Uring).is_err(), "what was asked for by name is not replaced");
    laws::reads_bring_the_bytes(OnChosen);
    laws::messages_in_order(OnChosen);
    laws::a_greeting_is_heard(OnChosen);
    faults::severed_anywhere(OnChosen);
}

#[test]
fn a_node_off_loopback_needs_a_secret() {
    let mut config = Config::new("conformance", NodeId(1), Epoch(1), Secret::none());
    config.listen = Some("0.0.0.0:0".parse().expect("an address"));
    let refused = open(config.clone(), Backend::Auto).err().expect("refused");
    assert!(refused.to_string().contains("secret"), "{refused}");
    config.listen = Some("127.0.0.1:0".parse().expect("an address"));
    assert!(open(config, Backend::Auto).is_ok());
}

/// Bytes that once were interesting, or are examples of each kind; none of them may upset the decoders.
#[test]
fn the_corpus_is_decoded_without_harm() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/wire");
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).expect("the corpus is in the tree") {
        let path = entry.expect("readable").path();
        let bytes = std::fs::read(&path).expect("readable");
        files += 1;
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let mut rest = &bytes[..];
        let mut frames = 0;
        let outcome = loop {
            match next_frame(rest) {
                Ok(Some((frame, used))) => {
                    if let Frame::Message(body) = frame {
                        let _ = notice::decode(body);
                    }
                    frames += 1;
                    rest = &rest[used..];
                }
                Ok(None) => break Ok(()),
                Err(malformed) => break Err(malformed),
            }
        };
        let _ = notice::decode(&bytes);
        if name.starts_with("good-") {
            assert!(
                outcome.is_ok() && frames > 0 && rest.is_empty(),
                "{name}: {outcome:?}, {} left",
                rest.len()
            );
        } else if name.starts_with("bad-") {
            assert!(outcome.is_err(), "{name} is accepted");
        }
    }
    assert!(files >= 20, "{files} files");
}
