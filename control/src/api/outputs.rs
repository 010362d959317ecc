//! Outputs of any size: cut from the store's own memory as the client takes them.

use super::Api;
use super::error::ApiError;
use super::runs::{at_hand, past};
use super::stream::send;
use crate::daemon::{Output, Phase, Refusal, Run};
use crate::workflow::ValueType;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

/// An output of a run that is done: its bytes, or those of a range. 204 if its source was skipped.
#[utoipa::path(
    get, path = "/v1/runs/{run}/outputs/{output}",
    responses((status = 200, body = Vec<u8>), (status = 206), (status = 204), (status = 404), (status = 409), (status = 416))
)]
pub(super) async fn object(
    State(api): State<Api>,
    Path((run, output)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let run = keeper(&api, &run).await?;
    match find(&run, &output)? {
        Output::Null => Ok(StatusCode::NO_CONTENT.into_response()),
        Output::Object(object) => Ok(answer(&api, &run, &output, object, &headers)),
        Output::List(items) => {
            let why = format!(
                "has a list of {} objects as {output}; ask for {output}/ITEM, from 0 on",
                items.len()
            );
            Err(Refusal::State { run: run.name.clone(), why }.into())
        }
    }
}

/// One item of an output that is a list.
#[utoipa::path(
    get, path = "/v1/runs/{run}/outputs/{output}/{item}",
    responses((status = 200, body = Vec<u8>), (status = 206), (status = 404), (status = 409), (status = 416))
)]
pub(super) async fn item(
    State(api): State<Api>,
    Path((run, output, item)): Path<(String, String, usize)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let run = keeper(&api, &run).await?;
    let items = match find(&run, &output)? {
        Output::Null => Vec::new(),
        Output::Object(object) => vec![object],
        Output::List(items) => items,
    };
    let Some(object) = items.get(item) else {
        let (name, known) = (format!("{output}/{item}"), format!("{} items of {output}", items.len()));
        return Err(Refusal::NoOutput { run: run.name.clone(), name, known }.into());
    };
    Ok(answer(&api, &run, &output, object.clone(), &headers))
}

/// The run whose outputs are asked for; of one that is known from its record only, they are gone.
async fn keeper(api: &Api, name: &str) -> Result<Arc<Run>, ApiError> {
    match at_hand(api, name)? {
        Some(run) => Ok(run),
        None => Err(forgotten(&past(api, name).await?.summary.run)),
    }
}

fn forgotten(run: &str) -> ApiError {
    let message = format!("outputs of run {run} are no longer kept (`keep_s`, `keep_max`)");
    ApiError::new(StatusCode::GONE, "gone", message)
}

fn find(run: &Run, name: &str) -> Result<Output, ApiError> {
    let state = |why: String| ApiError::from(Refusal::State { run: run.name.clone(), why });
    let Some(ended) = run.ended() else {
        return Err(state(match run.phase() {
            Phase::Open => "has not begun".to_owned(),
            _ => "has not ended; outputs can be fetched then (`?wait_s=60` waits)".to_owned(),
        }));
    };
    if let Some(reason) = ended.outcome.message() {
        return Err(state(format!("has no outputs: {reason}")));
    }
    let outputs = ended.outputs.ok_or_else(|| forgotten(&run.name))?;
    if let Some((_, output)) = outputs.iter().find(|(own, _)| own == name) {
        return Ok(output.clone());
    }
    let names: Vec<&str> = outputs.iter().map(|(name, _)| name.as_str()).collect();
    let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Err(Refusal::NoOutput { run: run.name.clone(), name: name.to_owned(), known }.into())
}

fn answer(api: &Api, run: &Run, output: &str, object: Bytes, headers: &HeaderMap) -> Response {
    let length = object.len();
    let range = headers.get(header::RANGE).and_then(|r| r.to_str().ok()).and_then(|r| parse_range(r, length));
    let (status, range) = match range {
        None => (StatusCode::OK, 0..length),
        Some(Some(range)) => (StatusCode::PARTIAL_CONTENT, range),
        Some(None) => {
            let message = format!("the object has {length} bytes");
            let mut response =
                ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", message).into_response();
            put(&mut response, header::CONTENT_RANGE, &format!("bytes */{length}"));
            return response;
        }
    };
    let whole = run.workflow.workflow().ok();
    let ty = whole.and_then(|w| w.outputs.iter().find(|o| o.name == output)).map(|o| o.ty);
    let kind = match ty {
        Some(ValueType::Text | ValueType::String) => "text/plain; charset=utf-8",
        Some(ValueType::Bytes) | None => "application/octet-stream",
        Some(_) => "application/json",
    };
    let body = send(object.slice(range.clone()), api.metrics.output_bytes.clone());
    let mut response = (status, body).into_response();
    put(&mut response, header::CONTENT_TYPE, kind);
    put(&mut response, header::CONTENT_LENGTH, &range.len().to_string());
    put(&mut response, header::ACCEPT_RANGES, "bytes");
    if status == StatusCode::PARTIAL_CONTENT {
        put(
            &mut response,
            header::CONTENT_RANGE,
            &format!("bytes {}-{}/{length}", range.start, range.end - 1),
        );
    }
    // What a function made is not to be run as a page of this node.
    put(&mut response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    response
}

fn put(response: &mut Response, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// One range of bytes. `None` if it is of another form, which is answered by the whole;
/// `Some(None)` if the object has none of it.
fn parse_range(text: &str, length: usize) -> Option<Option<Range<usize>>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        let count: usize = last.parse().ok()?;
        return Some((count > 0 && length > 0).then(|| length.saturating_sub(count)..length));
    }
    let first: usize = first.parse().ok()?;
    let last: usize = if last.is_empty() { usize::MAX } else { last.parse().ok()? };
    if last < first {
        return None;
    }
    Some((first < length).then(|| first..last.saturating_add(1).min(length)))
}

#[cfg(test)]
mod tests {
    use super::parse_range;

    #[test]
    fn ranges_are_what_the_standard_says() {
        let table = [
            ("bytes=0-0", Some(Some(0..1))),
            ("bytes=2-", Some(Some(2..10))),
            ("bytes=-3", Some(Some(7..10))),
            ("bytes=-30", Some(Some(0..10))),
            ("bytes=5-100", Some(Some(5..10))),
            ("bytes=10-", Some(None)),
            ("bytes=-0", Some(None)),
            ("bytes=5-4", None),
            ("bytes=a-b", None),
            ("items=0-1", None),
            ("bytes=0-18446744073709551615", Some(Some(0..10))),
            ("bytes=0-1,3-4", None),
        ];
        for (text, wanted) in table {
            assert_eq!(parse_range(text, 10), wanted, "{text}");
        }
        assert_eq!(parse_range("bytes=0-0", 0), Some(None));
    }
}
