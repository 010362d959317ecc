//! From a file to a [`Workflow`].

use super::condition::ConditionError;
use super::diagnostic::{Code, Diagnostics, Report, Span, unreadable, word};
use super::flow;
use super::inputs;
use super::link::Linker;
use super::names::Names;
use super::reader::Fields;
use super::reference;
use super::settings::{self, Settings};
use super::spec::{FunctionSpec, Workflow};
use super::step::{self, Functions};
use super::yaml::{self, Node};
use dflow_core::graph::{Function, Graph, Policy, RunInput, Source, Step, StepIndex, StepKind};
use dflow_proto::limits::WORKFLOW_BYTES_MAX;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const KEYS: [&str; 11] = [
    "apiVersion",
    "kind",
    "metadata",
    "inputs",
    "defaults",
    "start",
    "functions",
    "files",
    "steps",
    "outputs",
    "policy",
];

/// Reads and checks a workflow file. Relative paths in it are relative to its directory.
///
/// # Errors
/// All that is wrong with the file.
pub fn load(path: &Path) -> Result<Workflow, Report> {
    let name = path.display().to_string();
    let io = |e: std::io::Error| {
        let help = "give the path of a workflow file".to_owned();
        unreadable(&name, Code::Io, format!("cannot read the file: {e}"), vec![help])
    };
    let file = std::fs::File::open(path).map_err(io)?;
    // The length is not asked for first: a pipe has none, and a file can grow.
    let mut bytes = Vec::new();
    file.take(WORKFLOW_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io)?;
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => {
            let at = e.utf8_error().valid_up_to();
            let line = e.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1;
            let message = format!("the file is no text: byte {at}, on line {line}, is not UTF-8");
            let help = "a workflow file is YAML or JSON in UTF-8".to_owned();
            return Err(unreadable(&name, Code::Syntax, message, vec![help]));
        }
    };
    // Absolute, since programs run in directories of their own.
    let path = std::path::absolute(path).map_err(io)?;
    parse(&text, &name, path.parent().unwrap_or(Path::new("/")))
}

/// Checks the text of a workflow file. `file` is its name in messages, `dir` the directory that
/// relative paths in it are relative to.
///
/// # Errors
/// All that is wrong with the text.
pub fn parse(text: &str, file: &str, dir: &Path) -> Result<Workflow, Report> {
    if text.len() as u64 > WORKFLOW_BYTES_MAX {
        let message = format!("the file has more than {WORKFLOW_BYTES_MAX} bytes");
        return Err(unreadable(file, Code::Limit, message, Vec::new()));
    }
    let mut d = Diagnostics::new(text, file);
    let workflow = yaml::parse(&mut d).and_then(|root| document(&mut d, &root, file, dir));
    let failed = d.failed();
    let report = d.finish();
    match workflow {
        Some(workflow) if !failed => {
            Ok(Workflow { warnings: report, digest: digest(text, file, dir), text: text.into(), ..workflow })
        }
        _ => Err(report),
    }
}

fn digest(text: &str, file: &str, dir: &Path) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [file.as_bytes(), dir.as_os_str().as_bytes(), text.as_bytes()] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// What else goes with the workflow when it is deployed.
fn files(d: &mut Diagnostics<'_>, fields: &Fields<'_>, dir: &Path) -> Option<Vec<PathBuf>> {
    fields.get("files")?;
    let mut files = Vec::new();
    for (text, span) in fields.texts(d, "files").unwrap_or_default() {
        let path = PathBuf::from(text);
        if path.is_absolute() {
            let message = format!("`{}` under `files` is an absolute path", word(text));
            let help = "name files relative to the workflow file; what is absolute must be on every node";
            d.error_help(Code::BadValue, span, message, help);
        } else if !dir.join(&path).exists() {
            let message = format!("there is no file `{}`", dir.join(&path).display());
            let help = "paths are relative to the directory of the workflow file";
            d.warn(Code::MissingFile, span, message, help);
        }
        files.push(path);
    }
    Some(files)
}

/// What the top of a file says about the workflow as a whole.
struct Header {
    name: String,
    version: String,
    labels: BTreeMap<String, String>,
}

