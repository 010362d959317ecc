//! Nodes, pools, objects, metrics.

use super::Api;
use super::error::ApiError;
use super::peers::fetch;
use super::types::{LinkInfo, ListQuery, NodeInfo, ObjectInfo, PoolInfo};
use crate::daemon::{Run, blocking};
use crate::node::PeerView;
use axum::Json;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use dflow_proto::ObjectKey;
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Objects that are listed unless told.
const OBJECTS_DEFAULT: usize = 100;
/// Most objects that are listed.
const OBJECTS_MAX: usize = 100_000;
/// Clocks that differ by less are as good as equal. Microseconds.
const CLOCK_SLACK_US: i64 = 1_000_000;

/// Whether this node takes runs: 200 if so, 503 if not.
#[utoipa::path(get, path = "/v1/health", responses((status = 200), (status = 503)))]
pub(super) async fn health(State(api): State<Api>) -> Response {
    let (status, state) = match api.runs.is_draining() {
        false => (StatusCode::OK, "ready"),
        true => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
    };
    let body =
        serde_json::json!({"node": api.settings.name, "state": state, "version": env!("CARGO_PKG_VERSION")});
    (status, Json(body)).into_response()
}

/// This node.
#[utoipa::path(get, path = "/v1/node", responses((status = 200, body = NodeInfo)))]
pub(super) async fn node(State(api): State<Api>) -> Result<Json<NodeInfo>, ApiError> {
    own_info(&api).await.map(Json)
}

/// All nodes; of one that does not answer, its name and why.
#[utoipa::path(get, path = "/v1/nodes", responses((status = 200, body = Vec<NodeInfo>)))]
pub(super) async fn nodes(State(api): State<Api>) -> Result<Json<Vec<NodeInfo>>, ApiError> {
    let mut all = vec![own_info(&api).await?];
    let ask = |peer: &crate::daemon::config::Peer| {
        let (api, peer) = (api.clone(), peer.clone());
        async move {
            let asked_unix_us = now_unix_us();
            let answer = fetch::<NodeInfo>(&api, &peer, "/v1/node").await;
            let silent = |state| NodeInfo {
                name: peer.name.clone(),
                state,
                api: peer.api.clone(),
                ..Default::default()
            };
            let mut info = match answer {
                Err(error) => return silent(format!("silent: {}", error.detail().message)),
                Ok(info) if info.name == api.settings.name => {
                    return silent(format!(
                        "two nodes of one name: it calls itself {}, as this one does",
                        info.name
                    ));
                }
                Ok(info) if info.name != peer.name => {
                    return silent(format!("unknown: it calls itself {}", info.name));
                }
                Ok(info) => info,
            };
            // It looked at its clock somewhere between the question and the answer.
            let middle = (asked_unix_us + now_unix_us()) / 2;
            info.clock_ahead_us = info.now_unix_us as i64 - middle as i64;
            if info.clock_ahead_us.abs() < CLOCK_SLACK_US {
                info.clock_ahead_us = 0;
            }
            info
        }
    };
    all.extend(join_all(api.settings.peers.iter().map(ask)).await);
    Ok(Json(all))
}

async fn own_info(api: &Api) -> Result<NodeInfo, ApiError> {
    let node = api.runs.node().clone();
    let looked = blocking(move || Some((node.stats()?, node.peers().unwrap_or_default()))).await;
    let (stats, peers) = looked.ok_or_else(ApiError::gone)?;
    let settings = &api.settings;
    Ok(NodeInfo {
        name: settings.name.clone(),
        state: if api.runs.is_draining() { "draining" } else { "ready" }.to_owned(),
        api: settings.api.clone(),
        data: settings.data.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now_unix_us: now_unix_us(),
        clock_ahead_us: 0,
        uptime_us: api.started.elapsed().as_micros() as u64,
        runs: api.runs.under_way() as u64,
        cpu_milli: settings.node.cpu_milli,
        cpu_milli_used: stats.load.cpu_milli_used,
        slots: settings.node.slots,
        slots_used: stats.load.slots_used,
        workers: stats.workers,
        store_bytes: stats.store.arena_bytes,
        store_used_bytes: stats.store.arena_used_bytes,
        objects: stats.store.objects,
        huge_pages: stats.huge_pages,
        links: peers.into_iter().filter_map(link_info).collect(),
    })
}

