//! The reading calls of the C interface.

use crate::fault::{Code, Fault};
use crate::invocation::Invocation;
use crate::json;
use crate::segments::lock;
use dflow_proto::ids::Extent;
use dflow_proto::link::{Input, InputValue, PortType};
use dflow_shm::table::{Found, Look, TableReader, Want};
use std::ffi::{CStr, CString};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

/// Longest input that [`Invocation::param`] turns into text. Bytes.
const PARAM_BYTES_MAX: u64 = 1 << 20;

/// Bytes of an input in shared memory. Unchanging and readable until the invocation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The first byte; never null.
    pub data: NonNull<u8>,
    /// How many.
    pub bytes: u64,
}

/// What a read gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Got {
    /// Bytes.
    View(View),
    /// The source was skipped.
    Null,
    /// There is no such item or byte.
    End,
}

impl Invocation {
    /// Index of the input of this name.
    pub fn input_index(&self, name: &str) -> Result<usize, Fault> {
        let inputs = &self.invoke.inputs;
        inputs.iter().position(|input| input.name == name).ok_or_else(|| {
            let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
            unknown("input", name, &names)
        })
    }

    pub(crate) fn input(&self, index: usize) -> Result<&Input, Fault> {
        self.invoke.inputs.get(index).ok_or_else(|| {
            Fault::new(Code::Name, format!("the step has {} inputs, not {index}", self.invoke.inputs.len()))
        })
    }

    /// The whole object of a single input; blocks until it is complete.
    pub fn get(&self, input: usize) -> Result<Got, Fault> {
        let input = self.input(input)?;
        match &input.value {
            InputValue::Inline(bytes) => Ok(Got::View(inline(bytes))),
            InputValue::Null => Ok(Got::Null),
            InputValue::One { index } => {
                let table = self.table()?;
                let found =
                    self.block(*index, None, || table.object(&self.node.segments, *index, Want::Sealed))?;
                self.show(found, 0)
            }
            InputValue::List { .. } => Err(is_list(input)),
        }
    }

    /// The object of a single input if it is complete now.
    pub fn peek(&self, input: usize) -> Result<Option<Got>, Fault> {
        let input = self.input(input)?;
        match &input.value {
            InputValue::Inline(bytes) => Ok(Some(Got::View(inline(bytes)))),
            InputValue::Null => Ok(Some(Got::Null)),
            InputValue::List { .. } => Ok(None),
            InputValue::One { index } => {
                let look = self.table()?.object(&self.node.segments, *index, Want::Sealed);
                match look.map_err(|e| Fault::new(Code::Node, e.to_string()))? {
                    Look::Ready(found @ (Found::Sealed(_) | Found::Null)) => self.show(found, 0).map(Some),
                    _ => Ok(None),
                }
            }
        }
    }

    /// An item of a list input; blocks until it is complete.
    pub fn get_item(&self, input: usize, item: u32) -> Result<Got, Fault> {
        let input = self.input(input)?;
        match &input.value {
            InputValue::Null => Ok(Got::Null),
            InputValue::List { index } => {
                let table = self.table()?;
                let found = self.block(*index, Some(item), || {
                    table.item(&self.node.segments, *index, item, Want::Sealed)
                })?;
                self.show(found, 0)
            }
            InputValue::Inline(_) | InputValue::One { .. } => Err(is_one(input)),
        }
    }

    /// The next item of a list input.
    pub fn next(&self, input: usize) -> Result<Got, Fault> {
        self.input(input)?;
        let cursor = &self.cursors[input];
        let item = cursor.fetch_add(1, Ordering::Relaxed);
        let got = self.get_item(input, item);
        if !matches!(got, Ok(Got::View(_))) {
            cursor.fetch_sub(1, Ordering::Relaxed);
        }
        got
    }

    /// Number of items of a list input, `None` if it was skipped; blocks until it is known.
    pub fn count(&self, input: usize) -> Result<Option<u32>, Fault> {
        let input = self.input(input)?;
        match &input.value {
            InputValue::Null => Ok(None),
            InputValue::List { index } => {
                let table = self.table()?;
                match self.block(*index, None, || table.length(&self.node.segments, *index))? {
                    Found::End { count } => Ok(Some(count)),
                    _ => Ok(None),
                }
            }
            InputValue::Inline(_) | InputValue::One { .. } => Err(is_one(input)),
        }
    }

    /// What can be read of an object from `offset` on: blocks until that is at least `bytes_min`
    /// bytes (at least one), or all there is.
    pub fn read(&self, input: usize, item: u32, offset: u64, bytes_min: u64) -> Result<Got, Fault> {
        let input = self.input(input)?;
        let want = Want::Bytes(offset.saturating_add(bytes_min.max(1)));
        let found = match &input.value {
            InputValue::Null => return Ok(Got::Null),
            InputValue::Inline(bytes) => {
                let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
                return Ok(rest
                    .filter(|rest| !rest.is_empty())
                    .map_or(Got::End, |rest| Got::View(inline(rest))));
            }
            InputValue::One { index } => {
                let table = self.table()?;
                self.block(*index, None, || table.object(&self.node.segments, *index, want))?
            }
            InputValue::List { index } => {
                let table = self.table()?;
                self.block(*index, Some(item), || table.item(&self.node.segments, *index, item, want))?
            }
        };
        match self.show(found, offset)? {
            Got::View(view) if view.bytes == 0 => Ok(Got::End),
            got => Ok(got),
        }
    }

