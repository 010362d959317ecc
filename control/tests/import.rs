//! Importers: the same workflow in each schema, what real traces do, what must be refused, and the
//! workloads that are shipped.

use dflow_control::history::{Event, EventKind, Facts, Printed, RunRecord, graph_facts};
use dflow_control::import::export;
use dflow_control::import::{ImportError, ImportOptions, Imported, Kind, Mode, Warning, import, sniff};
use dflow_control::node::{Journal, NodeConfig, RunView};
use dflow_control::workflow::{self, Workflow};
use dflow_core::graph::{Source, Step, StepKind};
use dflow_proto::limits::{OUTPUT_PORTS_MAX, PORTS_MAX};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

fn wfformat(document: &Value) -> Result<Imported, ImportError> {
    import(Kind::Wfformat, document.to_string().as_bytes(), &ImportOptions::default())
}

fn loaded(imported: &Imported) -> Workflow {
    match workflow::parse(&imported.yaml, "imported.yaml", Path::new(".")) {
        Ok(workflow) => {
            assert!(workflow.warnings.is_empty(), "{}\n{}", workflow.warnings, imported.yaml);
            workflow
        }
        Err(report) => panic!("{report}\n{}", imported.yaml),
    }
}

fn step<'w>(workflow: &'w Workflow, name: &str) -> &'w Step {
    workflow.graph.steps.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no step {name}"))
}

/// What a step is told to do: the literal it gets as `spec`.
fn spec(workflow: &Workflow, step: &Step) -> Value {
    let input = step.inputs.iter().find(|i| i.name == "spec").expect("a synthetic step has a spec");
    let Source::Const(index) = input.source else { panic!("spec of {} is no literal", step.name) };
    serde_json::from_slice(&workflow.constants[index as usize].bytes).expect("a JSON literal")
}

/// The writer, port and size of what a step reads from other steps.
fn reads<'w>(workflow: &'w Workflow, of: &Step) -> Vec<(&'w str, String, u64)> {
    let read = |source: &Source| {
        let (Source::Output { step, port } | Source::Gather { step, port }) = source else { return None };
        let writer = &workflow.graph.steps[*step as usize];
        let port = &writer.outputs[usize::from(*port)].name;
        let spec = spec(workflow, writer);
        let out = spec["out"].as_array()?.iter().find(|out| out["port"] == port.as_str())?.clone();
        Some((writer.name.as_str(), port.clone(), out["bytes"].as_u64()?))
    };
    of.inputs.iter().filter_map(|input| read(&input.source)).collect()
}

/// Tasks, pairs of tasks of which one reads from the other, and bytes so read; helpers left out.
fn counts(workflow: &Workflow) -> (usize, usize, u64) {
    let helper = |name: &str| name.starts_with("external");
    let tasks: Vec<&Step> = workflow.graph.steps.iter().filter(|s| !helper(&s.name)).collect();
    let (mut pairs, mut bytes) = (BTreeSet::new(), 0);
    for task in &tasks {
        for (writer, _, size) in reads(workflow, task).into_iter().filter(|(writer, ..)| !helper(writer)) {
            pairs.insert((writer.to_owned(), task.name.clone()));
            bytes += size;
        }
    }
    (tasks.len(), pairs.len(), bytes)
}

