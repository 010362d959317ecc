//! The writing calls of the C interface.
//!
//! Where an object goes: up to [`PACKED_BYTES_MAX`] a put is packed into the allotment; else it
//! takes pages of the allotment if they are free, the extent that the node granted beforehand if it
//! is long enough, or an extent that the node grants now. An object that must be a file of its own
//! always gets the latter, unless it is small enough to be copied into a file by its reader.

use crate::fault::{Code, Fault};
use crate::input::unknown;
use crate::invocation::Invocation;
use crate::memory::{Memory, Slab};
use crate::node::{Node, Urgency};
use crate::process;
use crate::segments::lock;
use dflow_proto::ids::Extent;
use dflow_proto::limits::{ALLOTMENT_BYTES_MAX, PAGE_BYTES};
use dflow_proto::link::{Output, PortKind, Report};
use dflow_shm::page::{PageWriter, Place};
use dflow_shm::segment::PartMut;
use std::ptr::NonNull;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Puts up to this are packed. Bytes.
pub(crate) const PACKED_BYTES_MAX: u64 = 32 << 10;
/// A large put copies this much between two moves of the watermark. Bytes.
const COPY_STEP: usize = 4 << 20;
/// Pages are faulted in this far ahead of a function that fills its reservation. Bytes.
const POPULATE_STEP: u64 = 64 << 20;
/// Below this, faults one by one are as good. Bytes.
const POPULATE_MIN: u64 = 256 << 10;

/// The state of all output ports.
#[derive(Debug)]
pub(crate) struct Outputs {
    memory: Memory,
    page: PageWriter,
    ports: Vec<Port>,
    /// Grants that are still writable although their object is sealed, or that never got one.
    writable: Vec<Extent>,
}

#[derive(Debug)]
struct Port {
    state: State,
    /// The extent granted beforehand, until it is used.
    granted: Option<Extent>,
    items: u32,
}

#[derive(Debug)]
enum State {
    /// Nothing is being written.
    Idle,
    /// Memory is being asked for.
    Busy,
    /// An object is being written.
    Open(Open),
    /// Put, or the list is closed.
    Done,
}

/// An object being written.
#[derive(Debug)]
struct Open {
    place: Place,
    part: PartMut,
    /// What the function may use of it.
    room: u64,
    watermark: u64,
    populated: u64,
    /// The part is a grant, not pages of the allotment.
    granted: bool,
    file: bool,
}

/// How an object being written is completed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// The function had a pointer: its mapping is withdrawn before anyone relies on the bytes.
    Function,
    /// libdflow copied: the mapping goes when the invocation ends.
    Copy,
}

impl Outputs {
    pub(crate) fn new(memory: Memory, page: PageWriter, outputs: &[Output]) -> Outputs {
        let port = |output: &Output| Port { state: State::Idle, granted: output.granted, items: 0 };
        Outputs { memory, page, ports: outputs.iter().map(port).collect(), writable: Vec::new() }
    }

    /// Closes lists; a message if some output was never put.
    pub(crate) fn finish(&mut self, invocation: &Invocation) -> Result<Option<String>, Fault> {
        let mut missing = Vec::new();
        for (index, output) in invocation.invoke.outputs.iter().enumerate() {
            match (&self.ports[index].state, output.kind) {
                (State::Done, _) => {}
                (State::Idle, PortKind::Many) => self.pin(invocation, index)?,
                (State::Idle, _) => missing.push(format!("{:?} was never put", output.name)),
                (State::Busy | State::Open(_), _) => {
                    missing.push(format!("{:?} was reserved but never sealed", output.name));
                }
            }
        }
        if missing.is_empty() {
            return Ok(None);
        }
        Ok(Some(format!("output {}; the function must put each of its outputs once", missing.join(", "))))
    }

    fn pin(&mut self, invocation: &Invocation, index: usize) -> Result<(), Fault> {
        let port = index as u16;
        let count = self.page.pin(port);
        self.ports[index].state = State::Done;
        invocation.node.report(&Report::Pinned { port, count }, Urgency::Now)
    }

    /// Takes all writable mappings away and gives back what was granted and not used.
    pub(crate) fn withdraw(&mut self, node: &Node) -> Result<(), Fault> {
        for port in &mut self.ports {
            if let State::Open(open) = std::mem::replace(&mut port.state, State::Done)
                && open.granted
            {
                let extent = open.part.extent();
                node.segments.close(extent)?;
                node.report(&Report::Unused { extent }, Urgency::Later)?;
            }
            if let Some(extent) = port.granted.take() {
                node.report(&Report::Unused { extent }, Urgency::Later)?;
            }
        }
        for extent in self.writable.drain(..) {
            node.segments.close(extent)?;
        }
        self.memory.extents().try_for_each(|extent| node.segments.close(extent))
    }
}

