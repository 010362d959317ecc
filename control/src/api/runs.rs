//! Runs: begin, list, look, wait, cancel.

use super::Api;
use super::error::ApiError;
use super::peers::fetch;
use super::types::{
    BatchAnswer, CancelRequest, ListQuery, RunList, RunStatus, RunSummary, SubmitRequest, Submitted,
};
use crate::daemon::{Phase, Run, Submission, blocking};
use crate::history::RunRecord;
use crate::node::Given;
use crate::report;
use crate::trace::Timeline;
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use dflow_core::graph::StartPolicy;
use futures_util::future::join_all;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use utoipa::IntoParams;

/// Submissions of one request.
const BATCH_MAX: usize = 1000;
/// Runs that are listed unless told.
const LIST_DEFAULT: usize = 20;
/// Most runs that are listed.
const LIST_MAX: usize = 10_000;
/// Longest that a question waits for a run's end. Seconds.
const WAIT_S_MAX: f64 = 60.0;

#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct SubmitQuery {
    /// Only open the run: its inputs come by `PUT`, then `begin`.
    #[serde(default)]
    open: bool,
}

#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct WaitQuery {
    /// Answer when the run has ended, or after so many seconds, at most 60.
    #[serde(default)]
    wait_s: f64,
}

/// What a body says in JSON, or why it says nothing.
pub(super) fn json<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, ApiError> {
    body.map(|Json(value)| value).map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(format!(
            "a request in JSON has at most {} bytes; send large inputs by PUT (`?open=true`)",
            super::JSON_BYTES_MAX
        )),
        status @ StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            ApiError::new(status, "media_type", "send `Content-Type: application/json`")
        }
        _ => ApiError::bad(rejection.body_text()),
    })
}

fn submission(request: SubmitRequest) -> Result<Submission, ApiError> {
    let inputs = request.inputs.into_iter().map(|(name, value)| (name, Given::Json(value))).collect();
    let start = request.start.as_deref().map(start_policy).transpose().map_err(ApiError::bad)?;
    Ok(Submission { workflow: request.workflow, inputs, start })
}

/// A start policy as it is written on command lines and in requests.
pub(crate) fn start_policy(text: &str) -> Result<StartPolicy, String> {
    match text {
        "eager" => Ok(StartPolicy::Eager),
        "first-byte" => Ok(StartPolicy::FirstByte),
        "all-ready" => Ok(StartPolicy::AllReady),
        _ => text
            .strip_prefix("first:")
            .and_then(|k| k.parse().ok().filter(|k| *k > 0))
            .map(StartPolicy::First)
            .ok_or_else(|| "expected eager, first-byte, all-ready or first:K with K at least 1".into()),
    }
}

