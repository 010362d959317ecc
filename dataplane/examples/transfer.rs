//! What a transport gives beside raw sockets of the same run: latency of small reads, throughput of large ones,
//! processor time for each gigabyte. Both ends in this process, over loopback or the address given.
//!
//! `cargo run --release -p dflow-dataplane --example transfer [-- --lanes 2 --chunk-kib 1024 --depth 8]`

use dflow_dataplane::transport::{
    Backend, Config, ConnectionId, Epoch, Event, Lease, NodeId, Op, Region, Secret, Transport, open,
};
use dflow_proto::ids::{Extent, SegmentId};
use dflow_shm::segment::{Map, Segment};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error>;

const SIZES: [u64; 3] = [1 << 20, 16 << 20, 256 << 20];
const SEGMENT: u64 = 256 << 20;

#[derive(Clone, Copy)]
struct Options {
    lanes: u16,
    chunk: u64,
    depth: usize,
    spin_us: u64,
    zero_copy: bool,
}

fn main() -> Result<(), Failure> {
    let mut options = Options { lanes: 2, chunk: 1 << 20, depth: 8, spin_us: 0, zero_copy: true };
    let mut only = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value: u64 = arguments.next().ok_or("a value is missing")?.parse()?;
        match name.as_str() {
            "--lanes" => options.lanes = value as u16,
            "--chunk-kib" => options.chunk = value << 10,
            "--depth" => options.depth = value as usize,
            "--zero-copy" => options.zero_copy = value != 0,
            "--only" => only = Some(value),
            "--spin-us" => options.spin_us = value,
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    let (source, target) = (memory(1)?, memory(2)?);
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{} lanes, chunks of {} KiB, {} in flight",
        options.lanes,
        options.chunk >> 10,
        options.depth
    )?;
    writeln!(out, "{:>8} {:>10} {:>8} {:>8} {:>10}", "", "bytes", "GB/s", "best", "CPU s/GB")?;
    for bytes in SIZES.into_iter().filter(|bytes| only.is_none_or(|only| only == *bytes)) {
        // Interleaved rounds, so that a slow minute of the machine is everybody's.
        let mut rows: Vec<(&str, Vec<Sample>)> = vec![("raw", vec![]), ("tcp", vec![]), ("uring", vec![])];
        for _ in 0..5 {
            for (name, samples) in &mut rows {
                samples.push(match *name {
                    "raw" => raw(bytes, options)?,
                    "tcp" => ours(&source, &target, bytes, options, Backend::Tcp)?,
                    _ => ours(&source, &target, bytes, options, Backend::Uring)?,
                });
            }
        }
        for (name, mut samples) in rows {
            samples.sort_by(|a, b| a.rate.total_cmp(&b.rate));
            let (middle, best) = (&samples[samples.len() / 2], &samples[samples.len() - 1]);
            writeln!(
                out,
                "{name:>8} {bytes:>10} {:>8.2} {:>8.2} {:>10.3}",
                middle.rate, best.rate, middle.cpu
            )?;
        }
    }
    if only.is_some_and(|only| only != 1024) {
        return Ok(());
    }
    writeln!(out, "{:>8} {:>10} {:>8} {:>8}", "", "1 KiB", "p50 us", "p99 us")?;
    for spin_us in [0, 1000] {
        let spin = if spin_us > 0 { "spinning" } else { "sleeping" };
        let (p50, p99) = raw_latency(spin_us > 0)?;
        writeln!(out, "{:>8} {spin:>10} {p50:>8.1} {p99:>8.1}", "raw")?;
        for (name, backend) in [("tcp", Backend::Tcp), ("uring", Backend::Uring)] {
            let options = Options { spin_us, ..options };
            let (p50, p99) = our_latency(&source, &target, options, backend)?;
            writeln!(out, "{name:>8} {spin:>10} {p50:>8.1} {p99:>8.1}")?;
        }
    }
    for (name, backend) in [("tcp", Backend::Tcp), ("uring", Backend::Uring)] {
        let rate = small_rate(&source, &target, options, backend)?;
        writeln!(out, "{name:>8} reads of 1 KiB, pipelined: {:.0} a second", rate)?;
    }
    Ok(())
}

struct Sample {
    /// GB/s.
    rate: f64,
    /// Processor seconds of both ends for each GB.
    cpu: f64,
}

