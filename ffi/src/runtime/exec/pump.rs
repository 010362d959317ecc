//! Keeps a program's pipes and directories going until it ends.

use super::files::{Inputs, OutputFiles, descriptor_path};
use super::scratch_error;
use crate::fault::{Code, Fault};
use crate::input::Got;
use crate::invocation::Invocation;
use crate::process;
use dflow_proto::link::{InputValue, PortKind};
use dflow_shm::segment::PartMut;
use dflow_shm::table::{Found, Look, Want};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, ChildStdin, ChildStdout, ExitStatus};

/// Room for a streamed standard output whose size is not declared. Bytes.
const STREAM_BYTES: u64 = 64 << 20;
/// The watermark of a stream moves at least once in this. Bytes.
const SHOW_STEP: usize = 1 << 20;
/// How long a child may stay unnoticed if the kernel has no pidfd. Milliseconds.
const POLL_MS: i32 = 10_000;

/// Where standard input comes from.
pub(super) enum Source {
    /// It is empty.
    Nothing,
    /// A complete object in a segment of its own: the program reads the segment itself.
    File(File),
    /// This input, through a pipe, as it grows.
    Pipe(usize),
}

impl Source {
    pub(super) fn of(
        invocation: &Invocation,
        stdin: Option<usize>,
        inputs: &Inputs,
    ) -> Result<Source, Fault> {
        let Some(index) = stdin else { return Ok(Source::Nothing) };
        match &invocation.input(index)?.value {
            InputValue::Null => Ok(Source::Nothing),
            InputValue::Inline(_) => Ok(Source::Pipe(index)),
            InputValue::List { .. } => {
                debug_assert!(inputs.words().len() > index);
                let name = &invocation.input(index)?.name;
                let message = format!("input {name:?} is a list; standard input is one object");
                Err(Fault::new(Code::Type, message))
            }
            InputValue::One { index: entry } => {
                let look = invocation.table()?.object(&invocation.node.segments, *entry, Want::Sealed);
                let Ok(Look::Ready(Found::Sealed(extent))) = look else { return Ok(Source::Pipe(index)) };
                match descriptor_path(invocation, extent)? {
                    Some(path) => {
                        File::open(path).map(Source::File).map_err(|e| scratch_error("standard input", &e))
                    }
                    None => Ok(Source::Pipe(index)),
                }
            }
        }
    }
}

/// Whether a program's standard output goes through a pipe into a growing object. Else it goes to a
/// file, which is faster and has no limit of size.
pub(super) fn is_streamed(invocation: &Invocation, output: usize) -> bool {
    invocation.invoke.outputs[output].kind == PortKind::Stream
}

/// Runs the program to its end. `watches` have been there before it was started.
pub(super) fn run(
    invocation: &Invocation,
    mut child: Child,
    source: Source,
    streamed: Option<usize>,
    outputs: &mut OutputFiles,
    watches: Watches,
) -> Result<ExitStatus, Fault> {
    let stdin = child.stdin.take();
    let stdout = child.stdout.take();
    std::thread::scope(|scope| {
        if let (Source::Pipe(input), Some(pipe)) = (&source, stdin) {
            let input = *input;
            scope.spawn(move || feed(invocation, input, pipe));
        }
        let result = watch(invocation, &mut child, stdout.zip(streamed), outputs, watches);
        if result.is_err() {
            let _ = child.kill();
        }
        let status =
            child.wait().map_err(|e| Fault::new(Code::Node, format!("cannot wait for the program: {e}")));
        result.and(status)
    })
}

/// Writes an input to a pipe as it grows. A program that does not read it all is no error.
fn feed(invocation: &Invocation, input: usize, mut pipe: ChildStdin) {
    let mut offset = 0;
    while let Ok(Got::View(view)) = invocation.read(input, 0, offset, 1) {
        offset += view.bytes;
        if pipe.write_all(invocation.slice(&view)).is_err() {
            return;
        }
    }
}

/// The directories of `many` ports, being watched.
pub(super) struct Watches {
    notify: Option<File>,
    ports: Vec<(i32, usize)>,
}

fn watch(
    invocation: &Invocation,
    child: &mut Child,
    stdout: Option<(ChildStdout, usize)>,
    outputs: &mut OutputFiles,
    mut watches: Watches,
) -> Result<(), Fault> {
    let ended = process::pidfd(child.id());
    let mut stream = match stdout {
        None => None,
        Some((pipe, output)) => {
            outputs.take(output);
            Some(Stream::begin(invocation, pipe, output)?)
        }
    };
    loop {
        let fds = [
            stream.as_ref().and_then(|stream| stream.pipe.as_ref()).map(|pipe| pipe.as_fd()),
            watches.notify.as_ref().map(|notify| notify.as_fd()),
            ended.as_ref().map(|pidfd| pidfd.as_fd()),
        ];
        process::poll(&fds, if ended.is_some() { POLL_MS } else { 10 });
        // Looked at before the pipe and the directory: what the program did before its end is then
        // still seen below.
        let over = child.try_wait().is_ok_and(|status| status.is_some());
        if let Some(stream) = &mut stream {
            stream.copy(invocation)?;
        }
        watches.take(invocation, outputs)?;
        if over {
            if let Some(stream) = stream {
                stream.finish(invocation)?;
            }
            return Ok(());
        }
    }
}

