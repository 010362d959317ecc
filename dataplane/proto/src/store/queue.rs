//! Requests for memory: served at once, in order, or never.

use super::arena::round_up;
use super::grants::Backing;
use super::objects::{Io, Place};
use super::spill::Relief;
use super::{Effect, Effects, ObjectId, Owner, Purpose, Reserve, Store, StoreError, Ticket};
use crate::ids::Extent;
use crate::limits::{ALLOTMENT_BYTES_MAX, PAGE_BYTES};
use alloc::collections::BTreeMap;

/// Classes of requests: each has its own memory and its own queue.
pub(super) const CLASSES: usize = 3;
/// Allotments and tables.
pub(super) const SMALL: usize = 0;
/// Outputs.
pub(super) const LARGE: usize = 1;
/// Files of their own.
pub(super) const FILE: usize = 2;

/// How often a request that waits may be passed by others that fit where it does not.
const PASSES_MAX: u32 = 64;
/// How many requests behind the first are looked at when memory comes free.
const LOOK_MAX: u32 = 64;

/// A request for memory.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) ticket: Ticket,
    pub(super) owner: Owner,
    pub(super) bytes: u64,
    purpose: Purpose,
    /// The object to bring back from disk, if that is what it is for.
    pub(super) restore: Option<ObjectId>,
    /// How often it was passed.
    passed: u32,
}

impl Request {
    pub(super) fn new(
        ticket: Ticket,
        owner: Owner,
        bytes: u64,
        purpose: Purpose,
        restore: Option<ObjectId>,
    ) -> Self {
        Request { ticket, owner, bytes, purpose, restore, passed: 0 }
    }

    pub(super) fn class(&self) -> usize {
        match self.purpose {
            Purpose::Allotment | Purpose::Table if self.bytes <= ALLOTMENT_BYTES_MAX => SMALL,
            Purpose::Allotment | Purpose::Table | Purpose::Output => LARGE,
            Purpose::File => FILE,
        }
    }

    /// What it takes of the arena.
    pub(super) fn pages(&self) -> u64 {
        round_up(self.bytes.max(1), PAGE_BYTES)
    }

    /// What it takes of a file.
    pub(super) fn file_bytes(&self) -> u64 {
        if self.class() == FILE { self.bytes } else { self.pages() }
    }
}

/// Requests of one class that wait, first come first served with a bounded number of exceptions.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: BTreeMap<Ticket, Request>,
    /// Spills in flight that make room for this class.
    pub(super) spilling: u32,
    /// The first request and `Store::changes` when relief was sought in vain.
    sought_in_vain: Option<(Ticket, u64)>,
}

impl Queue {
    /// The first has been passed as often as it may be.
    pub(super) fn is_overdue(&self) -> bool {
        self.waiting.first_key_value().is_some_and(|(_, head)| head.passed >= PASSES_MAX)
    }

    /// Someone who came later was served before the first.
    pub(super) fn pass_head(&mut self) {
        if let Some(mut head) = self.waiting.first_entry() {
            head.get_mut().passed += 1;
        }
    }

    /// What all that wait need together.
    pub(super) fn pages(&self) -> u64 {
        self.waiting.values().take(LOOK_MAX as usize).fold(0, |sum, r| sum.saturating_add(r.pages()))
    }
}

