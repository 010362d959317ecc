//! The HTTP/JSON API of a node. `GET /openapi.json` describes it.
//!
//! ```text
//!   connection ──▶ guard (secret, origin) ──▶ forward (runs of other homes) ──▶ handler ──▶ daemon
//! ```

mod cluster;
mod error;
mod events;
mod inputs;
mod outputs;
mod peers;
mod runs;
mod serve;
mod stream;
pub mod types;
mod workflows;

pub(crate) use runs::start_policy;
pub(crate) use serve::serve;

use crate::daemon::config::{Secret, Settings};
use crate::daemon::{Metrics, Registry, Runs};
use crate::history::History;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use error::ApiError;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;
use utoipa::OpenApi;

/// Longest body of a request that is read whole. Bytes.
const JSON_BYTES_MAX: usize = 16 << 20;

/// What handlers need.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) runs: Arc<Runs>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) history: Option<History>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) secret: Option<Secret>,
    pub(crate) started: Instant,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "DFlow node", description = "Workflows, runs and their data, over HTTP."),
    paths(
        cluster::health,
        cluster::nodes,
        cluster::node,
        cluster::pools,
        cluster::objects,
        cluster::metrics,
        workflows::deploy,
        workflows::list,
        workflows::show,
        workflows::remove,
        workflows::bundle,
        runs::submit,
        runs::batch,
        runs::list,
        runs::show,
        runs::begin,
        runs::cancel,
        runs::record,
        runs::report,
        inputs::put,
        outputs::object,
        outputs::item,
        events::events,
        events::logs,
    )
)]
struct Description;

/// The whole API as text in the form of OpenAPI 3.1.
pub fn description() -> String {
    // A document of plain values always encodes.
    Description::openapi().to_pretty_json().unwrap_or_default()
}

/// All routes, guarded.
pub(crate) fn router(api: Api) -> Router {
    Router::new()
        .route("/openapi.json", get(|| async { json_text(description()) }))
        .route("/metrics", get(cluster::metrics))
        .route("/v1/health", get(cluster::health))
        .route("/v1/nodes", get(cluster::nodes))
        .route("/v1/node", get(cluster::node))
        .route("/v1/pools", get(cluster::pools))
        .route("/v1/objects", get(cluster::objects))
        .route("/v1/workflows", get(workflows::list).post(workflows::deploy))
        .route("/v1/workflows/{workflow}", get(workflows::show).delete(workflows::remove))
        .route("/v1/bundles/{hash}", get(workflows::bundle))
        .route("/v1/runs", get(runs::list).post(runs::submit))
        .route("/v1/batch", post(runs::batch))
        .route("/v1/runs/{run}", get(runs::show))
        .route("/v1/runs/{run}/begin", post(runs::begin))
        .route("/v1/runs/{run}/cancel", post(runs::cancel))
        .route("/v1/runs/{run}/record", get(runs::record))
        .route("/v1/runs/{run}/report", get(runs::report))
        .route("/v1/runs/{run}/events", get(events::events))
        .route("/v1/runs/{run}/logs", get(events::logs))
        .route("/v1/runs/{run}/inputs/{input}", put(inputs::put))
        .route("/v1/runs/{run}/outputs/{output}", get(outputs::object))
        .route("/v1/runs/{run}/outputs/{output}/{item}", get(outputs::item))
        .fallback(|request: Request| async move {
            let message = format!("there is no {}; /openapi.json says what there is", request.uri().path());
            ApiError::new(StatusCode::NOT_FOUND, "no_route", message)
        })
        .method_not_allowed_fallback(|request: Request| async move {
            let message = format!(
                "{} has no {}; /openapi.json says what it has",
                request.uri().path(),
                request.method()
            );
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "no_method", message)
        })
        .layer(DefaultBodyLimit::max(JSON_BYTES_MAX))
        .layer(middleware::from_fn_with_state(api.clone(), peers::forward))
        .layer(middleware::from_fn_with_state(api.clone(), guard))
        .with_state(api)
}

/// Lets in who knows the secret. Without one, the node listens on loopback only, and what must be kept
/// out is a page in a browser of this machine that talks to it.
async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    match admit(&api, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn admit(api: &Api, headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name| headers.get(name).and_then(|value: &axum::http::HeaderValue| value.to_str().ok());
    if let Some(secret) = &api.secret {
        let given = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        if given.is_some_and(|given| secret.is(given.trim())) {
            return Ok(());
        }
        let message = "this node asks for its secret: send `Authorization: Bearer SECRET`, or give `dflow` the file \
                       by --secret-file or DFLOW_SECRET_FILE";
        return Err(ApiError::new(StatusCode::UNAUTHORIZED, "secret", message));
    }
    let host = text(header::HOST).unwrap_or_default();
    if !is_local_name(host) {
        let message = format!("a node without a secret is asked by address or as localhost, not as {host:?}");
        return Err(ApiError::new(StatusCode::FORBIDDEN, "host", message));
    }
    match text(header::ORIGIN) {
        Some(origin) if origin.split_once("://").map(|(_, name)| name) != Some(host) => {
            let message = format!("a page of {origin:?} may not use this node");
            Err(ApiError::new(StatusCode::FORBIDDEN, "origin", message))
        }
        _ => Ok(()),
    }
}

/// Whether a `Host` header names no domain, which somebody else could point here.
fn is_local_name(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

fn json_text(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_local_names() {
        for good in ["127.0.0.1:7400", "localhost:80", "LocalHost", "[::1]:7400", "10.0.0.1"] {
            assert!(is_local_name(good), "{good}");
        }
        for bad in ["evil.example:7400", "", "127.0.0.1.evil.example", "localhost.evil.example:1"] {
            assert!(!is_local_name(bad), "{bad}");
        }
    }

    #[test]
    fn the_description_has_every_route() {
        let description: serde_json::Value = serde_json::from_str(&description()).expect("JSON");
        let paths = description["paths"].as_object().expect("paths");
        assert_eq!(paths.len(), 21, "{:?}", paths.keys().collect::<Vec<_>>());
        assert!(description["components"]["schemas"]["RunStatus"].is_object());
    }
}
