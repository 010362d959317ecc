//! When a function of a branching workflow runs: which branches must have been taken.

use super::error::ImportError;
use std::collections::{BTreeMap, BTreeSet};

/// Most ways by which one function may be reached.
const WAYS_MAX: usize = 64;

/// Branch `branch` of switch `switch` is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Taken {
    pub(super) switch: usize,
    pub(super) branch: usize,
}

/// The ways by which a function is reached: it runs if all branches of one of them are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Guard {
    ways: BTreeSet<BTreeSet<Taken>>,
}

impl Guard {
    /// Reached in any case.
    pub(super) fn always() -> Self {
        Guard { ways: BTreeSet::from([BTreeSet::new()]) }
    }

    /// Adds the ways that lead through `from`, over the branch `taken` if there is a switch between.
    /// `branches` tells how many branches a switch has of which one is taken in any case; `None` if
    /// none may be.
    pub(super) fn reach(
        &mut self,
        from: &Guard,
        taken: Option<Taken>,
        branches: impl Fn(usize) -> Option<usize>,
        place: impl Fn() -> String,
    ) -> Result<(), ImportError> {
        for way in &from.ways {
            let mut way = way.clone();
            way.extend(taken);
            self.ways.insert(way);
        }
        while self.simplify(&branches) {}
        if self.ways.len() > WAYS_MAX {
            let what =
                format!("more than {WAYS_MAX} combinations of branches lead here; give it fewer switches");
            return Err(ImportError::Unsupported { path: place(), what });
        }
        Ok(())
    }

    /// Drops a way that another implies, or joins the branches of a switch; whether it did either.
    fn simplify(&mut self, branches: &impl Fn(usize) -> Option<usize>) -> bool {
        let implied =
            self.ways.iter().find(|way| self.ways.iter().any(|w| w != *way && w.is_subset(way))).cloned();
        if let Some(way) = implied {
            return self.ways.remove(&way);
        }
        let mut of: BTreeMap<(usize, BTreeSet<Taken>), BTreeSet<usize>> = BTreeMap::new();
        for way in &self.ways {
            for taken in way {
                let mut rest = way.clone();
                rest.remove(taken);
                of.entry((taken.switch, rest)).or_default().insert(taken.branch);
            }
        }
        let joined = of.into_iter().find(|((switch, _), taken)| branches(*switch) == Some(taken.len()));
        match joined {
            Some(((_, rest), _)) => self.ways.insert(rest),
            None => false,
        }
    }

    /// As a condition, `None` if it holds in any case. `branch` writes the condition of one branch.
    pub(super) fn condition(&self, branch: impl Fn(Taken) -> String) -> Option<String> {
        if self.ways.iter().any(BTreeSet::is_empty) {
            return None;
        }
        let all = |way: &BTreeSet<Taken>| way.iter().map(|t| branch(*t)).collect::<Vec<_>>().join(" && ");
        if self.ways.len() == 1 {
            return self.ways.first().map(all);
        }
        Some(self.ways.iter().map(|way| format!("({})", all(way))).collect::<Vec<_>>().join(" || "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(guard: &mut Guard, from: &Guard, switch: usize, branch: usize) {
        guard.reach(from, Some(Taken { switch, branch }), |_| Some(2), String::new).unwrap();
    }

    fn text(guard: &Guard) -> Option<String> {
        guard.condition(|t| format!("{}={}", t.switch, t.branch))
    }

    #[test]
    fn branches_that_meet_again_cancel_out() {
        let mut meet = Guard::default();
        reach(&mut meet, &Guard::always(), 0, 0);
        assert_eq!(text(&meet).as_deref(), Some("0=0"));
        reach(&mut meet, &Guard::always(), 0, 1);
        assert_eq!(text(&meet), None);
    }

    #[test]
    fn an_exclusive_join_has_both_ways() {
        // The recognizer: 0 leads to the join or to 1, which leads to the join or ends.
        let (mut other, mut join) = (Guard::default(), Guard::default());
        reach(&mut other, &Guard::always(), 0, 1);
        reach(&mut join, &Guard::always(), 0, 0);
        reach(&mut join, &other, 1, 0);
        assert_eq!(text(&join).as_deref(), Some("(0=0) || (0=1 && 1=0)"));
        // Once the other branch of 1 leads there too, nothing decides any more.
        reach(&mut join, &other, 1, 1);
        assert_eq!(text(&join), None);
    }
}
