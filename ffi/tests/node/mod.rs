//! The least node that can run functions: it grants memory from a bump allocator and never takes any
//! back. Everything below it is real: zygote, forked workers, shared memory.
#![allow(dead_code, reason = "each test file uses its own part of the harness")]

use dflow_proto::ids::{Extent, InvocationId, RunId, SegmentId, WorkerId};
use dflow_proto::link::{
    Command, Input, InputValue, Invoke, Outcome, Output, PortKind, PortType, Report, Times,
};
use dflow_proto::zygote::{Exit, FromWorker, FromZygote, ToWorker, ToZygote};
use dflow_shm::futex::Bell;
use dflow_shm::link::{NodeEnd, NodePageWriter};
use dflow_shm::page::PageNode;
use dflow_shm::pass::{Channel, PassError};
use dflow_shm::segment::{Map, Segment};
use dflow_shm::spawn::{RuntimeArgs, ZygoteArgs};
use dflow_shm::table::{Entry, TableWriter};
use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const ARENA_BYTES: u64 = 256 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// The arena, and the node's side of everything.
pub(crate) struct Node {
    pub(crate) arena: Segment,
    pub(crate) map: Arc<Map>,
    pub(crate) page: NodePageWriter,
    bell: Bell,
    next: u64,
    next_worker: u64,
    /// Dedicated and adopted segments, from 1 on.
    pub(crate) segments: Vec<Segment>,
    /// What workers print.
    output: (std::io::PipeReader, std::io::PipeWriter),
}

pub(crate) struct Zygote {
    pub(crate) child: Child,
    pub(crate) channel: Channel,
    pub(crate) scratch: PathBuf,
}

pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) link: NodeEnd,
    pub(crate) socket: Channel,
    pub(crate) pid: u32,
}

/// What became of an invocation.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) outcome: Option<Outcome>,
    pub(crate) sealed: Vec<(u16, u32, Extent)>,
    pub(crate) pinned: Vec<(u16, u32)>,
    pub(crate) first_bytes: Vec<u16>,
    pub(crate) unused: Vec<Extent>,
    pub(crate) reserves: u32,
    pub(crate) extends: u32,
    pub(crate) blocked: u32,
    pub(crate) tainted: bool,
    pub(crate) times: Times,
}

/// An invocation to be: inputs, outputs, and the table that the inputs need.
pub(crate) struct Job {
    pub(crate) invoke: Invoke,
    pub(crate) page: PageNode,
    pub(crate) table: TableWriter,
}

pub(crate) fn libdflow() -> PathBuf {
    let deps = std::env::current_exe().expect("a path");
    deps.parent().expect("in a directory").join("libdflow.so")
}

pub(crate) fn output(name: &str, kind: PortKind) -> Output {
    Output {
        name: name.into(),
        ty: PortType::Bytes,
        kind,
        granted: None,
        bytes_max: 0,
        items_max: 1_000_000,
        file: false,
    }
}

/// A C library of `tests/functions`, linked with libdflow, compiled once per test program.
pub(crate) fn library(name: &str) -> PathBuf {
    static COMPILED: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut compiled = COMPILED.lock().expect("no compilation panicked");
    compiled.entry(name.to_owned()).or_insert_with(|| compile(name)).clone()
}

