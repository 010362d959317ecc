//! Ctrl-C and SIGTERM as something to look at.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::signal::unix::{SignalKind, signal};

/// Counts Ctrl-C and SIGTERM from now on instead of dying of them, so that what was begun can end cleanly.
/// They are caught when this returns, not once a thread of it got its turn.
pub(super) fn count_interrupts() -> Arc<AtomicU32> {
    let count = Arc::new(AtomicU32::new(0));
    let catch = || -> std::io::Result<_> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let caught = {
            let _inside = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        Ok((runtime, caught))
    };
    let Ok((runtime, (mut interrupt, mut terminate))) = catch() else { return count };
    let counter = count.clone();
    // The thread waits for signals as long as the process lives.
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
    });
    count
}
