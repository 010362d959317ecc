//! Which crate may know which: the arrows of docs/ARCHITECTURE.md.

use crate::{expect_none, root};
use serde_json::Value;
use std::process::Command;

/// For each crate of the house, those it may depend on.
const ARROWS: [(&str, &[&str]); 8] = [
    ("dflow-proto", &[]),
    ("dflow-shm", &["dflow-proto"]),
    ("dflow-dataplane", &["dflow-proto", "dflow-shm"]),
    // Why and how never see each other: core decides, dataplane does, control introduces them.
    ("dflow-core", &["dflow-proto"]),
    ("dflow-control", &["dflow-proto", "dflow-shm", "dflow-dataplane", "dflow-core"]),
    ("dflow-ffi", &["dflow-proto", "dflow-shm"]),
    // These see all and are seen by none.
    (
        "dflow-hwtests",
        &["dflow-proto", "dflow-shm", "dflow-dataplane", "dflow-core", "dflow-control", "dflow-ffi"],
    ),
    (
        "dflow-benches",
        &["dflow-proto", "dflow-shm", "dflow-dataplane", "dflow-core", "dflow-control", "dflow-ffi"],
    ),
];

/// Dependencies that only some crates may name, and why.
const FENCED: [(&str, &[&str], &str); 6] = [
    ("tokio", &["dflow-control"], "one room has the runtime; everything else can be driven without it"),
    ("io-uring", &["dflow-dataplane"], "rings are the data plane's business"),
    ("rdma-sys", &["dflow-dataplane"], "verbs are the data plane's business"),
    ("object_store", &["dflow-control"], "it is asynchronous, so its jobs are done where the runtime is"),
    ("mimalloc", &["dflow-control", "dflow-benches"], "only our own binaries choose an allocator"),
    ("anyhow", &["dflow-control", "dflow-hwtests", "dflow-benches"], "libraries have typed errors"),
];

/// All that may be linked into a function's process: vocabulary, shared memory, libc, and what
/// the encoding of messages takes. It forks, so it must have no threads, rings or registered memory.
const FUNCTION_PROCESS_DIRECT: [&str; 6] =
    ["dflow-proto", "dflow-shm", "libc", "postcard", "serde", "thiserror"];
/// Never in its whole closure.
const FUNCTION_PROCESS_NEVER: [&str; 8] = [
    "tokio",
    "io-uring",
    "rdma-sys",
    "mimalloc",
    "crossbeam",
    "object_store",
    "dflow-dataplane",
    "dflow-core",
];

/// Crates that are pure state machines: no clock, no randomness, no threads, no `unsafe`.
const PURE: [&str; 2] = ["dataplane/proto/src/lib.rs", "control/core/src/lib.rs"];

fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(arguments).current_dir(root()).output().expect("cargo starts");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo writes UTF-8")
}

fn packages() -> Vec<Value> {
    let text = cargo(&["metadata", "--offline", "--no-deps", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&text).expect("cargo metadata is JSON");
    metadata["packages"].as_array().expect("packages").clone()
}

/// (name, is a dev-dependency) of each dependency that the package's manifest names.
fn dependencies(package: &Value) -> Vec<(String, bool)> {
    let named = package["dependencies"].as_array().expect("dependencies");
    named.iter().map(|d| (d["name"].as_str().expect("a name").to_owned(), d["kind"] == "dev")).collect()
}

#[test]
fn arrows_point_down() {
    let mut wrongs = Vec::new();
    for package in packages() {
        let name = package["name"].as_str().expect("a name");
        let Some((_, allowed)) = ARROWS.iter().find(|(from, _)| *from == name) else {
            wrongs.push(format!("{name}: not in ARROWS; say what it may know"));
            continue;
        };
        for (dependency, _) in dependencies(&package) {
            let ours = ARROWS.iter().any(|(from, _)| *from == dependency);
            if ours && !allowed.contains(&dependency.as_str()) {
                wrongs.push(format!("{name} -> {dependency}"));
            }
        }
    }
    expect_none("these arrows are not in the plan (ARROWS, hwtests/tests/tidy/layers.rs):", &wrongs);
}

#[test]
fn fenced_dependencies_stay_in_their_rooms() {
    let mut wrongs = Vec::new();
    for package in packages() {
        let name = package["name"].as_str().expect("a name");
        for (dependency, is_dev) in dependencies(&package) {
            for (fenced, rooms, why) in FENCED {
                if dependency == fenced && !is_dev && !rooms.contains(&name) {
                    wrongs.push(format!("{name} -> {dependency}: {why}"));
                }
            }
        }
    }
    expect_none("a fenced dependency outside its room:", &wrongs);
}

#[test]
fn a_function_process_links_little() {
    let mut wrongs = Vec::new();
    let packages = packages();
    let ffi = packages.iter().find(|p| p["name"] == "dflow-ffi").expect("dflow-ffi is in the workspace");
    for (dependency, is_dev) in dependencies(ffi) {
        if !is_dev && !FUNCTION_PROCESS_DIRECT.contains(&dependency.as_str()) {
            wrongs.push(format!("dflow-ffi -> {dependency}: not in FUNCTION_PROCESS_DIRECT"));
        }
    }
    let tree =
        ["tree", "--offline", "-p", "dflow-ffi", "-e", "normal", "--prefix", "none", "--format", "{p}"];
    for line in cargo(&tree).lines() {
        let name = line.split(' ').next().unwrap_or_default();
        if FUNCTION_PROCESS_NEVER.contains(&name) {
            wrongs.push(format!("dflow-ffi reaches {name}"));
        }
    }
    expect_none("libdflow and the zygote must stay small and safe to fork:", &wrongs);
}

#[test]
fn pure_crates_say_so() {
    let mut wrongs = Vec::new();
    for path in PURE {
        let text = std::fs::read_to_string(root().join(path)).expect(path);
        for attribute in ["#![forbid(unsafe_code)]", "#![no_std]"] {
            // `no_std` outside tests is as good: only the shipped code must be pure.
            let outside_tests = attribute.replace("#![no_std]", "#![cfg_attr(not(test), no_std)]");
            if !text.contains(attribute) && !text.contains(&outside_tests) {
                wrongs.push(format!("{path}: {attribute} is missing"));
            }
        }
    }
    expect_none("the pure crates hold themselves to it:", &wrongs);
}

#[test]
fn versions_are_named_once() {
    let mut wrongs = Vec::new();
    for package in packages() {
        let manifest = package["manifest_path"].as_str().expect("a path");
        let text = std::fs::read_to_string(manifest).expect(manifest);
        for (index, line) in text.lines().enumerate() {
            let own_version = line.contains("version = \"") || line.contains("= \"^");
            let bare =
                line.split_once(" = \"").is_some_and(|(_, v)| v.starts_with(|c: char| c.is_ascii_digit()));
            if own_version || bare {
                wrongs.push(format!("{manifest}:{}: {line}", index + 1));
            }
        }
    }
    expect_none("versions stand in the root Cargo.toml; members say `workspace = true`:", &wrongs);
}
