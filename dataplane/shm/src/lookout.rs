//! Looking for work instead of sleeping.

use std::time::{Duration, Instant};

/// Who does not get the processor back for so long has given way to something that computes, not to the next link of a chain.
const KEPT_MAX: Duration = Duration::from_micros(500);
/// How long not to look after that, at first and at most.
const REST: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// How a thread looks before it sleeps, so that what comes soon finds it awake.
///
/// It gives its processor away at every look, so that on a full machine nobody waits for a thread that only looks. But who gave way
/// waits for its turn, while who sleeps is woken before others: a thread that was long kept from the processor sleeps at once for a
/// while, which doubles as long as that goes on and halves with every span that passed well.
#[derive(Debug)]
pub struct Lookout {
    /// When this span ends; `None`: it does not look.
    until: Option<Instant>,
    rest: Duration,
    rests_until: Instant,
    /// How this span has passed so far; `None` before the first look.
    well: Option<bool>,
}

impl Default for Lookout {
    /// Does not look before it is told to.
    fn default() -> Self {
        Lookout { until: None, rest: REST.0, rests_until: Instant::now(), well: None }
    }
}

impl Lookout {
    /// Something has happened: from now on it is worth looking, for `span`.
    pub fn begin(&mut self, span: Duration) {
        if self.well.take() == Some(true) {
            self.rest = (self.rest / 2).max(REST.0);
        }
        self.until = (!span.is_zero()).then(|| Instant::now() + span);
    }

    /// Gives way to others and says whether to look once more before sleeping.
    pub fn again(&mut self) -> bool {
        let Some(until) = self.until else { return false };
        let before = Instant::now();
        if before >= until || before < self.rests_until {
            return false;
        }
        std::thread::yield_now();
        self.gave_way(before, Instant::now());
        true
    }

    fn gave_way(&mut self, before: Instant, after: Instant) {
        let well = after - before <= KEPT_MAX;
        if !well {
            self.rests_until = after + self.rest;
            self.rest = (self.rest * 2).min(REST.1);
        }
        self.well = Some(well && self.well != Some(false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    #[test]
    fn looks_for_its_span_and_then_sleeps() {
        let mut lookout = Lookout::default();
        assert!(!lookout.again());
        let start = Instant::now();
        lookout.begin(us(300));
        assert!(lookout.again());
        while lookout.again() {}
        assert!(start.elapsed() >= us(300));
        lookout.begin(Duration::ZERO);
        assert!(!lookout.again());
    }

    #[test]
    fn kept_from_the_processor_it_rests_ever_longer_until_spans_pass_well() {
        let mut lookout = Lookout::default();
        let now = Instant::now();
        // Looks, is kept away for so long, and tells how many milliseconds it would rest the next time.
        let mut look = |kept: Duration| {
            lookout.begin(us(1));
            lookout.gave_way(now, now + kept);
            lookout.rest.as_millis()
        };
        let (little, much) = (us(500), us(501));
        assert_eq!([little, much, much, much].map(&mut look), [10, 20, 40, 80]);
        assert_eq!([little, little, little, little, little].map(&mut look), [80, 40, 20, 10, 10]);
    }

    #[test]
    fn while_it_rests_it_does_not_look() {
        let mut lookout = Lookout::default();
        let now = Instant::now();
        lookout.gave_way(now, now + us(60_000_000));
        lookout.begin(us(1_000_000));
        assert!(!lookout.again());
    }
}
