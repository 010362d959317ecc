//! Bodies of any size: in, from the network to a thread that may block; out, from shared memory in pieces.

use super::error::ApiError;
use axum::body::{Body, HttpBody};
use axum::http::StatusCode;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt;
use prometheus_client::metrics::counter::Counter;
use std::io::{self, Read};
use std::time::Duration;
use tokio::sync::mpsc;

/// Pieces of a body that have come and are not yet written.
const PIECES_MAX: usize = 8;
/// How long a client may send nothing.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// What goes out at once.
const PIECE_BYTES: usize = 512 << 10;

/// A body as a thread reads it that may block.
pub(super) struct BodyReader {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for BodyReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let n = into.len().min(self.piece.len());
        into[..n].copy_from_slice(&self.piece.split_to(n));
        Ok(n)
    }
}

/// The length that a body announces.
pub(super) fn length(body: &Body) -> Option<u64> {
    body.size_hint().exact()
}

/// Has `work` read the body on a thread of its own while it comes. At most `bytes_max` come through; what
/// `work` returns early with is the answer.
///
/// # Errors
/// Too many bytes, a client that falls silent or goes away, and what `work` says; in this order.
pub(super) async fn receive<T: Send + 'static>(
    body: Body,
    bytes_max: u64,
    what: &str,
    work: impl FnOnce(&mut BodyReader) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let too_large = |bytes: u64| {
        ApiError::too_large(format!("{what} has {bytes} bytes or more; at most {bytes_max} are taken"))
    };
    if let Some(bytes) = length(&body).filter(|bytes| *bytes > bytes_max) {
        return Err(too_large(bytes));
    }
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    let worker = tokio::task::spawn_blocking(move || {
        let mut reader = BodyReader { pieces, piece: Bytes::new() };
        work(&mut reader)
    });
    let fed = feed(body, sender, bytes_max, &too_large).await;
    let worked = match worker.await {
        Ok(worked) => worked,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    fed?;
    worked
}

async fn feed(
    mut body: Body,
    sender: mpsc::Sender<Bytes>,
    bytes_max: u64,
    too_large: &impl Fn(u64) -> ApiError,
) -> Result<(), ApiError> {
    let mut bytes = 0u64;
    loop {
        let frame = match tokio::time::timeout(SILENCE_MAX, body.frame()).await {
            Ok(None) => return Ok(()),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Err(ApiError::bad(format!("the body broke off: {error}"))),
            Err(_) => {
                let message = format!("nothing came for {} s", SILENCE_MAX.as_secs());
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "silence", message));
            }
        };
        let Ok(piece) = frame.into_data() else { continue };
        bytes += piece.len() as u64;
        if bytes > bytes_max {
            return Err(too_large(bytes));
        }
        if sender.send(piece).await.is_err() {
            // The worker has its answer already.
            return Ok(());
        }
    }
}

/// A body that is cut from memory as the client takes it.
pub(super) fn send(object: Bytes, sent: Counter) -> Body {
    let pieces = stream::unfold(object, move |mut rest| {
        let sent = sent.clone();
        async move {
            if rest.is_empty() {
                return None;
            }
            let piece = rest.split_to(rest.len().min(PIECE_BYTES));
            sent.inc_by(piece.len() as u64);
            Some((Ok::<_, io::Error>(piece), rest))
        }
    });
    Body::from_stream(pieces)
}
