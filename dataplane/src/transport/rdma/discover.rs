//! Which card, port and address RDMA uses, and why. Pure: it chooses among facts that `verbs` gathers, so that
//! `dflow doctor`, the transport and the tests reason alike.

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

/// What to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The card.
    pub device: String,
    /// Its port.
    pub port: u8,
    /// The port's address.
    pub gid: Gid,
    /// Why this one.
    pub why: String,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Choice { device, port, gid, why } = self;
        write!(f, "{device} port {port} gid {} ({}): {why}", gid.index, gid.ip())
    }
}

/// How good a candidate is; compared field by field.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    listens: bool,
    roce2_or_ib: bool,
    ipv4: bool,
    routable: bool,
    mtu_bytes: u32,
}

/// Chooses among `devices`.
///
/// `wish` names a card and excludes all others. `listen` is the address that peers dial: a card that carries it
/// is reachable wherever TCP is. `is_local` tells whether an address belongs to this host (and network
/// namespace): a card of another namespace is listed here, too, but cannot be used.
///
/// The error lists for each card why it cannot be used.
pub fn choose(
    devices: &[Device],
    wish: Option<&str>,
    listen: Option<IpAddr>,
    is_local: &dyn Fn(IpAddr) -> bool,
) -> Result<Choice, String> {
    let mut against = Vec::new();
    let mut best: Option<(Rank, Choice)> = None;
    for device in devices {
        if wish.is_some_and(|wish| wish != device.name) {
            continue;
        }
        if device.iwarp {
            against.push(format!("{} is iWARP, which is not supported", device.name));
            continue;
        }
        for port in &device.ports {
            let place = format!("{} port {}", device.name, port.number);
            if !port.active {
                against.push(format!("{place} is down: check its cable, or its network interface"));
                continue;
            }
            let usable = |gid: &&Gid| gid.bytes != [0; 16] && (!port.ethernet || is_local(gid.ip()));
            let mut found = false;
            for gid in port.gids.iter().filter(usable) {
                found = true;
                let listens = listen.is_some_and(|listen| listen == gid.ip());
                let ipv4 = gid.ip().is_ipv4();
                let roce2_or_ib = !port.ethernet || gid.kind == GidKind::Roce2;
                let routable = !gid.is_link_local();
                let rank = Rank { listens, roce2_or_ib, ipv4, routable, mtu_bytes: port.mtu_bytes };
                // The first of equals stays, so that the choice does not depend on how the list grew.
                if best.as_ref().is_none_or(|(have, _)| rank > *have) {
                    let why = reason(port, gid, listens);
                    let device = device.name.clone();
                    best = Some((rank, Choice { device, port: port.number, gid: *gid, why }));
                }
            }
            if !found {
                against.push(format!(
                    "{place} has no address that belongs to this host: give its interface one"
                ));
            }
        }
    }
    match (best, wish) {
        (Some((_, choice)), _) => Ok(choice),
        (None, Some(wish)) if against.is_empty() => Err(format!("there is no RDMA device {wish}")),
        (None, _) if against.is_empty() => Err("there is no RDMA device".to_owned()),
        (None, _) => Err(against.join("; ")),
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
        let port = Port { number: 1, active: true, ethernet: true, mtu_bytes: 4096, lid: 0, gids };
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
        assert_eq!((choice.gid.index, choice.port), (3, 1));
        assert!(choice.why.contains("RoCE v2"), "{choice}");
    }

    #[test]
    fn the_card_that_peers_dial_comes_first() {
        let cards = [
            card("a", vec![gid(0, "10.0.0.1", GidKind::Roce2)]),
            card("b", vec![gid(0, "10.1.0.1", GidKind::Roce2)]),
        ];
        let listen = Some(IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1)));
        assert_eq!(choose(&cards, None, listen, &everywhere).expect("usable").device, "b");
        assert_eq!(choose(&cards, None, None, &everywhere).expect("usable").device, "a");
        assert_eq!(choose(&cards, Some("b"), None, &everywhere).expect("usable").device, "b");
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
