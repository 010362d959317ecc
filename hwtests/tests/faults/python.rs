//! Python functions that misbehave.

use dflow_hwtests::run::{Ended, Scene};

fn one(source: &str, handler: &str, ty: &str, step: &str) -> Ended {
    let scene = Scene::new();
    scene.write("functions.py", source);
    let body = format!(
        "functions:\n  f: {{runtime: python, handler: \"functions.py:{handler}\", outputs: {{data: {ty}}}}}\n\
         steps:\n  a: {{function: f{step}}}\noutputs:\n  result: {{from: steps.a.data}}\n"
    );
    scene.run(&body, &[])
}

#[test]
fn an_exception_comes_with_its_traceback() {
    let source = "def f():\n    return inner()\n\ndef inner():\n    raise ValueError('no such thing')\n";
    one(source, "f", "{type: text}", "")
        .expect(1, &["step a failed at attempt 1", "ValueError", "no such thing", "inner"]);
}

#[test]
fn an_import_that_raises_comes_with_its_traceback() {
    let source = "import nothing_of_this_name\ndef f():\n    return 'x'\n";
    one(source, "f", "{type: text}", "").expect(1, &["f", "nothing_of_this_name"]);
}

#[test]
fn a_missing_handler_says_what_there_is() {
    one("def f():\n    return 'x'\n", "g", "{type: text}", "").expect(1, &["cannot be loaded", "g"]);
}

#[test]
fn a_syntax_error_is_a_load_error() {
    one("def f(:\n", "f", "{type: text}", "").expect(1, &["cannot be loaded", "SyntaxError"]);
}

#[test]
fn memory_beyond_the_limit_is_its_own_error() {
    let source = "import time\ndef f():\n    all = []\n    while True:\n        all.append(bytearray(1 << 20))\n        time.sleep(0.0002)\n";
    one(source, "f", "{type: text}", ", resources: {memory: 128MiB}")
        .expect(1, &["step a failed", "resources.memory"]);
}

#[test]
fn a_generator_streams_and_its_failure_is_the_invocations() {
    let source = "def f():\n    yield 'one'\n    raise RuntimeError('then no more')\n";
    one(source, "f", "{type: text, many: true}", "").expect(1, &["RuntimeError", "then no more"]);
}

#[test]
fn sys_exit_ends_the_invocation_not_the_node() {
    let source = "import sys\ndef f():\n    sys.exit(7)\n";
    one(source, "f", "{type: text}", ", retry: {max: 1, backoff: 1ms, on: [\"exit:7\"]}")
        .expect(1, &["attempt 2", "7"]);
}

#[test]
fn a_class_of_error_can_be_tried_again() {
    let source = "import dflow\ndef f(ctx):\n    if ctx.attempt < 3:\n        raise KeyError('early')\n    return f'attempt {ctx.attempt}'\n";
    let ended = one(source, "f", "{type: text}", ", retry: {max: 5, backoff: 1ms, on: [\"error:KeyError\"]}");
    assert_eq!(ended.text(), "attempt 3");
}

#[test]
fn numpy_reads_without_a_copy() {
    let Some(python) = dflow_hwtests::run::python_with_numpy() else {
        println!("SKIP numpy: no python3 here has it (Debian: python3-numpy)");
        return;
    };
    let scene = Scene::new();
    scene.write(
        "functions.py",
        "import numpy as np\n\
         def make():\n    return np.arange(1 << 20, dtype='<i8')\n\
         def total(data):\n    a = np.frombuffer(data, dtype='<i8')\n    assert not a.flags.writeable and not a.flags.owndata\n    return {'total': int(a.sum())}\n",
    );
    scene.write_flow(
        "functions:\n  make: {runtime: python, handler: \"functions.py:make\", outputs: {data: {type: bytes}}}\n  \
         total: {runtime: python, handler: \"functions.py:total\", outputs: {sum: {type: json}}}\n\
         steps:\n  m: {function: make}\n  t: {function: total, in: {data: steps.m.data}}\noutputs:\n  sum: {from: steps.t.sum}\n",
    );
    let mut command = scene.dflow(&["run", "-q", "flow.yaml"]);
    let output = command.env("DFLOW_PYTHON", python).output().expect("dflow starts");
    let n: u64 = 1 << 20;
    let wanted = format!("{{\"total\":{}}}", n * (n - 1) / 2);
    let got = String::from_utf8_lossy(&output.stdout).replace(' ', "");
    assert_eq!(got.trim(), wanted, "{}", String::from_utf8_lossy(&output.stderr));
}
