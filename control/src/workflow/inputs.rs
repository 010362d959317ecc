//! Inputs of a run: their declarations, and the values callers give.

use super::diagnostic::{Code, Diagnostics, Problem, list, word};
use super::reader::{self, Fields};
use super::spec::{InputSpec, ValueType, Workflow};
use super::value;
use super::yaml::Node;
use dflow_proto::limits::CONDITION_BYTES_MAX;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Most inputs of a workflow: their index is the port of an object key.
pub(super) const INPUTS_MAX: usize = u16::MAX as usize;

const TYPES: [(&str, ValueType); 8] = {
    let mut types = [("", ValueType::Bytes); 8];
    let mut i = 0;
    while i < 8 {
        types[i] = (ValueType::ALL[i].name(), ValueType::ALL[i]);
        i += 1;
    }
    types
};

/// The type under `key`, if it is there.
pub(super) fn value_type(d: &mut Diagnostics<'_>, fields: &Fields<'_>, key: &str) -> Option<ValueType> {
    fields.choice(d, key, &TYPES)
}

/// The type that a text names; reported under `what` if it names none.
pub(super) fn type_named(d: &mut Diagnostics<'_>, node: &Node, what: &str) -> Option<ValueType> {
    let text = node.scalar().unwrap_or_default();
    let found = TYPES.iter().find(|(name, _)| *name == text).map(|(_, ty)| *ty);
    if found.is_none() {
        let message = format!("{what} cannot have the type `{}`", word(text));
        d.problem(
            node.span,
            Problem::near(Code::BadValue, message, text, TYPES.iter().map(|(name, _)| *name)),
        );
    }
    found
}

/// Reads the section `inputs`. A declaration that cannot be read stays as `bytes`, so that
/// references to it are not reported too.
pub(super) fn read(d: &mut Diagnostics<'_>, node: &Node) -> Vec<InputSpec> {
    let entries = reader::named(d, node, "`inputs`").unwrap_or_default();
    if entries.len() > INPUTS_MAX {
        let message = format!("{} inputs; at most {INPUTS_MAX} are allowed", entries.len());
        d.error(Code::Limit, node.span, message);
        return Vec::new();
    }
    entries.into_iter().map(|(name, _, node)| read_one(d, name, node)).collect()
}

fn read_one(d: &mut Diagnostics<'_>, name: &str, node: &Node) -> InputSpec {
    const KEYS: [&str; 9] =
        ["type", "items", "default", "enum", "min", "max", "max_size", "required", "description"];
    let mut spec = InputSpec {
        name: name.to_owned(),
        ty: ValueType::Bytes,
        items: ValueType::Json,
        description: String::new(),
        default: None,
        allowed: Vec::new(),
        min: None,
        max: None,
        bytes_max: 0,
        file: false,
    };
    let what = format!("input `{name}`");
    // `n: int` is short for `n: {type: int}`.
    if node.scalar().is_some() && !node.is_null() {
        spec.ty = type_named(d, node, &what).unwrap_or_default();
        return spec;
    }
    let Some(fields) = Fields::read(d, node, what, &KEYS) else { return spec };
    fields.need(d, "type", node.span);
    let Some(ty) = value_type(d, &fields, "type") else { return spec };
    spec.ty = ty;
    spec.description = fields.text(d, "description").unwrap_or_default().to_owned();
    spec.bytes_max = fields.size_bytes(d, "max_size").unwrap_or(0);
    let number = matches!(ty, ValueType::Int | ValueType::Float);
    let only = |d: &mut Diagnostics<'_>, key: &str, good: bool, of: &str| {
        if !good && fields.get(key).is_some() {
            let message =
                format!("`{key}` has no meaning for {}, which is of type {}", fields.what, ty.name());
            d.error_help(
                Code::BadValue,
                fields.key_span(key),
                message,
                format!("it belongs to inputs of type {of}"),
            );
        }
        good
    };
    if only(d, "items", ty == ValueType::List, "list") {
        spec.items = value_type(d, &fields, "items").unwrap_or(ValueType::Json);
    }
    if only(d, "min", number, "int or float") {
        spec.min = fields.number(d, "min", f64::MIN..=f64::MAX);
    }
    if only(d, "max", number, "int or float") {
        spec.max = fields.number(d, "max", f64::MIN..=f64::MAX);
    }
    if let (Some(min), Some(max)) = (spec.min, spec.max)
        && min > max
    {
        let message = format!("no value of {} is both at least {min} and at most {max}", fields.what);
        d.error(Code::BadValue, fields.key_span("max"), message);
    }
    if only(d, "enum", number || ty == ValueType::String, "string, int or float") {
        for item in fields.list(d, "enum").unwrap_or_default() {
            let json = as_written(ty, item);
            match value::encode(ty, &json) {
                Ok(_) => spec.allowed.push(json),
                Err(why) => d.error(Code::WrongType, item.span, format!("`enum` of {}: {why}", fields.what)),
            }
        }
    }
    if let Some(node) = fields.get("default") {
        let encoded = value::encode(ty, &as_written(ty, node));
        match encoded.and_then(|bytes| check(&spec, &bytes).map(|()| bytes)) {
            Ok(bytes) => spec.default = Some(bytes),
            Err(why) => d.error(Code::WrongType, node.span, format!("`default` of {}: {why}", fields.what)),
        }
    }
    match (fields.boolean(d, "required"), fields.get("default")) {
        (Some(false), None) => d.error_help(
            Code::MissingKey,
            fields.key_span("required"),
            format!("{} is not required and has no default", fields.what),
            "give it a `default`",
        ),
        (Some(true), Some(_)) => d.error_help(
            Code::BadValue,
            fields.key_span("required"),
            format!("{} is required and has a default", fields.what),
            "remove one of the two",
        ),
        _ => {}
    }
    spec
}

