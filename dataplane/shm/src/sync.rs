//! The atomics that lock-free code here is written against: the real ones, or under
//! `--cfg loom` loom's, which try every interleaving.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, fence};

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU32, fence};

pub(crate) use core::sync::atomic::Ordering;
