//! The database file: open late, one transaction, close.

use super::encode::{decode, decode_events, encode, encode_events};
use super::error::HistoryError;
use super::id;
use super::record::{
    FailureFacts, GraphFacts, InputFacts, LogFacts, NodeFacts, RunRecord, StartFacts, StepRow, Summary,
};
use super::{BYTES_DEFAULT_MAX, JOURNAL_BYTES_MAX};
use redb::{
    Builder, Database, DatabaseError, ReadOnlyDatabase, ReadTransaction, ReadableDatabase, ReadableTable,
    ReadableTableMetadata, StorageError, TableDefinition, TableError,
};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Once;
use std::time::{Duration, Instant};

/// Runs that are kept by default.
pub const RUNS_DEFAULT_MAX: u64 = 1000;
/// The version of what is in the tables.
pub(super) const FORMAT: u64 = 1;
/// The file in the history's directory.
const FILE: &str = "history.redb";
/// Longest wait for other processes that have the file open.
const BUSY_MAX: Duration = Duration::from_secs(3);
/// Memory for pages of the file; records are read and written once. Bytes.
const CACHE_BYTES: usize = 8 << 20;

/// `format` says how the other tables are to be read.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// [`Summary`] by run. Small, so that a list of runs reads little.
const SUMMARIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("summaries");
/// [`Details`] by run.
const DETAILS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("details");
/// Events by run.
const JOURNALS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("journals");
/// Log lines by run.
const LOGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("logs");
const PLACES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("places");
/// [`GraphFacts`] by a hash of them: runs of one workflow share theirs.
const GRAPHS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("graphs");

/// What [`RunRecord`] has beyond its own tables.
#[derive(Serialize, Deserialize)]
struct Details {
    inputs: Vec<InputFacts>,
    steps: Vec<StepRow>,
    graph: u64,
    node: NodeFacts,
    start: Option<StartFacts>,
    failures: Vec<FailureFacts>,
    events_dropped: u64,
    logs_dropped: u64,
}

/// The tables of a transaction that writes.
struct Tables<'t> {
    summaries: RunTable<'t>,
    details: RunTable<'t>,
    journals: RunTable<'t>,
    logs: RunTable<'t>,
    places: RunTable<'t>,
    graphs: redb::Table<'t, u64, &'static [u8]>,
}

type RunTable<'t> = redb::Table<'t, &'static str, &'static [u8]>;

impl Tables<'_> {
    /// Writes a record under its name, or the next one that is free; returns that.
    fn put(&mut self, record: &RunRecord) -> Result<String, redb::Error> {
        let mut run = record.summary.run.clone();
        while self.summaries.get(run.as_str())?.is_some() {
            run = id::next(&run);
        }
        let key = run.as_str();
        let graph = put_graph(&mut self.graphs, &encode(&record.graph))?;
        let (events, events_cut) = encode_events(&record.events, JOURNAL_BYTES_MAX);
        let details = encode(&Details {
            inputs: record.inputs.clone(),
            steps: record.steps.clone(),
            graph,
            node: record.node.clone(),
            start: record.start,
            failures: record.failures.clone(),
            events_dropped: record.events_dropped + events_cut,
            logs_dropped: record.logs_dropped,
        });
        let logs = encode(&record.logs);
        let summary = Summary {
            run: run.clone(),
            record_bytes: (events.len() + details.len() + logs.len()) as u64,
            ..record.summary.clone()
        };
        self.details.insert(key, details.as_slice())?;
        self.journals.insert(key, events.as_slice())?;
        self.logs.insert(key, logs.as_slice())?;
        if let Some(places) = &record.places {
            self.places.insert(key, encode(places).as_slice())?;
        }
        self.summaries.insert(key, encode(&summary).as_slice())?;
        Ok(run)
    }
}

/// The past runs of a directory.
#[derive(Clone, Debug)]
pub struct History {
    dir: PathBuf,
    runs_max: u64,
    bytes_max: u64,
}

/// `$XDG_STATE_HOME/dflow`, or `~/.local/state/dflow`; `None` if neither variable is set.
pub fn default_dir() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    Some(state.join("dflow"))
}

impl History {
    /// The history in `dir`, which need not exist yet.
    pub fn at(dir: PathBuf) -> History {
        History { dir, runs_max: RUNS_DEFAULT_MAX, bytes_max: BYTES_DEFAULT_MAX }
    }

