//! Functions: how they are run, and what ports they have.

use super::diagnostic::{Code, Diagnostics, Problem, Span, word};
use super::inputs::{type_named, value_type};
use super::reader::{self, Fields};
use super::settings::Settings;
use super::spec::{
    Builtin, FunctionSpec, ParamSpec, PoolSpec, PortSpec, PythonModule, Runtime, Template, TemplatePart,
    ValueType,
};
use super::yaml::Node;
use dflow_core::graph::PortKind;
use dflow_proto::limits::{ITEMS_DEFAULT_MAX, OUTPUT_PORTS_MAX, PORTS_MAX};
use std::path::{Path, PathBuf};

const KEYS: [&str; 18] = [
    "runtime",
    "handler",
    "path",
    "library",
    "symbol",
    "command",
    "stdin",
    "stdout",
    "env",
    "pool",
    "inputs",
    "outputs",
    "resources",
    "timeout",
    "retry",
    "strict",
    "deterministic",
    "description",
];

/// A declared function.
pub(super) struct FunctionDraft {
    /// Absent if the runtime could not be read.
    pub(super) spec: Option<FunctionSpec>,
    /// Its outputs; absent if they could not all be read, so that references to them are not reported.
    pub(super) ports: Option<Vec<PortSpec>>,
    pub(super) settings: Settings,
    pub(super) span: Span,
    pub(super) used: bool,
}

/// Reads one function, called `name`, at `span`; `dir` is the workflow's directory.
pub(super) fn read(
    d: &mut Diagnostics<'_>,
    name: &str,
    span: Span,
    node: &Node,
    dir: &Path,
) -> FunctionDraft {
    let mut draft =
        FunctionDraft { spec: None, ports: None, settings: Settings::default(), span, used: false };
    let before = d.errors();
    let Some(fields) = Fields::read(d, node, format!("function `{name}`"), &KEYS) else { return draft };
    draft.settings = Settings::read(d, &fields);
    let ports = outputs(d, &fields);
    let params = params(d, &fields);
    let pool = pool(d, &fields);
    let env = fields.text_map(d, "env");
    let strict = fields.boolean(d, "strict").unwrap_or(false);
    let deterministic = fields.boolean(d, "deterministic").unwrap_or(false);
    fields.text(d, "description");
    let runtime = runtime(d, &fields, span, dir);
    if let (Some(Runtime::Exec { command, stdin, stdout }), Some(ports)) = (&runtime, &ports) {
        check_exec(d, &fields, command, (stdin, stdout), ports, params.as_deref());
    }
    draft.ports = ports.clone();
    if let (Some(runtime), Some(ports), true) = (runtime, ports, d.errors() == before) {
        let name = name.to_owned();
        draft.spec = Some(FunctionSpec { name, runtime, pool, env, strict, deterministic, params, ports });
    }
    draft
}

