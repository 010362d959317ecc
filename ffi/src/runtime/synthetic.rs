//! The `synthetic` function, for benchmarks and tests: reads its inputs with a checksum, sleeps or
//! computes, writes bytes of given sizes, or fails in a given way.
//!
//! Its input `spec` is a JSON object; every member may be left out:
//!
//! | member | meaning |
//! |---|---|
//! | `read` | `false` leaves the inputs unread (default `true`) |
//! | `sleep_ms`, `compute_ms` | sleeps, then keeps a core busy, after reading |
//! | `out` | list of `{"port", "bytes", "items"}`: pseudo-random bytes for these outputs; `items` on a `many` port |
//! | `pace_ms` | sleeps between the items, or the 4 MiB steps of one object |
//! | `seed` | of the bytes; they depend on nothing else but port and item |
//! | `attempts` | the faults below only happen up to this attempt |
//! | `fail` | fails with class `error:` and this name |
//! | `exit` | the process ends with this status |
//! | `crash` | `true`: the process is ended by SIGSEGV |
//! | `hang` | `true`: never returns |
//! | `allocate_bytes` | takes private memory and touches it |
//! | `print_bytes` | prints that much |
//! | `child_ms` | leaves a child process behind that sleeps that long |
//!
//! Outputs that `out` does not name get `{"bytes": B, "sum": "HEX"}` about all inputs but `spec`, in
//! order, list items in order. See [`Sum`] for the checksum.

use super::returned;
use crate::fault::{Code, Fault};
use crate::input::Got;
use crate::invocation::{Invocation, Returned};
use crate::json::{self, Value};
use crate::output::PACKED_BYTES_MAX;
use crate::process;
use dflow_proto::link::{InputValue, PortKind};
use std::io::Write;
use std::time::{Duration, Instant};

/// The watermark moves in steps of this. Bytes.
const STEP: usize = 4 << 20;
/// Bytes are made in pieces of this, which the nearest cache holds. Divides [`STEP`].
const CHUNK: usize = 16 << 10;

/// Checksum of a stream of bytes that does not depend on how the stream is cut: eight bytes at a
/// time (little-endian, the last padded with zeros) are xored into the state, which is then
/// multiplied by an odd constant and rotated; at last the length is folded in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum {
    state: u64,
    carry: u64,
    bytes: u64,
}

impl Sum {
    fn word(&mut self, word: u64) {
        self.state = (self.state ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31);
    }

    pub(crate) fn add(&mut self, mut data: &[u8]) {
        while !data.is_empty() && (!self.bytes.is_multiple_of(8) || data.len() < 8) {
            self.carry |= u64::from(data[0]) << (8 * (self.bytes % 8));
            self.bytes += 1;
            data = &data[1..];
            if self.bytes.is_multiple_of(8) {
                let word = std::mem::take(&mut self.carry);
                self.word(word);
            }
        }
        let mut words = data.chunks_exact(8);
        for word in &mut words {
            self.word(u64::from_le_bytes(word.try_into().unwrap_or_default()));
        }
        let rest = words.remainder();
        self.bytes += (data.len() - rest.len()) as u64;
        if !rest.is_empty() {
            self.add(rest);
        }
    }

    pub(crate) fn finish(mut self) -> u64 {
        if !self.bytes.is_multiple_of(8) {
            let word = self.carry;
            self.word(word);
        }
        self.word(self.bytes);
        self.state
    }
}

pub(crate) fn run(invocation: &Invocation) -> Returned {
    execute(invocation).unwrap_or_else(returned)
}

fn execute(invocation: &Invocation) -> Result<Returned, Fault> {
    let spec = spec(invocation)?;
    let number = |name: &str| spec.member(name).and_then(Value::number);
    let sum =
        if spec.member("read") == Some(&Value::Bool(false)) { Sum::default() } else { read(invocation)? };
    if let Some(ms) = number("sleep_ms") {
        std::thread::sleep(Duration::from_secs_f64(ms / 1000.0));
    }
    if let Some(ms) = number("compute_ms") {
        compute(Duration::from_secs_f64(ms / 1000.0));
    }
    let faulty = number("attempts").is_none_or(|last| f64::from(invocation.invoke.attempt) <= last);
    if faulty && let Some(returned) = misbehave(invocation, &spec) {
        return Ok(returned);
    }
    let seed = number("seed").unwrap_or(0.0) as u64;
    let pace = Duration::from_secs_f64(number("pace_ms").unwrap_or(0.0) / 1000.0);
    let mut named = Vec::new();
    if let Some(Value::List(outputs)) = spec.member("out") {
        for output in outputs {
            let port = output.member("port").and_then(Value::text).unwrap_or_default();
            let index = invocation.output_index(port)?;
            let bytes = output.member("bytes").and_then(Value::number).unwrap_or(0.0) as u64;
            let items = output.member("items").and_then(Value::number).map(|items| items as u32);
            write(invocation, index, bytes, items, seed, pace)?;
            named.push(index);
        }
    }
    for (index, output) in invocation.invoke.outputs.iter().enumerate() {
        if !named.contains(&index) && output.kind != PortKind::Many {
            let text = format!("{{\"bytes\": {}, \"sum\": \"{:016x}\"}}", sum.bytes, sum.finish());
            invocation.put(index, text.as_bytes())?;
        }
    }
    Ok(Returned::Ok)
}

