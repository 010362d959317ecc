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
    for (carrier, size, more) in
        [("tcp", "1KiB", &[][..]), ("auto", "3MiB", &[]), ("auto", "3MiB", &["--bidir"])]
    {
        let args = ["bench", "transfer", "--local", "-n", "10", "-q", "2", "-o", "json", "--size", size];
        let ended = scene.start(&[&args[..], &["--transport", carrier], more].concat()).end();
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
    bench(&["127.0.0.1:1", "--transport", "tcp", "--mode", "write"], 2, &["--mode", "RDMA"]);
    bench(&["127.0.0.1:1", "--transport", "shm"], 2, &["shm", "--local"]);
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

#[test]
fn what_is_put_here_is_got_there() {
    let scene = Scene::new();
    if !rustix::process::geteuid().is_root() {
        println!("SKIP bench put --local: network namespaces need root");
        return;
    }
    // One object that travels in its announcement, one that does not.
    for (carrier, size) in [("tcp", "1KiB"), ("auto", "1MiB")] {
        let args =
            ["bench", "put", "--local", "--nodes", "3", "--transport", carrier, "--size", size, "-o", "json"];
        let small = ["-n", "10", "--many", "5000", "--stream", "8MiB", "--rate", "200MB"];
        let ended = scene.start(&[&args[..], &small].concat()).end();
        if ended.code == 3 && (ended.stderr.contains("not permitted") || ended.stderr.contains("missing")) {
            println!("SKIP bench put --local: {}", ended.stderr.trim());
            return;
        }
        ended.expect(0, &[]);
        let all = json(&ended.text());
        assert_eq!(all["stopped"], Value::Null, "{all}");
        let figures = all["figures"].as_array().expect("a list");
        let names: Vec<_> = figures.iter().filter_map(|figure| figure["what"].as_str()).collect();
        assert_eq!(names, ["hand-over", "many", "beside bulk", "stream", "to all nodes"]);
        for figure in figures {
            let many = figure["what"] == "many";
            assert_eq!(figure["per_s"].as_f64() > Some(0.0), many, "{figure}");
            assert_eq!(figure["times_ns"]["p50"].as_f64() > Some(0.0), !many, "{figure}");
            assert!(
                figure["beside_is"].as_f64() > Some(0.0) && figure["ratio"].as_f64() > Some(0.0),
                "{figure}"
            );
        }
        assert_eq!((&figures[0]["n"], &figures[1]["n"]), (&10.into(), &5000.into()), "{all}");
        // 8 MiB at 200 MB/s are not written sooner.
        assert!(figures[3]["beside_is"].as_f64() > Some(40e6), "{}", figures[3]);
    }
    scene.assert_nothing_left();
}

/// Processor time of a process, in ticks.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    after.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

/// Whether somebody is connected to a port of this machine.
fn is_connected_to(at: std::net::SocketAddr) -> bool {
    let ends = format!(":{:04X} 01", at.port());
    std::fs::read_to_string("/proc/net/tcp").unwrap_or_default().lines().any(|line| line.contains(&ends))
}

#[test]
fn a_server_that_is_killed_ends_the_measurement() {
    let scene = Scene::new();
    for verb in ["transfer", "put"] {
        // Taken by nobody else meanwhile: the kernel hands out other numbers first.
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
        let at = free.to_string();
        let mut server = scene.start(&["bench", verb, "--listen", &at]);
        let long: &[&str] =
            if verb == "put" { &["-n", "10000000", "--only", "beside bulk"] } else { &["-D", "3600"] };
        let client = loop {
            let client = scene.start(&[&["bench", verb, &at], long].concat());
            let pid = client.child.id();
            // Well under way, or turned away because nobody listens yet. What it does before it is connected is to
            // prepare memory.
            let mut client = client;
            let mut before = ticks(pid);
            while ticks(pid) < before + 50 && client.child.try_wait().expect("its own child").is_none() {
                if !is_connected_to(free) {
                    before = ticks(pid);
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            if client.child.try_wait().expect("its own child").is_none() {
                break client;
            }
            client.end().expect(3, &["cannot connect"]);
        };
        server.child.kill().expect("its own child");
        client.end().expect(1, &["error: stopped after 0"]);
        server.end();
    }
    scene.assert_nothing_left();
}

#[test]
fn one_node_has_its_figures() {
    let scene = Scene::new();
    let handoff: &[&str] = &["handoff", "--size", "1KiB,1MiB"];
    let shm: &[&str] = &["transfer", "--transport", "shm", "--local"];
    for (verb, lines) in [(handoff, 2), (shm, 1), (&["invoke", "--steps", "4"], 2), (&["cold"], 1)] {
        let ended = scene.start(&[&["bench"], verb, &["-n", "3", "-o", "json"]].concat()).end();
        ended.expect(0, &[]);
        let all = json(&ended.text());
        let figures = all["figures"].as_array().expect("a list");
        assert_eq!(figures.len(), lines, "{all}");
        for figure in figures {
            assert_eq!(figure["times_ns"]["samples"], 3, "{figure}");
            assert!(figure["times_ns"]["min"].as_f64() > Some(0.0), "{figure}");
        }
    }
    scene.assert_nothing_left();
}
