//! Every feature of the format, compiled, and what it must become.

use dflow_control::graphview;
use dflow_control::workflow::{self, *};
use dflow_core::graph::*;
use std::path::{Path, PathBuf};

fn parse(text: &str) -> Workflow {
    let head = "apiVersion: dflow/v1\nkind: Workflow\nmetadata: {name: t}\n";
    match workflow::parse(&format!("{head}{text}"), "t.yaml", Path::new("flows")) {
        Ok(workflow) => workflow,
        Err(report) => panic!("{report}"),
    }
}

fn load(name: &str) -> Workflow {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/workflows").join(name);
    match workflow::load(&path) {
        Ok(workflow) => workflow,
        Err(report) => panic!("{report}"),
    }
}

fn step<'w>(workflow: &'w Workflow, name: &str) -> &'w Step {
    workflow.graph.steps.iter().find(|s| s.name == name).expect("the step")
}

fn input<'w>(step: &'w Step, name: &str) -> &'w InputPort {
    step.inputs.iter().find(|i| i.name == name).expect("the input")
}

#[test]
fn the_example_of_the_format_loads() {
    let w = load("video.yaml");
    assert_eq!(
        (w.name.as_str(), w.version.as_str(), w.graph.name.as_str()),
        ("video", "1.2.0", "video@1.2.0")
    );
    assert_eq!(w.labels["team"], "media");
    assert_eq!(w.priority, 50);
    assert_eq!(w.graph.policy, Policy { deadline_ms: 1_800_000, finish_started: false });
    let names: Vec<&str> = w.graph.steps.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["probe", "split", "transcode", "merge", "single", "choose", "notify"]);

    let split = step(&w, "split");
    assert_eq!(split.start, StartPolicy::Eager);
    assert_eq!(split.outputs[0].kind, PortKind::Many);
    assert_eq!(split.outputs[0].hint_bytes, 8 << 20);
    let when = split.when.as_ref().expect("a condition");
    assert_eq!(when.reads, [Source::Input(3), Source::Output { step: 0, port: 0 }, Source::Input(2)]);
    assert!(when.asks.is_empty());

    let transcode = step(&w, "transcode");
    let foreach = transcode.foreach.as_ref().expect("a foreach");
    assert_eq!(foreach.over, Source::Output { step: 1, port: 0 });
    assert_eq!((foreach.json, foreach.items_max, foreach.parallel_max), (false, 256, 8));
    assert_eq!(foreach.tolerate, Tolerate::Count(0));
    assert_eq!(input(transcode, "video").source, Source::Item);
    assert_eq!(transcode.timeout_ms, 300_000);
    assert_eq!(transcode.cpu_milli, 1000, "the function's resources go before the defaults");
    assert_eq!(w.steps[2].memory_bytes, 512 << 20);
    assert_eq!(transcode.retry.retries_max, 4);
    assert_eq!(transcode.retry.backoff_ms, 200, "what the step does not say comes from the defaults");
    let on = [ErrorClass::Crash, ErrorClass::NodeLost, ErrorClass::Timeout, ErrorClass::Exit(75)];
    assert_eq!(transcode.retry.on, on);
    assert_eq!(w.steps[2].placement, Placement::Data);

    let merge = step(&w, "merge");
    assert_eq!(input(merge, "pieces").source, Source::Gather { step: 2, port: 0 });
    assert_eq!(w.steps[3].scratch_bytes, 4 << 30);
    assert_eq!(w.steps[3].inputs[0], InputUse { ty: ValueType::Bytes, list: true });

    assert_eq!(step(&w, "single").when.as_ref().expect("a condition").asks, [1]);
    let choose = step(&w, "choose");
    let StepKind::Switch(cases) = &choose.kind else { panic!("a switch") };
    assert_eq!(cases[0].value, Source::Output { step: 3, port: 0 });
    assert_eq!(cases[1], Case { when: None, value: Source::Output { step: 4, port: 0 } });
    assert_eq!((choose.cpu_milli, choose.timeout_ms), (0, 0), "defaults are not for switches");

    let notify = step(&w, "notify");
    assert_eq!((notify.after.as_slice(), notify.on_failure), ([5].as_slice(), OnFailure::Ignore));
    assert_eq!(w.outputs[0].keep_ms, Some(24 * 3_600_000));
    assert_eq!(w.outputs[1].keep_ms, None);
    assert_eq!(w.graph.outputs[0].source, Source::Output { step: 5, port: 0 });

    // `split` and `merge` are programs: what they read and write by path are files. What the switch
    // chooses among is read by no program.
    assert!(w.inputs[0].file && split.outputs[0].file && transcode.outputs[0].file && merge.outputs[0].file);
    assert!(!step(&w, "single").outputs[0].file && !step(&w, "probe").outputs[0].file);
    assert!(w.warnings.diagnostics.iter().all(|d| d.code == Code::MissingFile));
}