fn outputs(d: &mut Diagnostics<'_>, fields: &Fields<'_>) -> Option<Vec<PortSpec>> {
    const KEYS: [&str; 8] =
        ["type", "items", "many", "stream", "size_hint", "max_size", "max_items", "description"];
    let Some(node) = fields.get("outputs") else { return Some(Vec::new()) };
    let before = d.errors();
    let entries = reader::named(d, node, &format!("`outputs` of {}", fields.what))?;
    if entries.len() > OUTPUT_PORTS_MAX {
        let message =
            format!("{} has {} outputs; at most {OUTPUT_PORTS_MAX} are allowed", fields.what, entries.len());
        d.error(Code::Limit, fields.key_span("outputs"), message);
        return None;
    }
    let mut ports = Vec::with_capacity(entries.len());
    for (name, _, node) in entries {
        let what = format!("output `{name}` of {}", fields.what);
        let mut port = PortSpec {
            name: name.to_owned(),
            ty: ValueType::Bytes,
            items: ValueType::Json,
            kind: PortKind::Plain,
            hint_bytes: 0,
            bytes_max: 0,
            items_max: ITEMS_DEFAULT_MAX,
        };
        // `meta: json` is short for `meta: {type: json}`.
        if node.scalar().is_some() && !node.is_null() {
            port.ty = type_named(d, node, &what)?;
        } else if let Some(fields) = Fields::read(d, node, what, &KEYS) {
            port.ty = value_type(d, &fields, "type").unwrap_or_default();
            port.items = value_type(d, &fields, "items").unwrap_or(ValueType::Json);
            port.hint_bytes = fields.size_bytes(d, "size_hint").unwrap_or(0);
            port.bytes_max = fields.size_bytes(d, "max_size").unwrap_or(0);
            fields.text(d, "description");
            let many = fields.boolean(d, "many").unwrap_or(false);
            let stream = fields.boolean(d, "stream").unwrap_or(false);
            // Items of a list can be read while they grow in any case.
            port.kind = match (many, stream) {
                (true, _) => PortKind::Many,
                (false, true) => PortKind::Stream,
                (false, false) => PortKind::Plain,
            };
            if let Some(items) = fields.whole(d, "max_items", 1..=u64::from(u32::MAX)) {
                port.items_max = items as u32;
                if !many {
                    let message =
                        format!("`max_items` has no meaning for {}, which is one object", fields.what);
                    d.error_help(Code::BadValue, fields.key_span("max_items"), message, "add `many: true`");
                }
            }
            if port.bytes_max > 0 && port.hint_bytes > port.bytes_max {
                let message = format!("`size_hint` of {} is more than its `max_size`", fields.what);
                d.error(Code::BadValue, fields.key_span("size_hint"), message);
            }
            if fields.get("items").is_some() && port.ty != ValueType::List {
                let message = format!(
                    "`items` has no meaning for {}, which is of type {}",
                    fields.what,
                    port.ty.name()
                );
                d.error_help(
                    Code::BadValue,
                    fields.key_span("items"),
                    message,
                    "it belongs to outputs of type list",
                );
            }
        }
        ports.push(port);
    }
    (d.errors() == before).then_some(ports)
}

fn params(d: &mut Diagnostics<'_>, fields: &Fields<'_>) -> Option<Vec<ParamSpec>> {
    let node = fields.get("inputs")?;
    let entries = reader::named(d, node, &format!("`inputs` of {}", fields.what))?;
    if entries.len() > PORTS_MAX {
        let message =
            format!("{} has {} inputs; at most {PORTS_MAX} are allowed", fields.what, entries.len());
        d.error(Code::Limit, fields.key_span("inputs"), message);
        return None;
    }
    let mut params = Vec::with_capacity(entries.len());
    for (name, _, node) in entries {
        let what = format!("input `{name}` of {}", fields.what);
        let mut param = ParamSpec { name: name.to_owned(), ty: None, optional: false };
        if node.scalar().is_some() && !node.is_null() {
            param.ty = type_named(d, node, &what);
        } else if let Some(fields) = Fields::read(d, node, what, &["type", "optional", "description"]) {
            param.ty = value_type(d, &fields, "type");
            param.optional = fields.boolean(d, "optional").unwrap_or(false);
            fields.text(d, "description");
        }
        params.push(param);
    }
    Some(params)
}

fn pool(d: &mut Diagnostics<'_>, fields: &Fields<'_>) -> PoolSpec {
    const WORKERS: std::ops::RangeInclusive<u64> = 1..=65_536;
    let mut pool = PoolSpec::default();
    let what = format!("`pool` of {}", fields.what);
    let keys = ["min_warm", "max", "keep_warm", "max_uses"];
    let Some(fields) = fields.get("pool").and_then(|node| Fields::read(d, node, what, &keys)) else {
        return pool;
    };
    pool.min_warm = fields.whole(d, "min_warm", 0..=*WORKERS.end()).map_or(pool.min_warm, |n| n as u32);
    pool.max = fields.whole(d, "max", WORKERS).map_or(pool.max, |n| n as u32);
    pool.keep_warm_ms = fields.duration_ms(d, "keep_warm").unwrap_or(pool.keep_warm_ms);
    pool.max_uses = fields.whole(d, "max_uses", 0..=u64::MAX).unwrap_or(pool.max_uses);
    if pool.min_warm > pool.max {
        let message = format!("`min_warm` of {} is more than `max`, which is {}", fields.what, pool.max);
        d.error(Code::BadValue, fields.key_span("min_warm"), message);
    }
    pool
}