    /// Keeps at most so many runs and bytes of records; the oldest go first, the newest stays
    /// whatever its size.
    pub fn keeping(self, runs_max: u64, bytes_max: u64) -> History {
        History { runs_max: runs_max.max(1), bytes_max, ..self }
    }

    /// The database file.
    pub fn file(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// Writes a record down and removes what exceeds the limits. Returns the run's name, which is the
    /// next free one if it was taken.
    ///
    /// # Errors
    /// When the file cannot be used. The file is then as it was.
    pub fn save(&self, record: &RunRecord) -> Result<String, HistoryError> {
        let names = self.save_all(std::slice::from_ref(record))?;
        Ok(names.into_iter().next().unwrap_or_default())
    }

    /// As [`History::save`] for many records, all in one transaction.
    ///
    /// # Errors
    /// When the file cannot be used. The file is then as it was.
    pub fn save_all(&self, records: &[RunRecord]) -> Result<Vec<String>, HistoryError> {
        self.guarded(|| self.save_unguarded(records))
    }

    fn save_unguarded(&self, records: &[RunRecord]) -> Result<Vec<String>, HistoryError> {
        fs::create_dir_all(&self.dir)
            .map_err(|source| HistoryError::Dir { path: self.dir.clone(), source })?;
        let database = self.patiently(|| builder().create(self.file()))?;
        self.write(&database, records).map_err(|error| self.storage(error))?
    }

    fn write(
        &self,
        database: &Database,
        records: &[RunRecord],
    ) -> Result<Result<Vec<String>, HistoryError>, redb::Error> {
        let transaction = database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            let format = meta.get("format")?.map_or(FORMAT, |format| format.value());
            if format > FORMAT {
                return Ok(Err(self.future(format)));
            }
            meta.insert("format", FORMAT)?;
        }
        let mut names = Vec::with_capacity(records.len());
        {
            let mut tables = Tables {
                summaries: transaction.open_table(SUMMARIES)?,
                details: transaction.open_table(DETAILS)?,
                journals: transaction.open_table(JOURNALS)?,
                logs: transaction.open_table(LOGS)?,
                places: transaction.open_table(PLACES)?,
                graphs: transaction.open_table(GRAPHS)?,
            };
            for record in records {
                names.push(tables.put(record)?);
            }
            self.prune(&mut tables)?;
        }
        transaction.commit()?;
        Ok(Ok(names))
    }

    /// Removes the oldest runs beyond the limits, and graphs that no run has any more.
    fn prune(&self, tables: &mut Tables<'_>) -> Result<(), redb::Error> {
        let mut kept = Vec::new();
        for entry in tables.summaries.iter()? {
            let (run, bytes) = entry?;
            // What cannot be read would otherwise stay for ever.
            let size = decode::<Summary>(bytes.value()).map_or(u64::MAX, |s| s.record_bytes);
            kept.push((run.value().to_owned(), size));
        }
        let (mut runs, mut bytes) = (0, 0u64);
        let within = |size: u64| {
            runs += 1;
            bytes = bytes.saturating_add(size);
            runs == 1 || (runs <= self.runs_max && bytes <= self.bytes_max)
        };
        let sizes: Vec<u64> = kept.iter().rev().map(|(_, size)| *size).collect();
        let count = sizes.into_iter().map(within).take_while(|fits| *fits).count();
        let gone = &kept[..kept.len() - count];
        if gone.is_empty() {
            return Ok(());
        }
        for (run, _) in gone {
            tables.summaries.remove(run.as_str())?;
            tables.details.remove(run.as_str())?;
            tables.journals.remove(run.as_str())?;
            tables.logs.remove(run.as_str())?;
            tables.places.remove(run.as_str())?;
        }
        let mut used = BTreeSet::new();
        for entry in tables.details.iter()? {
            used.extend(decode::<Details>(entry?.1.value()).ok().map(|d| d.graph));
        }
        tables.graphs.retain(|graph, _| used.contains(&graph))?;
        Ok(())
    }

