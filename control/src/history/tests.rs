//! The history as a whole: what is saved comes back, limits hold, and nothing that lies in the file can
//! do worse than an error.

use super::store::FORMAT;
use super::*;
use dflow_core::placement::{Place, Placement};
use proptest::prelude::*;
use std::path::Path;

fn places() -> Places {
    let placement = Placement { nodes: 2, steps: vec![Place::On(1)] };
    Places { nodes: vec!["ada".into(), "bob".into()], placement }
}

/// A record whose journal has `events` events.
pub(crate) fn sample(run: &str, events: u64) -> RunRecord {
    let event = |i: u64| Event {
        at_us: i * 10,
        step: 0,
        item: i as u32,
        attempt: 1,
        kind: EventKind::Sealed { port: 0, item: 0, bytes: i * 1000 },
    };
    RunRecord {
        summary: Summary {
            run: run.into(),
            workflow: "sample@1".into(),
            file: "sample.yaml".into(),
            started_unix_us: 1_700_000_000_000_000,
            makespan_us: events * 10,
            outcome: Outcome::Failed("step a failed: no\nremedy".into()),
            steps: 1,
            attempts: events as u32,
            bytes: 77,
            record_bytes: 0,
        },
        inputs: vec![InputFacts { name: "text".into(), bytes: 9, file: Some("a file".into()) }],
        steps: Vec::new(),
        graph: GraphFacts { inputs: vec!["text".into()], drawing: "<svg/>".into(), ..GraphFacts::default() },
        node: NodeFacts { cpu_milli: 2000, slots: 8, ..NodeFacts::default() },
        start: Some(StartFacts::First(3)),
        events: (0..events).map(event).collect(),
        places: events.is_multiple_of(2).then(places),
        events_dropped: 0,
        failures: vec![FailureFacts {
            at_us: 5,
            step: 0,
            item: 1,
            attempt: 2,
            message: "no".into(),
            retried: true,
        }],
        logs: vec![LogFacts { step: "a[1]".into(), text: "line".into() }],
        logs_dropped: 1,
    }
}

fn history(dir: &Path) -> History {
    History::at(dir.join("deep/state"))
}

#[test]
fn what_is_saved_comes_back() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let history = history(dir.path());
    assert_eq!(history.list(10).expect("no history is an empty one"), []);
    assert!(matches!(history.load("last"), Err(HistoryError::Empty { .. })));
    let given = sample("00000000abc", 1000);
    assert_eq!(history.save(&given).expect("saved"), "00000000abc");
    let mut back = history.load("last").expect("loaded");
    assert!(back.summary.record_bytes > 1000);
    back.summary.record_bytes = 0;
    assert_eq!(back, given);
}

#[test]
fn runs_are_found_by_name_and_age() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let history = history(dir.path());
    for run in ["00000000aaa", "00000000aab", "00000001xyz"] {
        history.save(&sample(run, 1)).expect("saved");
    }
    let found = |name: &str| history.load(name).map(|r| r.summary.run).map_err(|e| e.to_string());
    for (name, run) in [
        ("last", "00000001xyz"),
        ("last~0", "00000001xyz"),
        ("last~2", "00000000aaa"),
        ("00000001", "00000001xyz"),
        ("00000001XYZ", "00000001xyz"),
        ("00000000aaa", "00000000aaa"),
    ] {
        assert_eq!(found(name).as_deref(), Ok(run), "{name}");
    }
    assert!(matches!(history.load("00000000a"), Err(HistoryError::Ambiguous { count: 2, .. })));
    for name in ["last~3", "last~x", "7", "", "zzzzzzzzzzz", "00000001xyzz"] {
        assert!(matches!(history.load(name), Err(HistoryError::NoRun { .. })), "{name:?}: {:?}", found(name));
    }
    let listed: Vec<_> = history.list(2).expect("listed").into_iter().map(|s| s.run).collect();
    assert_eq!(listed, ["00000001xyz", "00000000aab"]);
}

#[test]
fn a_name_that_is_taken_becomes_the_next() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let history = history(dir.path());
    let names: Vec<_> = (0..3).map(|_| history.save(&sample("0000000zzzy", 1)).expect("saved")).collect();
    assert_eq!(names, ["0000000zzzy", "0000000zzzz", "00000010000"]);
}