/// Begins a run, or opens one.
#[utoipa::path(
    post, path = "/v1/runs", params(SubmitQuery), request_body = SubmitRequest,
    responses((status = 201, body = Submitted), (status = 400), (status = 404), (status = 429), (status = 503))
)]
pub(super) async fn submit(
    State(api): State<Api>,
    Query(query): Query<SubmitQuery>,
    body: Result<Json<SubmitRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let submission = submission(json(body)?)?;
    let run = if query.open {
        if !submission.inputs.is_empty() {
            return Err(ApiError::bad("an open run gets its inputs by PUT, all of them"));
        }
        api.runs.open(submission.workflow, submission.start).await?
    } else {
        api.runs.submit(submission).await?
    };
    let state = if query.open { "open" } else { "running" }.to_owned();
    let answer = Submitted { run: run.name.clone(), workflow: run.workflow.name.clone(), state };
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// Begins up to 1000 runs; the answers are in the order of the submissions, each with its run or its error.
#[utoipa::path(
    post, path = "/v1/batch", request_body = Vec<SubmitRequest>,
    responses((status = 200, body = Vec<BatchAnswer>), (status = 400), (status = 413))
)]
pub(super) async fn batch(
    State(api): State<Api>,
    body: Result<Json<Vec<SubmitRequest>>, JsonRejection>,
) -> Result<Json<Vec<BatchAnswer>>, ApiError> {
    let requests = json(body)?;
    if requests.len() > BATCH_MAX {
        let message = format!("{} submissions; at most {BATCH_MAX} in one request", requests.len());
        return Err(ApiError::too_large(message));
    }
    // One that cannot be read must not keep the others from beginning.
    let submissions: Vec<Result<Submission, ApiError>> = requests.into_iter().map(submission).collect();
    let (good, bad): (Vec<_>, Vec<_>) = submissions.into_iter().enumerate().partition(|(_, s)| s.is_ok());
    let (places, good): (Vec<_>, Vec<_>) = good.into_iter().filter_map(|(i, s)| Some((i, s.ok()?))).unzip();
    let error = |error: ApiError| BatchAnswer { run: None, error: Some(error.detail()) };
    let mut answers: Vec<(usize, BatchAnswer)> =
        bad.into_iter().filter_map(|(i, s)| Some((i, error(s.err()?)))).collect();
    let begun = api.runs.submit_all(good).await.into_iter().map(|begun| match begun {
        Ok(run) => BatchAnswer { run: Some(run.name.clone()), error: None },
        Err(refusal) => error(refusal.into()),
    });
    answers.extend(places.into_iter().zip(begun));
    answers.sort_by_key(|(place, _)| *place);
    Ok(Json(answers.into_iter().map(|(_, answer)| answer).collect()))
}

/// Runs of all nodes, newest first: those under way and those that are past.
#[utoipa::path(get, path = "/v1/runs", params(ListQuery), responses((status = 200, body = RunList)))]
pub(super) async fn list(
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
) -> Result<Json<RunList>, ApiError> {
    let max = query.max.unwrap_or(LIST_DEFAULT).min(LIST_MAX);
    let home = api.settings.name.clone();
    let known = api.runs.list(max);
    let mut runs: Vec<RunSummary> = known.iter().map(|run| RunSummary::of(run, &run.view(), &home)).collect();
    if let Some(history) = api.history.clone() {
        let past = blocking(move || history.list(max)).await?;
        let known: BTreeSet<&str> = known.iter().map(|run| run.name.as_str()).collect();
        runs.extend(
            past.iter().filter(|s| !known.contains(s.run.as_str())).map(|s| RunSummary::past(s, &home)),
        );
    }
    let mut silent = Vec::new();
    if !query.local {
        let ask = |peer: &crate::daemon::config::Peer| {
            let (api, peer) = (api.clone(), peer.clone());
            async move {
                let path = format!("/v1/runs?local=true&max={max}");
                (fetch::<RunList>(&api, &peer, &path).await, peer.name)
            }
        };
        for (answer, name) in join_all(api.settings.peers.iter().map(ask)).await {
            match answer {
                Ok(list) => runs.extend(list.runs),
                Err(_) => silent.push(name),
            }
        }
    }
    runs.sort_by(|a, b| b.run.cmp(&a.run));
    runs.truncate(max);
    Ok(Json(RunList { runs, silent }))
}