fn link_info(peer: PeerView) -> Option<LinkInfo> {
    // One that has not said what it offers is given no work yet.
    let link = peer.link.filter(|_| peer.slots > 0)?;
    Some(LinkInfo {
        peer: peer.name,
        transport: link.transport,
        why: link.why,
        rdma_bytes: link.rdma_bytes,
        stream_bytes: link.stream_bytes,
    })
}

fn now_unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// The function processes of this node.
#[utoipa::path(get, path = "/v1/pools", responses((status = 200, body = Vec<PoolInfo>)))]
pub(super) async fn pools(State(api): State<Api>) -> Result<Json<Vec<PoolInfo>>, ApiError> {
    let node = api.runs.node().clone();
    let pools = blocking(move || node.pools()).await.ok_or_else(ApiError::gone)?;
    let info = |pool: crate::node::PoolView| PoolInfo {
        function: pool.function,
        runtime: pool.runtime.to_owned(),
        folder: pool.dir.display().to_string(),
        state: pool.state.to_owned(),
        workers: pool.workers,
        idle: pool.idle,
        queued: pool.queued,
    };
    Ok(Json(pools.into_iter().map(info).collect()))
}

/// Objects in the store of this node: the first of all, or of one run.
#[utoipa::path(get, path = "/v1/objects", params(ListQuery), responses((status = 200, body = Vec<ObjectInfo>)))]
pub(super) async fn objects(
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<ObjectInfo>>, ApiError> {
    let max = query.max.unwrap_or(OBJECTS_DEFAULT).min(OBJECTS_MAX);
    let run = query.run.as_deref().map(|name| api.runs.find(name)).transpose()?;
    let (node, id) = (api.runs.node().clone(), run.map(|run| run.id));
    let objects = blocking(move || node.objects(id, max)).await.ok_or_else(ApiError::gone)?;
    let known: BTreeMap<_, Arc<Run>> =
        api.runs.list(usize::MAX).into_iter().map(|run| (run.id, run)).collect();
    let info = |object: dflow_proto::store::Listed| {
        let run = known.get(&object.key.run);
        let (step, port) = run.and_then(|run| names(run, object.key)).unzip();
        ObjectInfo {
            run: run.map(|run| run.name.clone()),
            step: step.flatten(),
            invocation_item: object.key.invocation.item,
            port: port.unwrap_or_else(|| object.key.port.to_string()),
            item: object.key.item,
            bytes: object.bytes,
            in_memory: object.in_memory,
            on_disk: object.on_disk,
            leases: object.leases,
        }
    };
    Ok(Json(objects.into_iter().map(info).collect()))
}

/// The names of an object's step, if a step made it, and of its port.
fn names(run: &Run, key: ObjectKey) -> Option<(Option<String>, String)> {
    let workflow = run.workflow.workflow().ok()?;
    let port = usize::from(key.port);
    if key.invocation.step == ObjectKey::INPUT_STEP {
        return Some((None, workflow.inputs.get(port)?.name.clone()));
    }
    let step = workflow.graph.steps.get(key.invocation.step as usize)?;
    Some((Some(step.name.clone()), step.outputs.get(port)?.name.clone()))
}

/// Metrics, for Prometheus.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String)))]
pub(super) async fn metrics(State(api): State<Api>) -> Response {
    let node = api.runs.node().clone();
    let look = move || {
        let (pools, peers) = (node.pools().unwrap_or_default(), node.peers().unwrap_or_default());
        (node.stats(), pools, peers, node.take_transfers().unwrap_or_default())
    };
    let (stats, pools, peers, transfers) = blocking(look).await;
    api.metrics.transfers(&transfers);
    let text = api.metrics.text(api.runs.under_way(), stats.as_ref(), &pools, &peers);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
