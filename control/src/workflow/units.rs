//! Durations, sizes and CPU shares as people write them.

/// Longest duration that is accepted: ten years, in milliseconds.
const DURATION_MS_MAX: u64 = 10 * 365 * 24 * 3_600_000;

/// Milliseconds of `200ms`, `5s`, `1.5m`, `2h`, `7d` or `0`; else what is wrong with it.
pub(super) fn duration_ms(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 5] =
        [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let bad = || "write a number and a unit: `200ms`, `5s`, `10m`, `2h` or `7d`".to_owned();
    let (number, unit) = split(text).ok_or_else(bad)?;
    let scale = match unit {
        "" if number == "0" => 1,
        unit => UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?.1,
    };
    let ms = scaled(number, scale).ok_or_else(bad)?;
    if ms > DURATION_MS_MAX { Err("at most ten years (`3650d`)".to_owned()) } else { Ok(ms) }
}

/// Bytes of `512`, `4KiB`, `1MiB`, `2GiB`, `3MB`; else what is wrong with it.
pub(super) fn size_bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 10] = [
        ("", 1),
        ("B", 1),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ];
    let bad = || "write a number and a unit: `4KiB`, `1MiB`, `2GiB` or `3MB`".to_owned();
    let (number, unit) = split(text).ok_or_else(bad)?;
    let unit = if unit == "kB" { "KB" } else { unit };
    let scale = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?.1;
    scaled(number, scale).filter(|b| *b <= 1 << 60).ok_or_else(bad)
}

/// Thousandths of a core of `500m`, `2`, `0.5` or `0`; else what is wrong with it.
pub(super) fn cpu_milli(text: &str) -> Result<u32, String> {
    let bad = || "write cores (`2`, `0.5`), thousandths of a core (`500m`) or `0` for none".to_owned();
    let (number, unit) = split(text).ok_or_else(bad)?;
    let milli = match unit {
        "" => scaled(number, 1000),
        "m" => scaled(number, 1),
        _ => None,
    };
    milli.filter(|m| *m <= 1024 * 1000).map(|m| m as u32).ok_or_else(bad)
}

/// A number and what follows it.
fn split(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let dots = number.bytes().filter(|b| *b == b'.').count();
    let whole = !number.starts_with('.') && !number.ends_with('.');
    (!number.is_empty() && dots <= 1 && whole).then_some((number, unit.trim_start_matches(' ')))
}

/// `number` (`12` or `1.5`) times `scale`, exactly; `None` if it is too large or no whole number.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = fraction.trim_end_matches('0');
    let digits = u32::try_from(fraction.len()).ok().filter(|d| *d <= 15)?;
    let denominator = 10u64.pow(digits);
    let fraction: u64 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let whole = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    let part = u128::from(fraction) * u128::from(scale);
    if !part.is_multiple_of(u128::from(denominator)) {
        return None;
    }
    whole.checked_add(u64::try_from(part / u128::from(denominator)).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [("200ms", 200), ("5s", 5000), ("1.5m", 90_000), ("2h", 7_200_000), ("0", 0)] {
            assert_eq!(duration_ms(text), Ok(ms), "{text}");
        }
        for text in ["", "5", "s", "5 minutes", "-1s", "1.s", "1..2s", "99999999999d", "0.5ms", "4000d"] {
            assert!(duration_ms(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("4KiB", 4096), ("1MiB", 1 << 20), ("3MB", 3_000_000), ("0", 0), ("1.5KiB", 1536), ("7", 7)]
        {
            assert_eq!(size_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "4K", "4kib", "MiB", "-1", "99999999TiB", "1.23B", "1e3"] {
            assert!(size_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cpu_shares() {
        for (text, milli) in [("500m", 500), ("1", 1000), ("0", 0), ("0.5", 500), ("2.25", 2250)] {
            assert_eq!(cpu_milli(text), Ok(milli), "{text}");
        }
        for text in ["", "m", "0.0001", "1.5x", "100000", "0.5m"] {
            assert!(cpu_milli(text).is_err(), "{text}");
        }
    }
}