/// Name, seconds, files read, files written, parents, children.
type DiamondTask =
    (&'static str, f64, Vec<&'static str>, Vec<&'static str>, Vec<&'static str>, Vec<&'static str>);

/// A diamond: `a` hands `x` to `b` and `c`, which hand `y` and `z` to `d`; `a`, `b` read `in` from outside.
fn diamond(version: &str) -> Value {
    let tasks: [DiamondTask; 4] = [
        ("a_1", 1.5, vec!["in"], vec!["x"], vec![], vec!["b_2", "c_3"]),
        ("b_2", 2.0, vec!["x", "in"], vec!["y"], vec!["a_1"], vec!["d_4"]),
        ("c_3", 3.0, vec!["x"], vec!["z"], vec!["a_1"], vec!["d_4"]),
        ("d_4", 0.5, vec!["y", "z"], vec!["out"], vec!["b_2", "c_3"], vec![]),
    ];
    let sizes = BTreeMap::from([("in", 100u64), ("x", 2000), ("y", 300), ("z", 40), ("out", 5)]);
    let (file, bytes, time) = match version {
        "1.0" | "1.1" | "1.2" => ("name", "size", "runtime"),
        _ => ("name", "sizeInBytes", "runtimeInSeconds"),
    };
    let old = |(name, s, reads, writes, parents, children): &DiamondTask| {
        let files = |names: &[&str], link: &str| -> Vec<Value> {
            names.iter().map(|n| json!({"link": link, file: n, bytes: sizes[n]})).collect()
        };
        let files = [files(reads, "input"), files(writes, "output")].concat();
        json!({"name": name, "type": "compute", time: s, "parents": parents, "children": children, "files": files})
    };
    let workflow = match version {
        "1.0" => json!({"jobs": tasks.iter().map(old).collect::<Vec<_>>()}),
        "1.1" | "1.2" | "1.3" => json!({"tasks": tasks.iter().map(old).collect::<Vec<_>>()}),
        _ => {
            let tasks_of = |(name, _, reads, writes, parents, children): &DiamondTask| {
                json!({"name": name, "id": name, "parents": parents, "children": children,
                       "inputFiles": reads, "outputFiles": writes})
            };
            let specification: Vec<Value> = tasks.iter().map(tasks_of).collect();
            let files: Vec<Value> = sizes.iter().map(|(id, n)| json!({"id": id, "sizeInBytes": n})).collect();
            let executed: Vec<Value> =
                tasks.iter().map(|t| json!({"id": t.0, "runtimeInSeconds": t.1, "coreCount": 1})).collect();
            json!({"specification": {"tasks": specification, "files": files},
                   "execution": {"makespanInSeconds": 5, "tasks": executed}})
        }
    };
    json!({"name": "diamond", "schemaVersion": version, "workflow": workflow})
}

#[test]
fn every_schema_gives_the_same_workflow() {
    let body = |version: &str| {
        let imported = wfformat(&diamond(version)).unwrap();
        assert_eq!(imported.warnings, [], "{version}");
        let Imported { yaml, .. } = imported;
        yaml[yaml.find("apiVersion").unwrap()..].to_owned()
    };
    let first = body("1.0");
    for version in ["1.1", "1.2", "1.3", "1.4", "1.5", "1.6"] {
        assert_eq!(body(version), first, "{version}");
    }
    let imported = wfformat(&diamond("1.6")).unwrap();
    let workflow = loaded(&imported);
    assert_eq!(counts(&workflow), (4, 4, 2 * 2000 + 300 + 40));
    assert_eq!(imported.stats.external_bytes, 100);
    assert_eq!(
        reads(&workflow, step(&workflow, "b_2")),
        [("a_1", "o0".to_owned(), 2000), ("external", "o0".to_owned(), 100)]
    );
    assert_eq!(workflow.outputs[0].name, "d_4");
}

#[test]
fn modes_and_scales_change_times_and_sizes() {
    let bytes = diamond("1.5").to_string();
    let of = |options: ImportOptions| {
        let imported = import(Kind::Wfformat, bytes.as_bytes(), &options).unwrap();
        let workflow = loaded(&imported);
        let c = step(&workflow, "c_3");
        (spec(&workflow, c)["sleep_ms"].as_f64().unwrap(), c.estimate_us, reads(&workflow, c)[0].2)
    };
    let base = ImportOptions::default();
    assert_eq!(of(base.clone()), (1000.0, 1_000_000, 2000));
    let trace = ImportOptions { mode: Mode::Trace, time_scale: 0.0005, size_scale: 0.5, ..base.clone() };
    assert_eq!(of(trace), (1.5, 2000, 1000));
    assert_eq!(of(ImportOptions { mode: Mode::Zero, size_scale: 1e-9, ..base.clone() }), (0.0, 0, 1));
    assert_eq!(of(ImportOptions { size_scale: 0.0, ..base.clone() }).2, 0);
    for bad in
        [ImportOptions { size_scale: -1.0, ..base.clone() }, ImportOptions { time_scale: f64::NAN, ..base }]
    {
        let error = import(Kind::Wfformat, bytes.as_bytes(), &bad).unwrap_err();
        assert!(matches!(error, ImportError::BadScale { .. }), "{error}");
    }
}

/// A task of schema 1.5.
fn task(id: &str, parents: &[&str], reads: &[&str], writes: &[&str]) -> Value {
    json!({"name": id, "id": id, "parents": parents, "inputFiles": reads, "outputFiles": writes})
}

fn trace(tasks: Vec<Value>, files: &[(&str, i64)]) -> Value {
    let files: Vec<Value> = files.iter().map(|(id, n)| json!({"id": id, "sizeInBytes": n})).collect();
    json!({"name": "t", "schemaVersion": "1.5", "workflow": {"specification": {"tasks": tasks, "files": files}}})
}

#[test]
fn real_traces_are_not_tidy() {
    let tasks = vec![
        // No files at all; its only tie is a child that names it as parent.
        task("stage in (all)", &[], &[], &[]),
        // A file without a size, one read in place, and a parent that is not there.
        task("a:1", &["stage in (all)", "ghost"], &["ref", "log", "unknown.txt"], &["log", "versions.yml"]),
        task("b:1", &["stage in (all)"], &["ref"], &["versions.yml"]),
        task("a_1", &["a:1"], &["versions.yml"], &[]),
    ];
    let imported =
        wfformat(&trace(tasks, &[("ref", 10), ("log", 5), ("versions.yml", 7), ("ref", 11)])).unwrap();
    let said: Vec<String> = imported.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "parents or children that the file does not have, left out: `ghost`",
            "files without a size, taken as empty: `unknown.txt`",
            "files listed with several sizes, of which the first counts: `ref`",
            "files that several tasks write, of which readers take those of their parents: `versions.yml`",
            "tasks without a time, taken as instant: 4, such as `stage in (all)`",
        ]
    );
    let workflow = loaded(&imported);
    let names: Vec<&str> = workflow.graph.steps.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["external", "stage_in_all_", "a_1", "b_1", "a_1_2"]);
    // The parent that hands over nothing still comes first.
    assert_eq!(step(&workflow, "a_1").after, [1]);
    assert_eq!(workflow.steps[2].description, "a:1");
    // Of two writers of one name, the reader takes its parent's.
    assert_eq!(reads(&workflow, step(&workflow, "a_1_2")), [("a_1", "o1".to_owned(), 7)]);
    // One object for the file that two read, another for those that only this one reads: `log` as it
    // was before, and the file of unknown size.
    let external: Vec<_> = reads(&workflow, step(&workflow, "a_1")).into_iter().map(|r| r.2).collect();
    assert_eq!(external, [10, 5]);
}

