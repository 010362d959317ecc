//! How far a connection is on its way to RDMA, as a state machine without a clock, a card or a wire.
//!
//! ```text
//!  dialling end            offer            answer         probes came back
//!     Resting ───────────▶ Offered ───────▶ Probing ──────────────────────▶ Up
//!        ▲                    │                │                             │
//!        └────────────────────┴── failed ──────┴─────────────────────────────┘
//!                      (rests longer each time)
//!  other end            offer            ready           probes came back
//!     Waiting ───────────▶ Answered ─────▶ Probing ─────────────────────▶ Up
//!        ▲                     └────────────── failed ─────────────────────┘
//! ```
//!
//! However many lanes a link has, it is in one state: the dialling end waits a while for the probes of all, and goes up
//! with those that came back; the link of a lane that breaks is down.

use dflow_proto::Tick;

/// How long each step of an attempt may take. Milliseconds. A dead probe is told by the card after about 0.5 s.
const STEP_MS_MAX: u64 = 2_000;
/// How long the dialling end waits for the probes of other lanes when one has come back. Milliseconds. Long enough for
/// two packets to be lost, and short enough that the application need not be told of the connection before.
const OTHERS_MS_MAX: u64 = 250;
/// How long to rest after the first failure, and at most. Milliseconds.
const REST_MS: u64 = 100;
const REST_MS_MAX: u64 = 30_000;
/// A link without some of its lanes is set up anew after so long, at first and at most: they may work by then. It costs
/// a moment over the streams. Milliseconds.
const RENEW_MS: u64 = 30_000;
const RENEW_MS_MAX: u64 = 3_600_000;
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
    /// `any` of the probes has come back.
    Probing {
        until: Tick,
        any: bool,
    },
    /// Until `again`, if it lacks lanes.
    Up {
        since: Tick,
        again: Option<Tick>,
    },
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Make queue pairs and offer them.
    Offer,
    /// Do without the lanes whose probes have not come back.
    Settle,
    /// The attempt took too long: tear it down.
    GiveUp,
    /// See whether the lanes work that did not: set it up anew.
    Renew,
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub(super) struct Link {
    dialled: bool,
    attempt: u32,
    failures: u32,
    renewals: u32,
    state: State,
}

impl Link {
    /// Of a connection that this end dialled, or not.
    pub(super) fn new(dialled: bool, now: Tick) -> Link {
        let state = if dialled { State::Resting { until: now } } else { State::Waiting };
        Link { dialled, attempt: 0, failures: 0, renewals: 0, state }
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
            State::Waiting => None,
            State::Up { again, .. } => again,
            State::Resting { until }
            | State::Offered { until }
            | State::Answered { until }
            | State::Probing { until, .. } => Some(until),
        }
    }

    /// What is to be done.
    pub(super) fn due(&self, now: Tick) -> Option<Due> {
        match self.state {
            _ if self.deadline().is_none_or(|deadline| deadline > now) => None,
            State::Resting { .. } => Some(Due::Offer),
            State::Probing { any: true, .. } => Some(Due::Settle),
            State::Up { .. } => Some(Due::Renew),
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

    /// Whether the peer's word on `attempt` fits: an answer at the dialling end, else a `Ready`. The probes begin.
    pub(super) fn probe(&mut self, attempt: u32, now: Tick) -> bool {
        let expected = matches!(self.state, State::Offered { .. } | State::Answered { .. });
        if !expected || attempt != self.attempt {
            return false;
        }
        self.state = State::Probing { until: now.after_ms(STEP_MS_MAX), any: false };
        true
    }

    /// A probe came back, others may be under way. Which lanes there are is for the dialling end to say.
    pub(super) fn one_came(&mut self, now: Tick) {
        if let State::Probing { until, any } = &mut self.state
            && self.dialled
            && !*any
        {
            *any = true;
            *until = now.after_ms(OTHERS_MS_MAX).min(*until);
        }
    }

    /// All probes came back that are waited for; whether it has all the lanes that it could have.
    pub(super) fn up(&mut self, now: Tick, whole: bool) {
        let renew_ms = (RENEW_MS << self.renewals.min(16)).min(RENEW_MS_MAX);
        self.renewals = if whole { 0 } else { self.renewals + 1 };
        self.state = State::Up { since: now, again: (!whole).then_some(now.after_ms(renew_ms)) };
    }

    /// It failed, at whatever stage.
    pub(super) fn failed(&mut self, now: Tick) {
        if let State::Up { since, .. } = self.state
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
        dialler.up(ms(4), true);
        assert!(other.probe(attempt, ms(5)));
        other.up(ms(6), true);
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
    fn one_lane_does_not_wait_long_for_another() {
        let mut dialler = Link::new(true, ms(0));
        let attempt = dialler.offer(ms(0));
        dialler.probe(attempt, ms(0));
        dialler.one_came(ms(5));
        dialler.one_came(ms(100));
        assert_eq!(dialler.due(ms(5 + OTHERS_MS_MAX - 1)), None);
        assert_eq!(dialler.due(ms(5 + OTHERS_MS_MAX)), Some(Due::Settle));
        let mut other = Link::new(false, ms(0));
        other.answer(attempt, ms(0));
        other.probe(attempt, ms(0));
        other.one_came(ms(5));
        assert_eq!(other.due(ms(STEP_MS_MAX - 1)), None, "it was told which lanes there are");
        assert_eq!(other.due(ms(STEP_MS_MAX)), Some(Due::GiveUp));
    }

    #[test]
    fn lost_lanes_are_tried_again_less_and_less_often() {
        let mut link = Link::new(true, ms(0));
        let mut now = 0;
        for wait in [RENEW_MS, 2 * RENEW_MS, 4 * RENEW_MS] {
            link.offer(ms(now));
            link.up(ms(now), false);
            assert_eq!((link.due(ms(now + wait - 1)), link.due(ms(now + wait))), (None, Some(Due::Renew)));
            now += wait;
            link.failed(ms(now));
            assert_eq!(link.deadline(), Some(ms(now + REST_MS)), "that it was renewed is no failure of it");
        }
        link.up(ms(now), true);
        assert_eq!(link.deadline(), None);
        link.up(ms(now), false);
        assert_eq!(link.deadline(), Some(ms(now + RENEW_MS)));
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
        link.up(ms(now), true);
        link.failed(ms(now + 5));
        assert_eq!(link.deadline(), Some(ms(now + 5 + REST_MS_MAX)), "up and down again proves nothing");
        link.up(ms(now), true);
        link.failed(ms(now + PROVEN_MS));
        assert_eq!(link.deadline(), Some(ms(now + PROVEN_MS + REST_MS)));
    }
}
