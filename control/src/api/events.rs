//! The life of a run as it happens: server-sent events, and lines that functions print.
//!
//! Both look at the run when the client has room for more and not before, so that one that does not read
//! costs nothing but its connection.

use super::Api;
use super::error::ApiError;
use super::runs::at_hand;
use super::types::{LogEntry, RunStatus, StepStatus};
use crate::daemon::{Phase, Run, blocking};
use crate::node::LogLine;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use utoipa::IntoParams;

/// How often a run is looked at for changes; longer for large graphs, which take longer to look at.
const LOOK: Duration = Duration::from_millis(50);
/// Steps that may be looked at in a tenth of the time.
const STEPS_A_LOOK: u32 = 1000;
/// A comment at least so often, by which both ends learn that the other is gone.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Lines that are sent at once.
const LINES_MAX: usize = 500;

/// The life of a run: an event `run` with all of it, `step` for each step that changes, `end` with all of
/// it again (server-sent events).
#[utoipa::path(get, path = "/v1/runs/{run}/events", responses((status = 200, body = String, content_type = "text/event-stream"), (status = 404)))]
pub(super) async fn events(State(api): State<Api>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let run = api.runs.find(&name)?;
    let follow = Follow { run, home: api.settings.name.clone(), last: Vec::new(), begun: false, over: false };
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    let body = Body::from_stream(stream::unfold(follow, |mut follow| async move {
        follow.next().await.map(|text| (Ok::<_, Infallible>(Bytes::from(text)), follow))
    }));
    Ok((headers, body).into_response())
}

struct Follow {
    run: Arc<Run>,
    home: String,
    last: Vec<StepStatus>,
    begun: bool,
    over: bool,
}

impl Follow {
    /// What has happened since the last call; waits until there is something.
    async fn next(&mut self) -> Option<String> {
        if self.over {
            return None;
        }
        let mut text = String::new();
        if !self.begun {
            self.begun = true;
            let status = RunStatus::of(&self.run, &self.home);
            event(&mut text, "run", &status);
            self.last = status.steps;
            return Some(text);
        }
        let heartbeat = Instant::now() + HEARTBEAT;
        loop {
            // The order matters: an end that comes after the look is seen next time.
            let ended = self.run.phase() == Phase::Ended;
            self.changes(&mut text);
            if ended {
                event(&mut text, "end", &RunStatus::of(&self.run, &self.home));
                self.over = true;
            }
            if !text.is_empty() {
                return Some(text);
            }
            if Instant::now() > heartbeat {
                return Some(":\n\n".to_owned());
            }
            let look = LOOK * (1 + 10 * self.last.len() as u32 / STEPS_A_LOOK);
            // An end or a line cuts the wait short.
            let _ = tokio::time::timeout(look, self.run.changed.notified()).await;
        }
    }

    fn changes(&mut self, text: &mut String) {
        let view = self.run.view();
        for (index, step) in view.steps.iter().enumerate() {
            let now = StepStatus::of(step, &view);
            if self.last.get(index) != Some(&now) {
                event(text, "step", &now);
                match self.last.get_mut(index) {
                    Some(last) => *last = now,
                    None => self.last.push(now),
                }
            }
        }
    }
}

fn event(text: &mut String, name: &str, data: &impl Serialize) {
    // Plain data always encodes, and on one line.
    let data = serde_json::to_string(data).unwrap_or_default();
    let _ = write!(text, "event: {name}\ndata: {data}\n\n");
}

#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct LogsQuery {
    /// Go on until the run ends.
    #[serde(default)]
    follow: bool,
    /// Only this step: its name, or `name[item]`.
    step: Option<String>,
}

impl LogsQuery {
    fn wants(&self, step: &str) -> bool {
        let base = step.split_once('[').map_or(step, |(name, _)| name);
        self.step.as_deref().is_none_or(|wanted| wanted == step || wanted == base)
    }
}

/// What functions have printed in a run: one JSON document a line.
#[utoipa::path(get, path = "/v1/runs/{run}/logs", params(LogsQuery), responses((status = 200, body = LogEntry, content_type = "application/x-ndjson"), (status = 404)))]
pub(super) async fn logs(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, ApiError> {
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    let Some(run) = at_hand(&api, &name)? else {
        let Some(history) = api.history.clone() else { return Ok((headers, "").into_response()) };
        let record = blocking(move || history.load(&name)).await?;
        let lines = record.logs.iter().filter(|line| query.wants(&line.step));
        let text: String = lines.map(|line| log_line(&line.step, &line.text)).collect();
        return Ok((headers, text).into_response());
    };
    let body =
        Body::from_stream(stream::unfold((run, query, 0, false), |(run, query, from, over)| async move {
            let (text, from, over) = lines(&run, &query, from, over).await?;
            Some((Ok::<_, Infallible>(Bytes::from(text)), (run, query, from, over)))
        }));
    Ok((headers, body).into_response())
}

/// The next lines from number `from` on, the number after them, and whether they are the last.
async fn lines(run: &Run, query: &LogsQuery, mut from: u64, over: bool) -> Option<(String, u64, bool)> {
    if over {
        return None;
    }
    let heartbeat = Instant::now() + HEARTBEAT;
    loop {
        let last = !query.follow || run.phase() == Phase::Ended;
        let (lines, next) = run.lines(from, LINES_MAX);
        let full = lines.len() == LINES_MAX;
        from = next;
        let wanted = lines.iter().filter(|line: &&LogLine| query.wants(&line.step));
        let text: String = wanted.map(|line| log_line(&line.step, &line.text)).collect();
        if !text.is_empty() || (last && !full) {
            return Some((text, from, last && !full));
        }
        if full {
            continue;
        }
        if Instant::now() > heartbeat {
            // An empty line is no document, and shows whether the client is still there.
            return Some(("\n".to_owned(), from, false));
        }
        let _ = tokio::time::timeout(LOOK * 4, run.changed.notified()).await;
    }
}

fn log_line(step: &str, text: &str) -> String {
    let entry = LogEntry { step: step.to_owned(), text: text.to_owned() };
    serde_json::to_string(&entry).unwrap_or_default() + "\n"
}