impl Store {
    /// Asks for memory for `owner`. The effects are to be done before a grant is used.
    pub fn reserve(&mut self, owner: Owner, bytes: u64, purpose: Purpose, fx: &mut Effects) -> Reserve {
        let request = Request::new(self.new_ticket(), owner, bytes, purpose, None);
        if let Err(error) = self.check_possible(&request) {
            return Reserve::Refused(error);
        }
        let class = request.class();
        if !self.queues[class].is_overdue()
            && let Some((extent, backing)) = self.place(&request, fx)
        {
            self.queues[class].pass_head();
            self.insert_grant(owner, purpose, extent, backing, true);
            return Reserve::Granted(extent);
        }
        let waiting = self.waiting();
        if waiting >= self.limits.waiting_max {
            return Reserve::Refused(StoreError::TooManyWaiting { waiting });
        }
        let mine = request.ticket;
        self.enqueue(request);
        let before = fx.len();
        self.pump(fx);
        // Dropping objects that are on disk as well may have made room at once.
        let granted = fx[before..].iter().enumerate().find_map(|(i, effect)| match effect {
            Effect::Granted { ticket, extent, .. } if *ticket == mine => Some((before + i, *extent)),
            _ => None,
        });
        match granted {
            Some((index, extent)) => {
                fx.remove(index);
                Reserve::Granted(extent)
            }
            None => Reserve::Waiting(mine),
        }
    }

    /// Forgets a waiting reservation. False if it does not wait (any more).
    pub fn cancel(&mut self, ticket: Ticket, fx: &mut Effects) -> bool {
        let found = self.forget_request(ticket);
        if found {
            self.changes += 1;
            self.pump(fx);
        }
        found
    }

    /// The driver declares that all that runs waits, directly or through others, for memory, and that
    /// nothing else can start. If no disk operation is under way that could help, the largest request is
    /// refused, so that the rest can go on; true if one was. Call again if that was not enough.
    pub fn stalled(&mut self, fx: &mut Effects) -> bool {
        let in_flight = self.queues.iter().any(|queue| queue.spilling > 0);
        if in_flight || self.loads_in_flight > 0 || !self.growing.is_empty() {
            return false;
        }
        let all = self.queues.iter().flat_map(|queue| queue.waiting.values());
        let Some(request) = all.max_by_key(|request| (request.bytes, request.ticket)).cloned() else {
            return false;
        };
        self.remove_request(request.ticket);
        let error = self.full(&request);
        self.refuse(request, error, fx);
        self.changes += 1;
        self.pump(fx);
        true
    }

    /// Reservations that wait.
    pub(super) fn waiting(&self) -> u32 {
        let queued: usize = self.queues.iter().map(|queue| queue.waiting.len()).sum();
        (queued + self.growing.values().filter(|(_, request)| request.is_some()).count()) as u32
    }

    pub(super) fn new_ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    pub(super) fn enqueue(&mut self, request: Request) {
        self.queues[request.class()].waiting.insert(request.ticket, request);
    }

    /// Takes back a request wherever it waits.
    pub(super) fn forget_request(&mut self, ticket: Ticket) -> bool {
        self.remove_request(ticket) || self.abandon_growing(|request| request.ticket == ticket)
    }

    /// Takes a request out of its queue.
    pub(super) fn remove_request(&mut self, ticket: Ticket) -> bool {
        self.queues.iter_mut().any(|queue| queue.waiting.remove(&ticket).is_some())
    }

    /// Forgets the waiting reservations of owners that satisfy `gone`. Requests that bring an object back
    /// stay: they belong to whoever leased it.
    pub(super) fn forget_requests(&mut self, gone: impl Fn(&Owner) -> bool) {
        for queue in &mut self.queues {
            queue.waiting.retain(|_, request| request.restore.is_some() || !gone(&request.owner));
        }
        self.abandon_growing(|request| request.restore.is_none() && gone(&request.owner));
        self.changes += 1;
    }

    fn abandon_growing(&mut self, unwanted: impl Fn(&Request) -> bool) -> bool {
        let mut found = false;
        for (_, request) in self.growing.values_mut() {
            if request.as_ref().is_some_and(&unwanted) {
                *request = None;
                found = true;
            }
        }
        found
    }

