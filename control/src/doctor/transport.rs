//! What would carry data between this node and its peers, as it is configured.

use super::{Finding, Grade};
use crate::daemon::config::Settings;
use dflow_dataplane::transport::Backend;
use std::fs;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::Path;

const CHECK: &str = "RDMA";
/// Where libraries are, by distribution.
const LIBRARY_FOLDERS: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/lib64",
    "/usr/local/lib",
];
const LIBRARY: &str = "libibverbs.so.1";
const INSTALL: &str = "sudo apt-get install libibverbs1 ibverbs-providers";

/// What the node is told about its transport.
#[derive(Clone, Copy, Debug)]
struct Wish<'a> {
    backend: Backend,
    /// As in the configuration.
    cards: Option<&'a str>,
    /// What peers dial.
    data: Option<IpAddr>,
    /// Without peers no transport is opened.
    has_peers: bool,
}

/// A card's port that would be used.
#[derive(Clone, Debug)]
struct Used {
    device: String,
    ip: IpAddr,
}

/// The cards that would be used.
#[derive(Clone, Debug)]
struct Usable {
    /// With the reasons.
    text: String,
    used: Vec<Used>,
}

/// The card that the node would use, and whether it is what its configuration asks for.
pub(super) fn rdma(settings: &Settings) -> Finding {
    let wish = Wish {
        backend: settings.backend,
        cards: settings.rdma_device.as_deref(),
        // A name that does not resolve is an error of the node's own, at its start.
        data: settings.data.to_socket_addrs().ok().and_then(|mut all| all.next()).map(|at| at.ip()),
        has_peers: !settings.peers.is_empty(),
    };
    let entries = fs::read_dir("/sys/class/infiniband").into_iter().flatten().flatten();
    let mut devices: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    devices.sort();
    let has_library = LIBRARY_FOLDERS.iter().any(|folder| Path::new(folder).join(LIBRARY).exists());
    judge(&wish, &devices, has_library, usable(&wish))
}

/// The cards that transfers would use, or why none.
#[cfg(feature = "rdma")]
fn usable(wish: &Wish<'_>) -> Result<Usable, String> {
    use dflow_dataplane::transport::rdma::look;
    let choice = look(wish.data, wish.cards).map_err(|error| error.to_string())?;
    let used = choice.ports.iter().map(|port| Used { device: port.device.clone(), ip: port.gid.ip() });
    Ok(Usable { text: choice.to_string(), used: used.collect() })
}

#[cfg(not(feature = "rdma"))]
fn usable(_: &Wish<'_>) -> Result<Usable, String> {
    Err("this dflow was built without the feature `rdma`".to_owned())
}

fn judge(wish: &Wish<'_>, devices: &[String], has_library: bool, usable: Result<Usable, String>) -> Finding {
    let usable = match (devices, has_library) {
        ([], _) => Err("no device".to_owned()),
        (devices, false) => Err(format!("{} without {LIBRARY}", devices.join(", "))),
        (devices, true) => usable.map_err(|why| format!("{}: {why}", devices.join(", "))),
    };
    let install = if devices.is_empty() || has_library { "" } else { INSTALL };
    match wish.backend {
        Backend::Auto | Backend::Rdma => match usable {
            Ok(usable) => judge_used(wish, &usable),
            Err(why) => judge_unusable(wish, devices, &why, install),
        },
        Backend::Uring | Backend::Tcp => judge_unwanted(wish, usable.ok()),
    }
}

/// RDMA is wanted and there: is it what was meant?
fn judge_used(wish: &Wish<'_>, usable: &Usable) -> Finding {
    let missed: Vec<&str> =
        names(wish).filter(|name| usable.used.iter().all(|used| used.device != *name)).collect();
    if !missed.is_empty() {
        return Finding::warn(
            CHECK,
            format!("{}: {}", configured(wish), usable.text),
            format!("{} is named in `cards` and not used; the others carry all", missed.join(", ")),
            "name only cards that are used in `cards`, or mend those: the line above says what each lacks",
        );
    }
    let elsewhere = |data: &IpAddr| {
        !data.is_loopback() && !data.is_unspecified() && usable.used.iter().all(|used| used.ip != *data)
    };
    // Whoever names cards knows where they are.
    if let (Some(data), None) = (wish.data.filter(elsewhere), wish.cards) {
        return Finding::warn(
            CHECK,
            usable.text.clone(),
            format!(
                "no card carries the address of `data`, {data}: data takes another network than what peers dial, or \
                 TCP where that does not reach them"
            ),
            "set `data` to the card's address, or `cards` to the card that is meant",
        );
    }
    let found =
        if is_default(wish) { usable.text.clone() } else { format!("{}: {}", configured(wish), usable.text) };
    Finding::ok(CHECK, found)
}

