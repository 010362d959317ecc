//! Names of runs: they sort by time, and are short enough to be typed.

use std::time::{SystemTime, UNIX_EPOCH};

/// Digits without those that are taken for others (i, l, o, u).
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Digits that tell the time, in units of 1/32 s: enough for a thousand years.
const TIME_DIGITS: u32 = 8;
/// Digits that tell runs of the same moment apart.
const SALT_DIGITS: u32 = 3;

/// A name for a run that begins now: 11 digits and letters. Two processes can come to the same name;
/// the history then takes the next one ([`History::save`](super::History::save)).
pub fn new_run_name() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let salt = now.subsec_nanos() ^ std::process::id().wrapping_mul(0x9e37_79b9);
    name(now.as_millis() as u64 * 32 / 1000, u64::from(salt ^ salt >> 15))
}

/// The name after this one, for when it is taken. What follows a `.` says whose run it is and stays.
pub(crate) fn next(run: &str) -> String {
    if let Some((own, home)) = run.split_once('.') {
        return format!("{}.{home}", next(own));
    }
    let digit = |b: u8| DIGITS.iter().position(|d| *d == b).unwrap_or(0) as u64;
    let value = run.bytes().fold(0u64, |value, b| value << 5 | digit(b));
    let value = value.wrapping_add(1);
    name(value >> (5 * SALT_DIGITS), value)
}

fn name(time: u64, salt: u64) -> String {
    let digits = |value: u64, count: u32| {
        (0..count).rev().map(move |i| DIGITS[(value >> (5 * i)) as usize & 31] as char)
    };
    digits(time, TIME_DIGITS).chain(digits(salt, SALT_DIGITS)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_by_time() {
        let names: Vec<String> = [0, 31, 32, 1 << 30, 1 << 38].map(|t| name(t, 31_000 - t % 30_000)).into();
        let mut sorted = names.clone();
        sorted.sort();
        assert_eq!(names, sorted);
        assert!(names.iter().all(|n| n.len() == 11), "{names:?}");
    }

    #[test]
    fn the_next_name_is_another_and_later() {
        let name = new_run_name();
        assert!(next(&name) > name);
        assert_eq!(next("0000000zzzz"), "00000010000");
        assert_eq!(next("0000000zzzz.east-1"), "00000010000.east-1");
    }
}
