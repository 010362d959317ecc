//! Deployed workflows: bundles in a folder, and a table that names them.
//!
//! ```text
//!   STATE/node.redb            name@version -> bundle; open for the node's life, which makes it a lock, too
//!   STATE/bundles/HASH.tar     as it came
//!   STATE/bundles/HASH/        unpacked; never changed, so that runs under way keep what they began with
//! ```

use super::error::RegistryError;
use crate::bundle::unpack;
use crate::history::{GraphFacts, graph_facts};
use crate::workflow::{self, Workflow};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

const WORKFLOWS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("workflows");
/// Memory for pages of the table, which is read once. Bytes.
const CACHE_BYTES: usize = 1 << 20;

/// What is known of a deployed workflow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// SHA-256 of the bundle, in hexadecimal digits.
    pub bundle: String,
    /// The workflow file in it.
    pub main: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// Its files.
    pub files: u32,
    /// When it was deployed: microseconds since 1970, UTC.
    pub deployed_unix_us: u64,
}

/// A deployed workflow.
#[derive(Debug)]
pub struct Deployed {
    /// `name@version`.
    pub name: String,
    /// The rest.
    pub row: Row,
    file: PathBuf,
    parsed: OnceLock<(Arc<Workflow>, GraphFacts)>,
}

/// The deployed workflows of a node.
#[derive(Debug)]
pub struct Registry {
    dir: PathBuf,
    database: Mutex<Database>,
    deployed: RwLock<BTreeMap<String, Arc<Deployed>>>,
    next_spool: AtomicU64,
}

/// A bundle on its way in: a file of the state directory that goes unless it is deployed.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    file: File,
    hash: Sha256,
    bytes: u64,
}

impl Deployed {
    /// The workflow, parsed when it is first asked for.
    ///
    /// # Errors
    /// When its file is gone or no longer good.
    pub fn workflow(&self) -> Result<&Arc<Workflow>, RegistryError> {
        Ok(&self.parsed()?.0)
    }

    /// Its graph as records keep it.
    ///
    /// # Errors
    /// As of [`Deployed::workflow`].
    pub fn graph(&self) -> Result<&GraphFacts, RegistryError> {
        Ok(&self.parsed()?.1)
    }

    fn parsed(&self) -> Result<&(Arc<Workflow>, GraphFacts), RegistryError> {
        if self.parsed.get().is_none() {
            let workflow = Arc::new(workflow::load(&self.file).map_err(RegistryError::Workflow)?);
            let graph = graph_facts(&workflow);
            // Another thread may have been quicker, with the same.
            let _ = self.parsed.set((workflow, graph));
        }
        self.parsed.get().ok_or_else(|| unreachable!("it has just been set"))
    }
}

