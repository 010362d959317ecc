//! Every feature of the format, compiled, and what it must become.

use dflow_control::workflow::{self, *};
use dflow_core::graph::*;
use std::path::Path;

fn parse(text: &str) -> Workflow {
    let head = "apiVersion: dflow/v1\nkind: Workflow\nmetadata: {name: t}\n";
    match workflow::parse(&format!("{head}{text}"), "t.yaml", Path::new("flows")) {
        Ok(workflow) => workflow,
        Err(report) => panic!("{report}"),
    }
}

fn file(name: &str) -> Workflow {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/workflows").join(name);
    match workflow::load(&path) {
        Ok(workflow) => workflow,
        Err(report) => panic!("{report}"),
    }
}

#[test]
fn the_example_of_the_format_loads() {
    let w = file("video.yaml");
    println!("{}", w.warnings);
    println!("{:#?}", w.graph);
}
