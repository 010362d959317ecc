//! Which cards, ports and addresses RDMA uses, and why. Pure: it chooses among facts that `verbs` gathers, so that
//! `dflow doctor`, the transport and the tests reason alike.

use dflow_proto::wire::pairing::LANES_MAX;
use std::cmp::Reverse;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// What an address of a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GidKind {
    /// InfiniBand, or RoCE of the first version on Ethernet frames: not routable, long superseded.
    IbOrRoce1,
    /// RoCE over UDP.
    Roce2,
}

/// An address of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gid {
    /// Its place in the port's table.
    pub index: u8,
    /// Its 16 bytes.
    pub bytes: [u8; 16],
    /// What it speaks.
    pub kind: GidKind,
}

impl Gid {
    /// The address it stands for: IPv4 where it is mapped.
    pub fn ip(&self) -> IpAddr {
        let six = Ipv6Addr::from(self.bytes);
        six.to_ipv4_mapped().map_or(IpAddr::V6(six), IpAddr::V4)
    }

    fn is_link_local(&self) -> bool {
        self.bytes[..2] == [0xfe, 0x80]
    }
}

/// A port of a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// From 1.
    pub number: u8,
    /// It carries traffic.
    pub active: bool,
    /// RoCE, not InfiniBand.
    pub ethernet: bool,
    /// The largest packet's payload in bytes.
    pub mtu_bytes: u32,
    /// Its speed in Mbit/s; 0 where the driver does not tell.
    pub mbit_s: u32,
    /// The fabric's address of the port; 0 on Ethernet.
    pub lid: u16,
    /// Its addresses.
    pub gids: Vec<Gid>,
}

/// A card, or what imitates one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// As the kernel calls it.
    pub name: String,
    /// iWARP, whose connections only librdmacm can make.
    pub iwarp: bool,
    /// Its ports.
    pub ports: Vec<Port>,
}

/// A port to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChosenPort {
    /// The card.
    pub device: String,
    /// Its port.
    pub port: u8,
    /// The port's address.
    pub gid: Gid,
    /// Why this one.
    pub why: String,
}

impl ChosenPort {
    /// Whether both are the same port, at whatever address.
    pub fn is_same_port(&self, other: &ChosenPort) -> bool {
        (&self.device, self.port) == (&other.device, other.port)
    }
}

impl fmt::Display for ChosenPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ChosenPort { device, port, gid, why } = self;
        write!(f, "{device} port {port} gid {} ({}): {why}", gid.index, gid.ip())
    }
}

/// What to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// At least one port, and at most [`LANES_MAX`]; the best first.
    pub ports: Vec<ChosenPort>,
    /// What could be used and is not, with the reason.
    pub left_out: Vec<String>,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, port) in self.ports.iter().enumerate() {
            write!(f, "{}{port}", if index == 0 { "" } else { "; and " })?;
        }
        self.left_out.iter().try_for_each(|why| write!(f, "; not {why}"))
    }
}

/// How good a candidate is; compared field by field.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    listens: bool,
    roce2_or_ib: bool,
    ipv4: bool,
    routable: bool,
    mbit_s: u32,
    mtu_bytes: u32,
}

/// A port that could be used, at its best address.
struct Candidate {
    rank: Rank,
    ethernet: bool,
    chosen: ChosenPort,
}

/// Chooses among `devices`.
///
/// `wish` names cards, separated by commas, and excludes all others. `listen` is the address that peers dial: a card
/// that carries it is reachable wherever TCP is. `is_local` tells whether an address belongs to this host (and network
/// namespace): a card of another namespace is listed here, too, but cannot be used.
///
/// More than one port is used where the others are like the best. What the wish names is used in any case, if it is
/// on the same kind of network.
///
/// The error lists for each card why it cannot be used.
pub fn choose(
    devices: &[Device],
    wish: Option<&str>,
    listen: Option<IpAddr>,
    is_local: &dyn Fn(IpAddr) -> bool,
) -> Result<Choice, String> {
    let wished: Vec<&str> = wish.into_iter().flat_map(|wish| wish.split(',')).map(str::trim).collect();
    let mut against: Vec<String> = wished
        .iter()
        .filter(|name| devices.iter().all(|device| device.name != **name))
        .map(|name| format!("there is no RDMA device {name}"))
        .collect();
    let mut candidates: Vec<Candidate> = Vec::new();
    for device in devices {
        if !wished.is_empty() && !wished.contains(&device.name.as_str()) {
            continue;
        }
        if device.iwarp {
            against.push(format!("{} is iWARP, which is not supported", device.name));
            continue;
        }
        for port in &device.ports {
            match candidate(device, port, listen, is_local) {
                Ok(candidate) => candidates.push(candidate),
                Err(why) => against.push(why),
            }
        }
    }
    // Equals stay in their order, so that the choice does not depend on how the list grew.
    candidates.sort_by_key(|candidate| Reverse(candidate.rank));
    let mut candidates = candidates.into_iter();
    let Some(best) = candidates.next() else {
        return Err(if against.is_empty() {
            "there is no RDMA device".to_owned()
        } else {
            against.join("; ")
        });
    };
    let mut choice = Choice { ports: vec![best.chosen.clone()], left_out: Vec::new() };
    for candidate in candidates {
        let chosen = &candidate.chosen;
        let why = match unlike(&best, &candidate, !wished.is_empty()) {
            None if choice.ports.iter().any(|port| port.gid.bytes == chosen.gid.bytes) => {
                Some("it has the same address")
            }
            None if choice.ports.len() == LANES_MAX => Some("there are enough"),
            why => why,
        };
        match why {
            None => choice.ports.push(candidate.chosen),
            Some(why) => choice.left_out.push(format!("{} port {}: {why}", chosen.device, chosen.port)),
        }
    }
    // Whoever names cards is told of each that is not used.
    if !wished.is_empty() {
        choice.left_out.append(&mut against);
    }
    Ok(choice)
}