impl Invocation {
    /// Index of the output of this name.
    pub fn output_index(&self, name: &str) -> Result<usize, Fault> {
        let outputs = &self.invoke.outputs;
        outputs.iter().position(|output| output.name == name).ok_or_else(|| {
            let names: Vec<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
            unknown("output", name, &names)
        })
    }

    pub(crate) fn output(&self, index: usize) -> Result<&Output, Fault> {
        self.invoke.outputs.get(index).ok_or_else(|| {
            let count = self.invoke.outputs.len();
            Fault::new(Code::Name, format!("the step has {count} outputs, not {index}"))
        })
    }

    /// Puts a copy of `data`; an item if the port is a `many` port.
    pub fn put(&self, output: usize, data: &[u8]) -> Result<(), Fault> {
        let start = Instant::now();
        let result = self.put_now(output, data);
        self.put_us.fetch_add(start.elapsed().as_micros() as u64, Ordering::Relaxed);
        result
    }

    fn put_now(&self, output: usize, data: &[u8]) -> Result<(), Fault> {
        let bytes = data.len() as u64;
        if bytes <= PACKED_BYTES_MAX {
            let (mut outputs, part) = self.pack(output, bytes)?;
            part.copy_in(0, data);
            let place = self.place(&mut outputs, output)?;
            outputs.page.put(place, part.extent());
            return self.sealed(outputs, output, place, part.extent());
        }
        self.open(output, bytes)?;
        let pointer = self.writing(output)?;
        for (step, chunk) in data.chunks(COPY_STEP).enumerate() {
            let from = step * COPY_STEP;
            if step > 0 {
                // Readers follow a copy that takes a while; one that does not is one wake.
                self.advance(output, from as u64)?;
            }
            pointer.copy_in(from, chunk);
        }
        self.complete(output, bytes, Writer::Copy)
    }

    /// Memory for `bytes_max` bytes, to be filled in place and then sealed.
    pub fn reserve(&self, output: usize, bytes_max: u64) -> Result<NonNull<u8>, Fault> {
        self.reserve_part(output, bytes_max).map(|part| part.pointer())
    }

    /// As [`Invocation::reserve`], for libdflow's own functions.
    pub(crate) fn reserve_part(&self, output: usize, bytes_max: u64) -> Result<PartMut, Fault> {
        let start = Instant::now();
        self.open(output, bytes_max)?;
        self.put_us.fetch_add(start.elapsed().as_micros() as u64, Ordering::Relaxed);
        self.writing(output)
    }

    /// Moves the watermark of a reservation.
    pub fn commit(&self, output: usize, watermark: u64) -> Result<(), Fault> {
        self.output(output)?;
        self.advance(output, watermark)
    }

    /// Completes a reservation; the function's mapping of it is withdrawn.
    pub fn seal(&self, output: usize, bytes: u64) -> Result<(), Fault> {
        self.output(output)?;
        let start = Instant::now();
        let result = self.complete(output, bytes, Writer::Function);
        self.put_us.fetch_add(start.elapsed().as_micros() as u64, Ordering::Relaxed);
        result
    }

    /// Closes a `many` port.
    pub fn close(&self, output: usize) -> Result<(), Fault> {
        let spec = self.output(output)?;
        if spec.kind != PortKind::Many {
            return Err(Fault::new(Code::Type, format!("output {:?} is no list to close", spec.name)));
        }
        let mut outputs = lock(&self.outputs);
        match outputs.ports[output].state {
            State::Done => Ok(()),
            State::Idle => outputs.pin(self, output),
            State::Busy | State::Open(_) => Err(self.busy(output)),
        }
    }

    /// Publishes a file that the node has adopted.
    pub(crate) fn put_adopted(&self, output: usize, extent: Extent) -> Result<(), Fault> {
        let (mut outputs, _) = self.pack(output, 0)?;
        let place = self.place(&mut outputs, output)?;
        outputs.page.put(place, extent);
        self.sealed(outputs, output, place, extent)
    }