fn runtime(d: &mut Diagnostics<'_>, fields: &Fields<'_>, span: Span, dir: &Path) -> Option<Runtime> {
    #[derive(Clone, Copy, PartialEq)]
    enum Name {
        Python,
        Native,
        Exec,
        Builtin,
    }
    const NAMES: [(&str, Name); 5] = [
        ("python", Name::Python),
        ("native", Name::Native),
        ("exec", Name::Exec),
        ("builtin", Name::Builtin),
        ("shared-library", Name::Native),
    ];
    const OWN: [(&str, &[Name]); 7] = [
        ("handler", &[Name::Python, Name::Builtin]),
        ("path", &[Name::Python]),
        ("library", &[Name::Native]),
        ("symbol", &[Name::Native]),
        ("command", &[Name::Exec]),
        ("stdin", &[Name::Exec]),
        ("stdout", &[Name::Exec]),
    ];
    fields.need(d, "runtime", span)?;
    let name = fields.choice(d, "runtime", &NAMES)?;
    for (key, owners) in OWN {
        if fields.get(key).is_some() && !owners.contains(&name) {
            let name_of = |owner: &Name| NAMES.iter().find(|(_, n)| n == owner).map_or("", |(name, _)| *name);
            let names: Vec<String> = owners.iter().map(|owner| format!("`{}`", name_of(owner))).collect();
            let message = format!("`{key}` has no meaning for {}", fields.what);
            let help = format!("it belongs to runtime {}", names.join(" or "));
            d.error_help(Code::UnknownKey, fields.key_span(key), message, help);
        }
    }
    match name {
        Name::Python => {
            let node = fields.need(d, "handler", span)?;
            let handler = fields.text(d, "handler")?;
            let (module, function) = match python_handler(handler, dir) {
                Ok(handler) => handler,
                Err(problem) => {
                    d.problem(node.span, problem);
                    return None;
                }
            };
            if let PythonModule::File(file) = &module {
                warn_missing(d, node.span, file);
            }
            let mut path: Vec<PathBuf> =
                fields.texts(d, "path").unwrap_or_default().into_iter().map(|(p, _)| dir.join(p)).collect();
            path.push(dir.to_owned());
            Some(Runtime::Python { module, function, path })
        }
        Name::Native => {
            let node = fields.need(d, "library", span)?;
            let library = dir.join(fields.text(d, "library")?);
            warn_missing(d, node.span, &library);
            let symbol = fields.text(d, "symbol").unwrap_or("dflow_main");
            let good = super::reference::is_name(symbol) && !symbol.contains('-');
            if !good {
                let message = format!("`{}` can be no symbol of a library", word(symbol));
                d.error(Code::BadValue, fields.get("symbol").map_or(span, |n| n.span), message);
                return None;
            }
            Some(Runtime::Native { library, symbol: symbol.to_owned() })
        }
        Name::Exec => {
            let node = fields.need(d, "command", span)?;
            let words = fields.texts(d, "command")?;
            let mut command = Vec::with_capacity(words.len());
            for (text, span) in words {
                match template(text) {
                    Ok(template) => command.push(template),
                    Err(problem) => d.problem(span, problem),
                }
            }
            let program = match command.first_mut().map(|t| t.parts.as_mut_slice()) {
                Some([TemplatePart::Text(program)]) if !program.is_empty() => program,
                _ => {
                    let message = format!("`command` of {} must begin with a program", fields.what);
                    d.error_help(
                        Code::BadValue,
                        node.span,
                        message,
                        "write `command: [PROGRAM, ARGUMENT, ...]`",
                    );
                    return None;
                }
            };
            if program.contains('/') {
                let path = dir.join(program.as_str());
                warn_missing(d, node.span, &path);
                *program = path.to_string_lossy().into_owned();
            }
            let stdin = fields.text(d, "stdin").map(str::to_owned);
            let stdout = fields.text(d, "stdout").map(str::to_owned);
            Some(Runtime::Exec { command, stdin, stdout })
        }
        Name::Builtin => {
            fields.need(d, "handler", span)?;
            let handlers = Builtin::ALL.map(|b| (b.name(), b));
            let handler = fields.choice(d, "handler", &handlers)?;
            Some(Runtime::Builtin { handler })
        }
    }
}