fn memory(id: u32) -> Result<Arc<Map>, Failure> {
    let map = Segment::create(SegmentId(id), "transfer", SEGMENT)?.map_node()?;
    map.populate(Extent { segment: SegmentId(id), offset: 0, bytes: SEGMENT })?;
    let part = map.part_mut(Extent { segment: SegmentId(id), offset: 0, bytes: SEGMENT })?;
    let piece: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    (0..SEGMENT).step_by(piece.len()).for_each(|at| part.copy_in(at as usize, &piece));
    Ok(map)
}

fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn repetitions(bytes: u64) -> u64 {
    ((512 << 20) / bytes).clamp(2, 64)
}

/// An owner in a thread of its own, until dropped.
struct Owner {
    address: SocketAddr,
    region: Region,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Owner {
    fn start(map: &Arc<Map>, options: Options, backend: Backend) -> Result<Owner, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, tell) = sync_channel(1);
        let (map, stopped) = (map.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let (mut transport, _) = open(config(1, options), backend).expect("the owner opens");
            let region = transport.register(&map);
            told.send((transport.address().expect("it listens"), region)).expect("the reader waits");
            let mut events = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                transport.poll(&mut events, Duration::from_millis(20)).expect("polls");
                events.clear();
            }
        });
        let (address, region) = tell.recv()?;
        Ok(Owner { address, region, stop, thread: Some(thread) })
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the owner ends well");
        }
    }
}

fn config(node: u64, options: Options) -> Config {
    let mut config = Config::new("bench", NodeId(node), Epoch(1), Secret::none());
    config.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    (config.lanes, config.spin_us, config.zero_copy) = (options.lanes, options.spin_us, options.zero_copy);
    config
}

fn connect(
    options: Options,
    backend: Backend,
    owner: &Owner,
) -> Result<(Box<dyn Transport>, ConnectionId), Failure> {
    let (mut transport, _) = open(config(2, options), backend)?;
    let deadline = transport.now().after_ms(5000);
    let connection = transport.connect(owner.address, None, deadline);
    let mut events = Vec::new();
    loop {
        transport.poll(&mut events, Duration::from_millis(100))?;
        for event in events.drain(..) {
            match event {
                Event::Connected { .. } => return Ok((transport, connection)),
                Event::Disconnected { why, .. } => return Err(why.into()),
                _ => {}
            }
        }
    }
}

/// Reads `[0, bytes)` in chunks, `depth` at a time, `times` times.
#[allow(clippy::too_many_arguments)]
fn pull(
    transport: &mut dyn Transport,
    connection: ConnectionId,
    region: Region,
    target: &Arc<Map>,
    bytes: u64,
    chunk: u64,
    depth: usize,
    times: u64,
) -> Result<(), Failure> {
    let (mut next, mut done, total) = (0, 0, bytes * times);
    let mut in_flight = 0;
    let mut events = Vec::new();
    let deadline = transport.now().after_ms(60_000);
    while done < total {
        while next < total && in_flight < depth {
            let offset = next % bytes;
            let n = chunk.min(bytes - offset);
            let into = Lease::of(target, Extent { segment: target.segment(), offset, bytes: n })?;
            transport.submit(Op::Read { connection, region, offset, into, deadline, tag: n })?;
            next += n;
            in_flight += 1;
        }
        transport.poll(&mut events, Duration::from_secs(1))?;
        for event in events.drain(..) {
            match event {
                Event::Completed(completion) => {
                    completion.result?;
                    done += completion.tag;
                    in_flight -= 1;
                }
                Event::Disconnected { why, .. } => return Err(why.into()),
                _ => {}
            }
        }
    }
    Ok(())
}

fn ours(
    source: &Arc<Map>,
    target: &Arc<Map>,
    bytes: u64,
    options: Options,
    backend: Backend,
) -> Result<Sample, Failure> {
    let owner = Owner::start(source, options, backend)?;
    let (mut transport, connection) = connect(options, backend, &owner)?;
    // One object at a time, as a get would: the next begins when the last has ended.
    pull(transport.as_mut(), connection, owner.region, target, bytes, options.chunk, options.depth, 1)?;
    let (started, cpu, times) = (Instant::now(), cpu_seconds(), repetitions(bytes));
    for _ in 0..times {
        pull(transport.as_mut(), connection, owner.region, target, bytes, options.chunk, options.depth, 1)?;
    }
    let gigabytes = (bytes * times) as f64 / 1e9;
    Ok(Sample { rate: gigabytes / started.elapsed().as_secs_f64(), cpu: (cpu_seconds() - cpu) / gigabytes })
}

