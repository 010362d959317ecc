//! What a program holds of a run's outputs: views of the store's own memory, without a copy.

use super::engine::{Request, Requests};
use dflow_proto::RunId;
use dflow_proto::ids::Extent;
use dflow_shm::segment::{Map, OutOfBounds};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The value of one output.
#[derive(Clone, Debug)]
pub enum OutputValue {
    /// Its source was skipped.
    Null,
    /// One object.
    Object(ObjectView),
    /// An ordered list.
    List(Vec<ObjectView>),
}

/// The bytes of one object. Cheap to clone; the run's outputs stay in the store while any view of
/// them lives.
#[derive(Clone)]
pub struct ObjectView(Bytes);

#[derive(Clone)]
enum Bytes {
    Owned(Arc<Vec<u8>>),
    Mapped { map: Arc<Map>, extent: Extent, _keep: Arc<Keep> },
}

/// The outputs of a run, leased until the last view is gone.
pub(super) struct Keep {
    run: RunId,
    requests: Requests,
    armed: AtomicBool,
}

impl Keep {
    pub(super) fn new(run: RunId, requests: Requests) -> Arc<Self> {
        Arc::new(Keep { run, requests, armed: AtomicBool::new(true) })
    }

    /// The outputs could not be handed over yet: the run is not to be forgotten by this one's end.
    pub(super) fn disarm(&self) {
        self.armed.store(false, Ordering::Relaxed);
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        if !*self.armed.get_mut() {
            return;
        }
        // A node that is gone has given everything back.
        let _ = self.requests.send(Request::Forget { run: self.run });
    }
}

impl ObjectView {
    pub(super) fn owned(bytes: Vec<u8>) -> Self {
        ObjectView(Bytes::Owned(Arc::new(bytes)))
    }

    /// A view of a sealed object that the run's outputs lease until `keep` is dropped.
    pub(super) fn mapped(map: Arc<Map>, extent: Extent, keep: Arc<Keep>) -> Result<Self, OutOfBounds> {
        // Checked here once, so that reading cannot fail.
        map.pointer(extent)?;
        Ok(ObjectView(Bytes::Mapped { map, extent, _keep: keep }))
    }
}

impl Deref for ObjectView {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Owned(bytes) => bytes,
            Bytes::Mapped { map, extent, .. } => {
                // SAFETY: the object is sealed, so its writer's mapping has been withdrawn and its
                // bytes never change; the engine holds a lease on it (`RunState::outputs`) until it
                // is told to forget the run, which only the last `Keep`, dropped after every view
                // of it, does.
                unsafe { map.slice(*extent) }.unwrap_or_default()
            }
        }
    }
}

impl AsRef<[u8]> for ObjectView {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for ObjectView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ObjectView({} bytes)", self.len())
    }
}
