//! What processes that were killed have left: directories whose names tell whose they were.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A folder for temporary files that goes with the value; if the process is killed, the next that makes one of the same kind removes it.
#[derive(Debug)]
pub(crate) struct TempFolder(PathBuf);

impl TempFolder {
    /// Makes `PREFIX<pid>-NAME`.
    ///
    /// # Errors
    /// It cannot be made, or is there already.
    pub(crate) fn new(prefix: &str, name: &str) -> io::Result<TempFolder> {
        let root = std::env::temp_dir();
        if let Err(error) = sweep(&root, prefix) {
            // What is another user's is for them.
            tracing::debug!(%error, "what a dead process left stays");
        }
        let path = root.join(format!("{prefix}{}-{name}", std::process::id()));
        // One that is there already may be somebody else's, and what is put there is not for them.
        fs::create_dir(&path)?;
        Ok(TempFolder(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes the directories of `root` called `PREFIX<pid>` or `PREFIX<pid>-...` whose process is gone.
///
/// # Errors
/// `root` cannot be read, or one of them cannot be removed.
pub(crate) fn sweep(root: &Path, prefix: &str) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let owner = name.to_str().and_then(|n| n.strip_prefix(prefix)).and_then(|n| n.split('-').next());
        let Some(pid) = owner.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            tracing::info!(dir = %entry.path().display(), "removing what a dead process left");
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_dead_nodes_left_is_removed() {
        let root = tempfile::tempdir().expect("a directory");
        let dead = format!("x-{}", u32::MAX);
        let names =
            [dead.clone(), format!("{dead}-7"), format!("x-{}", std::process::id()), "x-precious".into()];
        let paths = names.map(|name| root.path().join(name));
        paths.iter().for_each(|d| fs::create_dir(d).expect("made"));
        sweep(root.path(), "x-").expect("swept");
        assert_eq!(paths.map(|d| d.exists()), [false, false, true, true]);
    }
}
