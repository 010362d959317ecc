//! Inputs of any size: streamed straight into the store's memory, checked as they pass.

use super::Api;
use super::error::ApiError;
use super::stream::{BodyReader, length, receive};
use super::types::InputInfo;
use crate::daemon::{Filling, Refusal};
use crate::node::{Given, InputWriter, SubmitError};
use crate::workflow::{InputError, ValueType};
use axum::Json;
use axum::extract::{Path, Request, State};
use dflow_proto::limits::CONDITION_BYTES_MAX;
use serde::de::IgnoredAny;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};

/// Sends the value of one input of an open run: its bytes as they are. With `Content-Length` they go
/// straight into the store; without, they wait in a file until their length is known.
#[utoipa::path(
    put, path = "/v1/runs/{run}/inputs/{input}", request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = InputInfo), (status = 400), (status = 404), (status = 409), (status = 413))
)]
pub(super) async fn put(
    State(api): State<Api>,
    Path((run, input)): Path<(String, String)>,
    request: Request,
) -> Result<Json<InputInfo>, ApiError> {
    let run = api.runs.find(&run)?;
    let mut filling = api.runs.fill(&run)?;
    let body = request.into_body();
    let bytes = length(&body);
    let spec = filling.open().spec(&input).map_err(Refusal::from)?.clone();
    let mut bytes_max = api.settings.input_bytes_max;
    if spec.bytes_max > 0 {
        bytes_max = bytes_max.min(spec.bytes_max);
    }
    if spec.ty.is_scalar() {
        bytes_max = bytes_max.min(CONDITION_BYTES_MAX);
    }
    let spool_dir = api.settings.state_dir.clone();
    let what = format!("input {input}");
    let received = receive(body, bytes_max, &what, move |body| {
        let bytes = match (spec.ty.is_scalar(), bytes) {
            (true, _) => scalar(&mut filling, &input, body)?,
            (false, Some(bytes)) => straight(&mut filling, &input, spec.ty, bytes, body)?,
            (false, None) => {
                let (file, bytes) =
                    spool(&spool_dir, body).map_err(|e| ApiError::bad(format!("{input}: {e}")))?;
                straight(&mut filling, &input, spec.ty, bytes, file)?
            }
        };
        filling.filled(&input, bytes);
        Ok(InputInfo { name: input, bytes })
    });
    Ok(Json(received.await?))
}

fn scalar(filling: &mut Filling, input: &str, body: &mut BodyReader) -> Result<u64, ApiError> {
    let mut text = String::new();
    let refused =
        |why: String| Refusal::from(SubmitError::from(InputError::Refused { name: input.into(), why }));
    body.read_to_string(&mut text).map_err(|e| refused(e.to_string()))?;
    let bytes = text.len() as u64;
    filling.open().put(input, &Given::Text(text)).map_err(Refusal::from)?;
    Ok(bytes)
}

fn straight(
    filling: &mut Filling,
    input: &str,
    ty: ValueType,
    bytes: u64,
    source: impl Read,
) -> Result<u64, ApiError> {
    let mut writer = filling.open().writer(input, bytes).map_err(Refusal::from)?;
    let refused =
        |why: String| Refusal::from(SubmitError::from(InputError::Refused { name: input.to_owned(), why }));
    {
        let mut tee = Tee { source, writer: &mut writer };
        match ty {
            ValueType::Json => {
                let checked: Result<IgnoredAny, _> =
                    serde_json::from_reader(BufReader::with_capacity(64 << 10, &mut tee));
                checked.map_err(|e| refused(format!("this is no JSON: {e}")))?;
            }
            ValueType::List => {
                let checked: Result<Vec<IgnoredAny>, _> =
                    serde_json::from_reader(BufReader::with_capacity(64 << 10, &mut tee));
                checked.map_err(|e| refused(format!("this is no JSON list: {e}")))?;
            }
            _ => drop(
                io::copy(&mut tee, &mut io::sink()).map_err(|e| ApiError::bad(format!("{input}: {e}")))?,
            ),
        }
    }
    if writer.missing_bytes() > 0 {
        return Err(ApiError::bad(format!(
            "{input}: {} of {bytes} bytes did not come",
            writer.missing_bytes()
        )));
    }
    filling.open().written(writer);
    Ok(bytes)
}

/// What is read is written to the store, too.
struct Tee<'w, R> {
    source: R,
    writer: &'w mut InputWriter,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read(into)?;
        self.writer.write_all(&into[..n])?;
        Ok(n)
    }
}

/// A file without a name, for a body of unknown length.
fn spool(dir: &std::path::Path, body: &mut BodyReader) -> io::Result<(File, u64)> {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mut file = File::from(openat(CWD, dir, flags, Mode::RUSR | Mode::WUSR)?);
    let bytes = io::copy(body, &mut file)?;
    file.rewind()?;
    Ok((file, bytes))
}