#[test]
fn a_task_may_have_a_thousand_parents_and_more() {
    for (width, steps) in [(997, 998), (2500, 2500 + 1 + 3)] {
        let names: Vec<String> = (0..width).map(|n| format!("t{n}")).collect();
        let mut tasks: Vec<Value> = names.iter().map(|n| task(n, &[], &[], &[&format!("{n}.out")])).collect();
        let files: Vec<String> = names.iter().map(|n| format!("{n}.out")).collect();
        let all: Vec<&str> = files.iter().map(String::as_str).collect();
        tasks.push(task("gather", &[], &all, &[]));
        let sizes: Vec<(&str, i64)> = all.iter().map(|f| (*f, 10)).collect();
        let workflow = loaded(&wfformat(&trace(tasks, &sizes)).unwrap());
        assert_eq!(workflow.graph.steps.len(), steps);
        let gather = step(&workflow, "gather");
        let read: u64 = reads(&workflow, gather).iter().map(|r| r.2).sum();
        assert_eq!(read, 10 * width as u64);
        for step in &workflow.graph.steps {
            assert!(step.inputs.len() <= PORTS_MAX, "{}", step.name);
            // Names are what a message to a worker is made of; a thousand must fit.
            assert!(step.inputs.iter().all(|i| i.name.len() <= 5), "{}", step.name);
        }
    }
}