/// The same bytes over as many sockets, each with a thread at both ends, one byte of request for each object.
fn raw(bytes: u64, options: Options) -> Result<Sample, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (lanes, times) = (u64::from(options.lanes), repetitions(bytes));
    let share = (bytes / lanes) as usize;
    let mut ends = Vec::new();
    for _ in 0..lanes {
        let near = TcpStream::connect(address)?;
        let (far, _) = listener.accept()?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        ends.push((near, far));
    }
    let barrier = std::sync::Barrier::new(ends.len() + 1);
    let mut result = None;
    std::thread::scope(|scope| {
        for (mut near, mut far) in ends {
            scope.spawn(move || {
                let bytes = vec![7; share];
                for _ in 0..=times {
                    far.read_exact(&mut [0]).expect("asked");
                    far.write_all(&bytes).expect("sends");
                }
            });
            let barrier = &barrier;
            scope.spawn(move || {
                let mut bytes = vec![1; share];
                for round in 0..=times {
                    near.write_all(&[1]).expect("asks");
                    near.read_exact(&mut bytes).expect("receives");
                    if round == 0 {
                        barrier.wait();
                    }
                }
                barrier.wait();
            });
        }
        barrier.wait();
        let (started, cpu) = (Instant::now(), cpu_seconds());
        barrier.wait();
        let gigabytes = (bytes * times) as f64 / 1e9;
        let rate = gigabytes / started.elapsed().as_secs_f64();
        result = Some(Sample { rate, cpu: (cpu_seconds() - cpu) / gigabytes });
    });
    Ok(result.expect("measured"))
}

fn percentiles(mut samples: Vec<f64>) -> (f64, f64) {
    samples.sort_by(f64::total_cmp);
    (samples[samples.len() / 2], samples[samples.len() * 99 / 100])
}

fn our_latency(
    source: &Arc<Map>,
    target: &Arc<Map>,
    options: Options,
    backend: Backend,
) -> Result<(f64, f64), Failure> {
    let owner = Owner::start(source, options, backend)?;
    let (mut transport, connection) = connect(options, backend, &owner)?;
    let mut samples = Vec::new();
    for _ in 0..4000 {
        let started = Instant::now();
        pull(transport.as_mut(), connection, owner.region, target, 1024, 1024, 1, 1)?;
        samples.push(started.elapsed().as_secs_f64() * 1e6);
    }
    Ok(percentiles(samples))
}

/// A request of 64 bytes, an answer of 1 KiB, between two threads.
fn raw_latency(spin: bool) -> Result<(f64, f64), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(spin)?;
    }
    let count = 4000;
    let thread = std::thread::spawn(move || {
        let (mut request, answer) = ([0; 64], [7; 1024]);
        for _ in 0..count {
            exactly(&mut far, &mut request);
            far.write_all(&answer).expect("sends");
        }
    });
    let mut samples = Vec::new();
    for _ in 0..count {
        let started = Instant::now();
        near.write_all(&[1; 64])?;
        exactly(&mut near, &mut [0; 1024]);
        samples.push(started.elapsed().as_secs_f64() * 1e6);
    }
    thread.join().map_err(|_| "the other end failed")?;
    Ok(percentiles(samples))
}

fn exactly(stream: &mut TcpStream, mut into: &mut [u8]) {
    while !into.is_empty() {
        match stream.read(into) {
            Ok(n) => into = &mut into[n..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn small_rate(
    source: &Arc<Map>,
    target: &Arc<Map>,
    options: Options,
    backend: Backend,
) -> Result<f64, Failure> {
    let owner = Owner::start(source, options, backend)?;
    let (mut transport, connection) = connect(options, backend, &owner)?;
    let count = 400_000;
    let started = Instant::now();
    pull(transport.as_mut(), connection, owner.region, target, 1024, 1024, 512, count)?;
    Ok(count as f64 / started.elapsed().as_secs_f64())
}
