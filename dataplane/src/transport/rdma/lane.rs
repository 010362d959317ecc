//! Lanes: the queue pairs of one link, each between a card of this node and one of the peer's.

use super::queue::QueuePair;
use dflow_proto::wire::pairing::{End, LANES_MAX, Lanes};
use std::cmp::Reverse;

/// Something of each card that is open, by the card's place.
pub(super) type PerCard<T> = [Option<T>; LANES_MAX];

/// One of them.
pub(super) struct Lane {
    /// The place of this node's card.
    pub(super) card: usize,
    pub(super) queue: QueuePair,
    /// The peer's end, once it is known.
    pub(super) end: Option<End>,
    /// The peer's probe came back over it.
    pub(super) proven: bool,
    /// Bytes of reads posted and not reported.
    pub(super) reading_bytes: usize,
}

/// Where a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) gid: [u8; 16],
    /// 0 on Ethernet.
    pub(super) lid: u16,
}

impl Place {
    pub(super) const fn of(end: &End) -> Place {
        Place { gid: end.gid, lid: end.lid }
    }

    fn is_ipv4(self) -> bool {
        self.gid[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
    }

    /// How many bits of the addresses are the same from the first on: ports of one network have more in common than
    /// ports of two. What distinguishes the hosts of a network tells nothing where it was not given by people.
    fn nearness(self, other: Place) -> u32 {
        let bits = (u128::from_be_bytes(self.gid) ^ u128::from_be_bytes(other.gid)).leading_zeros();
        if self.is_ipv4() && other.is_ipv4() { bits } else { bits.min(64) }
    }

    /// Whether they are likely to reach each other: half of an IPv4 address is the same, or the prefix of another.
    fn is_near(self, other: Place) -> bool {
        let least = if self.is_ipv4() { 96 + 16 } else { 64 };
        (self.lid == 0) == (other.lid == 0) && self.nearness(other) >= least
    }
}

/// Which of `ours` is to be at the other end of each of `theirs`. Ports of the same network are put together, the
/// nearest first; among equals the first with the first. One lane there is in any case, so that ports are tried
/// whose addresses look strange to each other; more only where it is likely that they work. `shunned` are pairs that
/// have been tried in vain.
pub(super) fn pair(
    theirs: &Lanes<Place>,
    ours: &PerCard<Place>,
    shunned: impl Fn(Place, Place) -> bool,
) -> Lanes<usize> {
    let mut pairs = [None; LANES_MAX];
    let there = |of: &[Option<Place>; LANES_MAX]| {
        of.iter().enumerate().filter_map(|(index, place)| Some((index, (*place)?))).collect::<Vec<_>>()
    };
    let (mut theirs, mut ours) = (there(theirs), there(ours));
    let mut first = true;
    loop {
        let all = theirs.iter().flat_map(|their| ours.iter().map(move |our| (*their, *our)));
        let best = all
            .filter(|((_, their), (_, our))| !shunned(*their, *our) && (first || their.is_near(*our)))
            .max_by_key(|((lane, their), (card, our))| (their.nearness(*our), Reverse((*lane, *card))));
        let Some(((lane, _), (card, _))) = best else { return pairs };
        pairs[lane] = Some(card);
        theirs.retain(|(other, _)| *other != lane);
        ours.retain(|(other, _)| *other != card);
        first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn ports(ips: &[&str]) -> [Option<Place>; LANES_MAX] {
        let mut ports = [None; LANES_MAX];
        for (port, ip) in ports.iter_mut().zip(ips) {
            let ip: Option<Ipv4Addr> = ip.parse().ok();
            *port = ip.map(|ip| Place { gid: ip.to_ipv6_mapped().octets(), lid: 0 });
        }
        ports
    }

    fn any(_: Place, _: Place) -> bool {
        false
    }

    #[test]
    fn ports_of_one_network_are_put_together() {
        let ours = ports(&["10.2.0.1", "10.1.0.1", "10.3.0.1"]);
        let pairs = pair(&ports(&["10.1.0.2", "10.2.0.2"]), &ours, any);
        assert_eq!(pairs, [Some(1), Some(0), None, None]);
        // The card of the first network is gone here, or there.
        assert_eq!(pair(&ports(&["10.1.0.2", "", "10.3.0.2"]), &ours, any), [Some(1), None, Some(2), None]);
        assert_eq!(pair(&ports(&["", "10.2.0.2"]), &ours, any), [None, Some(0), None, None]);
    }

    #[test]
    fn one_network_is_paired_in_full() {
        let pairs = pair(&ports(&["10.1.0.1", "10.1.0.2"]), &ports(&["10.1.0.3", "10.1.0.4"]), any);
        let mut cards: Vec<usize> = pairs.into_iter().flatten().collect();
        cards.sort_unstable();
        assert_eq!(cards, [0, 1]);
        let ib =
            |last| Some(Place { gid: [0xfe, 0x80, 0, 0, 0, 0, 0, 0, last, 0, 0, 0, 0, 0, 0, last], lid: 3 });
        let pairs = pair(&[ib(1), ib(2), None, None], &[ib(9), ib(1), ib(2), None], any);
        assert_eq!(pairs, [Some(0), Some(1), None, None], "the first with the first");
    }

    #[test]
    fn strangers_get_one_lane() {
        let ours = ports(&["192.168.0.1", "172.16.0.1"]);
        let pairs = pair(&ports(&["10.1.0.1", "10.2.0.1"]), &ours, any);
        assert_eq!(pairs.iter().flatten().count(), 1, "{pairs:?}");
        assert_eq!(pair(&ports(&[]), &ours, any), [None; LANES_MAX]);
    }

    #[test]
    fn what_was_tried_in_vain_is_left_out() {
        let (theirs, ours) = (ports(&["10.1.0.1", "10.2.0.1"]), ports(&["10.1.0.2", "10.2.0.2"]));
        let shunned = |their: Place, our: Place| (Some(their), Some(our)) == (theirs[0], ours[0]);
        assert_eq!(pair(&theirs, &ours, shunned), [None, Some(1), None, None]);
    }
}