fn document(d: &mut Diagnostics<'_>, root: &Node, file: &str, dir: &Path) -> Option<Workflow> {
    let fields = Fields::read(d, root, "the workflow", &KEYS)?;
    let header = header(d, &fields);
    let defaults = defaults(d, &fields);
    let inputs = fields.get("inputs").map(|node| inputs::read(d, node)).unwrap_or_default();
    let mut functions = Functions::read(d, fields.get("functions"), dir);
    let files = files(d, &fields, dir);
    let top = Span { start: root.span.start, end: root.span.start };
    let steps =
        fields.need(d, "steps", top).map(|node| (node, step::read(d, node, &mut functions, &defaults, dir)));
    if let Some((node, steps)) = &steps
        && steps.is_empty()
        && !d.failed()
    {
        d.error(Code::MissingKey, node.span, "the workflow has no steps");
    }
    let (policy, priority) = policy(d, &fields);
    let names = Names::new(inputs, functions, steps.map(|(_, steps)| steps).unwrap_or_default());
    let mut linker = Linker::new(&names);
    let linked: Vec<_> = (0..names.steps.len()).filter_map(|i| linker.step(d, i as StepIndex)).collect();
    let outputs = fields.get("outputs").map(|node| linker.outputs(d, node)).unwrap_or_default();
    flow::report_cycles(d, &names, &linker.edges);
    let Linker { mut constants, conditions, .. } = linker;
    if d.failed() || linked.len() != names.steps.len() {
        return None;
    }
    let (mut steps, step_specs): (Vec<Step>, Vec<_>) = linked.into_iter().unzip();
    let (run_outputs, outputs): (Vec<_>, Vec<_>) = outputs.into_iter().unzip();
    let uses = Uses::of(&steps, run_outputs.iter().map(|output| &output.source), names.inputs.len());
    uses.warn(d, &names, &fields);
    let Names { mut inputs, functions, .. } = names;
    let functions: Vec<FunctionSpec> = functions.drafts.into_iter().filter_map(|f| f.spec).collect();
    flow::mark_files(&mut steps, &step_specs, &functions, &mut inputs, &mut constants);
    let graph = Graph {
        name: format!("{}@{}", header.name, header.version),
        inputs: inputs.iter().map(|i| RunInput { name: i.name.clone(), ty: i.ty.port_type() }).collect(),
        functions: functions.iter().map(graph_function).collect(),
        steps,
        outputs: run_outputs,
        policy,
    };
    // What the sections above should have reported already, with a better place; and limits that
    // only the scheduler has.
    if let Err(e) = graph.check() {
        d.error(Code::Limit, Span::default(), format!("the workflow cannot be scheduled: {e}"));
        return None;
    }
    Some(Workflow {
        name: header.name,
        version: header.version,
        labels: header.labels,
        graph: Arc::new(graph),
        functions,
        inputs,
        constants,
        conditions,
        steps: step_specs,
        outputs,
        priority,
        text: Arc::from(""),
        digest: [0; 32],
        file: file.to_owned(),
        source_dir: dir.to_owned(),
        files,
        warnings: Report::default(),
    })
}

fn header(d: &mut Diagnostics<'_>, fields: &Fields<'_>) -> Header {
    let top = Span { start: fields.span.start, end: fields.span.start };
    let mut header = Header { name: String::new(), version: "0".to_owned(), labels: BTreeMap::new() };
    for (key, wanted) in [("apiVersion", "dflow/v1"), ("kind", "Workflow")] {
        match fields.get(key) {
            None => {
                let help = format!("write `{key}: {wanted}`");
                d.error_help(Code::MissingKey, top, format!("the workflow needs `{key}`"), help);
            }
            Some(node) if node.scalar() != Some(wanted) => {
                let message = format!("`{key}` must be `{wanted}`, found {}", node.describe());
                d.error(Code::BadValue, node.span, message);
            }
            Some(_) => {}
        }
    }
    let Some(node) = fields.need(d, "metadata", top) else { return header };
    let keys = ["name", "version", "labels", "description"];
    let Some(metadata) = Fields::read(d, node, "`metadata`", &keys) else { return header };
    metadata.need(d, "name", fields.key_span("metadata"));
    if let Some(name) = metadata.text(d, "name") {
        if !reference::is_name(name) {
            let message = format!("`{}` cannot be the name of a workflow", word(name));
            let help = "use letters, digits, `_` and `-`";
            d.error_help(Code::BadValue, metadata.get("name").map_or(top, |n| n.span), message, help);
        }
        header.name = name.to_owned();
    }
    if let Some(version) = metadata.text(d, "version") {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+');
        if version.len() > reference::NAME_BYTES_MAX || !version.chars().all(good) {
            let message = format!("`{}` cannot be a version", word(version));
            d.error_help(
                Code::BadValue,
                metadata.get("version").map_or(top, |n| n.span),
                message,
                "write `1.2.0`",
            );
        }
        header.version = version.to_owned();
    }
    header.labels = metadata.text_map(d, "labels");
    metadata.text(d, "description");
    header
}

fn defaults(d: &mut Diagnostics<'_>, fields: &Fields<'_>) -> Settings {
    let keys = ["timeout", "retry", "resources", "start", "placement", "on_failure"];
    let mut defaults = Settings::default();
    let section = fields.get("defaults").and_then(|node| Fields::read(d, node, "`defaults`", &keys));
    if let Some(section) = &section {
        defaults = Settings::read(d, section);
    }
    if let Some(node) = fields.get("start") {
        if section.is_some_and(|s| s.get("start").is_some()) {
            let message = "`start` is given for the workflow and in `defaults`";
            d.error_help(Code::DuplicateKey, fields.key_span("start"), message, "remove one of them");
        }
        if let Some(start) = settings::start(d, node, "the workflow") {
            defaults.set_start(start);
        }
    }
    defaults
}

