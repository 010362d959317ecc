//! `dflow bench transfer` and `dflow bench memcpy`, by the real binary: two processes in two network namespaces,
//! the columns that are promised, and what is said when an end is missing. No times are judged.

use dflow_hwtests::run::Scene;
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn two_namespaces_give_all_columns_and_checked_data() {
    let scene = Scene::new();
    if !rustix::process::geteuid().is_root() {
        scene.start(&["bench", "transfer", "--local", "-n", "5"]).end().expect(3, &["need root"]);
        println!("SKIP bench transfer --local: network namespaces need root");
        return;
    }
    for (carrier, size) in [("tcp", "1KiB"), ("auto", "3MiB")] {
        let args = ["bench", "transfer", "--local", "-n", "10", "-q", "2", "-o", "json", "--size", size];
        let ended = scene.start(&[&args[..], &["--transport", carrier]].concat()).end();
        if ended.code == 3 && (ended.stderr.contains("not permitted") || ended.stderr.contains("missing")) {
            println!("SKIP bench transfer --local: {}", ended.stderr.trim());
            return;
        }
        ended.expect(0, &[]);
        let figures = json(&ended.text());
        assert_eq!((&figures["stopped"], &figures["streams"]), (&Value::Null, &2.into()), "{figures}");
        let sizes = figures["sizes"].as_array().expect("a list");
        assert_eq!(sizes.len(), 1, "{figures}");
        let row = &sizes[0];
        let bytes = row["bytes"].as_u64().expect("a size");
        assert_eq!((&row["data"], row["data_checked_bytes"].as_u64()), (&"ok".into(), Some(2 * bytes)));
        for side in ["transport", "raw"] {
            let side = &row[side];
            assert_eq!(side["iterations"], 10, "{row}");
            let number = |name: &str| side[name].as_f64().unwrap_or_else(|| panic!("no {name}: {side}"));
            let order = ["p50_us", "p90_us", "p99_us", "p999_us"].map(number);
            assert!(order.is_sorted() && order[0] > 0.0, "{side}");
            assert!(number("gb_per_s_peak") >= number("gb_per_s_median"), "{side}");
            assert!(number("gb_per_s") > 0.0 && number("messages_per_s") > 0.0, "{side}");
            assert!(number("cpu_s_per_gb") > 0.0, "{side}");
        }
        assert!(row["of_raw"].as_f64() > Some(0.0), "{row}");
        assert!(figures["memcpy"]["copy_reused_gb_per_s"].as_f64() > Some(0.0), "{figures}");
    }
    scene.assert_nothing_left();
}

#[test]
fn an_end_that_is_missing_is_named() {
    let scene = Scene::new();
    let bench = |args: &[&str], code, words: &[&str]| {
        scene.start(&[&["bench", "transfer"], args].concat()).end().expect(code, words);
    };
    bench(&["127.0.0.1:1"], 3, &["cannot connect to 127.0.0.1:1"]);
    bench(&["--listen", "0.0.0.0:0"], 3, &["without a secret"]);
    bench(&[], 2, &["--local"]);
    bench(&["--local", "--size", "3"], 2, &["--size"]);
    scene.assert_nothing_left();
}

#[test]
fn memory_has_a_speed() {
    let scene = Scene::new();
    let ended = scene.start(&["bench", "memcpy", "--size", "4KiB,1MiB", "-o", "json"]).end();
    ended.expect(0, &[]);
    let figures = json(&ended.text());
    let rows = figures["memcpy"].as_array().expect("a list");
    assert_eq!(rows.len(), 2, "{figures}");
    for name in ["fill_fresh", "fill_reused", "copy_fresh", "copy_reused"] {
        let name = format!("{name}_gb_per_s");
        assert!(rows.iter().all(|row| row[&name].as_f64() > Some(0.0)), "{name}: {figures}");
    }
}