#[test]
fn one_object_may_have_many_readers_and_one_task_many_objects() {
    // 130 tasks that each read `shared` and a file of their own, all from one writer.
    let own: Vec<String> = (0..130).map(|n| format!("part{n}")).collect();
    let writes: Vec<&str> = own.iter().map(String::as_str).chain(["shared"]).collect();
    let mut tasks = vec![task("scatter", &[], &[], &writes)];
    tasks.extend(own.iter().map(|f| task(&format!("read_{f}"), &["scatter"], &[f, "shared"], &[])));
    let sizes: Vec<(&str, i64)> = writes.iter().map(|f| (*f, 3)).collect();
    let workflow = loaded(&wfformat(&trace(tasks, &sizes)).unwrap());
    for step in &workflow.graph.steps {
        assert!(step.outputs.len() <= OUTPUT_PORTS_MAX, "{}", step.name);
    }
    let helpers = workflow.graph.steps.iter().filter(|s| s.name.starts_with("scatter_more"));
    for helper in helpers.clone() {
        assert_eq!((helper.after.as_slice(), helper.cpu_milli), (&[0][..], 0));
    }
    assert_eq!(helpers.count(), 2);
    let shared: BTreeSet<_> =
        own.iter().map(|f| reads(&workflow, step(&workflow, &format!("read_{f}")))[1].clone()).collect();
    assert_eq!(shared.len(), 1, "one object, whoever reads it");

    // 20 files that the same task reads are one object, since they are handed over together.
    let files: Vec<String> = (0..20).map(|n| format!("f{n}")).collect();
    let writes: Vec<&str> = files.iter().map(String::as_str).collect();
    let tasks = vec![task("w", &[], &[], &writes), task("r", &[], &writes, &[])];
    let sizes: Vec<(&str, i64)> = writes.iter().map(|f| (*f, 3)).collect();
    let workflow = loaded(&wfformat(&trace(tasks, &sizes)).unwrap());
    assert_eq!(reads(&workflow, step(&workflow, "r")), [("w", "o0".to_owned(), 60)]);
}

#[test]
fn bad_files_are_refused_with_the_place_and_the_remedy() {
    let good = diamond("1.5").to_string();
    let says =
        |bytes: &[u8]| import(Kind::Wfformat, bytes, &ImportOptions::default()).unwrap_err().to_string();
    let long = "n".repeat(10_000_000);
    let cycle = trace(vec![task("a", &[], &["z"], &["x"]), task("b", &["a"], &["x"], &["z"])], &[]);
    let twice = trace(vec![task("a", &[], &[], &[]), task("a", &[], &[], &[])], &[]);
    let negative = trace(vec![task("a", &[], &["x"], &[])], &[("x", -5)]);
    let named = trace(vec![task(&long, &[], &[], &[])], &[]);
    let later = json!({"schemaVersion": "2.0", "workflow": {}});
    let cases: [(&[u8], &str); 12] = [
        (&good.as_bytes()[..good.len() / 2], "the file ends in the middle of a value (line 1, column "),
        (b"", "the file ends in the middle of a value (line 1, column 0): it has been cut off; fetch it again"),
        (b"{]", "this is no valid JSON: key must be a string at line 1 column 2"),
        (b"\x1f\x8b\x08", "the file is no text: the byte at offset 1 is not UTF-8; is it compressed?"),
        (b"[]", "the file must be a map, found a list"),
        (b"{}", "the file has no `workflow`; is this a WfFormat file?"),
        (&later.to_string().into_bytes(), "schema version 2.0 is not known; 1.0 to 1.6 are, and what follows in 1.x is tried"),
        (&cycle.to_string().into_bytes(), "tasks wait for each other: b -> a -> b"),
        (&twice.to_string().into_bytes(), "workflow.specification.tasks[1] is a second task `a`; ids must be unique"),
        (&negative.to_string().into_bytes(), "workflow.specification.files[0].sizeInBytes must be from 0 to 1125899906842624, found -5"),
        (&named.to_string().into_bytes(), "workflow.specification.tasks[0].id is a name of 10000000 bytes; names have 1 to 4096"),
        (
            br#"{"schemaVersion": "1.5", "workflow": {"specification": {"tasks": [{"id": "a", "parents": "b"}]}}}"#,
            "workflow.specification.tasks[0].parents must be a list, found the text `b`",
        ),
    ];
    for (bytes, expected) in cases {
        let said = says(bytes);
        assert!(said.starts_with(expected), "expected {expected}\nfound    {said}");
        assert!(said.len() < 500, "a message is for people: {} bytes", said.len());
    }
    // A byte order mark is no mistake.
    let marked = import(Kind::Wfformat, format!("\u{feff}{good}").as_bytes(), &ImportOptions::default());
    assert_eq!(
        loaded(&marked.unwrap()).graph.steps.len(),
        loaded(&wfformat(&diamond("1.5")).unwrap()).graph.steps.len()
    );
    // What is newer within a major version is tried, and said.
    let mut newer = diamond("1.5");
    newer["schemaVersion"] = "1.9".into();
    assert_eq!(wfformat(&newer).unwrap().warnings, [Warning::NewerSchema { found: "1.9".into() }]);
    assert_eq!(
        wfformat(&trace(vec![], &[])).unwrap_err().to_string(),
        "the file has no tasks; there is nothing to run"
    );
}