    /// Checks that an object of `bytes` may be put now; what cannot be mended fails the invocation.
    fn check(&self, outputs: &Outputs, output: usize, bytes: u64) -> Result<(), Fault> {
        let spec = self.output(output)?;
        let port = &outputs.ports[output];
        let name = &spec.name;
        match port.state {
            State::Idle => {}
            State::Busy | State::Open(_) => return Err(self.busy(output)),
            State::Done => {
                let message = match spec.kind {
                    PortKind::Many => format!("output {name:?} is closed and takes no further item"),
                    _ => format!(
                        "output {name:?} was put before; a port takes one object, unless it is declared `many: true`"
                    ),
                };
                return Err(self.failed("PutTwice", Code::Sealed, message));
            }
        }
        if spec.bytes_max > 0 && bytes > spec.bytes_max {
            let message = format!(
                "output {name:?} of {bytes} bytes exceeds its max_size of {}; raise it or put less",
                spec.bytes_max
            );
            return Err(self.failed("OutputTooLarge", Code::TooLarge, message));
        }
        if spec.kind == PortKind::Many && port.items >= spec.items_max {
            let message = format!("output {name:?} has more than its max_items of {}", spec.items_max);
            return Err(self.failed("TooManyItems", Code::TooMany, message));
        }
        Ok(())
    }

    fn busy(&self, output: usize) -> Fault {
        let name = &self.invoke.outputs[output].name;
        Fault::new(Code::Busy, format!("output {name:?} has a reservation; seal it first"))
    }

    /// Packed memory for an object and, if the port is a list, room for it in the item index.
    fn pack(&self, output: usize, bytes: u64) -> Result<(MutexGuard<'_, Outputs>, PartMut), Fault> {
        let mut outputs = lock(&self.outputs);
        loop {
            self.check(&outputs, output, bytes)?;
            let chunk = self.chunk_needed(&outputs, output);
            let fits = match chunk {
                None => outputs.memory.pack(bytes),
                Some(need) => match outputs.memory.pack(need) {
                    Some(part) => {
                        outputs.page.add_chunk(output as u16, part);
                        outputs.memory.pack(bytes)
                    }
                    None => None,
                },
            };
            if let Some(part) = fits {
                return Ok((outputs, part));
            }
            let need = bytes + chunk.unwrap_or(0) + 2 * PAGE_BYTES;
            outputs = self.extend(outputs, output, need)?;
        }
    }

    fn chunk_needed(&self, outputs: &Outputs, output: usize) -> Option<u64> {
        let many = self.invoke.outputs[output].kind == PortKind::Many;
        if many { outputs.page.chunk_needed(output as u16) } else { None }
    }

