//! Conditions evaluated, inputs encoded.

use dflow_control::workflow::{self, *};
use dflow_core::graph::Source;
use serde_json::json;
use std::path::Path;

const DECLARATIONS: &str = r#"apiVersion: dflow/v1
kind: Workflow
metadata: {name: t}
inputs:
  n: {type: int, default: 16, min: 1, max: 100}
  f: {type: float, min: 0.5}
  b: bool
  s: {type: string, default: avi, enum: [avi, mp4]}
  t: {type: text, max_size: 8B}
  j: json
  l: {type: list, items: string}
  raw: bytes
  level: {type: int, enum: [1, 2, 3]}
functions:
  probe: {runtime: builtin, handler: synthetic, outputs: {meta: json, note: text}}
  f: {runtime: builtin, handler: noop}
steps:
  my-probe: {function: probe}
  other: {function: probe}
  s:
    function: f
"#;

fn with(steps: &str) -> Workflow {
    let text = format!("{DECLARATIONS}{steps}");
    workflow::parse(&text, "t.yaml", Path::new(".")).unwrap_or_else(|report| panic!("{report}"))
}

/// Evaluates a condition of step `s`, in which `other` was skipped.
fn evaluate(condition: &str) -> Result<bool, ConditionError> {
    let w = with(&format!("    when: {}\n", serde_json::to_string(condition).expect("a text")));
    let values = |source: &Source| match source {
        Source::Input(0) => Some(b"16".to_vec()),
        Source::Input(1) => Some(b"2.5".to_vec()),
        Source::Input(2) => Some(b"true".to_vec()),
        Source::Input(3) => Some(b"avi".to_vec()),
        Source::Input(4) => Some("gr\u{fc}n".as_bytes().to_vec()),
        Source::Input(5) => Some(vec![b'1'; 2 << 20]),
        Source::Input(6) => Some(br#"["a","b"]"#.to_vec()),
        Source::Output { step: 0, port: 0 } => {
            Some(br#"{"duration_s": 60.19, "tags": ["x", "y"], "n": 3}"#.to_vec())
        }
        Source::Output { step: 0, port: 1 } => Some(b"\xff".to_vec()),
        _ => None,
    };
    let decided = w.decide(2, values, |step| step == 1)?;
    Ok(decided == 1)
}

#[test]
fn conditions_have_values() {
    for (condition, holds) in [
        ("inputs.b", true),
        ("true", true),
        ("inputs.n > 3 && inputs.n <= 16", true),
        ("inputs.n == 16.0", true),
        (r#"steps["my-probe"].meta.duration_s > inputs.n"#, true),
        (r#"steps["my-probe"].meta.n + 1 == 4"#, true),
        (r#"size(steps["my-probe"].meta.tags) == 2 && "x" in steps["my-probe"].meta.tags"#, true),
        (r#"has(steps["my-probe"].meta.absent)"#, false),
        (r#"steps["my-probe"].meta.tags.exists(t, t == "y")"#, true),
        (r#"inputs.s == "avi" && inputs.s.startsWith("a") && inputs.s.matches("^a.i$")"#, true),
        (r#"inputs.t.contains("ü") && size(inputs.t) == 4"#, true),
        (r#"inputs.f * 2.0 == 5.0"#, true),
        (r#"inputs.l[1] == "b" ? inputs.n > 3 : false"#, true),
        (r#"inputs.l.map(inputs, inputs + "!") == ["a!", "b!"]"#, true),
        ("skipped(steps.other)", true),
        (r#"skipped(steps["my-probe"])"#, false),
        ("!skipped(steps.other) || inputs.b", true),
        // A skipped value: the condition does not hold, whatever else it says.
        ("inputs.b || steps.other.meta.n > 3", false),
        ("!(steps.other.meta.n > 3)", false),
    ] {
        assert_eq!(evaluate(condition), Ok(holds), "{condition}");
    }
}

#[test]
fn conditions_that_fail_say_why() {
    let said = |condition: &str| evaluate(condition).expect_err(condition);
    assert!(matches!(said("inputs.n > inputs.s"), ConditionError::Failed { .. }));
    assert!(matches!(said("inputs.n"), ConditionError::NotBool { got, .. } if got == "int"));
    assert!(matches!(said("inputs.n / 0 == 1"), ConditionError::Failed { .. }));
    assert!(matches!(said(r#"steps["my-probe"].note == "x""#), ConditionError::NotOfType { ty: "text", .. }));
    let large = said("inputs.j == 1");
    assert!(matches!(large, ConditionError::TooLarge { bytes: 2_097_152, .. }), "{large}");
    let absent = said(r#"steps["my-probe"].meta.absent > 3"#).to_string();
    assert!(absent.contains("absent"), "{absent}");
}

#[test]
fn a_switch_takes_its_first_case_that_holds() {
    let w = with(
        "  sw: {switch: [{when: inputs.n > 50, value: 1}, {when: inputs.n > 10, value: 2}], output: o}\n",
    );
    let decide = |n: &str| w.decide(3, |_| Some(n.as_bytes().to_vec()), |_| false);
    assert_eq!((decide("60"), decide("20")), (Ok(0), Ok(1)));
    assert_eq!(decide("5"), Err(ConditionError::NoCase { step: "sw".into() }));
    assert_eq!(
        w.decide(3, |_| None::<Vec<u8>>, |_| false),
        Err(ConditionError::NoCase { step: "sw".into() })
    );
}

#[test]
fn inputs_are_encoded_by_type() {
    let w = with("");
    let text = |name: &str, value: &str| w.input_bytes(name, Some(InputArg::Text(value)));
    let bytes = |b: &str| InputData::Bytes(b.as_bytes().to_vec());
    for (name, value, encoded) in [
        ("n", " 20 ", "20"),
        ("f", "5", "5.0"),
        ("f", "1e3", "1000.0"),
        ("b", "true", "true"),
        ("s", "mp4", "mp4"),
        ("t", "12", "12"),
        ("j", r#"{"a": [1, 2]}"#, r#"{"a": [1, 2]}"#),
        ("l", r#"["x"]"#, r#"["x"]"#),
        ("raw", "anything", "anything"),
        ("level", "2", "2"),
    ] {
        assert_eq!(text(name, value).unwrap_or_else(|e| panic!("{name}: {e}")), bytes(encoded), "{name}");
    }
    assert_eq!(w.input_bytes("n", None).expect("the default"), bytes("16"));
    assert_eq!(
        w.input_bytes("l", Some(InputArg::Json(&json!(["a", 1])))).expect("a list"),
        bytes(r#"["a",1]"#)
    );
    for (name, value, why) in [
        ("n", "twelve", "input `n`: expected a whole number, found the text `twelve`"),
        ("n", "1.5", "input `n`: expected a whole number, found the text `1.5`"),
        (
            "n",
            "99999999999999999999",
            "input `n`: expected a whole number, found the text `99999999999999999999`",
        ),
        ("n", "0", "input `n`: 0 is less than 1, the smallest value allowed"),
        ("n", "101", "input `n`: 101 is more than 100, the largest value allowed"),
        ("f", "nan", "input `f`: expected a number, found the text `nan`"),
        ("b", "1", "input `b`: expected `true` or `false`, found `1`"),
        ("s", "webm", "input `s`: `webm` is none of `avi`, `mp4`"),
        ("t", "123456789", "input `t`: 9 bytes; at most 8 are allowed"),
        ("l", "{}", "input `l`: expected a list, found a map"),
        ("level", "9", "input `level`: `9` is none of `1`, `2`, `3`"),
    ] {
        assert_eq!(text(name, value).expect_err(name).to_string(), why);
    }
    let j = text("j", "{").expect_err("no JSON").to_string();
    assert!(j.starts_with("input `j`: this is no JSON: "), "{j}");
    let missing = w.input_bytes("f", None).expect_err("no default").to_string();
    assert_eq!(
        missing,
        "input `f` of type float is missing: give it with `--input f=VALUE` or `--input f=@FILE`"
    );
    let unknown = w.input_bytes("nn", None).expect_err("unknown").to_string();
    assert!(unknown.starts_with("the workflow has no input `nn`; it takes `n`, `f`"), "{unknown}");
}

#[test]
fn inputs_from_files_stay_in_the_file() {
    let w = with("");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("value");
    let given = |name: &str, contents: &[u8]| {
        std::fs::write(&path, contents).expect("a file");
        w.input_bytes(name, Some(InputArg::File(&path)))
    };
    let file = |bytes: u64| InputData::File { path: path.clone(), bytes };
    assert_eq!(given("raw", &[0xff; 3]).expect("bytes"), file(3));
    assert_eq!(given("j", b"{\"a\": 1}").expect("json"), file(8));
    assert_eq!(given("l", b"[1, 2]").expect("a list"), file(6));
    assert_eq!(given("n", b"20\n").expect("an int"), InputData::Bytes(b"20".to_vec()));
    for (name, contents) in
        [("j", b"{".as_slice()), ("l", b"{}"), ("t", b"longer than eight"), ("n", b"x"), ("s", b"\xff")]
    {
        given(name, contents).expect_err(name);
    }
    let missing = w.input_bytes("raw", Some(InputArg::File(&dir.path().join("absent"))));
    assert!(matches!(missing, Err(InputError::Io { .. })));
    let directory = w.input_bytes("raw", Some(InputArg::File(dir.path())));
    assert!(matches!(directory, Err(InputError::Refused { .. })));
}

#[test]
fn json_lists_are_taken_apart_without_decoding() {
    let list = br#" [ 1, "a,b]" , {"x": [2]}, null ] "#;
    let elements = list_elements(list).expect("a list");
    let texts: Vec<&[u8]> = elements.iter().map(|r| &list[r.clone()]).collect();
    assert_eq!(texts, [b"1".as_slice(), br#""a,b]""#, br#"{"x": [2]}"#, b"null"]);
    assert_eq!(list_elements(b"[]").expect("a list").len(), 0);
    for bad in [b"{}".as_slice(), b"[1", b"", b"\xff"] {
        list_elements(bad).expect_err("no list");
    }
    assert_eq!(element_bytes(ValueType::String, br#""a\nb""#), Ok(b"a\nb".to_vec()));
    assert_eq!(element_bytes(ValueType::Json, br#""a""#), Ok(br#""a""#.to_vec()));
    assert_eq!(element_bytes(ValueType::Int, b"3"), Ok(b"3".to_vec()));
    element_bytes(ValueType::Int, b"\"3\"").expect_err("a text");
}
