//! Values of declared types: their encoding, and lists taken apart.

use super::spec::ValueType;
use dflow_proto::limits::CONDITION_BYTES_MAX;
use serde_json::Value;
use std::ops::Range;

impl ValueType {
    /// The type of a literal.
    pub(super) fn of(json: &Value) -> ValueType {
        match json {
            Value::String(s) if s.len() as u64 <= CONDITION_BYTES_MAX => ValueType::String,
            Value::String(_) => ValueType::Text,
            Value::Number(n) if n.is_i64() => ValueType::Int,
            Value::Number(_) => ValueType::Float,
            Value::Bool(_) => ValueType::Bool,
            Value::Array(_) => ValueType::List,
            Value::Null | Value::Object(_) => ValueType::Json,
        }
    }

    /// The type that all elements of a literal list share, else `json`.
    pub(super) fn of_items(json: &Value) -> ValueType {
        let mut types = json.as_array().into_iter().flatten().map(ValueType::of);
        match types.next() {
            Some(first) if types.all(|ty| ty == first) => first,
            _ => ValueType::Json,
        }
    }

    /// Whether a value of type `self` can be read as `wanted`.
    pub(super) fn fits(self, wanted: ValueType) -> bool {
        use ValueType::{Bool, Bytes, Float, Int, Json, List, String, Text};
        match wanted {
            Bytes => true,
            Text => matches!(self, Text | String),
            String => matches!(self, Text | String),
            Json => matches!(self, Json | Int | Float | Bool | List),
            Float => matches!(self, Float | Int | Json),
            Int | Bool | List => self == wanted || self == Json,
        }
    }
}

/// The bytes that stand for `json` as a value of type `ty`, or why it is none.
pub(super) fn encode(ty: ValueType, json: &Value) -> Result<Vec<u8>, String> {
    let found = || match json {
        Value::Null => "nothing".to_owned(),
        Value::String(s) => format!("the text `{}`", super::diagnostic::word(s)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a map".to_owned(),
        scalar => format!("`{scalar}`"),
    };
    let wrong = |expected: &str| Err(format!("expected {expected}, found {}", found()));
    match ty {
        ValueType::Bytes | ValueType::Text => match json {
            Value::String(s) => Ok(s.clone().into_bytes()),
            _ => wrong("a text"),
        },
        ValueType::String => match json {
            Value::String(s) if s.len() as u64 <= CONDITION_BYTES_MAX => Ok(s.clone().into_bytes()),
            Value::String(s) => Err(format!(
                "a string of {} bytes; at most {CONDITION_BYTES_MAX} are allowed: declare it `text`",
                s.len()
            )),
            _ => wrong("a text"),
        },
        ValueType::Int => match json.as_i64() {
            Some(i) => Ok(i.to_string().into_bytes()),
            None => wrong("a whole number"),
        },
        ValueType::Float => match json.as_f64() {
            // Encoded as a float even if it was written `5`, so that readers see one type.
            Some(f) => Ok(Value::from(f).to_string().into_bytes()),
            None => wrong("a number"),
        },
        ValueType::Bool if !json.is_boolean() => wrong("`true` or `false`"),
        ValueType::List if !json.is_array() => wrong("a list"),
        ValueType::Json | ValueType::Bool | ValueType::List => Ok(json.to_string().into_bytes()),
    }
}

/// The elements of a JSON list, as ranges of its bytes.
///
/// This is what the node answers `MeasureList` from (the length) and slices `Resolved::Element` by.
///
/// # Errors
/// The bytes are no JSON list; the message says where they stop being one.
pub fn list_elements(list: &[u8]) -> Result<Vec<Range<usize>>, String> {
    let elements: Vec<&serde_json::value::RawValue> =
        serde_json::from_slice(list).map_err(|e| format!("this is no JSON list: {e}"))?;
    let base = list.as_ptr() as usize;
    let range = |raw: &&serde_json::value::RawValue| {
        let start = raw.get().as_ptr() as usize - base;
        start..start + raw.get().len()
    };
    Ok(elements.iter().map(range).collect())
}

/// One element of a JSON list, encoded as its declared type wants it: `"a"` of type `string` is `a`.
///
/// # Errors
/// The element is not of that type.
pub fn element_bytes(ty: ValueType, element: &[u8]) -> Result<Vec<u8>, String> {
    if ty == ValueType::Json {
        return Ok(element.to_vec());
    }
    let json: Value = serde_json::from_slice(element).map_err(|e| format!("this is no JSON: {e}"))?;
    encode(ty, &json)
}