    /// A small input as text; a JSON string without its quotes. `None` if it was skipped.
    pub fn param(&self, name: &str) -> Result<Option<NonNull<CStr>>, Fault> {
        let index = self.input_index(name)?;
        if let Some(text) = self.known_text(index) {
            return Ok(Some(text));
        }
        let Got::View(view) = self.get(index)? else { return Ok(None) };
        if view.bytes > PARAM_BYTES_MAX {
            let message = format!("input {name:?} has {} bytes; read it with dflow_get", view.bytes);
            return Err(Fault::new(Code::TooLarge, message));
        }
        let text = String::from_utf8_lossy(&self.copy(view)).into_owned();
        let text = match self.invoke.inputs[index].ty {
            PortType::Json => json::scalar_text(&text).unwrap_or(text),
            PortType::Text | PortType::Bytes => text,
        };
        let text = CString::new(text).map_err(|_| {
            Fault::new(Code::Type, format!("input {name:?} has a zero byte; read it with dflow_get"))
        })?;
        lock(&self.texts).push((index as u32, text));
        Ok(self.known_text(index))
    }

    /// As [`Invocation::param`], a copy; empty if it was skipped.
    pub(crate) fn param_text(&self, name: &str) -> Result<String, Fault> {
        self.param(name)?;
        let index = self.input_index(name)? as u32;
        let texts = lock(&self.texts);
        let known = texts.iter().find(|(known, _)| *known == index);
        Ok(known.map_or_else(String::new, |(_, text)| text.to_string_lossy().into_owned()))
    }

    /// Texts are kept, and stay where they are, until the invocation ends.
    fn known_text(&self, index: usize) -> Option<NonNull<CStr>> {
        let texts = lock(&self.texts);
        texts.iter().find(|(known, _)| *known == index as u32).map(|(_, text)| NonNull::from(text.as_c_str()))
    }

    /// A copy of what a view shows, for values that are small by nature.
    pub(crate) fn copy(&self, view: View) -> Vec<u8> {
        self.slice(&view).to_vec()
    }

    /// The bytes of a view of this invocation.
    pub(crate) fn slice<'a>(&'a self, view: &View) -> &'a [u8] {
        // SAFETY: `show` and `inline` are the only makers of views: they cover bytes of a mapped
        // segment (maps live until the segments are tidied between invocations, and `self` is this
        // one) below a watermark or of a sealed object, which never change, or of `self.invoke`.
        unsafe { std::slice::from_raw_parts(view.data.as_ptr(), view.bytes as usize) }
    }

    pub(crate) fn table(&self) -> Result<&TableReader, Fault> {
        self.table.as_ref().ok_or_else(|| Fault::new(Code::Node, "the node sent no input table"))
    }

    /// Where a single object lies, if it is in shared memory; blocks until it is complete.
    pub(crate) fn extent(&self, table_index: u32, item: Option<u32>) -> Result<Found, Fault> {
        let table = self.table()?;
        let maps = &self.node.segments;
        match item {
            None => self.block(table_index, None, || table.object(maps, table_index, Want::Sealed)),
            Some(item) => {
                self.block(table_index, Some(item), || table.item(maps, table_index, item, Want::Sealed))
            }
        }
    }

    fn show(&self, found: Found, offset: u64) -> Result<Got, Fault> {
        let (extent, readable) = match found {
            Found::Sealed(extent) => (extent, extent.bytes),
            Found::Growing { extent, watermark } => (extent, watermark),
            Found::Null => return Ok(Got::Null),
            Found::End { .. } => return Ok(Got::End),
            Found::Failed => return Err(Fault::new(Code::Input, "the input will never be complete")),
        };
        let skip = offset.min(readable);
        self.view(Extent { offset: extent.offset.saturating_add(skip), bytes: readable - skip, ..extent })
    }

    pub(crate) fn view(&self, extent: Extent) -> Result<Got, Fault> {
        if extent.bytes == 0 {
            return Ok(Got::View(inline(&[])));
        }
        let data = self.node.segments.pointer(extent)?;
        Ok(Got::View(View { data, bytes: extent.bytes }))
    }
}

fn inline(bytes: &[u8]) -> View {
    View { data: NonNull::from(bytes).cast(), bytes: bytes.len() as u64 }
}

/// An unknown name, with those there are.
pub(crate) fn unknown(what: &str, name: &str, names: &[&str]) -> Fault {
    let list =
        if names.is_empty() { "it has none".to_owned() } else { format!("it has {}", names.join(", ")) };
    Fault::new(Code::Name, format!("the step has no {what} {name:?}; {list}"))
}

fn is_list(input: &Input) -> Fault {
    let message = format!("input {:?} is a list; read it with dflow_next or dflow_get_item", input.name);
    Fault::new(Code::Type, message)
}

fn is_one(input: &Input) -> Fault {
    let message = format!("input {:?} is one object, not a list; read it with dflow_get", input.name);
    Fault::new(Code::Type, message)
}
