//! Samples, and what is told of them.

use serde_json::{Value, json};

/// A 99th percentile of fewer samples than this is little more than their maximum.
pub const P99_SAMPLES_MIN: usize = 1000;

/// Quantiles of samples, each of which is a sample itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quantiles {
    /// How many samples there were.
    pub samples: usize,
    /// Their mean.
    pub mean: f64,
    /// The middle one.
    pub p50: u64,
    /// Of ten, nine are not above it.
    pub p90: u64,
    /// Of a hundred, 99.
    pub p99: u64,
    /// Of a thousand, 999.
    pub p999: u64,
    /// The smallest.
    pub min: u64,
    /// The largest.
    pub max: u64,
}

impl Quantiles {
    /// Of these samples, in any order; all zero if there are none.
    pub fn of(mut samples: Vec<u64>) -> Quantiles {
        samples.sort_unstable();
        let (Some(&min), Some(&max)) = (samples.first(), samples.last()) else { return Quantiles::default() };
        let at = |share: f64| {
            let rank = (share * samples.len() as f64).ceil() as usize;
            samples[rank.clamp(1, samples.len()) - 1]
        };
        let mean = samples.iter().map(|s| *s as f64).sum::<f64>() / samples.len() as f64;
        Quantiles {
            samples: samples.len(),
            mean,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            min,
            max,
        }
    }

    /// Whether there are enough samples for a 99th percentile to mean something.
    pub fn p99_is_sound(&self) -> bool {
        self.samples >= P99_SAMPLES_MIN
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        json!({
            "samples": self.samples, "mean": self.mean, "p50": self.p50, "p90": self.p90, "p99": self.p99,
            "p99_is_sound": self.p99_is_sound(), "p999": self.p999, "min": self.min, "max": self.max,
        })
    }
}

/// Numbers that look random and are the same for the same seed (splitmix64).
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Seconds to the next of events that come at random, `per_s` a second on average.
    pub(super) fn gap_s(&mut self, per_s: f64) -> f64 {
        // Above zero, so that the logarithm is finite.
        let uniform = ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        -uniform.ln() / per_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let q = Quantiles::of((1..=1000).rev().collect());
        assert_eq!((q.min, q.p50, q.p90, q.p99, q.p999, q.max), (1, 500, 900, 990, 999, 1000));
        assert!(q.p99_is_sound());
        let one = Quantiles::of(vec![7]);
        assert_eq!((one.p50, one.p99, one.p99_is_sound()), (7, 7, false));
        assert_eq!(Quantiles::of(Vec::new()), Quantiles::default());
    }

    #[test]
    fn gaps_have_the_mean_that_was_asked_for() {
        let mut random = Random::new(1);
        let sum: f64 = (0..100_000).map(|_| random.gap_s(20.0)).sum();
        assert!((sum / 100_000.0 - 0.05).abs() < 0.001, "{sum}");
    }
}