impl Watches {
    /// Watches before the program starts, so that the order of its files is known to the first.
    pub(super) fn begin(invocation: &Invocation, outputs: &OutputFiles) -> Result<Watches, Fault> {
        let many: Vec<usize> = (0..invocation.invoke.outputs.len())
            .filter(|index| invocation.invoke.outputs[*index].kind == PortKind::Many)
            .collect();
        let mut watches = Watches { notify: None, ports: Vec::new() };
        if many.is_empty() {
            return Ok(watches);
        }
        // SAFETY: inotify_init1 touches no memory.
        let fd = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        if fd < 0 {
            // Without notification all items are taken at the end, which is right but later.
            return Ok(watches);
        }
        // SAFETY: a new descriptor that nobody else owns.
        let notify = unsafe { File::from_raw_fd(fd) };
        for output in many {
            let path = CString::new(outputs.path(output).as_os_str().as_bytes()).unwrap_or_default();
            // SAFETY: the path is NUL-terminated and outlives the call.
            let id = unsafe {
                libc::inotify_add_watch(
                    notify.as_raw_fd(),
                    path.as_ptr(),
                    libc::IN_CLOSE_WRITE | libc::IN_MOVED_TO,
                )
            };
            watches.ports.push((id, output));
        }
        watches.notify = Some(notify);
        Ok(watches)
    }

    fn take(&mut self, invocation: &Invocation, outputs: &mut OutputFiles) -> Result<(), Fault> {
        /// Bytes before the name in an event: descriptor, mask, cookie and the name's length.
        const HEADER: usize = 16;
        let Some(notify) = &mut self.notify else { return Ok(()) };
        let mut buffer = [0_u8; 4096];
        while let Ok(bytes @ 1..) = notify.read(&mut buffer) {
            let mut events = &buffer[..bytes];
            while events.len() >= HEADER {
                let word = |at: usize| {
                    u32::from_ne_bytes([events[at], events[at + 1], events[at + 2], events[at + 3]])
                };
                let (id, length) = (word(0) as i32, word(12) as usize);
                let end = (HEADER + length).min(events.len());
                let name = events[HEADER..end].split(|byte| *byte == 0).next().unwrap_or_default();
                let port = self.ports.iter().find(|(watch, _)| *watch == id);
                if let (Some((_, output)), Ok(name)) = (port, std::str::from_utf8(name)) {
                    outputs.file_closed(invocation, *output, name)?;
                }
                events = &events[end..];
            }
        }
        Ok(())
    }
}

/// A program's standard output on its way into a growing object.
struct Stream {
    pipe: Option<ChildStdout>,
    output: usize,
    memory: PartMut,
    room: usize,
    filled: usize,
}

impl Stream {
    fn begin(invocation: &Invocation, pipe: ChildStdout, output: usize) -> Result<Stream, Fault> {
        let spec = &invocation.invoke.outputs[output];
        let room = match (spec.bytes_max, spec.granted) {
            (0, Some(extent)) => extent.bytes,
            (0, None) => STREAM_BYTES,
            (bytes_max, _) => bytes_max,
        };
        let memory = invocation.reserve_part(output, room)?.sub(0, room as usize);
        process::nonblocking(pipe.as_fd());
        Ok(Stream { pipe: Some(pipe), output, memory, room: room as usize, filled: 0 })
    }

    /// Takes what is in the pipe.
    fn copy(&mut self, invocation: &Invocation) -> Result<(), Fault> {
        let mut shown = self.filled;
        while let Some(pipe) = &mut self.pipe {
            if self.filled == self.room {
                // Full: only the end of the pipe is right now. One byte more tells which it is.
                match pipe.read(&mut [0; 1]) {
                    Ok(0) => self.pipe = None,
                    Ok(_) => return Err(self.too_long(invocation)),
                    Err(_) => {}
                }
                break;
            }
            match self.memory.read_from(self.filled, pipe.as_fd()) {
                Ok(0) => self.pipe = None,
                Ok(bytes) => self.filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(scratch_error("standard output", &error)),
            }
            // A program that never pauses must still be followed.
            if self.filled - shown >= SHOW_STEP {
                shown = self.filled;
                invocation.commit(self.output, shown as u64)?;
            }
        }
        if self.filled > shown {
            invocation.commit(self.output, self.filled as u64)?;
        }
        Ok(())
    }

    fn too_long(&self, invocation: &Invocation) -> Fault {
        let name = &invocation.invoke.outputs[self.output].name;
        let message = format!(
            "output {name:?} exceeds {} bytes; declare its max_size, or leave out `stream: true`",
            self.room
        );
        invocation.failed("OutputTooLarge", Code::TooLarge, message)
    }

    /// After the program's end: what is left in the pipe, and the seal.
    fn finish(mut self, invocation: &Invocation) -> Result<(), Fault> {
        self.copy(invocation)?;
        invocation.seal(self.output, self.filled as u64)
    }
}