/// RDMA is wanted, or at least welcome, and not there.
fn judge_unusable(wish: &Wish<'_>, devices: &[String], why: &str, install: &str) -> Finding {
    let found = if is_default(wish) { why.to_owned() } else { format!("{}: {why}", configured(wish)) };
    let choose = match devices {
        [] => "transport = \"auto\" and no `cards` in the configuration (DFLOW_TRANSPORT, DFLOW_CARDS), or load the \
               card's driver"
            .to_owned(),
        devices => format!(
            "cards = \"{}\" in the configuration, or no `cards`: those that suit `data` are taken",
            devices.join(",")
        ),
    };
    let mend = if install.is_empty() { choose } else { install.to_owned() };
    if wish.backend == Backend::Rdma {
        let (grade, means) = match wish.has_peers {
            true => (Grade::Fail, "`transport = rdma` allows nothing else: the node does not start"),
            false => (
                Grade::Warn,
                "`transport = rdma` allows nothing else: the node will not start once it has peers",
            ),
        };
        return Finding::bad(CHECK, grade, found, means, mend);
    }
    if wish.cards.is_some() {
        let means = "none of `cards` can be used; the node starts, and transfers between nodes go over TCP";
        return Finding::warn(CHECK, found, means, mend);
    }
    match devices {
        // Hardware that is not there is no defect.
        [] => Finding::ok(CHECK, format!("{why}; TCP is what transfers between nodes would use")),
        _ => Finding::warn(CHECK, found, "no card can be used; transfers between nodes go over TCP", install),
    }
}

/// RDMA is not wanted.
fn judge_unwanted(wish: &Wish<'_>, usable: Option<Usable>) -> Finding {
    let auto = "transport = \"auto\" in the configuration, or DFLOW_TRANSPORT=auto";
    match usable {
        Some(usable) => Finding::warn(
            CHECK,
            format!("{}: not used, though it could be: {}", configured(wish), usable.text),
            "transfers between nodes go over TCP, which takes their processors and is slower",
            auto,
        ),
        None if wish.cards.is_some() => Finding::warn(
            CHECK,
            configured(wish),
            "`cards` has no effect: transfers between nodes go over TCP",
            auto,
        ),
        None => Finding::ok(CHECK, format!("{}: not used", configured(wish))),
    }
}

/// The names in `cards`.
fn names<'a>(wish: &Wish<'a>) -> impl Iterator<Item = &'a str> {
    wish.cards.into_iter().flat_map(|cards| cards.split(',')).map(str::trim).filter(|name| !name.is_empty())
}

fn is_default(wish: &Wish<'_>) -> bool {
    wish.backend == Backend::Auto && wish.cards.is_none()
}