#[test]
fn the_oldest_go_first_and_graphs_with_their_last_run() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let three = history(dir.path()).keeping(3, u64::MAX);
    for i in 0..6 {
        let mut record = sample(&format!("0000000000{i}"), 10);
        record.graph.inputs[0] = format!("input of {}", i / 3);
        three.save(&record).expect("saved");
    }
    let runs =
        |history: &History| history.list(99).expect("listed").into_iter().map(|s| s.run).collect::<Vec<_>>();
    assert_eq!(runs(&three), ["00000000005", "00000000004", "00000000003"]);
    assert_eq!(three.load("00000000003").expect("its graph is kept").graph.inputs, ["input of 1"]);
    // A limit in bytes holds too, but the newest is always kept.
    let small = history(dir.path()).keeping(100, 1);
    small.save(&sample("00000000009", 10_000)).expect("saved");
    assert_eq!(runs(&small), ["00000000009"]);
}

#[test]
fn the_file_does_not_grow_for_ever() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let history = history(dir.path()).keeping(5, u64::MAX);
    let mut sizes = Vec::new();
    for i in 0..40 {
        history.save(&sample(&format!("000000000{i:02}"), 2000)).expect("saved");
        sizes.push(std::fs::metadata(history.file()).expect("the file").len());
    }
    assert!(sizes[39] <= 2 * sizes[9], "{sizes:?}");
}

#[test]
fn writers_wait_for_each_other() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let history = history(dir.path());
    let save = |i: u32| history.save(&sample(&format!("000000000{i:02}"), 50)).expect("saved");
    std::thread::scope(|scope| {
        for i in 0..8 {
            scope.spawn(move || save(i));
        }
    });
    assert_eq!(history.list(99).expect("listed").len(), 8);
}

#[test]
fn a_history_of_the_future_is_left_alone() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let history = history(dir.path());
    history.save(&sample("00000000aaa", 1)).expect("saved");
    {
        let database = redb::Database::open(history.file()).expect("opens");
        let transaction = database.begin_write().expect("a transaction");
        let table = redb::TableDefinition::<&str, u64>::new("meta");
        transaction.open_table(table).expect("the table").insert("format", FORMAT + 1).expect("written");
        transaction.commit().expect("committed");
    }
    for error in [
        history.save(&sample("00000000aab", 1)).expect_err("not written"),
        history.list(1).expect_err("not read"),
        history.load("last").expect_err("not read"),
    ] {
        assert!(matches!(error, HistoryError::Future { .. }), "{error}");
        assert!(error.to_string().contains("--state"), "{error}");
    }
}

#[test]
fn what_is_no_history_is_told() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for content in [&b"not a database"[..], &[0; 5000], &[0xff; 100_000]] {
        let history = history(dir.path());
        std::fs::create_dir_all(history.file().parent().expect("a folder")).expect("made");
        std::fs::write(history.file(), content).expect("written");
        let error = history.list(1).expect_err("not read").to_string();
        assert!(error.contains("damaged") && error.contains("mv "), "{error}");
        let error = history.save(&sample("00000000aaa", 1)).expect_err("not written").to_string();
        assert!(error.contains("damaged") && error.contains("mv "), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// A file damaged anywhere gives records or an error, and takes no longer to say so.
    #[test]
    fn damage_is_an_error_at_worst(at in 0.0..1.0f64, bytes in proptest::collection::vec(any::<u8>(), 1..64), cut: bool) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let history = history(dir.path());
        history.save(&sample("00000000aaa", 200)).expect("saved");
        let mut content = std::fs::read(history.file()).expect("read");
        let at = ((content.len() - 1) as f64 * at) as usize;
        if cut {
            content.truncate(at);
        } else {
            let end = (at + bytes.len()).min(content.len());
            content[at..end].copy_from_slice(&bytes[..end - at]);
        }
        std::fs::write(history.file(), content).expect("written");
        let _ = history.load("last");
        let _ = history.list(9);
        let _ = history.save(&sample("00000000aab", 1));
    }
}