    /// The newest `max` runs, newest first. Empty if there is no history yet.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn list(&self, max: usize) -> Result<Vec<Summary>, HistoryError> {
        self.guarded(|| self.list_unguarded(max))
    }

    fn list_unguarded(&self, max: usize) -> Result<Vec<Summary>, HistoryError> {
        let Some(database) = self.open()? else { return Ok(Vec::new()) };
        database.read(
            |transaction| {
                let Some(table) = there(transaction.open_table(SUMMARIES))? else { return Ok(Vec::new()) };
                let mut summaries = Vec::new();
                for entry in table.iter()?.rev().take(max) {
                    summaries.push(decode::<Summary>(entry?.1.value()).map_err(damaged)?);
                }
                Ok(summaries)
            },
            self,
        )
    }

    /// The record of the run called `name`: its name or the beginning of it, `last`, or `last~N` for the
    /// Nth before that.
    ///
    /// # Errors
    /// When there is no such run, several, or the file cannot be used.
    pub fn load(&self, name: &str) -> Result<RunRecord, HistoryError> {
        self.guarded(|| self.load_unguarded(name))
    }

    fn load_unguarded(&self, name: &str) -> Result<RunRecord, HistoryError> {
        let Some(database) = self.open()? else { return Err(HistoryError::Empty { path: self.dir.clone() }) };
        let found = database.read(|transaction| self.find(transaction, name), self)?;
        let run = found?;
        database.read(|transaction| record(transaction, &run), self)
    }

    fn find(
        &self,
        transaction: &ReadTransaction,
        name: &str,
    ) -> Result<Result<String, HistoryError>, redb::Error> {
        let Some(table) = there(transaction.open_table(SUMMARIES))? else {
            return Ok(Err(HistoryError::Empty { path: self.dir.clone() }));
        };
        if table.is_empty()? {
            return Ok(Err(HistoryError::Empty { path: self.dir.clone() }));
        }
        let none = || HistoryError::NoRun { name: name.to_owned() };
        let before = if name == "last" { Some("0") } else { name.strip_prefix("last~") };
        if let Some(before) = before {
            let Ok(before) = before.parse::<usize>() else { return Ok(Err(none())) };
            let run = table.iter()?.rev().nth(before).transpose()?;
            return Ok(run.map(|(run, _)| run.value().to_owned()).ok_or_else(none));
        }
        let name = name.to_ascii_lowercase();
        let mut found = Vec::new();
        for entry in table.range(name.as_str()..)? {
            let run = entry?.0.value().to_owned();
            if run == name {
                return Ok(Ok(run));
            }
            if name.is_empty() || !run.starts_with(&name) {
                break;
            }
            found.push(run);
        }
        Ok(match found.len() {
            0 => Err(none()),
            1 => Ok(found.remove(0)),
            count => {
                found.truncate(5);
                Err(HistoryError::Ambiguous { name: name.clone(), count, some: found })
            }
        })
    }

    /// The database answers damage of some kinds by a panic. Nothing of it outlives the call, so that
    /// what a panic leaves behind is only the file, and that is as damaged as before.
    fn guarded<T>(&self, work: impl FnOnce() -> Result<T, HistoryError>) -> Result<T, HistoryError> {
        say_nothing_of_guarded_panics();
        GUARDED.set(true);
        let done = catch_unwind(AssertUnwindSafe(work));
        GUARDED.set(false);
        done.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            let what = text.unwrap_or("the database gave up").to_owned();
            Err(HistoryError::Damaged { path: self.file(), what })
        })
    }

    /// The file for reading; `None` if there is none.
    fn open(&self) -> Result<Option<Reading>, HistoryError> {
        let file = self.file();
        if !file.exists() {
            return Ok(None);
        }
        // Readers share the file. One that was not closed well must be put right first, which only
        // its single writer may do.
        let reading = match self.patiently(|| builder().open_read_only(&file)) {
            Ok(database) => Reading::Shared(database),
            Err(HistoryError::Storage { source, .. }) if matches!(*source, redb::Error::RepairAborted) => {
                Reading::Alone(self.patiently(|| builder().open(&file))?)
            }
            Err(error) => return Err(error),
        };
        let format = reading.read(
            |transaction| {
                let meta = there(transaction.open_table(META))?;
                let format = meta.map(|meta| meta.get("format")).transpose()?.flatten();
                Ok(format.map_or(FORMAT, |format| format.value()))
            },
            self,
        )?;
        if format > FORMAT { Err(self.future(format)) } else { Ok(Some(reading)) }
    }

    /// Opens the file, waiting for other processes that have it.
    fn patiently<T>(&self, open: impl Fn() -> Result<T, DatabaseError>) -> Result<T, HistoryError> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            match open() {
                Ok(database) => return Ok(database),
                Err(DatabaseError::DatabaseAlreadyOpen) if begun.elapsed() < BUSY_MAX => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(20));
                }
                Err(DatabaseError::DatabaseAlreadyOpen) => {
                    let waited_ms = begun.elapsed().as_millis() as u64;
                    return Err(HistoryError::Busy { path: self.file(), waited_ms });
                }
                Err(error) => return Err(self.storage(error.into())),
            }
        }
    }

    fn future(&self, format: u64) -> HistoryError {
        HistoryError::Future { path: self.file(), format, known: FORMAT }
    }

    fn storage(&self, error: redb::Error) -> HistoryError {
        let path = self.file();
        match error {
            redb::Error::Corrupted(what) => HistoryError::Damaged { path, what },
            redb::Error::UpgradeRequired(version) => {
                HistoryError::Damaged { path, what: format!("it is a database of version {version}") }
            }
            // How a file that is no database shows.
            redb::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                HistoryError::Damaged { path, what: error.to_string() }
            }
            redb::Error::TableTypeMismatch { .. } => {
                HistoryError::Damaged { path, what: "its tables are not those of a history".into() }
            }
            error => HistoryError::Storage { path, source: Box::new(error) },
        }
    }
}

