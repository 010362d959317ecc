//! Where a run's outputs go: files of a directory, or stdout.

use super::live::bytes_text;
use crate::node::{ObjectView, OutputValue};
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Bytes printed of a text output when there are several; the rest is for `-o DIR`.
const PREVIEW_BYTES: usize = 4096;

/// A result that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}; choose another place with -o DIR", path.display())]
pub(super) struct WriteError {
    path: PathBuf,
    source: io::Error,
}

/// Makes the directory before the run, so that an unwritable one costs no run.
pub(super) fn prepare(dir: &Path) -> Result<(), WriteError> {
    let probe = dir.join(".dflow-probe");
    fs::create_dir_all(dir)
        .and_then(|()| fs::write(&probe, b""))
        .and_then(|()| fs::remove_file(&probe))
        .map_err(|source| WriteError { path: dir.into(), source })
}

/// One file per object: `DIR/NAME`, and `DIR/NAME/000000` and on for a list. Returns what was written.
pub(super) fn write_dir(
    dir: &Path,
    outputs: &[(String, OutputValue)],
) -> Result<Vec<(PathBuf, u64)>, WriteError> {
    let mut written = Vec::new();
    let mut put = |path: PathBuf, object: &ObjectView| {
        fs::write(&path, &object[..]).map_err(|source| WriteError { path: path.clone(), source })?;
        written.push((path, object.len() as u64));
        Ok(())
    };
    for (name, value) in outputs {
        let path = dir.join(name);
        match value {
            OutputValue::Null => {}
            OutputValue::Object(object) => put(path, object)?,
            OutputValue::List(items) => {
                fs::create_dir_all(&path).map_err(|source| WriteError { path: path.clone(), source })?;
                for (i, item) in items.iter().enumerate() {
                    put(path.join(format!("{i:06}")), item)?;
                }
            }
        }
    }
    Ok(written)
}

/// A single output goes to stdout as it is; of several, texts are shown under their names.
pub(super) fn print(outputs: &[(String, OutputValue)]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if let [(_, OutputValue::Object(object))] = outputs
        && (!out.is_terminal() || (is_text(object) && object.len() <= 64 * PREVIEW_BYTES))
    {
        out.write_all(object)?;
        if out.is_terminal() && !object.ends_with(b"\n") {
            writeln!(out)?;
        }
        return out.flush();
    }
    for (name, value) in outputs {
        match value {
            OutputValue::Null => writeln!(out, "{name}: null (skipped)")?,
            OutputValue::Object(object) => print_object(&mut out, name, object)?,
            OutputValue::List(items) => {
                writeln!(out, "{name}: {} items", items.len())?;
                for (i, item) in items.iter().take(20).enumerate() {
                    print_object(&mut out, &format!("{name}[{i}]"), item)?;
                }
            }
        }
    }
    out.flush()
}

fn print_object(out: &mut impl Write, name: &str, object: &ObjectView) -> io::Result<()> {
    if is_text(object) && object.len() <= PREVIEW_BYTES {
        writeln!(out, "{name}: {}", String::from_utf8_lossy(object).trim_end())
    } else {
        writeln!(out, "{name}: {} (use -o DIR to keep it)", bytes_text(object.len() as u64))
    }
}

/// Whether it can be shown on a terminal; a long object is judged by its beginning.
fn is_text(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(PREVIEW_BYTES)];
    let valid = match std::str::from_utf8(head) {
        Ok(_) => true,
        Err(e) => e.error_len().is_none() && head.len() < bytes.len(),
    };
    valid && !head.iter().any(|b| *b < 32 && !matches!(b, b'\n' | b'\t' | b'\r'))
}

/// The outputs as JSON values: text as a string, JSON as itself, other bytes by size.
pub(super) fn json(outputs: &[(String, OutputValue)]) -> serde_json::Map<String, serde_json::Value> {
    let one = |object: &ObjectView| {
        if object.len() > 16 * PREVIEW_BYTES || !is_text(object) {
            return serde_json::json!({ "bytes": object.len() });
        }
        serde_json::from_slice(object).unwrap_or_else(|_| String::from_utf8_lossy(object).into_owned().into())
    };
    let value = |value: &OutputValue| match value {
        OutputValue::Null => serde_json::Value::Null,
        OutputValue::Object(object) => one(object),
        OutputValue::List(items) => items.iter().map(one).collect(),
    };
    outputs.iter().map(|(name, v)| (name.clone(), value(v))).collect()
}