    /// Serves whoever can be served.
    pub(super) fn pump(&mut self, fx: &mut Effects) {
        for class in [SMALL, LARGE, FILE] {
            let mut from = Ticket(0);
            let mut looked = 0;
            while let Some((_, request)) = self.queues[class].waiting.range(from..).next() {
                let request = request.clone();
                let is_head = self.queues[class].waiting.first_key_value().map(|(ticket, _)| *ticket)
                    == Some(request.ticket);
                let next = Ticket(request.ticket.0 + 1);
                if let Err(error) = self.check_possible(&request) {
                    self.remove_request(request.ticket);
                    self.refuse(request, error, fx);
                    continue;
                }
                if let Some((extent, backing)) = self.place(&request, fx) {
                    self.queues[class].waiting.remove(&request.ticket);
                    if !is_head {
                        self.queues[class].pass_head();
                    }
                    self.admit(request, extent, backing, fx);
                    from = next;
                    continue;
                }
                let now = Some((request.ticket, self.changes));
                if is_head && self.queues[class].sought_in_vain != now {
                    match self.relieve(&request, fx) {
                        Relief::Freed | Relief::Growing => continue,
                        Relief::Spilling => {}
                        Relief::None => self.queues[class].sought_in_vain = now,
                    }
                }
                looked += 1;
                if self.queues[class].is_overdue() || looked == LOOK_MAX {
                    break;
                }
                from = next;
            }
        }
    }

    /// Hands memory to the request it was taken for.
    pub(super) fn admit(&mut self, request: Request, extent: Extent, backing: Backing, fx: &mut Effects) {
        let Some(id) = request.restore else {
            self.insert_grant(request.owner, request.purpose, extent, backing, true);
            fx.push(Effect::Granted { ticket: request.ticket, owner: request.owner, extent });
            return;
        };
        let at = self.insert_grant(request.owner, request.purpose, extent, backing, false);
        let key = self.objects[&id].key;
        let extent = Extent { bytes: request.bytes, ..extent };
        self.update(id, |object| object.io = Some(Io::Loading));
        self.attach(id, at, extent);
        self.objects_on_disk -= 1;
        self.loads_in_flight += 1;
        fx.push(Effect::Load { object: id, key, extent });
    }

    fn refuse(&mut self, request: Request, error: StoreError, fx: &mut Effects) {
        match request.restore {
            None => fx.push(Effect::Refused { ticket: request.ticket, owner: request.owner, error }),
            Some(id) => {
                let object = self.objects.get_mut(&id).expect("a leased object exists");
                object.place = Place::Disk;
                fx.push(Effect::RestoreFailed { object: id, key: object.key, error });
            }
        }
    }

    /// The memory there is for requests like this when nothing else is granted.
    fn capacity(&self, request: &Request) -> u64 {
        match request.class() {
            SMALL => self.large.largest_possible().max(self.small.largest_possible()),
            LARGE => self.large.largest_possible(),
            _ => self.limits.dedicated_bytes,
        }
    }

    /// Whether the memory of its class, when empty, could serve it.
    pub(super) fn fits_memory(&self, request: &Request) -> bool {
        request.file_bytes() <= self.capacity(request)
    }

    fn check_possible(&self, request: &Request) -> Result<(), StoreError> {
        if self.fits_memory(request) || request.file_bytes() <= self.disk.limit_bytes {
            return Ok(());
        }
        Err(StoreError::TooLarge {
            need_bytes: request.bytes,
            have_bytes: self.capacity(request),
            spill_bytes: self.disk.limit_bytes,
            disk: self.disk.error.clone(),
        })
    }

    fn full(&self, request: &Request) -> StoreError {
        let (used_bytes, have_bytes) = match request.class() {
            FILE => (self.dedicated_bytes, self.limits.dedicated_bytes),
            SMALL => {
                let used = self.small.used_bytes() + self.large.used_bytes();
                (used, self.small.bytes() + self.large.bytes())
            }
            _ => (self.large.used_bytes(), self.large.bytes()),
        };
        StoreError::Full {
            need_bytes: request.bytes,
            used_bytes,
            have_bytes,
            spilled_bytes: self.disk.used_bytes(),
            spill_bytes: self.disk.limit_bytes,
            disk: self.disk.error.clone(),
        }
    }
}
