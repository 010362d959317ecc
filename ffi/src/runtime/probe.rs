//! The `probe` function, for `dflow bench`: tells by the clock that all processes share when its parts happened.
//!
//! Inputs `bytes` and `work_us` (numbers, 0 if missing) say how large its output `data` is, if it has one, and how long it
//! keeps a core busy before it writes that. Every other input is read to its end. Its output `times` are [`Times`].

use super::returned;
use crate::fault::{Code, Fault};
use crate::input::Got;
use crate::invocation::{Invocation, Returned};
use crate::output::PACKED_BYTES_MAX;
use crate::process::now_ns;
use dflow_proto::link::InputValue;

/// What `times` holds: words of eight bytes, little-endian; times are nanoseconds of CLOCK_MONOTONIC.
#[derive(Default)]
struct Times {
    /// The function's first line.
    begun: u64,
    /// Before the first input was asked for, and when the last one was there.
    asked: u64,
    got: u64,
    /// Before the seal of `data`, and after it.
    sealing: u64,
    sealed: u64,
    /// Bytes of the inputs.
    read_bytes: u64,
}

pub(crate) fn run(invocation: &Invocation) -> Returned {
    execute(invocation).map_or_else(returned, |()| Returned::Ok)
}

fn execute(invocation: &Invocation) -> Result<(), Fault> {
    let mut times = Times { begun: now_ns(), ..Times::default() };
    times.asked = now_ns();
    times.read_bytes = read(invocation)?;
    times.got = now_ns();
    if let Ok(output) = invocation.output_index("data") {
        let (bytes, work_us) = (number(invocation, "bytes")?, number(invocation, "work_us")?);
        while now_ns() < times.got + work_us * 1000 {
            std::hint::spin_loop();
        }
        if bytes <= PACKED_BYTES_MAX {
            times.sealing = now_ns();
            invocation.put(output, &vec![0x5a; bytes as usize])?;
        } else {
            let memory = invocation.reserve_part(output, bytes)?;
            let piece = vec![0x5a; 64 << 10];
            for at in (0..bytes as usize).step_by(piece.len()) {
                memory.copy_in(at, &piece[..piece.len().min(bytes as usize - at)]);
            }
            times.sealing = now_ns();
            invocation.seal(output, bytes)?;
        }
        times.sealed = now_ns();
    }
    let words = [times.begun, times.asked, times.got, times.sealing, times.sealed, times.read_bytes];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    invocation.put(invocation.output_index("times")?, &bytes)
}

/// Waits for all inputs that are not numbers of the probe's own; their bytes.
fn read(invocation: &Invocation) -> Result<u64, Fault> {
    let mut bytes = 0;
    for (index, input) in invocation.invoke.inputs.iter().enumerate() {
        if ["bytes", "work_us"].contains(&input.name.as_str()) {
            continue;
        }
        if !matches!(input.value, InputValue::List { .. }) {
            if let Got::View(view) = invocation.get(index)? {
                bytes += view.bytes;
            }
            continue;
        }
        for item in 0.. {
            let Got::View(view) = invocation.get_item(index, item)? else { break };
            bytes += view.bytes;
        }
    }
    Ok(bytes)
}

fn number(invocation: &Invocation, name: &str) -> Result<u64, Fault> {
    if invocation.input_index(name).is_err() {
        return Ok(0);
    }
    let text = invocation.param_text(name)?;
    text.parse()
        .map_err(|_| Fault::new(Code::Argument, format!("input {name:?} of a probe is no number: {text}")))
}