impl Registry {
    /// Opens the state directory, making it if need be, and removes what an earlier node left half-done.
    ///
    /// # Errors
    /// When another node has it, or it cannot be used.
    pub fn open(state_dir: &Path) -> Result<Registry, RegistryError> {
        let dir = state_dir.join("bundles");
        fs::create_dir_all(&dir).map_err(|e| storage(&dir, &e))?;
        let path = state_dir.join("node.redb");
        let database =
            Database::builder().set_cache_size(CACHE_BYTES).create(&path).map_err(|e| match e {
                DatabaseError::DatabaseAlreadyOpen => RegistryError::InUse { path: path.clone() },
                error => storage(&path, &error),
            })?;
        let rows = read(&database).map_err(|e| storage(&path, &e))?;
        let deployed = rows.into_iter().map(|(name, row)| {
            let file = dir.join(&row.bundle).join(&row.main);
            (name.clone(), Arc::new(Deployed { name, row, file, parsed: OnceLock::new() }))
        });
        let deployed: BTreeMap<_, _> = deployed.collect();
        let used: BTreeSet<&str> = deployed.values().map(|d| d.row.bundle.as_str()).collect();
        for entry in fs::read_dir(&dir).map_err(|e| storage(&dir, &e))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !used.contains(name.trim_end_matches(".tar")) {
                remove(&entry.path());
            }
        }
        Ok(Registry {
            dir,
            database: Mutex::new(database),
            deployed: RwLock::new(deployed),
            next_spool: AtomicU64::new(0),
        })
    }

    /// A file for a bundle that comes in.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn spool(&self) -> Result<Spool, RegistryError> {
        let number = self.next_spool.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!(".new-{number}.tar"));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(|e| storage(&path, &e))?;
        Ok(Spool { path, file, hash: Sha256::new(), bytes: 0 })
    }

    /// Unpacks, checks and deploys a bundle. Returns it, and whether it is new: content that is there
    /// already under its name is left as it is.
    ///
    /// # Errors
    /// When it is no good bundle, its workflow is wrong, or its name has other content already and
    /// `replace` is not set.
    pub fn deploy(
        &self,
        mut spool: Spool,
        bytes_max: u64,
        replace: bool,
    ) -> Result<(Arc<Deployed>, bool), RegistryError> {
        let bundle: String = spool.hash.clone().finalize().iter().map(|b| format!("{b:02x}")).collect();
        let folder = spool.path.with_extension("");
        remove(&folder);
        fs::create_dir(&folder).map_err(|e| storage(&folder, &e))?;
        let _sweep = Sweep(folder.clone());
        spool.file.rewind().map_err(|e| storage(&spool.path, &e))?;
        let unpacked = unpack(io::BufReader::with_capacity(64 << 10, &spool.file), &folder, bytes_max)?;
        let workflow = workflow::load(&folder.join(&unpacked.main)).map_err(|report| {
            // The folder's name means nothing to whoever sent it.
            RegistryError::Workflow(report)
        })?;
        let name = workflow.graph.name.clone();
        let mut deployed = self.deployed.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = deployed.get(&name) {
            if there.row.bundle == bundle {
                return Ok((there.clone(), false));
            }
            if !replace {
                return Err(RegistryError::Taken { name });
            }
        }
        let target = self.dir.join(&bundle);
        if !target.exists() {
            // What the table names must survive a power cut before the table does.
            if let Ok(handle) = File::open(&folder) {
                let _ = rustix::fs::syncfs(&handle);
            }
            fs::rename(&folder, &target).map_err(|e| storage(&target, &e))?;
            let tar = self.dir.join(format!("{bundle}.tar"));
            fs::rename(&spool.path, &tar).map_err(|e| storage(&tar, &e))?;
        }
        let row = Row {
            bundle,
            main: unpacked.main.to_string_lossy().into_owned(),
            bytes: unpacked.bytes,
            files: unpacked.files as u32,
            deployed_unix_us: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros()
                as u64,
        };
        self.write(&name, Some(&row))?;
        let file = target.join(&row.main);
        let new = Arc::new(Deployed { name: name.clone(), row, file, parsed: OnceLock::new() });
        new.workflow()?;
        deployed.insert(name, new.clone());
        Ok((new, true))
    }

    /// The workflow of this name: `name@version`, or `name` for the version that was deployed last.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&self, name: &str) -> Result<Arc<Deployed>, RegistryError> {
        let deployed = self.deployed.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = deployed.get(name) {
            return Ok(found.clone());
        }
        let own = |d: &&Arc<Deployed>| d.name.split_once('@').is_some_and(|(own, _)| own == name);
        let newest = deployed.values().filter(own).max_by_key(|d| d.row.deployed_unix_us);
        newest.cloned().ok_or_else(|| {
            let similar = deployed.keys().map(|n| (strsim::jaro_winkler(n, name), n));
            let near = similar.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(s, _)| *s > 0.7);
            RegistryError::Unknown { name: name.to_owned(), near: near.map(|(_, n)| n.clone()) }
        })
    }

    /// All of them, by name.
    pub fn list(&self) -> Vec<Arc<Deployed>> {
        self.deployed.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Takes a name away. Runs under way go on; the bundle goes when the node starts next.
    ///
    /// # Errors
    /// When there is none of exactly this name.
    pub fn remove(&self, name: &str) -> Result<Arc<Deployed>, RegistryError> {
        let mut deployed = self.deployed.write().unwrap_or_else(PoisonError::into_inner);
        let Some(found) = deployed.get(name).cloned() else {
            let near = deployed.keys().find(|n| n.split_once('@').is_some_and(|(own, _)| own == name));
            return Err(RegistryError::Unknown { name: name.to_owned(), near: near.cloned() });
        };
        self.write(name, None)?;
        deployed.remove(name);
        Ok(found)
    }

    /// The bundle of this hash, as it came.
    ///
    /// # Errors
    /// When there is none.
    pub fn bundle(&self, hash: &str) -> Result<File, RegistryError> {
        let unknown = || RegistryError::Unknown { name: hash.to_owned(), near: None };
        if !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(unknown());
        }
        File::open(self.dir.join(format!("{hash}.tar"))).map_err(|_| unknown())
    }

    fn write(&self, name: &str, row: Option<&Row>) -> Result<(), RegistryError> {
        let database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let written = (|| {
            let transaction = database.begin_write()?;
            {
                let mut table = transaction.open_table(WORKFLOWS)?;
                match row {
                    Some(row) => {
                        // Plain fields always encode.
                        let bytes = postcard::to_stdvec(row).unwrap_or_default();
                        table.insert(name, bytes.as_slice())?;
                    }
                    None => drop(table.remove(name)?),
                }
            }
            transaction.commit()?;
            Ok::<_, redb::Error>(())
        })();
        written.map_err(|e| storage(&self.dir, &e))
    }
}

fn read(database: &Database) -> Result<Vec<(String, Row)>, redb::Error> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(WORKFLOWS) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        table => table?,
    };
    let mut rows = Vec::new();
    for entry in table.iter()? {
        let (name, bytes) = entry?;
        match postcard::from_bytes(bytes.value()) {
            Ok(row) => rows.push((name.value().to_owned(), row)),
            Err(error) => {
                tracing::error!(workflow = name.value(), %error, "a deployed workflow is not readable")
            }
        }
    }
    Ok(rows)
}

fn storage(path: &Path, error: &dyn std::fmt::Display) -> RegistryError {
    RegistryError::Storage { path: path.to_owned(), why: error.to_string() }
}

/// Removes a file or folder that may be there.
fn remove(path: &Path) {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "what is no longer used could not be removed");
        }
        _ => {}
    }
}

/// Removes a folder, if it is still there, when it goes out of use.
struct Sweep(PathBuf);

impl Drop for Sweep {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

impl Spool {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that have come so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Write for Spool {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let n = self.file.write(piece)?;
        self.hash.update(&piece[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        remove(&self.path);
    }
}