/// A node as a value of a type: where a text is expected, `1.20` is the text and not a number.
fn as_written(ty: ValueType, node: &Node) -> Value {
    match (ty, node.scalar()) {
        (ValueType::String | ValueType::Text | ValueType::Bytes, Some(text)) if !node.is_null() => {
            Value::from(text)
        }
        _ => node.to_json(),
    }
}

/// What a caller gives for an input.
#[derive(Clone, Copy, Debug)]
pub enum InputArg<'a> {
    /// A word of the command line.
    Text(&'a str),
    /// A JSON value of a request.
    Json(&'a Value),
    /// A file that holds the value.
    File(&'a Path),
}

/// The encoded value of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputData {
    /// Here.
    Bytes(Vec<u8>),
    /// The contents of a file, checked but not read into memory.
    File {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        bytes: u64,
    },
}

/// Why a caller's value is refused.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The workflow has no such input.
    #[error("the workflow has no input `{name}`; {}", if .known.is_empty() { "it takes none".to_owned() } else { format!("it takes {known}") })]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// No value is given, and there is no default.
    #[error(
        "input `{name}` of type {ty} is missing: give it with `--input {name}=VALUE` or `--input {name}=@FILE`"
    )]
    Missing {
        /// The input.
        name: String,
        /// Its type.
        ty: &'static str,
    },
    /// The value is not what the workflow declares.
    #[error("input `{name}`: {why}")]
    Refused {
        /// The input.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The file cannot be read.
    #[error("input `{name}`: cannot read `{}`", .path.display())]
    Io {
        /// The input.
        name: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Workflow {
    /// The encoded value of the input called `name`, checked against its declaration; `None` for
    /// `arg` asks for the default.
    ///
    /// Values of type bytes, text, json and list that are given as a file stay in the file.
    ///
    /// # Errors
    /// There is no such input, no value and no default, or the value is refused; see [`InputError`].
    pub fn input_bytes(&self, name: &str, arg: Option<InputArg<'_>>) -> Result<InputData, InputError> {
        let Some(spec) = self.inputs.iter().find(|i| i.name == name) else {
            let known: Vec<&str> = self.inputs.iter().map(|i| i.name.as_str()).collect();
            return Err(InputError::Unknown { name: word(name), known: list(&known) });
        };
        let refused = |why: String| InputError::Refused { name: spec.name.clone(), why };
        let bytes = match arg {
            None => {
                let missing = || InputError::Missing { name: spec.name.clone(), ty: spec.ty.name() };
                return spec.default.clone().map(InputData::Bytes).ok_or_else(missing);
            }
            Some(InputArg::Text(text)) => from_text(spec.ty, text).map_err(refused)?,
            Some(InputArg::Json(json)) => value::encode(spec.ty, json).map_err(refused)?,
            Some(InputArg::File(path)) => match from_file(spec, path)? {
                InputData::Bytes(bytes) => bytes,
                file => return Ok(file),
            },
        };
        check(spec, &bytes).map_err(refused)?;
        Ok(InputData::Bytes(bytes))
    }
}

fn from_text(ty: ValueType, text: &str) -> Result<Vec<u8>, String> {
    match ty {
        ValueType::Bytes | ValueType::Text | ValueType::String => value::encode(ty, &Value::from(text)),
        ValueType::Json => {
            let checked: Result<serde::de::IgnoredAny, _> = serde_json::from_str(text);
            checked.map(|_| text.as_bytes().to_vec()).map_err(|e| format!("this is no JSON: {e}"))
        }
        // Not as JSON, which would make a float of what is too large.
        ValueType::Int => {
            let text = text.trim();
            value::encode(ty, &text.parse::<i64>().map_or_else(|_| Value::from(text), Value::from))
        }
        ValueType::Float | ValueType::Bool | ValueType::List => {
            let text = text.trim();
            let json = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
            value::encode(ty, &json)
        }
    }
}

fn from_file(spec: &InputSpec, path: &Path) -> Result<InputData, InputError> {
    let io = |source| InputError::Io { name: spec.name.clone(), path: path.to_owned(), source };
    let refused = |why: String| InputError::Refused { name: spec.name.clone(), why };
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(refused(format!("`{}` is no regular file", path.display())));
    }
    let bytes = metadata.len();
    let bytes_max = match spec.ty {
        ValueType::String | ValueType::Int | ValueType::Float | ValueType::Bool => CONDITION_BYTES_MAX,
        _ => u64::MAX,
    };
    let bytes_max = if spec.bytes_max > 0 { bytes_max.min(spec.bytes_max) } else { bytes_max };
    if bytes > bytes_max {
        return Err(refused(format!(
            "`{}` has {bytes} bytes; at most {bytes_max} are allowed",
            path.display()
        )));
    }
    let whole = InputData::File { path: path.to_owned(), bytes };
    match spec.ty {
        ValueType::Bytes | ValueType::Text => Ok(whole),
        ValueType::Json | ValueType::List => {
            let file = std::io::BufReader::with_capacity(1 << 16, std::fs::File::open(path).map_err(io)?);
            let checked = match spec.ty {
                ValueType::Json => serde_json::from_reader(file).map(|_: serde::de::IgnoredAny| ()),
                _ => serde_json::from_reader(file).map(|_: Vec<serde::de::IgnoredAny>| ()),
            };
            let what = if spec.ty == ValueType::List { "JSON list" } else { "JSON" };
            checked.map_err(|e| refused(format!("`{}` holds no {what}: {e}", path.display())))?;
            Ok(whole)
        }
        ValueType::String | ValueType::Int | ValueType::Float | ValueType::Bool => {
            let text = std::fs::read_to_string(path).map_err(io)?;
            from_text(spec.ty, &text).map(InputData::Bytes).map_err(refused)
        }
    }
}

/// Whether an encoded value meets the limits of its declaration.
fn check(spec: &InputSpec, bytes: &[u8]) -> Result<(), String> {
    if spec.bytes_max > 0 && bytes.len() as u64 > spec.bytes_max {
        return Err(format!("{} bytes; at most {} are allowed", bytes.len(), spec.bytes_max));
    }
    let text = || String::from_utf8_lossy(bytes);
    if !spec.allowed.is_empty() {
        let good = |v: &&Value| value::encode(spec.ty, v).is_ok_and(|allowed| allowed == bytes);
        if spec.allowed.iter().find(good).is_none() {
            let names: Vec<String> = spec
                .allowed
                .iter()
                .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
                .collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            return Err(format!("`{}` is none of {}", word(&text()), list(&names)));
        }
    }
    if spec.min.is_some() || spec.max.is_some() {
        let number: f64 = text().parse().map_err(|_| format!("`{}` is no number", word(&text())))?;
        if let Some(min) = spec.min.filter(|min| number < *min) {
            return Err(format!("{number} is less than {min}, the smallest value allowed"));
        }
        if let Some(max) = spec.max.filter(|max| number > *max) {
            return Err(format!("{number} is more than {max}, the largest value allowed"));
        }
    }
    Ok(())
}