fn spec(invocation: &Invocation) -> Result<Value, Fault> {
    let bad =
        |what: &str| Fault::new(Code::Argument, format!("input \"spec\" of a synthetic function: {what}"));
    let Ok(index) = invocation.input_index("spec") else { return Ok(Value::Null) };
    let Got::View(view) = invocation.get(index)? else { return Ok(Value::Null) };
    let text = String::from_utf8(invocation.copy(view)).map_err(|_| bad("it is not UTF-8"))?;
    json::parse(&text).map_err(|e| bad(&e))
}

/// Reads all inputs, each as it grows.
fn read(invocation: &Invocation) -> Result<Sum, Fault> {
    let mut sum = Sum::default();
    for (index, input) in invocation.invoke.inputs.iter().enumerate() {
        if input.name == "spec" {
            continue;
        }
        let list = matches!(input.value, InputValue::List { .. });
        for item in 0.. {
            if list && !matches!(invocation.get_item(index, item)?, Got::View(_)) {
                break;
            }
            let mut offset = 0;
            while let Got::View(view) = invocation.read(index, item, offset, 1)? {
                sum.add(invocation.slice(&view));
                offset += view.bytes;
            }
            if !list {
                break;
            }
        }
    }
    Ok(sum)
}

fn compute(time: Duration) {
    let end = Instant::now() + time;
    let mut state = 1_u64;
    while Instant::now() < end {
        for _ in 0..1000 {
            state = std::hint::black_box(next(&mut state));
        }
    }
}

/// Splitmix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn fill(state: &mut u64, into: &mut [u8]) {
    let mut words = into.chunks_exact_mut(8);
    for word in &mut words {
        word.copy_from_slice(&next(state).to_le_bytes());
    }
    let rest = words.into_remainder();
    let last = next(state).to_le_bytes();
    let bytes = rest.len();
    rest.copy_from_slice(&last[..bytes]);
}

fn write(
    invocation: &Invocation,
    output: usize,
    bytes: u64,
    items: Option<u32>,
    seed: u64,
    pace: Duration,
) -> Result<(), Fault> {
    let many = invocation.output(output)?.kind == PortKind::Many;
    for item in 0..if many { items.unwrap_or(1) } else { 1 } {
        let mut state = seed ^ ((output as u64) << 48) ^ u64::from(item);
        if bytes <= PACKED_BYTES_MAX {
            let mut data = vec![0; bytes as usize];
            fill(&mut state, &mut data);
            invocation.put(output, &data)?;
        } else {
            let memory = invocation.reserve_part(output, bytes)?;
            let mut chunk = vec![0; CHUNK];
            for at in (0..bytes as usize).step_by(CHUNK) {
                if at > 0 && at.is_multiple_of(STEP) {
                    invocation.commit(output, at as u64)?;
                    std::thread::sleep(pace);
                }
                let chunk = &mut chunk[..CHUNK.min(bytes as usize - at)];
                fill(&mut state, chunk);
                memory.copy_in(at, chunk);
            }
            invocation.seal(output, bytes)?;
        }
        std::thread::sleep(pace);
    }
    Ok(())
}

/// Does the faults that are asked for. `Some` ends the function.
fn misbehave(invocation: &Invocation, spec: &Value) -> Option<Returned> {
    let number = |name: &str| spec.member(name).and_then(Value::number);
    let is = |name: &str| spec.member(name) == Some(&Value::Bool(true));
    if let Some(bytes) = number("print_bytes") {
        print_flood(bytes as usize);
    }
    if let Some(bytes) = number("allocate_bytes") {
        let mut memory: Vec<u8> = Vec::new();
        if memory.try_reserve_exact(bytes as usize).is_err() {
            let message = format!("cannot allocate {bytes} bytes");
            return Some(Returned::Error { name: "MemoryError".into(), message });
        }
        memory.resize(bytes as usize, 1);
        std::hint::black_box(&memory);
    }
    if let Some(ms) = number("child_ms") {
        process::leave_child(Duration::from_millis(ms as u64));
    }
    if let Some(status) = number("exit") {
        std::process::exit(status as i32);
    }
    if is("crash") {
        process::crash();
    }
    while is("hang") {
        std::thread::sleep(Duration::from_secs(1));
    }
    let name = spec.member("fail").and_then(Value::text)?;
    let message = format!("the spec asks attempt {} to fail", invocation.invoke.attempt);
    Some(Returned::Error { name: name.to_owned(), message })
}

fn print_flood(bytes: usize) {
    let line = [b'x'; 79];
    let mut out = std::io::stdout().lock();
    for _ in 0..bytes.div_ceil(80) {
        if out.write_all(&line).and_then(|()| out.write_all(b"\n")).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_does_not_depend_on_the_cuts() {
        let mut data = vec![0; 1000];
        fill(&mut 7, &mut data);
        let mut whole = Sum::default();
        whole.add(&data);
        for cut in [1, 3, 7, 8, 9, 64, 333] {
            let mut parts = Sum::default();
            data.chunks(cut).for_each(|part| parts.add(part));
            assert_eq!(parts.finish(), whole.finish(), "cut into {cut}");
        }
        let mut other = Sum::default();
        other.add(&data[..999]);
        assert_ne!(other.finish(), whole.finish());
    }
}