fn policy(d: &mut Diagnostics<'_>, fields: &Fields<'_>) -> (Policy, u8) {
    let mut policy = Policy::default();
    let keys = ["deadline", "on_step_failure", "durability", "priority"];
    let Some(section) = fields.get("policy").and_then(|node| Fields::read(d, node, "`policy`", &keys)) else {
        return (policy, 50);
    };
    policy.deadline_ms = section.duration_ms(d, "deadline").unwrap_or(0);
    let words = [("fail-fast", false), ("finish-started", true)];
    policy.finish_started = section.choice(d, "on_step_failure", &words).unwrap_or(false);
    if section.choice(d, "durability", &[("none", false), ("journal", true)]) == Some(true) {
        let message = "`durability: journal` is not supported yet";
        d.error_help(Code::Unsupported, section.key_span("durability"), message, "write `durability: none`");
    }
    let priority = section.whole(d, "priority", 0..=100).unwrap_or(50);
    (policy, priority as u8)
}

fn graph_function(function: &FunctionSpec) -> Function {
    Function {
        name: function.name.clone(),
        workers_max: function.pool.max,
        deterministic: function.deterministic,
    }
}

/// Which inputs anything refers to.
struct Uses {
    inputs: Vec<bool>,
}

impl Uses {
    fn of<'s>(steps: &'s [Step], outputs: impl Iterator<Item = &'s Source>, inputs: usize) -> Uses {
        let mut uses = Uses { inputs: vec![false; inputs] };
        for step in steps {
            step.inputs.iter().for_each(|port| uses.mark(&port.source));
            step.foreach.iter().for_each(|foreach| uses.mark(&foreach.over));
            step.when.iter().flat_map(|when| &when.reads).for_each(|source| uses.mark(source));
            if let StepKind::Switch(cases) = &step.kind {
                for case in cases {
                    uses.mark(&case.value);
                    case.when.iter().flat_map(|when| &when.reads).for_each(|source| uses.mark(source));
                }
            }
        }
        outputs.for_each(|source| uses.mark(source));
        uses
    }

    fn mark(&mut self, source: &Source) {
        if let Source::Input(input) = source {
            self.inputs[usize::from(*input)] = true;
        }
    }

    /// Says what is declared and never used.
    fn warn(&self, d: &mut Diagnostics<'_>, names: &Names<'_>, fields: &Fields<'_>) {
        let unused = names.inputs.iter().zip(&self.inputs).filter(|(_, used)| !**used);
        for (input, _) in unused {
            let span =
                fields.get("inputs").and_then(|node| node.key_span(&input.name)).unwrap_or(fields.span);
            let message = format!("input `{}` is never used", input.name);
            d.warn(Code::Unused, span, message, "remove it, or refer to it as `inputs.NAME`");
        }
        for function in names.functions.drafts.iter().filter(|f| !f.used) {
            let name = function.spec.as_ref().map_or("", |spec| spec.name.as_str());
            let message = format!("function `{name}` is never used");
            d.warn(Code::Unused, function.span, message, "remove it, or call it from a step");
        }
    }
}

impl Workflow {
    /// What a step's condition says: for a `when`, 1 if it holds and 0 if not; for a switch, the
    /// index of its first case that holds. `value` and `skipped` are as in
    /// [`CompiledCondition::evaluate`].
    ///
    /// # Errors
    /// A condition has no value, or no case of the switch holds.
    ///
    /// # Panics
    /// If the graph has no such step.
    ///
    /// [`CompiledCondition::evaluate`]: super::CompiledCondition::evaluate
    pub fn decide<B: AsRef<[u8]>>(
        &self,
        step: StepIndex,
        value: impl Fn(&Source) -> Option<B>,
        skipped: impl Fn(StepIndex) -> bool,
    ) -> Result<u32, ConditionError> {
        let step = &self.graph.steps[step as usize];
        let holds = |id: u32| self.conditions[id as usize].evaluate(&value, &skipped);
        let cases = match (&step.kind, &step.when) {
            (StepKind::Call(_), Some(when)) => return holds(when.id).map(u32::from),
            (StepKind::Call(_), None) => return Ok(1),
            (StepKind::Switch(cases), _) => cases,
        };
        for (i, case) in cases.iter().enumerate() {
            let chosen = match &case.when {
                Some(when) => holds(when.id)?,
                None => true,
            };
            if chosen {
                return Ok(i as u32);
            }
        }
        Err(ConditionError::NoCase { step: step.name.clone() })
    }
}