fn compile(name: &str) -> PathBuf {
    let target = std::env::current_exe().expect("a path").with_extension(format!("{name}.so"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let status = Process::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-std=gnu11", "-o"])
        .arg(&target)
        .arg(root.join("tests/functions").join(format!("{name}.c")))
        .arg("-I")
        .arg(root.join("include"))
        .arg("-L")
        .arg(libdflow().parent().expect("in a directory"))
        .arg("-ldflow")
        .status()
        .expect("cc is there");
    assert!(status.success(), "cc {name}.c");
    target
}

impl Node {
    pub(crate) fn new() -> Node {
        let mut arena = Segment::create(SegmentId(0), "arena", ARENA_BYTES).expect("a memfd");
        arena.fix_size(ARENA_BYTES).expect("seals");
        let map = arena.map_node().expect("maps");
        let page = NodePageWriter::new(&map).expect("fits");
        page.sleep();
        Node {
            arena,
            map,
            page,
            bell: Bell::new().expect("an eventfd"),
            next: 4096,
            next_worker: 1,
            segments: Vec::new(),
            output: std::io::pipe().expect("a pipe"),
        }
    }

    pub(crate) fn alloc(&mut self, bytes: u64) -> Extent {
        let extent = Extent { segment: SegmentId(0), offset: self.next, bytes: bytes.next_multiple_of(4096) };
        self.next = extent.end();
        assert!(self.next <= ARENA_BYTES, "the test's arena is full");
        extent
    }

    pub(crate) fn put(&mut self, data: &[u8]) -> Extent {
        let extent = Extent { bytes: data.len() as u64, ..self.alloc(data.len() as u64 + 1) };
        self.map.part_mut(extent).expect("in bounds").copy_in(0, data);
        extent
    }

    /// The bytes of an object, wherever it is.
    pub(crate) fn bytes(&self, extent: Extent) -> Vec<u8> {
        let mut data = vec![0; extent.bytes as usize];
        match extent.segment {
            SegmentId(0) => {
                let from = Extent { offset: extent.offset / 8 * 8, bytes: extent.bytes + 8, ..extent };
                let part = self.map.part(from).expect("in bounds");
                part.copy_out((extent.offset % 8) as usize, &mut data);
            }
            SegmentId(n) => {
                let n = self.segments[n as usize - 1].read_at(extent.offset, &mut data).expect("reads");
                assert_eq!(n as u64, extent.bytes);
            }
        }
        data
    }

    pub(crate) fn zygote(&self, runtime: RuntimeArgs) -> Zygote {
        let (channel, theirs) = Channel::pair().expect("a pair");
        static ZYGOTES: AtomicU32 = AtomicU32::new(0);
        let number = ZYGOTES.fetch_add(1, Ordering::Relaxed);
        let scratch = PathBuf::from(format!("/dev/shm/dflow-test-{}-{number}", std::process::id()));
        let args = ZygoteArgs { socket: 0, scratch: Some(scratch.clone()), memory_bytes: 0, runtime };
        let mut program = match args.runtime {
            RuntimeArgs::Python { .. } => {
                let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
                let mut python = Process::new("python3");
                python.args(["-m", "dflow._zygote"]).env("PYTHONPATH", package);
                python.env("PYTHONDONTWRITEBYTECODE", "1");
                python
            }
            _ => Process::new(env!("CARGO_BIN_EXE_dflow-zygote")),
        };
        let child = program
            .arg(libdflow())
            .args(args.to_args())
            .stdin(Stdio::from(theirs.into_fd()))
            .spawn()
            .expect("starts");
        Zygote { child, channel, scratch }
    }

    pub(crate) fn native(&self, library: &Path, symbol: &str) -> Zygote {
        self.ready(RuntimeArgs::Native { library: library.to_owned(), symbol: symbol.into() })
    }

    pub(crate) fn builtin(&self, handler: &str) -> Zygote {
        self.ready(RuntimeArgs::Builtin { handler: handler.into() })
    }

    pub(crate) fn ready(&self, runtime: RuntimeArgs) -> Zygote {
        let zygote = self.zygote(runtime);
        let message = zygote.receive();
        assert!(matches!(message, FromZygote::Loaded { .. }), "{message:?}");
        zygote
    }

    pub(crate) fn exec(&self, command: &[&str], stdin: Option<&str>, stdout: Option<&str>) -> Zygote {
        self.ready(RuntimeArgs::Exec {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            stdin: stdin.map(str::to_owned),
            stdout: stdout.map(str::to_owned),
            cwd: None,
        })
    }

    pub(crate) fn fork(&mut self, zygote: &Zygote) -> Worker {
        let id = WorkerId(self.next_worker);
        self.next_worker += 1;
        let (segment, link) = NodeEnd::create().expect("a link");
        let (socket, theirs) = Channel::pair().expect("a pair");
        let theirs = theirs.into_fd();
        let fds = [segment.as_fd(), theirs.as_fd(), self.output.1.as_fd(), self.bell.as_fd()];
        zygote.channel.send(&ToZygote::Fork { worker: id }, &fds, true).expect("sent");
        let message = zygote.receive();
        let FromZygote::Forked { worker, pid, .. } = message else { panic!("{message:?}") };
        assert_eq!(worker, id);
        let mut worker = Worker { id, link, socket, pid };
        worker.show(&self.arena, true);
        let report = self.next_report(&mut worker);
        assert_eq!(report, Report::Ready { pid });
        worker
    }

    /// An invocation with these outputs and `entries` entries in its table.
    pub(crate) fn job(&mut self, inputs: Vec<(&str, InputValue)>, outputs: Vec<Output>) -> Job {
        let allotment = self.alloc(65536);
        let table = self.alloc(TableWriter::bytes_for(inputs.len()));
        let invocation = InvocationId { step: 2, item: 0 };
        let page = PageNode::begin(&self.map, allotment, RunId(1), invocation, 1).expect("fits");
        let writer = TableWriter::begin(self.map.part_mut(table).expect("in bounds"), inputs.len());
        let input = |(name, value): (&str, InputValue)| {
            let ty = if name == "spec" { PortType::Json } else { PortType::Bytes };
            Input { name: name.into(), ty, value }
        };
        let invoke = Invoke {
            run: RunId(1),
            invocation,
            attempt: 1,
            workflow: "test".into(),
            step: "step".into(),
            allotment,
            table,
            inputs: inputs.into_iter().map(input).collect(),
            outputs,
            spin_us: 0,
            timeout_ms: 0,
            threads: 1,
            whole: false,
        };
        Job { invoke, page, table: writer }
    }

    pub(crate) fn next_report(&mut self, worker: &mut Worker) -> Report {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(report) = worker.link.receive().expect("well-formed") {
                return report;
            }
            assert!(Instant::now() < end, "worker {:?} says nothing", worker.id);
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Answers a worker's requests until its invocation has ended.
    pub(crate) fn finish(&mut self, worker: &mut Worker) -> Done {
        let mut done = Done::default();
        while done.outcome.is_none() {
            let report = self.next_report(worker);
            self.take(worker, report, &mut done);
        }
        done
    }

    pub(crate) fn take(&mut self, worker: &mut Worker, report: Report, done: &mut Done) {
        match report {
            Report::Began | Report::Ready { .. } | Report::Resumed | Report::Waited { .. } => {}
            Report::Blocked => done.blocked += 1,
            Report::Reserve { ticket, bytes, file: true, .. } => {
                done.reserves += 1;
                let id = SegmentId(self.segments.len() as u32 + 1);
                let segment = Segment::create(id, "file", bytes).expect("a memfd");
                worker.show(&segment, true);
                self.segments.push(segment);
                let extent = Extent { segment: id, offset: 0, bytes };
                worker.link.send(&Command::Granted { ticket, extent }).expect("room");
            }
            Report::Reserve { ticket, bytes, .. } | Report::Extend { ticket, bytes } => {
                let counter = if matches!(report, Report::Extend { .. }) {
                    &mut done.extends
                } else {
                    &mut done.reserves
                };
                *counter += 1;
                let command = if bytes > ARENA_BYTES {
                    Command::Refused { ticket, why: format!("{bytes} bytes are more than the store has") }
                } else {
                    Command::Granted { ticket, extent: self.alloc(bytes) }
                };
                worker.link.send(&command).expect("room");
            }
            Report::Adopt { ticket, bytes } => {
                let (message, fds) = worker.socket.receive::<FromWorker>(true).expect("a file");
                assert_eq!(message, FromWorker::File { ticket });
                let id = SegmentId(self.segments.len() as u32 + 1);
                let fd = fds.into_iter().next().expect("a descriptor");
                self.segments.push(Segment::from_fd(id, fd, bytes).expect("as long as said"));
                let extent = Extent { segment: id, offset: 0, bytes };
                worker.link.send(&Command::Granted { ticket, extent }).expect("room");
            }
            Report::FirstByte { port, .. } => done.first_bytes.push(port),
            Report::Sealed { port, item, extent } => done.sealed.push((port, item, extent)),
            Report::Pinned { port, count } => done.pinned.push((port, count)),
            Report::Unused { extent } => done.unused.push(extent),
            Report::Ended { outcome, times, tainted } => {
                (done.outcome, done.times, done.tainted) = (Some(outcome), times, tainted);
            }
        }
    }

    /// Invokes, and waits for the end.
    pub(crate) fn run(&mut self, worker: &mut Worker, job: &Job) -> Done {
        worker.link.send(&Command::Invoke(job.invoke.clone())).expect("room");
        self.finish(worker)
    }

    /// What workers have printed so far. At least one byte must come.
    pub(crate) fn printed(&mut self) -> String {
        let mut buffer = vec![0; 65536];
        let bytes = self.output.0.read(&mut buffer).expect("a pipe");
        String::from_utf8_lossy(&buffer[..bytes]).into_owned()
    }
}

impl Job {
    pub(crate) fn set(mut self, index: usize, entry: Entry) -> Job {
        self.table.set(index, entry);
        self
    }
}

impl Worker {
    pub(crate) fn show(&mut self, segment: &Segment, writable: bool) {
        let message = ToWorker::Segment { id: segment.id(), bytes: segment.bytes(), writable };
        self.socket.send(&message, &[segment.as_fd()], true).expect("sent");
    }
}

impl Zygote {
    pub(crate) fn receive(&self) -> FromZygote {
        assert!(self.channel.wait(PATIENCE).expect("polls"), "the zygote says nothing");
        self.channel.receive(true).expect("a message").0
    }

    /// Kills a worker and returns how it ended.
    pub(crate) fn kill(&self, worker: &Worker) -> Exit {
        self.channel.send(&ToZygote::Kill { worker: worker.id }, &[], true).expect("sent");
        self.exited(worker)
    }

    pub(crate) fn exited(&self, worker: &Worker) -> Exit {
        match self.receive() {
            FromZygote::Exited { worker: id, exit, .. } if id == worker.id => exit,
            other => panic!("{other:?}"),
        }
    }

    /// Goes away as a killed node does, and waits for the zygote's end.
    pub(crate) fn abandon(self) -> PathBuf {
        let Zygote { mut child, channel, scratch } = self;
        drop(channel);
        let end = Instant::now() + PATIENCE;
        while child.try_wait().expect("waits").is_none() {
            assert!(Instant::now() < end, "the zygote stays");
            std::thread::sleep(Duration::from_millis(1));
        }
        scratch
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.channel.receive::<FromZygote>(true), Err(PassError::Closed))
    }
}

pub(crate) fn inline(text: &str) -> InputValue {
    InputValue::Inline(text.as_bytes().to_vec())
}

pub(crate) fn one(index: u32) -> InputValue {
    InputValue::One { index }
}

pub(crate) fn error(done: &Done) -> (&str, &str) {
    match &done.outcome {
        Some(Outcome::Error { name, message }) => (name, message),
        other => panic!("no error: {other:?}"),
    }
}

/// Whether a process exists and is no zombie.
pub(crate) fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