/// `functions.py:count` or `package.module:main`.
fn python_handler(handler: &str, dir: &Path) -> Result<(PythonModule, String), Problem> {
    let bad = || {
        let message = format!("`{}` names no Python function", word(handler));
        Problem::new(Code::BadValue, message).help("write `FILE.py:FUNCTION` or `PACKAGE.MODULE:FUNCTION`")
    };
    let identifier = |s: &str| {
        s.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_')
            && s.chars().all(|c| c.is_alphanumeric() || c == '_')
    };
    let (module, function) = handler.rsplit_once(':').ok_or_else(bad)?;
    if !function.split('.').all(identifier) {
        return Err(bad());
    }
    let module = match module.ends_with(".py") || module.contains('/') {
        true => PythonModule::File(dir.join(module)),
        false if module.split('.').all(identifier) => PythonModule::Name(module.to_owned()),
        false => return Err(bad()),
    };
    Ok((module, function.to_owned()))
}

/// Only a warning: the file may be built, or copied to the node, before the run.
fn warn_missing(d: &mut Diagnostics<'_>, span: Span, path: &Path) {
    if !path.exists() {
        let message = format!("there is no file `{}`", path.display());
        d.warn(Code::MissingFile, span, message, "paths are relative to the directory of the workflow file");
    }
}

/// Takes a word of a command apart. Braces that begin no placeholder are left alone: many programs
/// have braces in their arguments.
fn template(text: &str) -> Result<Template, Problem> {
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        plain.push_str(&rest[..at]);
        let inner = &rest[at + 1..];
        let Some((kind, name)) = ["in.", "out.", "input.", "inputs.", "output.", "outputs."]
            .into_iter()
            .find_map(|prefix| inner.strip_prefix(prefix).map(|name| (prefix, name)))
        else {
            plain.push('{');
            rest = inner;
            continue;
        };
        let closed = name.split_once('}').filter(|(name, _)| super::reference::is_name(name));
        let Some((name, after)) = closed.filter(|_| matches!(kind, "in." | "out.")) else {
            let message = format!("`{}` holds no valid placeholder", word(text));
            return Err(Problem::new(Code::BadValue, message).help("write `{in.NAME}` or `{out.NAME}`"));
        };
        if !plain.is_empty() {
            parts.push(TemplatePart::Text(std::mem::take(&mut plain)));
        }
        let name = name.to_owned();
        parts.push(if kind == "in." { TemplatePart::Input(name) } else { TemplatePart::Output(name) });
        rest = after;
    }
    plain.push_str(rest);
    if !plain.is_empty() || parts.is_empty() {
        parts.push(TemplatePart::Text(plain));
    }
    Ok(Template { parts })
}

/// Whether a command names only ports there are.
fn check_exec(
    d: &mut Diagnostics<'_>,
    fields: &Fields<'_>,
    command: &[Template],
    (stdin, stdout): (&Option<String>, &Option<String>),
    ports: &[PortSpec],
    params: Option<&[ParamSpec]>,
) {
    let at = |key: &str| fields.get(key).map_or(fields.span, |node| node.span);
    let unknown_output = |d: &mut Diagnostics<'_>, name: &str, key: &str| {
        let message = format!("{} has no output `{}`", fields.what, word(name));
        d.problem(
            at(key),
            Problem::near(Code::UnknownName, message, name, ports.iter().map(|p| p.name.as_str())),
        );
    };
    let unknown_input = |d: &mut Diagnostics<'_>, name: &str, key: &str| {
        let Some(params) = params.filter(|params| !params.iter().any(|p| p.name == name)) else { return };
        let message = format!("{} has no input `{}`", fields.what, word(name));
        d.problem(
            at(key),
            Problem::near(Code::UnknownName, message, name, params.iter().map(|p| p.name.as_str())),
        );
    };
    for part in command.iter().flat_map(|template| &template.parts) {
        match part {
            TemplatePart::Output(name) if !ports.iter().any(|p| p.name == *name) => {
                unknown_output(d, name, "command")
            }
            TemplatePart::Input(name) => unknown_input(d, name, "command"),
            _ => {}
        }
    }
    if let Some(name) = stdin {
        unknown_input(d, name, "stdin");
    }
    match stdout.as_ref().map(|name| (name, ports.iter().find(|p| p.name == *name))) {
        Some((name, None)) => unknown_output(d, name, "stdout"),
        Some((name, Some(port))) if port.kind == PortKind::Many => {
            let message = format!("standard output is one object, and `{name}` of {} is a list", fields.what);
            d.error_help(
                Code::TypeMismatch,
                at("stdout"),
                message,
                format!("write the items into the directory `{{out.{name}}}`"),
            );
        }
        _ => {}
    }
}
