//! Inputs of any size: streamed straight into the store's memory, checked as they pass.

use super::Api;
use super::error::ApiError;
use super::stream::{BodyReader, length, receive};
use super::types::InputInfo;
use crate::daemon::config::Settings;
use crate::daemon::{Filling, Refusal};
use crate::node::{Given, InputWriter, SubmitError};
use crate::workflow::{InputError, ValueType};
use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use dflow_proto::limits::CONDITION_BYTES_MAX;
use serde::de::IgnoredAny;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};

/// What is spooled between two looks at what the store could hold.
const SPOOL_BYTES: u64 = 1 << 20;

/// Sends the value of one input of an open run: its bytes as they are. With `Content-Length` they go
/// straight into the store; without, they wait in a file until their length is known, or until they are more than the store
/// could hold.
#[utoipa::path(
    put, path = "/v1/runs/{run}/inputs/{input}", request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = InputInfo), (status = 400), (status = 404), (status = 409), (status = 413), (status = 507))
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
    let settings = api.settings.clone();
    let what = format!("input {input}");
    let received = receive(body, bytes_max, &what, move |body| {
        let bytes = match (spec.ty.is_scalar(), bytes) {
            (true, _) => scalar(&mut filling, &input, body)?,
            (false, Some(bytes)) => straight(&mut filling, &input, spec.ty, bytes, body)?,
            (false, None) => {
                let (file, bytes) = spool(&settings, &input, body)?;
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

/// A file without a name with a body of unknown length, and how long it is. What the store could never hold is not
/// read to its end.
fn spool(settings: &Settings, input: &str, body: &mut impl Read) -> Result<(File, u64), ApiError> {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    let dir = &settings.state_dir;
    let failed = |e: io::Error| {
        let full = matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let status = if full { StatusCode::INSUFFICIENT_STORAGE } else { StatusCode::INTERNAL_SERVER_ERROR };
        let what = format!("input {input} cannot wait in {} until its length is known: {e}", dir.display());
        ApiError::new(status, "storage", format!("{what}; send it with Content-Length"))
    };
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = openat(CWD, dir, flags, Mode::RUSR | Mode::WUSR);
    let mut file = File::from(file.map_err(|e| failed(e.into()))?);
    let mut bytes = 0;
    loop {
        let more = io::copy(&mut body.by_ref().take(SPOOL_BYTES), &mut file).map_err(failed)?;
        bytes += more;
        settings
            .node
            .could_hold(bytes)
            .map_err(|source| Refusal::from(SubmitError::Store { name: input.to_owned(), source }))?;
        if more == 0 {
            break;
        }
    }
    file.rewind().map_err(failed)?;
    Ok((file, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::NodeConfig;

    /// Zeros without an end that count what is read of them.
    struct Endless(u64);

    impl Read for Endless {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            into.fill(0);
            self.0 += into.len() as u64;
            Ok(into.len())
        }
    }

    #[test]
    fn a_body_of_unknown_length_is_refused_once_the_store_could_not_hold_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let node = |spill_dir| NodeConfig {
            store_bytes: 4 << 20,
            spill_dir,
            spill_bytes: 8 << 20,
            ..NodeConfig::default()
        };
        let settings = |node| Settings { state_dir: dir.path().to_owned(), node, ..Settings::default() };
        for (spill_dir, most) in [(None, 4 << 20), (Some(dir.path().to_owned()), 8 << 20)] {
            let settings = settings(node(spill_dir));
            let mut endless = Endless(0);
            let refused = spool(&settings, "text", &mut endless).expect_err("it has no end");
            let detail = refused.detail();
            assert_eq!((&*detail.code, detail.retry_s), ("store_full", None), "{detail:?}");
            assert!(detail.message.contains("can never fit"), "{detail:?}");
            assert!(endless.0 > most && endless.0 <= most + 2 * SPOOL_BYTES, "{} bytes", endless.0);
            let (file, bytes) = spool(&settings, "text", &mut Endless(0).take(most)).expect("it fits");
            assert_eq!((bytes, file.metadata().expect("a file").len()), (most, most));
        }
        let mut gone = settings(node(None));
        gone.state_dir.push("nothing here");
        let refused = spool(&gone, "text", &mut &b"x"[..]).expect_err("no directory");
        assert_eq!(refused.detail().code, "storage");
    }
}