/// A port at its best address, or why it cannot be used.
fn candidate(
    device: &Device,
    port: &Port,
    listen: Option<IpAddr>,
    is_local: &dyn Fn(IpAddr) -> bool,
) -> Result<Candidate, String> {
    let place = format!("{} port {}", device.name, port.number);
    if !port.active {
        return Err(format!("{place} is down: check its cable, or its network interface"));
    }
    let mut best: Option<(Rank, &Gid)> = None;
    let usable = |gid: &&Gid| gid.bytes != [0; 16] && (!port.ethernet || is_local(gid.ip()));
    for gid in port.gids.iter().filter(usable) {
        let rank = Rank {
            listens: listen.is_some_and(|listen| listen == gid.ip()),
            roce2_or_ib: !port.ethernet || gid.kind == GidKind::Roce2,
            ipv4: gid.ip().is_ipv4(),
            routable: !gid.is_link_local(),
            mbit_s: port.mbit_s,
            mtu_bytes: port.mtu_bytes,
        };
        // The first of equals stays, so that the choice does not depend on how the table grew.
        if best.is_none_or(|(have, _)| rank > have) {
            best = Some((rank, gid));
        }
    }
    let Some((rank, gid)) = best else {
        return Err(format!("{place} has no address that belongs to this host: give its interface one"));
    };
    let why = reason(port, gid, rank.listens);
    let chosen = ChosenPort { device: device.name.clone(), port: port.number, gid: *gid, why };
    Ok(Candidate { rank, ethernet: port.ethernet, chosen })
}

/// Why a port is not used beside the best, if it is not. One that is much slower would hold up what is spread over
/// both, and one of which it is not clear whom it reaches costs each peer a probe.
fn unlike(best: &Candidate, other: &Candidate, wished: bool) -> Option<&'static str> {
    let (rank, than) = (other.rank, best.rank);
    match () {
        () if other.ethernet != best.ethernet || rank.roce2_or_ib != than.roce2_or_ib => {
            Some("it is on another kind of network")
        }
        () if wished => None,
        () if other.ethernet && !rank.routable => Some("it has only a link-local address"),
        () if rank.ipv4 != than.ipv4 => Some("its address is of another family"),
        () if rank.mbit_s != 0 && rank.mbit_s < than.mbit_s / 2 => Some("it is much slower"),
        () => None,
    }
}

