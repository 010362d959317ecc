//! A workflow with the files it needs, so that it runs where it was not written.
//!
//! ```text
//!   flow.yaml, its files ──pack──▶ tar ──▶ HTTP ──▶ tar ──unpack──▶ a folder, named by the content's hash
//! ```
//!
//! A bundle is a plain tar of regular files. Its first entry is the workflow file; relative paths in that mean
//! what they meant before. Equal content gives equal bytes, since neither times nor owners are kept.

mod error;
mod pack;
mod unpack;

pub use error::BundleError;
pub use pack::{Packed, pack, pack_text, wrap};
pub use unpack::{Unpacked, unpack};

/// Most files of a bundle.
pub const FILES_MAX: usize = 10_000;
/// Most folder entries that are looked at for a bundle.
pub const ENTRIES_MAX: usize = 50_000;
/// Longest path inside a bundle. Bytes.
pub const PATH_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests;