/// A run that the node has at hand, or `None` if it must look into its history.
pub(super) fn at_hand(api: &Api, name: &str) -> Result<Option<Arc<Run>>, ApiError> {
    match api.runs.find(name) {
        Ok(run) => Ok(Some(run)),
        Err(crate::daemon::Refusal::NoRun { .. }) if api.history.is_some() => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}

pub(super) async fn past(api: &Api, name: &str) -> Result<RunRecord, ApiError> {
    let no_run = || crate::daemon::Refusal::NoRun { name: name.to_owned() };
    let history = api.history.clone().ok_or_else(no_run)?;
    let name = name.to_owned();
    Ok(blocking(move || history.load(&name)).await?)
}

/// A run as it is now. RUN is its name, the beginning of it, `last`, or `last~N` for the Nth before that.
#[utoipa::path(get, path = "/v1/runs/{run}", params(WaitQuery), responses((status = 200, body = RunStatus), (status = 404)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<WaitQuery>,
) -> Result<Json<RunStatus>, ApiError> {
    let Some(run) = at_hand(&api, &name)? else {
        return Ok(Json(RunStatus::past(&past(&api, &name).await?, &api.settings.name)));
    };
    if query.wait_s > 0.0 {
        let until = Instant::now() + Duration::from_secs_f64(query.wait_s.min(WAIT_S_MAX));
        while run.phase() != Phase::Ended && Instant::now() < until {
            let changed = run.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed; the run is looked at once more before the wait.
            changed.as_mut().enable();
            if run.phase() == Phase::Ended {
                break;
            }
            let _ = tokio::time::timeout_at(until, changed).await;
        }
    }
    Ok(Json(RunStatus::of(&run, &api.settings.name)))
}

/// Begins an open run. Inputs that were not sent take their defaults.
#[utoipa::path(post, path = "/v1/runs/{run}/begin", responses((status = 200, body = Submitted), (status = 400), (status = 409)))]
pub(super) async fn begin(
    State(api): State<Api>,
    Path(name): Path<String>,
    // Nothing in it matters, but an answer before its end would close the connection on a client that
    // still sends.
    _: Bytes,
) -> Result<Json<Submitted>, ApiError> {
    let run = api.runs.find(&name)?;
    api.runs.begin(&run).await?;
    let workflow = run.workflow.name.clone();
    Ok(Json(Submitted { run: run.name.clone(), workflow, state: "running".to_owned() }))
}

/// Ends a run. One that has ended stays as it is.
#[utoipa::path(post, path = "/v1/runs/{run}/cancel", request_body = CancelRequest, responses((status = 200, body = RunStatus), (status = 404)))]
pub(super) async fn cancel(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: Result<Json<CancelRequest>, JsonRejection>,
) -> Result<Json<RunStatus>, ApiError> {
    let request = json(body)?;
    let Some(run) = at_hand(&api, &name)? else {
        return Ok(Json(RunStatus::past(&past(&api, &name).await?, &api.settings.name)));
    };
    let reason = if request.reason.is_empty() { "by request".to_owned() } else { request.reason };
    let (runs, ending) = (api.runs.clone(), run.clone());
    blocking(move || runs.cancel(&ending, &reason)).await;
    Ok(Json(RunStatus::of(&run, &api.settings.name)))
}

/// The record of a run that has ended: its graph, all that happened, what functions printed.
#[utoipa::path(get, path = "/v1/runs/{run}/record", responses((status = 200), (status = 404), (status = 409)))]
pub(super) async fn record(State(api): State<Api>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let record = recorded(&api, &name).await?;
    Ok(blocking(move || Json(record).into_response()).await)
}

/// A run that has ended, as a page for a browser.
#[utoipa::path(get, path = "/v1/runs/{run}/report", responses((status = 200, body = String, content_type = "text/html"), (status = 404), (status = 409)))]
pub(super) async fn report(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Html<String>, ApiError> {
    let record = recorded(&api, &name).await?;
    Ok(Html(blocking(move || report::page(&record, &Timeline::of(&record))).await))
}

/// How long a record may take to be written after its run's end.
const RECORDED_MAX: Duration = Duration::from_secs(10);

async fn recorded(api: &Api, name: &str) -> Result<RunRecord, ApiError> {
    let Some(run) = at_hand(api, name)? else { return past(api, name).await };
    if run.phase() != Phase::Ended {
        let message = format!("run {} has not ended; its record is written at its end", run.name);
        return Err(ApiError::new(StatusCode::CONFLICT, "state", message));
    }
    let late = Instant::now() + RECORDED_MAX;
    while !run.is_recorded() && Instant::now() < late {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    past(api, &run.name).await
}