enum Reading {
    Shared(ReadOnlyDatabase),
    Alone(Database),
}

impl Reading {
    fn read<T>(
        &self,
        look: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>,
        history: &History,
    ) -> Result<T, HistoryError> {
        let transaction = match self {
            Reading::Shared(database) => database.begin_read(),
            Reading::Alone(database) => database.begin_read(),
        };
        let looked = transaction.map_err(redb::Error::from).and_then(|transaction| look(&transaction));
        looked.map_err(|error| history.storage(error))
    }
}

thread_local! {
    /// A panic of this thread becomes an error.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What becomes an error is told as one, not by a backtrace before it.
fn say_nothing_of_guarded_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                usual(info);
            }
        }));
    });
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// A table that may not be there yet.
fn there<T>(table: Result<T, TableError>) -> Result<Option<T>, redb::Error> {
    match table {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn damaged(error: super::encode::Undecodable) -> redb::Error {
    StorageError::Corrupted(error.to_string()).into()
}

fn record(transaction: &ReadTransaction, run: &str) -> Result<RunRecord, redb::Error> {
    let missing = |what: &str| StorageError::Corrupted(format!("run {run} has no {what}"));
    let bytes = |table: TableDefinition<'_, &'static str, &'static [u8]>, what: &str| {
        let table = transaction.open_table(table)?;
        let bytes = table.get(run)?.ok_or_else(|| missing(what))?;
        Ok::<_, redb::Error>(bytes.value().to_vec())
    };
    let summary: Summary = decode(&bytes(SUMMARIES, "summary")?).map_err(damaged)?;
    let details: Details = decode(&bytes(DETAILS, "details")?).map_err(damaged)?;
    let events = decode_events(&bytes(JOURNALS, "journal")?).map_err(damaged)?;
    let logs: Vec<LogFacts> = decode(&bytes(LOGS, "logs")?).map_err(damaged)?;
    // Runs on one node have none, nor has a history that was never given another.
    let places = there(transaction.open_table(PLACES))?;
    let places = places.map(|places| places.get(run)).transpose()?.flatten();
    let places = places.map(|places| decode(places.value())).transpose().map_err(damaged)?;
    let graphs = transaction.open_table(GRAPHS)?;
    let graph = graphs.get(details.graph)?.ok_or_else(|| missing("graph"))?;
    let graph: GraphFacts = decode(graph.value()).map_err(damaged)?;
    Ok(RunRecord {
        summary,
        inputs: details.inputs,
        steps: details.steps,
        graph,
        node: details.node,
        start: details.start,
        events,
        events_dropped: details.events_dropped,
        failures: details.failures,
        logs,
        logs_dropped: details.logs_dropped,
        places,
    })
}

/// Keeps a graph unless it is there; returns its key.
fn put_graph(graphs: &mut redb::Table<'_, u64, &'static [u8]>, bytes: &[u8]) -> Result<u64, redb::Error> {
    // FNV-1a. Two graphs of one hash are told apart by their bytes.
    let mut key = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    loop {
        let same = graphs.get(key)?.map(|there| there.value() == bytes);
        match same {
            Some(true) => return Ok(key),
            Some(false) => key = key.wrapping_add(1),
            None => {
                graphs.insert(key, bytes)?;
                return Ok(key);
            }
        }
    }
}