#[test]
fn functions_of_each_runtime() {
    let w = parse(
        r#"
functions:
  py: {runtime: python, handler: "functions.py:count", path: [lib], env: {A: "1"}, strict: true, deterministic: true}
  mod: {runtime: python, handler: "pkg.mod:Class.method", pool: {min_warm: 1, max: 4, keep_warm: 10m, max_uses: 9}}
  lib: {runtime: native, library: libx.so}
  abs: {runtime: shared-library, library: /opt/x.so, symbol: go}
  prog:
    runtime: exec
    command: [./run.sh, "--n={in.n}", "{in.list}", "{out.o}", "{print $1}"]
    stdin: text
    stdout: s
    outputs: {o: bytes, s: {type: text, stream: true, max_size: 3MB}}
  cat: {runtime: exec, command: [cat]}
steps:
  a: {function: py}
  b: {function: mod}
  c: {function: lib}
  d: {function: abs}
  e: {function: prog, in: {n: 5, list: {value: [1, 2]}, text: hello}}
  f: {function: cat}
"#,
    );
    let runtime = |i: usize| &w.functions[i].runtime;
    assert_eq!(
        *runtime(0),
        Runtime::Python {
            module: PythonModule::File("flows/functions.py".into()),
            function: "count".into(),
            path: vec!["flows/lib".into(), "flows".into()],
        }
    );
    assert!(w.functions[0].strict && w.functions[0].deterministic && w.functions[0].env["A"] == "1");
    assert!(w.graph.functions[0].deterministic);
    let Runtime::Python { module, function, .. } = runtime(1) else { panic!("python") };
    assert_eq!((module, function.as_str()), (&PythonModule::Name("pkg.mod".into()), "Class.method"));
    assert_eq!(w.functions[1].pool, PoolSpec { min_warm: 1, max: 4, keep_warm_ms: 600_000, max_uses: 9 });
    assert_eq!(w.graph.functions[1].workers_max, 4);
    assert_eq!(*runtime(2), Runtime::Native { library: "flows/libx.so".into(), symbol: "dflow_main".into() });
    assert_eq!(*runtime(3), Runtime::Native { library: "/opt/x.so".into(), symbol: "go".into() });
    let Runtime::Exec { command, stdin, stdout } = runtime(4) else { panic!("exec") };
    assert_eq!((stdin.as_deref(), stdout.as_deref()), (Some("text"), Some("s")));
    let text = |t: &str| TemplatePart::Text(t.into());
    assert_eq!(command[0].parts, [text("flows/./run.sh")]);
    assert_eq!(command[1].parts, [text("--n="), TemplatePart::Input("n".into())]);
    assert_eq!(command[3].parts, [TemplatePart::Output("o".into())]);
    assert_eq!(command[4].parts, [text("{print $1}")], "other braces are left alone");
    let Runtime::Exec { command, .. } = runtime(5) else { panic!("exec") };
    assert_eq!(command[0].parts, [text("cat")], "a program without a slash is looked up in PATH");
    // `n` goes into the command as text; the list by path, standard input from a file.
    let files: Vec<bool> = w.constants.iter().map(|c| c.file).collect();
    assert_eq!(files, [false, true, true]);
    let ports = &w.graph.steps[4].outputs;
    assert_eq!(
        (ports[1].ty, ports[1].kind, ports[1].bytes_max),
        (PortType::Text, PortKind::Stream, 3_000_000)
    );
}

