//! Where a full store puts what is not in use: files of a directory, written and read by
//! `object_store` on a runtime of its own, so that the engine never waits for a disk.

use super::engine::{Request, Requests};
use super::sweep::sweep;
use bytes::Bytes;
use dflow_proto::SegmentId;
use dflow_proto::store::{DiskError, ObjectId};
use dflow_shm::segment::PartMut;
use object_store::local::LocalFileSystem;
use object_store::path::Path as StorePath;
use object_store::{ObjectStoreExt, PutPayload};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tokio::runtime::Runtime;

/// Directories of nodes begin with this; their process id follows.
const PREFIX: &str = "dflow-spill-";

/// A job for the disk is done.
#[derive(Debug)]
pub(super) enum Done {
    /// The object's copy is on disk, or is not.
    Saved(ObjectId, Result<(), DiskError>),
    /// The object is in memory again, or is not.
    Loaded(ObjectId, Result<(), DiskError>),
}

/// The spill directory of this node: made when first used, removed when dropped.
pub(super) struct Spiller {
    dir: PathBuf,
    store: OnceLock<Result<Arc<LocalFileSystem>, DiskError>>,
    runtime: Option<Runtime>,
    requests: Requests,
}

impl Spiller {
    /// Checks that a directory of this node's own can be made inside `root`, and removes those that
    /// dead nodes left.
    pub(super) fn start(root: &Path, requests: Requests) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        sweep(root, PREFIX)?;
        let dir = root.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir_all(&dir).and_then(|()| fs::remove_dir(&dir))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(4)
            .thread_name("dflow-spill")
            .build()?;
        Ok(Spiller { dir, store: OnceLock::new(), runtime: Some(runtime), requests })
    }

    fn store(&self) -> Result<Arc<LocalFileSystem>, DiskError> {
        let open = || {
            fs::create_dir_all(&self.dir).map_err(|e| io_error(&e))?;
            LocalFileSystem::new_with_prefix(&self.dir).map(Arc::new).map_err(disk_error)
        };
        self.store.get_or_init(open).clone()
    }

    /// Copies an object to disk; [`Done::Saved`] follows. `bytes` stay unchanged until then.
    pub(super) fn save(&self, object: ObjectId, bytes: Bytes) {
        let store = self.store();
        self.run(async move {
            let result = match store {
                Ok(store) => {
                    store.put(&path(object), PutPayload::from(bytes)).await.map(drop).map_err(disk_error)
                }
                Err(error) => Err(error),
            };
            Done::Saved(object, result)
        });
    }

    /// Copies an object back; [`Done::Loaded`] follows. Nobody else writes `into` until then.
    pub(super) fn load(&self, object: ObjectId, into: PartMut) {
        let store = self.store();
        self.run(async move {
            let result = match store {
                Ok(store) => read_back(&store, object, &into).await,
                Err(error) => Err(error),
            };
            Done::Loaded(object, result)
        });
    }

    /// Deletes an object's copy.
    pub(super) fn delete(&self, object: ObjectId) {
        if let (Some(runtime), Ok(store)) = (&self.runtime, self.store()) {
            runtime.spawn(async move {
                if let Err(error) = store.delete(&path(object)).await {
                    tracing::warn!(%error, ?object, "a spilled copy could not be deleted");
                }
            });
        }
    }

    /// A file of `bytes` bytes for an overflow segment, with its blocks allocated so that a full
    /// disk is an error here and not a fault later. It has no name: whatever ends this node, it
    /// goes.
    pub(super) fn overflow(&self, segment: SegmentId, bytes: u64) -> Result<OwnedFd, DiskError> {
        self.store()?;
        let path = self.dir.join(format!("segment-{}", segment.0));
        let make = || {
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            fs::remove_file(&path)?;
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
            Ok(file)
        };
        make().map(OwnedFd::from).map_err(|e: io::Error| io_error(&e))
    }

    fn run(&self, job: impl Future<Output = Done> + Send + 'static) {
        let requests = self.requests.clone();
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move {
                let done = job.await;
                // `send` waits while the engine's queue is full; not on the runtime's own thread.
                let sent = tokio::task::spawn_blocking(move || requests.send(Request::Spilled(done)));
                // A node that is gone has no more use for the answer.
                let _ = sent.await;
            });
        }
    }
}

impl Drop for Spiller {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        if let Some(Ok(_)) = self.store.get()
            && let Err(error) = fs::remove_dir_all(&self.dir)
        {
            tracing::warn!(%error, dir = %self.dir.display(), "the spill directory could not be removed");
        }
    }
}

fn path(object: ObjectId) -> StorePath {
    StorePath::from(format!("object-{}", object.0))
}

async fn read_back(store: &LocalFileSystem, object: ObjectId, into: &PartMut) -> Result<(), DiskError> {
    const PIECE_BYTES: u64 = 4 << 20;
    let total = into.bytes() as u64;
    let mut at = 0;
    while at < total {
        let end = total.min(at + PIECE_BYTES);
        let piece = store.get_range(&path(object), at..end).await.map_err(disk_error)?;
        if piece.len() as u64 != end - at {
            return Err(DiskError::Io(format!("the copy ends at byte {}", at + piece.len() as u64)));
        }
        into.copy_in(at as usize, &piece);
        at = end;
    }
    Ok(())
}

/// Finds the operating system's word in what a library wraps around it.
fn disk_error(error: object_store::Error) -> DiskError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return io_error(error);
        }
        cause = error.source();
    }
    DiskError::Io(error.to_string())
}

fn io_error(error: &io::Error) -> DiskError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::NoSpace,
        _ => DiskError::Io(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart() {
        let inner = io::Error::from(io::ErrorKind::StorageFull);
        let wrapped = object_store::Error::Generic { store: "local", source: Box::new(inner) };
        assert_eq!(disk_error(wrapped), DiskError::NoSpace);
    }
}