    /// Asks for another allotment, without the lock.
    fn extend<'a>(
        &'a self,
        mut outputs: MutexGuard<'a, Outputs>,
        output: usize,
        need_bytes: u64,
    ) -> Result<MutexGuard<'a, Outputs>, Fault> {
        let bytes = outputs.memory.next_bytes(need_bytes, ALLOTMENT_BYTES_MAX);
        outputs.ports[output].state = State::Busy;
        drop(outputs);
        let ask = |_: &Node, ticket| Ok(Report::Extend { ticket, bytes });
        let granted = self
            .node
            .request(ask, self.invoke.spin_us, self.is_main())
            .and_then(|extent| self.node.segments.open(extent));
        let mut outputs = lock(&self.outputs);
        outputs.ports[output].state = State::Idle;
        outputs.memory.add(Slab::new(granted?));
        Ok(outputs)
    }

    /// Makes the place of the next object of a port. Its item index has room.
    fn place(&self, outputs: &mut Outputs, output: usize) -> Result<Place, Fault> {
        let port = output as u16;
        if self.invoke.outputs[output].kind != PortKind::Many {
            return Ok(Place { port, item: None });
        }
        outputs.page.append(port).ok_or_else(|| Fault::new(Code::NoMemory, "the item index has no room"))
    }

    /// Begins an object of up to `bytes` that is filled in place.
    fn open(&self, output: usize, bytes: u64) -> Result<(), Fault> {
        let spec = self.output(output)?;
        // The index of a list gets its room first, since the lock is given up for a large grant.
        let (mut outputs, _) = self.pack(output, 0)?;
        self.check(&outputs, output, bytes)?;
        let file = spec.file && bytes > 0;
        let own = if file { None } else { outputs.memory.pages(bytes) };
        let granted = own.is_none();
        let part = match own {
            Some(part) => part,
            None => {
                let before = outputs.ports[output].granted.take_if(|extent| extent.bytes >= bytes.max(1));
                outputs.ports[output].state = State::Busy;
                drop(outputs);
                let part = self.grant(output, before, bytes, file);
                outputs = lock(&self.outputs);
                outputs.ports[output].state = State::Idle;
                part?
            }
        };
        let place = self.place(&mut outputs, output)?;
        outputs.page.open(place, Extent { bytes, ..part.extent() });
        let open = Open { place, part, room: bytes, watermark: 0, populated: 0, granted, file };
        outputs.ports[output].state = State::Open(open);
        self.populate(&mut outputs, output);
        Ok(())
    }

    fn grant(&self, output: usize, before: Option<Extent>, bytes: u64, file: bool) -> Result<PartMut, Fault> {
        let extent = match before {
            Some(extent) => extent,
            None => {
                let port = output as u16;
                let bytes = bytes.max(1);
                let ask = |_: &Node, ticket| Ok(Report::Reserve { ticket, port, bytes, file });
                self.node.request(ask, self.invoke.spin_us, self.is_main())?
            }
        };
        if extent.bytes < bytes {
            return Err(Fault::new(Code::Node, "the node granted less than was asked"));
        }
        self.node.segments.open(extent)
    }

    /// Faults pages in ahead of the writer.
    fn populate(&self, outputs: &mut Outputs, output: usize) {
        let State::Open(open) = &mut outputs.ports[output].state else { return };
        let ahead = open.populated.saturating_sub(open.watermark);
        if open.room < POPULATE_MIN || open.populated >= open.room || ahead > POPULATE_STEP / 2 {
            return;
        }
        let part = open.part.extent();
        let bytes = POPULATE_STEP.min(open.room - open.populated);
        self.node.segments.populate(Extent { offset: part.offset + open.populated, bytes, ..part });
        open.populated += bytes;
    }

    /// The memory of the object being written.
    fn writing(&self, output: usize) -> Result<PartMut, Fault> {
        match &lock(&self.outputs).ports[output].state {
            State::Open(open) => Ok(open.part.clone()),
            _ => Err(self.not_open(output)),
        }
    }

    fn not_open(&self, output: usize) -> Fault {
        let name = &self.invoke.outputs[output].name;
        Fault::new(Code::Argument, format!("output {name:?} has no reservation; call dflow_reserve first"))
    }

    fn too_far(&self, output: usize, bytes: u64, room: u64) -> Fault {
        let name = &self.invoke.outputs[output].name;
        let message =
            format!("output {name:?} was reserved with {room} bytes and claims {bytes}; reserve more");
        self.failed("OutputTooLarge", Code::TooLarge, message)
    }

    fn advance(&self, output: usize, watermark: u64) -> Result<(), Fault> {
        let mut outputs = lock(&self.outputs);
        let Outputs { page, ports, .. } = &mut *outputs;
        let State::Open(open) = &mut ports[output].state else { return Err(self.not_open(output)) };
        if watermark > open.room {
            return Err(self.too_far(output, watermark, open.room));
        }
        if watermark <= open.watermark {
            // Committed before: a watermark never goes back.
            return Ok(());
        }
        let first = open.watermark == 0;
        open.watermark = watermark;
        let (place, extent) = (open.place, Extent { bytes: open.room, ..open.part.extent() });
        if self.invoke.whole {
            self.populate(&mut outputs, output);
            return Ok(());
        }
        page.advance(place, watermark);
        self.populate(&mut outputs, output);
        drop(outputs);
        if first {
            let Place { port, item } = place;
            let report = Report::FirstByte { port, item: item.unwrap_or(0), extent };
            self.node.report(&report, Urgency::Now)?;
        }
        Ok(())
    }

    fn complete(&self, output: usize, bytes: u64, writer: Writer) -> Result<(), Fault> {
        let mut outputs = lock(&self.outputs);
        let Outputs { page, ports, writable, .. } = &mut *outputs;
        let State::Open(open) = &mut ports[output].state else { return Err(self.not_open(output)) };
        if bytes > open.room {
            return Err(self.too_far(output, bytes, open.room));
        }
        if bytes < open.watermark {
            let name = &self.invoke.outputs[output].name;
            let message =
                format!("output {name:?}: {} bytes are committed and cannot be taken back", open.watermark);
            return Err(Fault::new(Code::Argument, message));
        }
        let place = open.place;
        let granted = open.part.extent();
        let extent = Extent { bytes, ..granted };
        if open.file {
            self.node.segments.cut(extent)?;
        }
        match writer {
            Writer::Function => {
                let alone = process::has_one_thread();
                page.seal(place, extent, alone, || self.node.segments.close(granted))?;
            }
            Writer::Copy => {
                page.put(place, extent);
                if open.granted {
                    writable.push(granted);
                }
            }
        }
        self.sealed(outputs, output, place, extent)
    }

    /// Notes and reports an object that its readers can see already.
    fn sealed(
        &self,
        mut outputs: MutexGuard<'_, Outputs>,
        output: usize,
        place: Place,
        extent: Extent,
    ) -> Result<(), Fault> {
        let port = &mut outputs.ports[output];
        port.items += 1;
        port.state = if place.item.is_some() { State::Idle } else { State::Done };
        drop(outputs);
        let report = Report::Sealed { port: place.port, item: place.item.unwrap_or(0), extent };
        self.node.report(&report, Urgency::Now)
    }
}
