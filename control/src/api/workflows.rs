//! Deployed workflows.

use super::Api;
use super::error::ApiError;
use super::peers::{BUNDLE_MAX, ask};
use super::stream::receive;
use super::types::WorkflowInfo;
use crate::bundle;
use crate::daemon::config::Peer;
use crate::daemon::{Deployed, RegistryError, blocking};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dflow_proto::limits::WORKFLOW_BYTES_MAX;
use futures_util::future::join_all;
use futures_util::stream;
use serde::Deserialize;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use utoipa::IntoParams;

/// What goes to a peer at once. Bytes.
const PIECE_BYTES: usize = 256 << 10;

#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct DeployQuery {
    /// Replace other content of the same name and version.
    #[serde(default)]
    replace: bool,
    /// On this node only, not on its peers.
    #[serde(default)]
    local: bool,
}

/// Deploys a workflow, on this node and its peers: a tar of its files with the workflow file first, or
/// (`application/yaml`) the workflow file alone.
#[utoipa::path(
    post, path = "/v1/workflows", params(DeployQuery), request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses((status = 201, body = WorkflowInfo), (status = 200, body = WorkflowInfo), (status = 409), (status = 413), (status = 422))
)]
pub(super) async fn deploy(
    State(api): State<Api>,
    Query(query): Query<DeployQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|k| k.to_str().ok()).unwrap_or_default();
    let alone = match kind.split(';').next().unwrap_or_default() {
        "application/x-tar" | "application/octet-stream" => false,
        "application/yaml" | "application/x-yaml" | "text/yaml" => true,
        other => {
            let message = format!("{other:?} is no bundle: send application/x-tar, or application/yaml");
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type", message));
        }
    };
    let registry = api.registry.clone();
    let bytes_max = api.settings.bundle_bytes_max;
    // Headers and padding of a tar come on top of what its files have.
    let body_max = if alone { WORKFLOW_BYTES_MAX } else { bytes_max.saturating_mul(2).max(1 << 20) };
    let what = "the bundle";
    let (deployed, new) =
        receive(request.into_body(), body_max.min(bytes_max + (64 << 20)), what, move |body| {
            let mut spool = registry.spool()?;
            let broken = |e: io::Error| RegistryError::Bundle(bundle::BundleError::NoTar { source: e });
            if alone {
                let mut text = Vec::new();
                body.read_to_end(&mut text).map_err(broken)?;
                bundle::wrap(&text, &mut spool).map_err(broken)?;
            } else {
                let copied = io::copy(body, &mut spool);
                copied.map_err(|e| RegistryError::Storage {
                    path: spool.path().to_owned(),
                    why: e.to_string(),
                })?;
            }
            Ok(registry.deploy(spool, bytes_max, query.replace)?)
        })
        .await?;
    tracing::info!(workflow = deployed.name, bundle = deployed.row.bundle, new, "deployed");
    let mut info = WorkflowInfo::of(&deployed);
    info.warnings = deployed.workflow()?.warnings.to_string();
    if !query.local {
        info.missing_on = spread(&api, &deployed, query.replace).await;
    }
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(info)).into_response())
}

/// Gives the workflow to all peers; returns those that could not be given it.
async fn spread(api: &Api, deployed: &Arc<Deployed>, replace: bool) -> Vec<String> {
    let give = |peer: &Peer| {
        let (api, peer, deployed) = (api.clone(), peer.clone(), deployed.clone());
        async move {
            match hand_over(&api, &peer, &deployed, replace).await {
                Ok(()) => None,
                Err(error) => {
                    let error = error.detail().message;
                    tracing::warn!(
                        peer = peer.name,
                        workflow = deployed.name,
                        error,
                        "not deployed on a peer"
                    );
                    Some(peer.name)
                }
            }
        }
    };
    join_all(api.settings.peers.iter().map(give)).await.into_iter().flatten().collect()
}

async fn hand_over(api: &Api, peer: &Peer, deployed: &Deployed, replace: bool) -> Result<(), ApiError> {
    let file = api.registry.bundle(&deployed.row.bundle)?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("/v1/workflows?local=true&replace={replace}"))
        .header(header::CONTENT_TYPE, "application/x-tar")
        .body(pieces(file))
        .map_err(|e| ApiError::peer(&peer.name, e))?;
    let response = ask(api, peer, request, BUNDLE_MAX).await?;
    match response.status() {
        status if status.is_success() => Ok(()),
        status => Err(ApiError::peer(&peer.name, format!("it says {status}"))),
    }
}

/// A file as a body.
fn pieces(file: File) -> Body {
    let next = |mut file: File| async move {
        let (piece, file) = blocking(move || {
            let mut piece = vec![0; PIECE_BYTES];
            let read = file.read(&mut piece);
            (read.map(|n| piece[..n].to_vec()), file)
        })
        .await;
        match piece {
            Ok(piece) if piece.is_empty() => None,
            piece => Some((piece, file)),
        }
    };
    Body::from_stream(stream::unfold(file, next))
}

/// All deployed workflows.
#[utoipa::path(get, path = "/v1/workflows", responses((status = 200, body = Vec<WorkflowInfo>)))]
pub(super) async fn list(State(api): State<Api>) -> Json<Vec<WorkflowInfo>> {
    Json(api.registry.list().iter().map(|deployed| WorkflowInfo::of(deployed)).collect())
}

/// One deployed workflow: `name@version`, or `name` for the version that was deployed last.
#[utoipa::path(get, path = "/v1/workflows/{workflow}", responses((status = 200, body = WorkflowInfo), (status = 404)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(workflow): Path<String>,
) -> Result<Json<WorkflowInfo>, ApiError> {
    Ok(Json(WorkflowInfo::of(&*api.registry.find(&workflow)?)))
}

/// Takes a workflow away from this node. Runs under way go on.
#[utoipa::path(delete, path = "/v1/workflows/{workflow}", responses((status = 200, body = WorkflowInfo), (status = 404)))]
pub(super) async fn remove(
    State(api): State<Api>,
    Path(workflow): Path<String>,
) -> Result<Json<WorkflowInfo>, ApiError> {
    let registry = api.registry.clone();
    let removed = blocking(move || registry.remove(&workflow)).await?;
    Ok(Json(WorkflowInfo::of(&removed)))
}

/// A bundle by its hash, as it came.
#[utoipa::path(get, path = "/v1/bundles/{hash}", responses((status = 200, body = Vec<u8>, content_type = "application/x-tar"), (status = 404)))]
pub(super) async fn bundle(State(api): State<Api>, Path(hash): Path<String>) -> Result<Response, ApiError> {
    let file = api.registry.bundle(&hash)?;
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], pieces(file)).into_response())
}