fn flat(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn faasflow(name: &str) -> Imported {
    import(Kind::Faasflow, flat(name).as_bytes(), &ImportOptions::default()).unwrap()
}

/// The expression of a step's `when`, as the file has it.
fn when(imported: &Imported, step: &str) -> Option<String> {
    let rest = imported.yaml.split_once(&format!("\n  {step}:\n")).expect("the step").1;
    let lines = rest.lines().take_while(|line| line.starts_with("    "));
    lines.filter_map(|line| line.trim().strip_prefix("when: ")).map(|w| w.trim_matches('"').to_owned()).next()
}

#[test]
fn a_list_is_run_over_and_gathered() {
    let imported = faasflow("wordcount.yaml");
    assert_eq!(imported.warnings, [Warning::ItemsAssumed { function: "start".into(), items: 8 }]);
    let workflow = loaded(&imported);
    let out = &spec(&workflow, step(&workflow, "start"))["out"];
    // Keys and file travel together, an eighth in each item.
    assert_eq!(*out, json!([{"port": "o0", "bytes": (3_383_448 + 64) / 8, "items": 8}]));
    let count = step(&workflow, "count");
    assert_eq!(count.foreach.as_ref().map(|f| &f.over), Some(&Source::Output { step: 0, port: 0 }));
    assert_eq!(spec(&workflow, count)["out"], json!([{"port": "o0", "bytes": 736_992 / 8}]));
    let merge = step(&workflow, "merge");
    assert_eq!(merge.inputs[1].source, Source::Gather { step: 1, port: 0 });
}

#[test]
fn a_switch_decides_by_run_inputs_and_joins() {
    let imported = faasflow("video.yaml");
    assert_eq!(imported.warnings, []);
    let workflow = loaded(&imported);
    assert_eq!(workflow.inputs[0].name, "split");
    assert_eq!(when(&imported, "split").as_deref(), Some("inputs.split"));
    assert_eq!(when(&imported, "merge").as_deref(), Some("inputs.split"));
    assert_eq!(when(&imported, "simple_process").as_deref(), Some("!(inputs.split)"));
    // Both branches lead to `publish`: it runs in any case, and one of its inputs is null.
    assert_eq!(when(&imported, "publish"), None);
    let publish = step(&workflow, "publish");
    let optional: Vec<bool> = publish.inputs.iter().map(|i| i.optional).collect();
    assert_eq!(optional, [false, true, true]);
    // `split_ratio` tells the width.
    assert_eq!(spec(&workflow, step(&workflow, "split"))["out"][0]["items"], 3);
    // Found by name though the file says INPUT.
    assert_eq!(reads(&workflow, step(&workflow, "simple_process"))[0].0, "upload");
}

#[test]
fn an_exclusive_join_runs_once_by_either_way() {
    let imported = faasflow("recognizer.yaml");
    assert_eq!(imported.warnings, []);
    let workflow = loaded(&imported);
    let mosaic = when(&imported, "mosaic").unwrap();
    assert_eq!(mosaic, "(inputs.illegal_flag) || (!(inputs.illegal_flag) && inputs.illegal)");
    assert!(matches!(step(&workflow, "mosaic").kind, StepKind::Call(_)));
    // Nothing but control leads from the censor to the mosaic.
    let censor = workflow.graph.steps.iter().position(|s| s.name == "word_censor").unwrap() as u32;
    assert!(step(&workflow, "mosaic").after.contains(&censor));
}

#[test]
fn bad_flat_files_are_refused() {
    let says = |text: &str| {
        import(Kind::Faasflow, text.as_bytes(), &ImportOptions::default()).unwrap_err().to_string()
    };
    let cases = [
        ("functions: {a: 1}", "functions must be a list, found a map"),
        ("global_input: {}", "the file has no `functions`; is this a FaaSFlow file?"),
        ("functions: []", "functions has no tasks; there is nothing to run"),
        ("functions:\n- {name: a}\n- {name: a}", "functions[1] is a second task `a`; ids must be unique"),
        (
            "functions:\n- {name: a, next: {type: pass, nodes: [b]}}",
            "functions[0].next.nodes[0] names a task `b` that the file does not have",
        ),
        (
            "functions:\n- {name: a, next: {type: loop, nodes: []}}",
            "functions[0].next.type must be `pass`, `parallel`, `switch` or `foreach`, found the text `loop`",
        ),
        ("functions:\n- {name: a, runtime: -1}", "functions[0].runtime must be from 0 to 31536000, found -1"),
        (
            "functions:\n- {name: a, next: {nodes: [b]}}\n- {name: b, next: {nodes: [a]}}",
            "tasks wait for each other: ",
        ),
        (
            "functions:\n- {name: a, next: {type: foreach, nodes: [b]}}\n- {name: b, next: {type: foreach, nodes: [c]}}\n- {name: c}",
            "functions[1]: a `foreach` inside a `foreach`: only one level is supported; join the lists first",
        ),
        ("functions: [*x]", "this is no valid YAML: "),
    ];
    for (text, expected) in cases {
        let said = says(text);
        assert!(said.starts_with(expected), "expected {expected}\nfound    {said}");
    }
    // An alias bomb ends in an error, soon.
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        bomb += &format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", "));
    }
    assert!(says(&format!("{bomb}functions: [*a11]")).starts_with("this is no valid YAML"));
}

