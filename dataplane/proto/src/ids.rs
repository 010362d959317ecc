//! Names of things. Each id is a newtype so that one cannot be passed where another is meant.

use serde::{Deserialize, Serialize};

/// A point in time: microseconds since an origin the driver chooses. Never wall-clock time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tick(pub u64);

impl Tick {
    /// The tick `ms` milliseconds later, saturating.
    pub const fn after_ms(self, ms: u64) -> Tick {
        Tick(self.0.saturating_add(ms.saturating_mul(1000)))
    }
    /// So many microseconds later.
    pub const fn after_us(self, us: u64) -> Tick {
        Tick(self.0.saturating_add(us))
    }
    /// Microseconds from `earlier` to `self`, 0 if `earlier` is later.
    pub const fn since_us(self, earlier: Tick) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// One execution of a workflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RunId(pub u64);

/// One execution of a step, or of one item of a foreach, within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InvocationId {
    /// Index of the step in the run's graph.
    pub step: u32,
    /// Index of the foreach item; 0 for a step without foreach.
    pub item: u32,
}

/// One immutable output datum. A plain or stream port has `item` 0; a `many` port one key an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// The run it belongs to.
    pub run: RunId,
    /// The invocation that produced it. Run inputs use [`ObjectKey::INPUT_STEP`] as the step.
    pub invocation: InvocationId,
    /// Index of the output port in the step.
    pub port: u16,
    /// Index in the list that a `many` port is; else 0.
    pub item: u32,
}

impl ObjectKey {
    /// The step index that stands for "given by the caller of the run"; `port` is the input's index.
    pub const INPUT_STEP: u32 = u32::MAX;

    /// The key of run input `index`.
    pub const fn input(run: RunId, index: u16) -> Self {
        let invocation = InvocationId { step: Self::INPUT_STEP, item: 0 };
        ObjectKey { run, invocation, port: index, item: 0 }
    }
}

/// A memfd (or spill file) of the arena. Segment 0 is the arena's main segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SegmentId(pub u32);

/// A function process, unique for the life of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId(pub u64);

/// A contiguous part of a segment: where an object, or a grant to write one, lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// The segment it lies in.
    pub segment: SegmentId,
    /// First byte, from the start of the segment.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl Extent {
    /// One past the last byte.
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes)
    }
    /// Whether `inner` lies wholly inside `self`; false when either's arithmetic would overflow.
    pub const fn contains(&self, inner: &Extent) -> bool {
        self.segment.0 == inner.segment.0
            && inner.offset >= self.offset
            && inner.offset.checked_add(inner.bytes).is_some()
            && inner.end() <= self.end()
    }
}