/// The keys in question, as they would be written.
fn configured(wish: &Wish<'_>) -> String {
    let transport = match wish.backend {
        Backend::Auto => "auto",
        Backend::Rdma => "rdma",
        Backend::Uring => "uring",
        Backend::Tcp => "tcp",
    };
    let cards = wish.cards.map_or(String::new(), |cards| format!(", cards = {cards}"));
    format!("transport = {transport}{cards}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTO: Wish<'_> = Wish { backend: Backend::Auto, cards: None, data: None, has_peers: true };

    fn card(device: &str, ip: &str) -> Usable {
        let used = Used { device: device.into(), ip: ip.parse().expect("an address") };
        Usable { text: format!("{device} port 1 gid 3 ({ip}): why"), used: vec![used] }
    }

    fn judged(wish: Wish<'_>, usable: Result<Usable, String>) -> Finding {
        judge(&wish, &["mlx5_0".to_owned(), "mlx5_1".to_owned()], true, usable)
    }

    fn down() -> Result<Usable, String> {
        Err("mlx5_0 port 1 is down".to_owned())
    }

    #[test]
    fn a_device_without_its_library_is_told() {
        assert_eq!(judge(&AUTO, &[], false, down()).grade, Grade::Ok);
        assert_eq!(judged(AUTO, Ok(card("mlx5_0", "10.0.0.1"))).grade, Grade::Ok);
        let unusable = judged(AUTO, down());
        assert!(unusable.grade == Grade::Warn && unusable.found.contains("is down"), "{unusable:?}");
        let device = ["mlx5_0".to_owned()];
        assert!(judge(&AUTO, &device, false, down()).mend.contains("apt-get install"));
    }

    #[test]
    fn what_allows_nothing_but_rdma_fails_without_it() {
        let rdma = Wish { backend: Backend::Rdma, ..AUTO };
        let told = judged(rdma, down());
        assert!(told.grade == Grade::Fail && told.found.contains("transport = rdma"), "{told:?}");
        assert!(told.means.contains("does not start") && told.mend.contains("mlx5_0,mlx5_1"), "{told:?}");
        let told = judge(&rdma, &[], true, down());
        assert!(told.grade == Grade::Fail && told.mend.contains("auto"), "{told:?}");
        assert_eq!(judged(Wish { has_peers: false, ..rdma }, down()).grade, Grade::Warn);
        assert_eq!(judged(rdma, Ok(card("mlx5_0", "10.0.0.1"))).grade, Grade::Ok);
    }

    #[test]
    fn cards_that_are_named_and_not_used_are_told() {
        let named = |cards| Wish { cards: Some(cards), ..AUTO };
        let told = judged(named("mlx5_9"), Err("there is no RDMA device mlx5_9".to_owned()));
        assert!(told.grade == Grade::Warn && told.found.contains("cards = mlx5_9"), "{told:?}");
        assert!(told.means.contains("go over TCP") && told.mend.contains("mlx5_0,mlx5_1"), "{told:?}");
        // Even without any device.
        assert_eq!(judge(&named("mlx5_9"), &[], true, down()).grade, Grade::Warn);
        let told = judged(named("mlx5_0, mlx5_9"), Ok(card("mlx5_0", "10.0.0.1")));
        assert!(told.grade == Grade::Warn && told.means.starts_with("mlx5_9 is named"), "{told:?}");
        assert_eq!(judged(named("mlx5_0"), Ok(card("mlx5_0", "10.0.0.1"))).grade, Grade::Ok);
    }

    #[test]
    fn a_card_on_another_network_than_peers_dial_is_told() {
        let at = |ip: &str| Wish { data: Some(ip.parse().expect("an address")), ..AUTO };
        let told = judged(at("10.1.0.1"), Ok(card("mlx5_0", "10.0.0.1")));
        assert!(told.grade == Grade::Warn && told.means.contains("10.1.0.1"), "{told:?}");
        for ip in ["10.0.0.1", "127.0.0.1", "0.0.0.0"] {
            assert_eq!(judged(at(ip), Ok(card("mlx5_0", "10.0.0.1"))).grade, Grade::Ok, "{ip}");
        }
        let wish = Wish { cards: Some("mlx5_0"), ..at("10.1.0.1") };
        assert_eq!(judged(wish, Ok(card("mlx5_0", "10.0.0.1"))).grade, Grade::Ok);
    }

    #[test]
    fn a_card_that_the_configuration_leaves_out_is_told() {
        let tcp = Wish { backend: Backend::Tcp, ..AUTO };
        let told = judged(tcp, Ok(card("mlx5_0", "10.0.0.1")));
        assert!(told.grade == Grade::Warn && told.found.contains("transport = tcp"), "{told:?}");
        assert!(told.mend.contains("DFLOW_TRANSPORT=auto"), "{told:?}");
        assert_eq!(judged(tcp, down()).grade, Grade::Ok);
        let told = judged(Wish { cards: Some("mlx5_0"), ..tcp }, down());
        assert!(told.grade == Grade::Warn && told.means.contains("no effect"), "{told:?}");
    }
}
