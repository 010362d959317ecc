//! How far a connection is on its way to RDMA, as a state machine without a clock, a card or a wire.
//!
//! ```text
//!  dialling end            offer            answer          probe came back
//!     Resting ───────────▶ Offered ───────▶ Probing ──────────────────────▶ Up
//!        ▲                    │                │                             │
//!        └────────────────────┴── failed ──────┴─────────────────────────────┘
//!                      (rests longer each time)
//!  other end            offer            ready            probe came back
//!     Waiting ───────────▶ Answered ─────▶ Probing ─────────────────────▶ Up
//!        ▲                     └────────────── failed ─────────────────────┘
//! ```

use dflow_proto::Tick;

/// How long each step of an attempt may take. Milliseconds. A dead probe is told by the card after about 0.5 s.
const STEP_MS_MAX: u64 = 2_000;
/// How long to rest after the first failure, and at most. Milliseconds.
const REST_MS: u64 = 100;
const REST_MS_MAX: u64 = 30_000;
/// A link that was up for so long has proven itself: its next failure counts as the first. Milliseconds.
const PROVEN_MS: u64 = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Until the peer offers.
    Waiting,
    Resting {
        until: Tick,
    },
    Offered {
        until: Tick,
    },
    Answered {
        until: Tick,
    },
    Probing {
        until: Tick,
    },
    Up {
        since: Tick,
    },
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Make a queue pair and offer it.
    Offer,
    /// The attempt took too long: tear it down.
    GiveUp,
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub(super) struct Link {
    dialled: bool,
    attempt: u32,
    failures: u32,
    state: State,
}

impl Link {
    /// Of a connection that this end dialled, or not.
    pub(super) fn new(dialled: bool, now: Tick) -> Link {
        let state = if dialled { State::Resting { until: now } } else { State::Waiting };
        Link { dialled, attempt: 0, failures: 0, state }
    }

    /// The attempt that is under way, or was last.
    pub(super) const fn attempt(&self) -> u32 {
        self.attempt
    }

    pub(super) const fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// Whether there is something to tear down.
    pub(super) const fn is_active(&self) -> bool {
        !matches!(self.state, State::Waiting | State::Resting { .. })
    }

    /// When [`Link::due`] has something to say.
    pub(super) const fn deadline(&self) -> Option<Tick> {
        match self.state {
            State::Waiting | State::Up { .. } => None,
            State::Resting { until }
            | State::Offered { until }
            | State::Answered { until }
            | State::Probing { until } => Some(until),
        }
    }

    /// What is to be done.
    pub(super) fn due(&self, now: Tick) -> Option<Due> {
        match self.state {
            _ if self.deadline().is_none_or(|deadline| deadline > now) => None,
            State::Resting { .. } => Some(Due::Offer),
            _ => Some(Due::GiveUp),
        }
    }

    /// An offer is being made; answers its number.
    pub(super) fn offer(&mut self, now: Tick) -> u32 {
        self.attempt = self.attempt.wrapping_add(1);
        self.state = State::Offered { until: now.after_ms(STEP_MS_MAX) };
        self.attempt
    }

    /// The peer's offer has been answered.
    pub(super) fn answer(&mut self, attempt: u32, now: Tick) {
        self.attempt = attempt;
        self.state = State::Answered { until: now.after_ms(STEP_MS_MAX) };
    }

    /// Whether the peer's word on `attempt` fits: an answer at the dialling end, else a `Ready`. The probe begins.
    pub(super) fn probe(&mut self, attempt: u32, now: Tick) -> bool {
        let expected = matches!(self.state, State::Offered { .. } | State::Answered { .. });
        if !expected || attempt != self.attempt {
            return false;
        }
        self.state = State::Probing { until: now.after_ms(STEP_MS_MAX) };
        true
    }

    /// The probe came back.
    pub(super) fn up(&mut self, now: Tick) {
        self.state = State::Up { since: now };
    }

    /// It failed, at whatever stage.
    pub(super) fn failed(&mut self, now: Tick) {
        if let State::Up { since } = self.state
            && since.after_ms(PROVEN_MS) <= now
        {
            self.failures = 0;
        }
        let rest_ms = (REST_MS << self.failures.min(16)).min(REST_MS_MAX);
        self.failures += 1;
        self.state = match self.dialled {
            true => State::Resting { until: now.after_ms(rest_ms) },
            false => State::Waiting,
        };
    }

    /// Rests until `until` at least: nothing to try with.
    pub(super) fn rest(&mut self, until: Tick) {
        if self.dialled {
            self.state = State::Resting { until };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Tick {
        Tick(ms * 1000)
    }

    #[test]
    fn both_ends_come_up() {
        let (mut dialler, mut other) = (Link::new(true, ms(1)), Link::new(false, ms(1)));
        assert_eq!((dialler.due(ms(1)), other.due(ms(1))), (Some(Due::Offer), None));
        let attempt = dialler.offer(ms(1));
        other.answer(attempt, ms(2));
        assert!(!dialler.probe(attempt + 1, ms(3)), "another attempt's answer is none");
        assert!(dialler.probe(attempt, ms(3)) && !dialler.probe(attempt, ms(3)));
        dialler.up(ms(4));
        assert!(other.probe(attempt, ms(5)));
        other.up(ms(6));
        assert!(dialler.is_up() && other.is_up());
        assert_eq!((dialler.deadline(), other.deadline()), (None, None));
    }

    #[test]
    fn every_step_has_its_time() {
        let mut link = Link::new(true, ms(0));
        let attempt = link.offer(ms(0));
        assert_eq!(link.due(ms(STEP_MS_MAX - 1)), None);
        assert_eq!(link.due(ms(STEP_MS_MAX)), Some(Due::GiveUp));
        link.probe(attempt, ms(10));
        assert_eq!(link.due(ms(10 + STEP_MS_MAX)), Some(Due::GiveUp));
        let mut other = Link::new(false, ms(0));
        other.answer(3, ms(0));
        assert_eq!(other.due(ms(STEP_MS_MAX)), Some(Due::GiveUp));
        other.failed(ms(STEP_MS_MAX));
        assert_eq!((other.deadline(), other.is_active()), (None, false));
    }

    #[test]
    fn rests_grow_until_it_proves_itself() {
        let mut link = Link::new(true, ms(0));
        let mut rests = Vec::new();
        let mut now = 0;
        for _ in 0..12 {
            link.offer(ms(now));
            link.failed(ms(now));
            let until = link.deadline().expect("it rests");
            rests.push((until.0 / 1000) - now);
            now = until.0 / 1000;
        }
        assert_eq!(rests[..4], [100, 200, 400, 800]);
        assert_eq!(rests[11], REST_MS_MAX);
        link.up(ms(now));
        link.failed(ms(now + 5));
        assert_eq!(link.deadline(), Some(ms(now + 5 + REST_MS_MAX)), "up and down again proves nothing");
        link.up(ms(now));
        link.failed(ms(now + PROVEN_MS));
        assert_eq!(link.deadline(), Some(ms(now + PROVEN_MS + REST_MS)));
    }
}
