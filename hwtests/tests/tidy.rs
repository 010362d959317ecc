//! The house rules that a compiler does not hold: which crate may know which, where `unsafe` may
//! stand, how long a file may be, what may not be written anywhere, and what a binary links.
//!
//! Each rule is data at the top of its module, with its reason. A test collects everything that
//! is wrong before it fails, so that one run shows all there is to mend.

#[path = "tidy/binaries.rs"]
mod binaries;
#[path = "tidy/docs.rs"]
mod docs;
#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/lexer.rs"]
mod lexer;
#[path = "tidy/licences.rs"]
mod licences;
#[path = "tidy/sources.rs"]
mod sources;

use std::path::{Path, PathBuf};

/// The root of the repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("hwtests lies in the root")
}

/// A text file of the repository.
struct TextFile {
    /// Path from the root, with `/` between parts.
    path: String,
    /// Its content.
    text: String,
}

impl TextFile {
    fn has_extension(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|e| e == extension)
    }
}

/// Folders that hold no sources of ours.
const SKIPPED_FOLDERS: [&str; 5] = [".git", "target", "data", "__pycache__", "node_modules"];
/// Read only up to this size; what is larger is not a source. Bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Every UTF-8 file of the repository, sorted by path. Walks the tree rather than asking git, so
/// that a source archive is checked the same way.
fn text_files() -> Vec<TextFile> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root().to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for entry in entries.filter_map(Result::ok) {
            let (path, name) = (entry.path(), entry.file_name());
            let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
            if metadata.is_dir() && !SKIPPED_FOLDERS.iter().any(|skipped| name == *skipped) {
                folders.push(path);
            } else if metadata.is_file() && metadata.len() <= FILE_BYTES_MAX {
                let relative = path.strip_prefix(root()).expect("the walk began at the root");
                if let Ok(text) = std::fs::read_to_string(&path) {
                    files.push(TextFile { path: relative.to_string_lossy().into_owned(), text });
                }
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

/// Fails with all of `wrongs`, one a line.
#[track_caller]
fn expect_none(rule: &str, wrongs: &[String]) {
    assert!(wrongs.is_empty(), "{rule}\n  {}", wrongs.join("\n  "));
}
