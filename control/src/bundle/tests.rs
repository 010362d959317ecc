use super::*;
use crate::workflow;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const HEAD: &str = "apiVersion: dflow/v1\nkind: Workflow\nmetadata: {name: t}\n";

/// A folder with a workflow of this body and these files.
fn scene(body: &str, files: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    for file in files {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(&path, format!("content of {file}")).expect("a file");
        if !file.contains('.') {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
        }
    }
    let flow = folder.path().join("app/flow.yaml");
    fs::create_dir_all(flow.parent().expect("a parent")).expect("a folder");
    fs::write(&flow, format!("{HEAD}{body}")).expect("a file");
    (folder, flow)
}

fn packed(flow: &Path) -> Result<Packed, BundleError> {
    let workflow = workflow::load(flow).unwrap_or_else(|report| panic!("{report}"));
    pack(flow, &workflow)
}

fn names(packed: &Packed) -> Vec<&str> {
    packed.paths.iter().map(|p| p.to_str().expect("text")).collect()
}

const PYTHON: &str = "functions: {f: {runtime: python, handler: \"a.py:f\", outputs: {o: bytes}}}\n\
                      steps: {s: {function: f}}\n";
const EXEC: &str = "functions: {f: {runtime: exec, command: [../bin/tool, x], stdout: o, outputs: {o: bytes}}}\n\
                    steps: {s: {function: f}}\n";

#[test]
fn python_files_go_along_unless_files_are_listed() {
    let there = ["app/a.py", "app/lib/b.py", "app/.git/c.py", "app/__pycache__/d.py", "app/data.txt"];
    let (_folder, flow) = scene(PYTHON, &there);
    assert_eq!(names(&packed(&flow).expect("a bundle")), ["flow.yaml", "a.py", "lib/b.py"]);
    let (_folder, flow) = scene(&format!("{PYTHON}files: [data.txt, lib]\n"), &there);
    assert_eq!(names(&packed(&flow).expect("a bundle")), ["flow.yaml", "a.py", "data.txt", "lib/b.py"]);
}

#[test]
fn paths_that_lead_up_keep_their_meaning() {
    let (_folder, flow) = scene(EXEC, &["bin/tool", "other"]);
    let packed = packed(&flow).expect("a bundle");
    assert_eq!(names(&packed), ["app/flow.yaml", "bin/tool"]);
    let target = tempfile::tempdir().expect("a folder");
    let unpacked = unpack(packed.file, target.path(), 1 << 20).expect("a good bundle");
    assert_eq!((unpacked.main.to_str(), unpacked.files), (Some("app/flow.yaml"), 2));
    let workflow = workflow::load(&target.path().join(&unpacked.main)).expect("the same workflow");
    assert_eq!(workflow.warnings.to_string(), "", "its program is where the file says");
    let mode = fs::metadata(target.path().join("bin/tool")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
}

#[test]
fn equal_content_gives_equal_bytes() {
    let bytes = || {
        let (folder, flow) = scene(PYTHON, &["app/a.py", "app/b.py"]);
        let mut packed = packed(&flow).expect("a bundle");
        let mut bytes = Vec::new();
        packed.file.read_to_end(&mut bytes).expect("memory");
        drop(folder);
        assert_eq!(bytes.len() as u64, packed.bytes);
        bytes
    };
    assert_eq!(bytes(), bytes());
}

#[test]
fn what_is_missing_is_told() {
    let (_folder, flow) = scene(EXEC, &[]);
    let error = packed(&flow).expect_err("there is no tool").to_string();
    assert!(error.contains("bin/tool"), "{error}");
}

/// A tar of one entry, made by hand as an attacker would.
fn evil(path: &str, kind: tar::EntryType, bytes: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_cksum();
    let mut all = header.as_bytes().to_vec();
    all.resize(512 + bytes.min(4096) as usize, b'x');
    all.resize(all.len().next_multiple_of(512) + 1024, 0);
    all
}

#[test]
fn hostile_bundles_are_refused() {
    use tar::EntryType::{Fifo, Link, Regular, Symlink};
    let table = [
        (evil("../up", Regular, 1), "leads out"),
        (evil("/etc/passwd", Regular, 1), "leads out"),
        (evil("a/../../b", Regular, 1), "leads out"),
        (evil("link", Symlink, 0), "neither a regular file nor a folder"),
        (evil("link", Link, 0), "neither a regular file nor a folder"),
        (evil("pipe", Fifo, 0), "neither a regular file nor a folder"),
        (evil("large", Regular, 1 << 40), "at most 4096"),
        (evil("short", Regular, 4000)[..1024].to_vec(), "bundle"),
        (vec![7; 2000], "no bundle"),
        (vec![0; 1024], "empty"),
        (Vec::new(), "empty"),
        ([&evil("a", Regular, 0)[..512], &evil("a", Regular, 0)[..]].concat(), "clashes"),
        ([&evil("a", Regular, 0)[..512], &evil("a/b", Regular, 0)[..]].concat(), "clashes"),
    ];
    for (bundle, wanted) in table {
        let target = tempfile::tempdir().expect("a folder");
        let result = unpack(&bundle[..], &target.path().join("in"), 4096);
        let error = result.expect_err(wanted).to_string();
        assert!(error.contains(wanted) || wanted == "bundle", "{wanted}: {error}");
        assert_eq!(
            fs::read_dir(target.path())
                .expect("there")
                .filter(|e| { e.as_ref().is_ok_and(|e| e.file_name() != "in") })
                .count(),
            0,
            "{wanted}: something was written outside"
        );
    }
}
