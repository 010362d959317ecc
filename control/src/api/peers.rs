//! Asking other nodes: for their part of a list, and for runs whose home they are.

use super::Api;
use super::error::ApiError;
use crate::daemon::config::Peer;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::net::TcpStream;

/// How long a peer may take to accept.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// How long a peer may take to begin its answer to a question of this node's own.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// How long it may take for a client's request, which may wait for a run.
const FORWARD_MAX: Duration = Duration::from_secs(120);
/// Longest answer that is read whole. Bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Says that a request has been handed on once already.
const FORWARDED: HeaderName = HeaderName::from_static("dflow-forwarded");

/// Sends a request to a peer and awaits the head of its answer.
pub(super) async fn ask(
    api: &Api,
    peer: &Peer,
    mut request: Request,
    answer_max: Duration,
) -> Result<Response, ApiError> {
    let failed = |why: &dyn std::fmt::Display| ApiError::peer(&peer.name, why);
    let late = |_| failed(&format!("no answer from {} in time", peer.api));
    let headers = request.headers_mut();
    let host = HeaderValue::from_str(&peer.api).map_err(|e| failed(&e))?;
    headers.insert(header::HOST, host);
    headers.insert(FORWARDED, HeaderValue::from_static("1"));
    if let Some(secret) = &api.secret {
        let bearer = HeaderValue::from_str(&format!("Bearer {}", secret.expose())).map_err(|e| failed(&e))?;
        headers.insert(header::AUTHORIZATION, bearer);
    }
    // A connection goes in origin form.
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    *request.uri_mut() = path.parse().map_err(|e: axum::http::uri::InvalidUri| failed(&e))?;
    let connect = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(&peer.api));
    let stream = connect.await.map_err(late)?.map_err(|e| failed(&e))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
    tokio::spawn(async move {
        // Its error is that of the request, too.
        let _ = connection.await;
    });
    let answer = tokio::time::timeout(answer_max, sender.send_request(request)).await;
    Ok(answer.map_err(late)?.map_err(|e| failed(&e))?.map(Body::new).into_response())
}

/// What a peer says to a GET.
pub(super) async fn fetch<T: DeserializeOwned>(api: &Api, peer: &Peer, path: &str) -> Result<T, ApiError> {
    let request = Request::builder().method(Method::GET).uri(path).body(Body::empty());
    let request = request.map_err(|e| ApiError::peer(&peer.name, e))?;
    let response = ask(api, peer, request, ANSWER_MAX).await?;
    let status = response.status();
    let whole =
        tokio::time::timeout(ANSWER_MAX, Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect());
    let late = |_| ApiError::peer(&peer.name, "its answer breaks off");
    let body = whole.await.map_err(late)?.map_err(|e| ApiError::peer(&peer.name, e))?.to_bytes();
    if !status.is_success() {
        return Err(ApiError::peer(&peer.name, format!("it says {status}")));
    }
    serde_json::from_slice(&body).map_err(|e| ApiError::peer(&peer.name, e))
}

/// Hands requests about a run to its home: the node whose name follows the dot of the run's.
pub(super) async fn forward(State(api): State<Api>, request: Request, next: Next) -> Response {
    let home = home_of(request.uri().path());
    let elsewhere = home.filter(|home| *home != api.settings.name);
    let peer = elsewhere.and_then(|home| api.settings.peers.iter().find(|peer| peer.name == home));
    match peer {
        // A request that has been handed on is answered here, whatever the peers think of each other.
        Some(peer) if !request.headers().contains_key(FORWARDED) => {
            let peer = peer.clone();
            ask(&api, &peer, request, FORWARD_MAX).await.unwrap_or_else(IntoResponse::into_response)
        }
        _ => next.run(request).await,
    }
}

/// The home that the run of a path is named after.
fn home_of(path: &str) -> Option<&str> {
    let run = path.strip_prefix("/v1/runs/")?.split('/').next()?;
    run.split_once('.').map(|(_, home)| home)
}

/// How long a peer may take to begin its answer to a bundle that is sent to it.
pub(super) const BUNDLE_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::home_of;

    #[test]
    fn the_home_of_a_run_is_in_its_name() {
        assert_eq!(home_of("/v1/runs/4kq2/outputs/a.b"), None);
        assert_eq!(home_of("/v1/runs/4kq2.east/outputs/a"), Some("east"));
        assert_eq!(home_of("/v1/runs/4kq2.east-2"), Some("east-2"));
        assert_eq!(home_of("/v1/runs"), None);
        assert_eq!(home_of("/v1/nodes"), None);
    }
}