#[test]
fn formats_are_told_apart() {
    let trace = diamond("1.5").to_string();
    assert_eq!(sniff(trace.as_bytes()), Some(Kind::Wfformat));
    assert_eq!(sniff(&trace.as_bytes()[..trace.len() / 2]), Some(Kind::Wfformat));
    for name in ["video.yaml", "recognizer.yaml", "wordcount.yaml"] {
        assert_eq!(sniff(flat(name).as_bytes()), Some(Kind::Faasflow), "{name}");
    }
    let native = wfformat(&diamond("1.5")).unwrap().yaml;
    for text in [
        native.as_str(),
        "{\"apiVersion\": \"dflow/v1\", \"steps\": {}}",
        "",
        "functions:\n  a: {}\n",
        "\u{0}\u{0}",
    ] {
        assert_eq!(sniff(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn the_paper_s_workloads_are_shipped_whole() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/workloads");
    for (name, tasks, edges, bytes) in [
        ("cycles", 46, 52, 1_434_051_625),
        ("epigenomics", 45, 50, 39_363_288),
        ("genome", 50, 74, 177_011_979),
        ("soykb", 45, 77, 45_898_409),
    ] {
        for (form, sleep) in [("", Some(1000.0)), ("-inner", Some(1000.0)), ("-trace", None)] {
            let path = folder.join(name).join(format!("{name}{form}.yaml"));
            let workflow = workflow::load(&path).unwrap_or_else(|report| panic!("{report}"));
            assert_eq!(counts(&workflow), (tasks, edges, bytes), "{name}{form}");
            for step in workflow.graph.steps.iter().filter(|s| !s.name.starts_with("external")) {
                let ms = spec(&workflow, step)["sleep_ms"].as_f64().unwrap();
                assert!(sleep.is_none_or(|sleep| sleep == ms), "{} of {name}{form}", step.name);
            }
        }
    }
}

#[test]
fn a_run_can_be_exported_and_imported_again() {
    let imported = wfformat(&diamond("1.5")).unwrap();
    let workflow = loaded(&imported);
    let graph = &workflow.graph;
    let mut events = Vec::new();
    for (index, step) in graph.steps.iter().enumerate() {
        let mut record = |kind| {
            let at_us = 1000 * (events.len() as u64 + 1);
            events.push(Event { at_us, step: index as u32, item: 0, attempt: 1, kind });
        };
        record(EventKind::Started { early: false });
        record(EventKind::Began);
        for (port, out) in spec(&workflow, step)["out"].as_array().unwrap().iter().enumerate() {
            let bytes = out["bytes"].as_u64().unwrap();
            record(EventKind::Sealed { port: port as u16, item: 0, bytes });
        }
        let (total_us, cpu_us) = (2_500_000, 1_250_000);
        record(EventKind::Ended { ok: true, setup_us: 0, wait_us: 0, put_us: 0, total_us, cpu_us });
    }
    let facts = Facts {
        run: "r".into(),
        file: "diamond.json".into(),
        workflow: &workflow,
        graph: &graph_facts(&workflow),
        start: None,
        inputs: Vec::new(),
        node: &NodeConfig::default(),
        age: Duration::from_secs(9),
        view: &RunView::default(),
        journal: &Journal::default(),
        failure: None,
        printed: Printed::default(),
        nodes: None,
    };
    let record = RunRecord { events, ..facts.record() };
    let exported = export::wfformat(&record);
    assert_eq!(exported["schemaVersion"], "1.5");
    assert_eq!(exported["workflow"]["execution"]["makespanInSeconds"], 9.0);
    let executed = &exported["workflow"]["execution"]["tasks"][1];
    assert_eq!(
        (&executed["id"], &executed["runtimeInSeconds"], &executed["avgCPU"]),
        (&json!("a_1"), &json!(2.5), &json!(50.0))
    );
    let again = wfformat(&exported).unwrap();
    assert_eq!(again.warnings, []);
    // The step that stood for the outside is a task of the run.
    assert_eq!(again.stats.tasks, imported.stats.tasks + 1);
    assert_eq!(again.stats.edges, imported.stats.edges + 2);
    assert_eq!(again.stats.edge_bytes, imported.stats.edge_bytes + 200);
    let drawn = export::dot(&record);
    assert!(drawn.starts_with("digraph ") && drawn.contains(" -> "), "{drawn}");
}

mod mutated {
    use super::*;
    use proptest::prelude::*;

    /// Whatever is imported must load: an importer that writes what cannot run has failed.
    fn survives(kind: Kind, bytes: &[u8]) -> Result<(), TestCaseError> {
        let _ = sniff(bytes);
        if let Ok(imported) = import(kind, bytes, &ImportOptions::default()) {
            let loaded = workflow::parse(&imported.yaml, "imported.yaml", Path::new("."));
            prop_assert!(loaded.is_ok(), "{}\n{}", loaded.unwrap_err(), imported.yaml);
        }
        Ok(())
    }

    fn edited(mut bytes: Vec<u8>, edits: &[(prop::sample::Index, u8, Vec<u8>)]) -> Vec<u8> {
        for (at, remove, insert) in edits {
            let at = at.index(bytes.len() + 1);
            let end = (at + usize::from(*remove)).min(bytes.len());
            bytes.splice(at..end, insert.iter().copied());
        }
        bytes
    }

    /// Bytes that mean something in these formats are more likely than others.
    fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, Vec<u8>)>> {
        let word = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..4),
            prop::sample::select(vec![
                "{", "}", "[", "]", ":", ",", "\"", "\n", " ", "-", "&a", "*a", "null", "1e999", "-1", "a_1",
                "x"
            ])
            .prop_map(|s| s.as_bytes().to_vec()),
        ];
        prop::collection::vec((any::<prop::sample::Index>(), 0u8..12, word), 1..6)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn traces_never_panic(version in prop::sample::select(vec!["1.0", "1.3", "1.5"]), edits in edits()) {
            survives(Kind::Wfformat, &edited(diamond(version).to_string().into_bytes(), &edits))?;
        }

        #[test]
        fn flat_files_never_panic(name in prop::sample::select(vec!["video.yaml", "recognizer.yaml", "wordcount.yaml"]), edits in edits()) {
            survives(Kind::Faasflow, &edited(flat(name).into_bytes(), &edits))?;
        }

        #[test]
        fn any_names_give_valid_workflows(names in prop::collection::btree_set(".{1,40}", 1..8), reads in any::<u64>()) {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let tasks = names.iter().enumerate().map(|(n, name)| {
                let before = names[..n].iter().enumerate().filter(|(m, _)| reads >> (n * 8 + m) & 1 == 1);
                let files: Vec<&str> = before.map(|(_, name)| *name).collect();
                task(name, &[], &files, &[name])
            });
            let imported = wfformat(&trace(tasks.collect(), &[])).unwrap();
            let loaded = workflow::parse(&imported.yaml, "imported.yaml", Path::new("."));
            prop_assert!(loaded.is_ok(), "{}\n{}", loaded.unwrap_err(), imported.yaml);
        }
    }
}