#[test]
fn literals_are_typed_and_escaped() {
    let w = parse(
        r#"
functions:
  f: {runtime: builtin, handler: noop}
steps:
  a:
    function: f
    in:
      int: 5
      hex: 0x10
      float: 1.5
      yes: true
      nothing: null
      text: hello world
      quoted: "5"
      list: [1, two]
      map: {a: 1}
      escaped: {value: steps.x.y}
      wrapped: {value: {from: x}}
      odd: .inf
"#,
    );
    let a = step(&w, "a");
    let constant = |name: &str| {
        let Source::Const(i) = input(a, name).source else { panic!("{name} is a literal") };
        let c = &w.constants[i as usize];
        (c.ty, String::from_utf8(c.bytes.clone()).expect("text"), input(a, name).ty)
    };
    for (name, ty, bytes, port) in [
        ("int", ValueType::Int, "5", PortType::Json),
        ("hex", ValueType::Int, "16", PortType::Json),
        ("float", ValueType::Float, "1.5", PortType::Json),
        ("yes", ValueType::Bool, "true", PortType::Json),
        ("nothing", ValueType::Json, "null", PortType::Json),
        ("text", ValueType::String, "hello world", PortType::Text),
        ("quoted", ValueType::String, "5", PortType::Text),
        ("list", ValueType::List, r#"[1,"two"]"#, PortType::Json),
        ("map", ValueType::Json, r#"{"a":1}"#, PortType::Json),
        ("escaped", ValueType::String, "steps.x.y", PortType::Text),
        ("wrapped", ValueType::Json, r#"{"from":"x"}"#, PortType::Json),
        ("odd", ValueType::String, ".inf", PortType::Text),
    ] {
        assert_eq!(constant(name), (ty, bytes.to_owned(), port), "{name}");
    }
}

#[test]
fn lists_of_all_kinds_can_be_iterated() {
    let w = parse(
        r#"
inputs: {names: {type: list, items: string}, doc: json}
functions:
  split: {runtime: builtin, handler: synthetic, outputs: {parts: {type: text, many: true, max_items: 7}, list: {type: list, items: int}}}
  one: {runtime: builtin, handler: synthetic, outputs: {out: {type: text, stream: true}}}
steps:
  split: {function: split}
  many: {function: one, foreach: {item: p, over: steps.split.parts}, in: {x: item.p}, tolerate: {failed: 10%}}
  gather: {function: one, foreach: {item: p, over: "steps.many.out[*]"}, in: {x: item.p}, tolerate: {failed: 2}}
  json: {function: one, foreach: {item: n, over: steps.split.list}, in: {x: item.n}}
  input: {function: one, foreach: {item: n, over: inputs.names, max_parallel: 3}, in: {x: item.n}}
  whole: {function: one, foreach: {item: n, over: inputs.doc}, in: {x: item.n, all: steps.split.parts}}
  literal: {function: one, foreach: {item: n, over: [a, b]}, in: {x: item.n}}
outputs:
  texts: "steps.gather.out[*]"
  parts: {from: steps.split.parts}
"#,
    );
    let foreach = |name: &str| step(&w, name).foreach.clone().expect("a foreach");
    let x = |name: &str| {
        let index = w.graph.steps.iter().position(|s| s.name == name).expect("the step");
        (w.steps[index].inputs[0].ty, input(&w.graph.steps[index], "x").ty)
    };
    assert_eq!((foreach("many").json, foreach("many").tolerate), (false, Tolerate::Percent(10)));
    assert_eq!(x("many"), (ValueType::Text, PortType::Text));
    assert_eq!(foreach("gather").over, Source::Gather { step: 1, port: 0 });
    assert_eq!(foreach("gather").tolerate, Tolerate::Count(2));
    assert_eq!((foreach("json").json, x("json")), (true, (ValueType::Int, PortType::Json)));
    assert_eq!((foreach("input").json, foreach("input").parallel_max), (true, 3));
    assert_eq!(x("input"), (ValueType::String, PortType::Text), "the element's type is declared");
    assert_eq!((foreach("whole").json, x("whole")), (true, (ValueType::Json, PortType::Json)));
    assert_eq!((foreach("literal").over, x("literal").0), (Source::Const(0), ValueType::String));
    assert_eq!(step(&w, "split").outputs[0].items_max, 7);
    assert!(w.outputs[0].list && w.outputs[1].list);
}

#[test]
fn settings_merge_key_by_key() {
    let w = parse(
        r#"
start: all-ready
defaults: {timeout: 10s, retry: {max: 1, backoff: 1s}, resources: {cpu: 250m, memory: 1GiB}}
functions:
  f: {runtime: builtin, handler: synthetic, timeout: 20s, retry: {jitter: 0}, resources: {cpu: "2"}, outputs: {o: json}}
steps:
  a: {function: f}
  b: {function: f, timeout: 0, retry: {max: 0, on: [all, oom, "error:Bad Thing"]}, resources: {cpu: 0}, start: {first: 1}, in: {x: steps.a.o}, estimate: 2s}
  c: {function: f, start: first-byte, placement: {prefer: "label:gpu"}, on_failure: ignore}
  d: {function: {runtime: builtin, handler: noop}}
policy: {on_step_failure: finish-started, priority: 99}
"#,
    );
    let a = step(&w, "a");
    assert_eq!((a.timeout_ms, a.cpu_milli, w.steps[0].memory_bytes), (20_000, 2000, 1 << 30));
    assert_eq!(a.start, StartPolicy::AllReady);
    assert_eq!((a.retry.retries_max, a.retry.backoff_ms, a.retry.jitter_milli), (1, 1000, 0));
    assert_eq!((a.retry.factor_milli, a.retry.backoff_ms_max), (2000, 30_000));
    let b = step(&w, "b");
    assert_eq!((b.timeout_ms, b.cpu_milli, b.retry.retries_max), (0, 0, 0));
    assert_eq!(b.retry.on, [ErrorClass::All, ErrorClass::Oom, ErrorClass::Error("Bad Thing".into())]);
    assert_eq!((b.start, b.estimate_us), (StartPolicy::First(1), 2_000_000));
    let c = step(&w, "c");
    assert_eq!((c.start, c.on_failure), (StartPolicy::FirstByte, OnFailure::Ignore));
    assert_eq!(w.steps[2].placement, Placement::Label("gpu".into()));
    assert_eq!(step(&w, "d").timeout_ms, 10_000);
    assert!(w.graph.policy.finish_started && w.priority == 99);
}

#[test]
fn a_workflow_without_settings_has_the_defaults() {
    let w = parse("steps: {a: {function: {runtime: builtin, handler: noop}}}");
    let a = step(&w, "a");
    assert_eq!((a.start, a.timeout_ms, a.cpu_milli), (StartPolicy::FirstByte, 0, 1000));
    assert_eq!((a.retry.retries_max, a.on_failure), (0, OnFailure::Fail));
    assert_eq!((w.version.as_str(), w.graph.policy.deadline_ms, w.priority), ("0", 0, 50));
    assert_eq!(w.functions[0].pool, PoolSpec::default());
    assert!(w.warnings.is_empty());
}

#[test]
fn equal_functions_inside_steps_share_a_pool() {
    let mut text = "steps:\n".to_owned();
    for i in 0..100 {
        text += &format!("  s{i}: {{function: {{runtime: builtin, handler: noop}}}}\n");
    }
    text += "  other: {function: {runtime: builtin, handler: noop, env: {A: b}}}\n";
    let w = parse(&text);
    assert_eq!((w.functions.len(), w.graph.steps.len()), (2, 101));
    assert_eq!(w.graph.steps[100].kind, StepKind::Call(1));
}

#[test]
fn declared_inputs_decide_how_a_value_is_read() {
    let w = parse(
        r#"
inputs: {n: int, t: text}
functions:
  f: {runtime: builtin, handler: noop, inputs: {x: {type: float}, raw: bytes, any: {optional: true}}}
steps:
  a: {function: f, in: {x: inputs.n, raw: inputs.t}}
"#,
    );
    assert_eq!(w.steps[0].inputs[0].ty, ValueType::Float);
    assert_eq!(input(step(&w, "a"), "raw").ty, PortType::Bytes);
}

#[test]
fn optional_inputs_and_nested_switches() {
    let w = parse(
        r#"
inputs: {go: bool}
functions:
  f: {runtime: builtin, handler: synthetic, outputs: {o: text}}
  p: {runtime: exec, command: [cat, "{in.x}"]}
steps:
  outer: {switch: [{when: inputs.go, value: steps.inner.out}, {default: true, value: none}], output: out}
  inner: {switch: [{when: "!inputs.go", value: steps.a.o}, {default: true, value: steps.b.o}], output: out}
  a: {function: f}
  b: {function: f}
  use: {function: p, in: {x: {from: steps.outer.out, optional: true}}}
"#,
    );
    assert!(input(step(&w, "use"), "x").optional);
    assert_eq!(step(&w, "outer").outputs[0].ty, PortType::Text);
    // A program reads what the outer switch chooses: all that it may choose among are files.
    for name in ["outer", "inner", "a", "b"] {
        assert!(step(&w, name).outputs[0].file, "{name}");
    }
    assert!(w.constants[0].file);
}

#[test]
fn yaml_anchors_merges_and_json() {
    let w = parse(
        r#"
functions:
  base: &base {runtime: builtin, handler: synthetic, outputs: {o: json}, timeout: 1s}
  f: {<<: *base, timeout: 2s}
steps:
  a: {function: base}
  b: {function: f, in: &shared {x: steps.a.o}}
  c: {function: f, in: *shared}
"#,
    );
    assert_eq!((step(&w, "a").timeout_ms, step(&w, "b").timeout_ms), (1000, 2000));
    assert_eq!(step(&w, "b").inputs, step(&w, "c").inputs);

    let json = r#"{
	"apiVersion": "dflow/v1", "kind": "Workflow",
	"metadata": {"name": "j", "version": "2"},
	"inputs": {"n": {"type": "int", "default": 3}},
	"steps": {
		"a": {"function": {"runtime": "builtin", "handler": "synthetic", "outputs": {"o": {"type": "json"}}}, "in": {"x": "inputs.n"}},
		"b": {"function": {"runtime": "builtin", "handler": "log"}, "in": {"y": "steps.a.o"}, "when": "steps.a.o.size > 3"}
	}
}"#;
    let w = workflow::parse(json, "j.json", Path::new(".")).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!((w.graph.name.as_str(), w.graph.steps.len()), ("j@2", 2));
}

#[test]
fn what_is_never_used_is_a_warning() {
    let w = parse(
        "inputs: {a: text, b: text}\nfunctions:\n  f: {runtime: builtin, handler: noop}\n  g: {runtime: builtin, handler: noop}\nsteps:\n  s: {function: f, when: inputs.a == 'x'}\n",
    );
    let said: Vec<&str> = w.warnings.diagnostics.iter().map(|d| d.message.as_str()).collect();
    assert_eq!(said, ["input `b` is never used", "function `g` is never used"]);
    assert_eq!(w.warnings.diagnostics[0].place.line, 4);
}

#[test]
fn pictures_name_every_step() {
    let w = load("video.yaml");
    for format in [graphview::Format::Ascii, graphview::Format::Dot, graphview::Format::Svg] {
        let picture = graphview::render(&w, format);
        for step in &w.graph.steps {
            assert!(picture.contains(&step.name), "{format:?} lacks {}", step.name);
        }
        assert!(picture.ends_with('\n'));
    }
    let tree = graphview::render(&w, graphview::Format::Ascii);
    let expected = "\
video@1.2.0
`-- probe                       python  <- inputs.video  => preview
    `-- split                   exec  when inputs.split && steps.probe.meta.duration_s > inputs.segment_s  <- inputs.video, inputs.segment_s
        |-- transcode           native  foreach split.piece  <- item, inputs.target_type
        |   `-- merge           exec  <- transcode.video[*], inputs.target_type
        |       `-- choose      switch  <- merge.video, single.video  => video
        |           `-- notify  builtin log  <- probe.meta
        `-- single              native transcode  when skipped(steps.split)  <- inputs.video, inputs.target_type
";
    assert_eq!(tree, expected);
    let svg = graphview::render(&w, graphview::Format::Svg);
    assert!(svg.contains("prefers-color-scheme: dark"));
    assert!(svg.contains("inputs.split &amp;&amp; steps.probe.meta.duration_s &gt; inputs.segment_s"));
    assert_eq!(svg.matches("<g>").count(), svg.matches("</g>").count());
}

#[test]
fn boxes_of_a_large_picture_do_not_overlap() {
    let mut text =
        "functions:\n  f: {runtime: builtin, handler: synthetic, outputs: {o: json}}\nsteps:\n".to_owned();
    for i in 0..50usize {
        let reads: Vec<String> =
            (1..=3).filter(|k| i >= 7 * k).map(|k| format!("x{k}: steps.s{}.o", i - 7 * k)).collect();
        text += &format!("  s{i}: {{function: f, in: {{{}}}}}\n", reads.join(", "));
    }
    let svg = graphview::render(&parse(&text), graphview::Format::Svg);
    let number = |rect: &str, key: &str| -> f64 {
        let at = rect.find(&format!(" {key}=\"")).expect("the attribute") + key.len() + 3;
        rect[at..].split('"').next().expect("a value").parse().expect("a number")
    };
    let boxes: Vec<[f64; 4]> = svg
        .lines()
        .filter(|line| line.starts_with("<rect"))
        .map(|line| [number(line, "x"), number(line, "y"), number(line, "width"), number(line, "height")])
        .collect();
    assert_eq!(boxes.len(), 50);
    for (i, a) in boxes.iter().enumerate() {
        for b in &boxes[i + 1..] {
            let apart =
                a[0] + a[2] <= b[0] || b[0] + b[2] <= a[0] || a[1] + a[3] <= b[1] || b[1] + b[3] <= a[1];
            assert!(apart, "{a:?} and {b:?}");
        }
    }
}

#[test]
fn paths_are_relative_to_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("w.yaml");
    std::fs::write(dir.path().join("f.py"), "def g(): pass\n").expect("a file");
    let text = "apiVersion: dflow/v1\nkind: Workflow\nmetadata: {name: t}\nsteps:\n  a: {function: {runtime: python, handler: 'f.py:g'}}\n";
    std::fs::write(&path, text).expect("a file");
    let w = workflow::load(&path).unwrap_or_else(|report| panic!("{report}"));
    assert!(w.warnings.is_empty());
    assert_eq!(w.source_dir, dir.path());
    let Runtime::Python { module: PythonModule::File(file), .. } = &w.functions[0].runtime else {
        panic!("a file")
    };
    assert_eq!(*file, PathBuf::from(dir.path()).join("f.py"));
}