fn reason(port: &Port, gid: &Gid, listens: bool) -> String {
    let kind = match (port.ethernet, gid.kind) {
        (false, _) => "InfiniBand",
        (true, GidKind::Roce2) => "RoCE v2",
        (true, GidKind::IbOrRoce1) => "RoCE v1, since there is no v2 address",
    };
    let address = match () {
        () if listens => "the address that peers dial",
        () if gid.ip().is_ipv4() => "an IPv4 address of this host",
        () if gid.is_link_local() => "only a link-local address: peers behind a router are out of reach",
        () => "an IPv6 address of this host",
    };
    format!("{kind}, {address}, {} byte packets", port.mtu_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn gid(index: u8, ip: &str, kind: GidKind) -> Gid {
        let bytes = match ip.parse().expect("an address") {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        Gid { index, bytes, kind }
    }

    fn card(name: &str, gids: Vec<Gid>) -> Device {
        let port =
            Port { number: 1, active: true, ethernet: true, mtu_bytes: 4096, mbit_s: 100_000, lid: 0, gids };
        Device { name: name.to_owned(), iwarp: false, ports: vec![port] }
    }

    fn everywhere(_: IpAddr) -> bool {
        true
    }

    #[test]
    fn roce_2_over_ipv4_is_preferred_wherever_it_stands_in_the_table() {
        use GidKind::{IbOrRoce1, Roce2};
        let gids = vec![
            gid(0, "fe80::1", IbOrRoce1),
            gid(1, "fe80::1", Roce2),
            gid(2, "10.0.0.1", IbOrRoce1),
            gid(3, "10.0.0.1", Roce2),
        ];
        let choice = choose(&[card("a", gids)], None, None, &everywhere).expect("it is usable");
        assert_eq!((choice.ports[0].gid.index, choice.ports[0].port), (3, 1));
        assert!(choice.ports[0].why.contains("RoCE v2"), "{choice}");
    }

    #[test]
    fn the_card_that_peers_dial_comes_first() {
        let cards = [
            card("a", vec![gid(0, "10.0.0.1", GidKind::Roce2)]),
            card("b", vec![gid(0, "10.1.0.1", GidKind::Roce2)]),
        ];
        let listen = Some(IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1)));
        let names = |wish, listen| {
            let choice = choose(&cards, wish, listen, &everywhere).expect("usable");
            choice.ports.into_iter().map(|port| port.device).collect::<Vec<_>>()
        };
        assert_eq!(names(None, listen), ["b", "a"]);
        assert_eq!(names(None, None), ["a", "b"]);
        assert_eq!(names(Some("b"), None), ["b"]);
        assert_eq!(names(Some("b, a"), listen), ["b", "a"]);
    }

    #[test]
    fn only_ports_like_the_best_are_used_beside_it() {
        let one = |name: &str, ip: &str| card(name, vec![gid(0, ip, GidKind::Roce2)]);
        let mut slow = one("slow", "10.2.0.1");
        slow.ports[0].mbit_s = 1000;
        let mut ib = one("ib", "fe80::2");
        ib.ports[0].ethernet = false;
        let old = card("old", vec![gid(0, "10.3.0.1", GidKind::IbOrRoce1)]);
        let cards = [
            one("best", "10.0.0.1"),
            slow,
            ib,
            old,
            one("local", "fe80::1"),
            one("six", "fd00::1"),
            one("again", "10.0.0.1"),
            one("like", "10.1.0.1"),
        ];
        let choice = choose(&cards, None, None, &everywhere).expect("usable");
        let text = choice.to_string();
        assert_eq!(choice.ports.len(), 2, "{text}");
        assert!(text.starts_with("best port 1 gid 0 (10.0.0.1): ") && text.contains("; and like port 1"));
        for (name, why) in [
            ("slow", "much slower"),
            ("ib", "another kind"),
            ("old", "another kind"),
            ("local", "link-local"),
            ("six", "another family"),
            ("again", "the same address"),
        ] {
            let told = choice.left_out.iter().find(|told| told.starts_with(name)).expect("it is told");
            assert!(told.contains(why) && text.contains(&format!("; not {told}")), "{told}");
        }
        let choice = choose(&cards, Some("best,slow,six,none"), None, &everywhere).expect("usable");
        assert_eq!(choice.ports.len(), 3, "who names them wants them: {choice}");
        assert_eq!(choice.left_out, ["there is no RDMA device none"]);
        let many: Vec<Device> = (0..6).map(|n| one(&format!("m{n}"), &format!("10.0.0.{n}"))).collect();
        let choice = choose(&many, None, None, &everywhere).expect("usable");
        assert_eq!((choice.ports.len(), choice.left_out.len()), (LANES_MAX, 2), "{choice}");
    }

    #[test]
    fn what_cannot_be_used_is_told_by_name() {
        let mut down = card("down", vec![gid(0, "10.0.0.1", GidKind::Roce2)]);
        down.ports[0].active = false;
        let mut iwarp = card("iwarp", Vec::new());
        iwarp.iwarp = true;
        let foreign = card("foreign", vec![gid(0, "10.9.0.1", GidKind::Roce2)]);
        let why = choose(&[down, iwarp, foreign], None, None, &|_| false).expect_err("none is usable");
        for (name, what) in [("down", "is down"), ("iwarp", "not supported"), ("foreign", "no address")] {
            assert!(why.contains(name) && why.contains(what), "{why}");
        }
        assert_eq!(choose(&[], None, None, &everywhere), Err("there is no RDMA device".to_owned()));
        assert!(choose(&[], Some("mlx5_0"), None, &everywhere).expect_err("absent").contains("mlx5_0"));
    }
}
