use super::*;
use std::os::unix::fs::PermissionsExt;

/// Loads a file with this text, with these flags on top.
fn load(text: &str, flags: &[(&str, &str)]) -> Result<Loaded, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("node.toml");
    std::fs::write(&path, text).expect("a file");
    let given = |key: &Key| {
        let flag = flags.iter().find(|(name, _)| *name == key.name)?;
        Some((flag.1.to_owned(), Origin::Flag(key.flag())))
    };
    let folder = folder.path().display().to_string();
    Loaded::load(Some(&path), given).map_err(|e| e.to_string().replace(&folder, "DIR"))
}

#[test]
fn a_later_layer_wins_and_says_so() {
    let file = "name = \"one\"\nstore = \"1GiB\"\ncpus = 1.5\nstrict = true\n";
    let loaded = load(file, &[("name", "two")]).expect("a good file");
    assert_eq!(loaded.settings.name, "two");
    assert_eq!(loaded.settings.node.store_bytes, 1 << 30);
    assert_eq!(loaded.settings.node.cpu_milli, 1500);
    assert!(loaded.settings.node.strict);
    assert_eq!(loaded.settings.keep_bytes, 256 << 20, "a quarter of the store unless told");
    let origin = |name: &str| {
        let at = KEYS.iter().position(|k| k.name == name).expect("a key");
        loaded.origins[at].clone()
    };
    assert_eq!(origin("name"), Origin::Flag("name".into()));
    assert!(matches!(origin("store"), Origin::File { line: 2, .. }));
    assert_eq!(origin("slots"), Origin::Default);
}

#[test]
fn slots_and_idle_processes_follow_the_cores_unless_given() {
    let node = |file: &str| load(file, &[]).expect("a good file").settings.node;
    let follows = node("name = \"one\"\ncpus = 1000\n");
    assert_eq!((follows.slots, follows.idle_max), (4004, 32000));
    let given = node("idle_max = 3\nslots = 7\nname = \"one\"\ncpus = 1000\n");
    assert_eq!((given.slots, given.idle_max), (7, 3));
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let table = [
        ("nmae = \"a\"\n", "DIR/node.toml:1: there is no key `nmae`; did you mean `name`?"),
        (
            "name = \"a\"\nzzz = 1\n",
            "DIR/node.toml:2: there is no key `zzz`; `dflow config show` lists them all",
        ),
        (
            "name = \"A\"\n",
            "`name` = `A` (DIR/node.toml:1): it is 1 to 63 of the letters a-z, digits and `-`",
        ),
        ("name = \"a\"\nslots = 0\n", "`slots` = `0` (DIR/node.toml:2): it is at least 1"),
        ("store = \"2 GB of it\"\n", "`store`"),
        ("name = \n", "DIR/node.toml:1: "),
        ("api = \"localhost\"\n", "it is HOST:PORT"),
        ("[store]\nbytes = 1\n", "`store`: it is a text, a number or `true`"),
        ("api = \"0.0.0.0:7400\"\n", "is not loopback"),
        ("data = \"0.0.0.0:7401\"\n", "set `secret_file`"),
        ("name = \"a\"\npeers = [\"a=h:1\"]\n", "two nodes of one name: this node and the peer at h:1"),
        ("peers = [\"b=h:1\", \"b=i:1\"]\n", "two nodes of one name: the peers at h:1 and i:1"),
        ("[peers]\nb = { dta = \"h:1\" }\n", "a peer has `data` and `api`, not `dta`"),
        ("peers = [\"b\"]\n", "a peer is NAME=DATA"),
        ("secret_file = \"/nowhere/at/all\"\n", "secret_file /nowhere/at/all: "),
        ("log_format = \"xml\"\n", "it is `text` or `json`"),
        ("cpus = 0\n", "0 cores"),
    ];
    for (text, wanted) in table {
        let error = load(text, &[]).err().unwrap_or_else(|| panic!("accepted: {text}"));
        assert!(error.contains(wanted), "{text:?}: {error}");
    }
}

#[test]
fn peers_are_read_in_all_their_forms() {
    let one =
        load("api = \"127.0.0.1:9\"\n[peers]\nb = \"h:1\"\nc = { data = \"i:1\", api = \"i:2\" }\n", &[]);
    let other = load("", &[("peers", "b=h:1 c=i:1,i:2"), ("api", "127.0.0.1:9")]);
    let (one, other) = (one.expect("good").settings.peers, other.expect("good").settings.peers);
    assert_eq!(one, other);
    assert_eq!(one[0], Peer { name: "b".into(), data: "h:1".into(), api: "h:9".into() });
}

#[test]
fn what_is_shown_can_be_read_again() {
    let loaded =
        load("name = \"a\"\nkeep_s = 7\nspill = \"none\"\n[peers]\nb = \"h:1\"\n", &[]).expect("good");
    let mut again = Settings::default();
    for key in &KEYS {
        (key.set)(&mut again, &(key.show)(&loaded.settings)).unwrap_or_else(|e| panic!("{}: {e}", key.name));
    }
    for key in &KEYS {
        assert_eq!((key.show)(&again), (key.show)(&loaded.settings), "{}", key.name);
    }
}

#[test]
fn a_secret_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("secret");
    let with_mode = |text: &str, mode: u32| {
        std::fs::write(&path, text).expect("a file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("its mode");
        Secret::read(&path)
    };
    assert!(with_mode("short", 0o600).is_err_and(|e| e.to_string().contains("at least 16")));
    assert!(with_mode("0123456789abcdef", 0o644).is_err_and(|e| e.to_string().contains("chmod 600")));
    assert!(with_mode("0123456789 abcdef", 0o600).is_err_and(|e| e.to_string().contains("base64")));
    let secret = with_mode("0123456789abcdef\n", 0o600).expect("a good secret");
    assert!(secret.is("0123456789abcdef") && !secret.is("0123456789abcdeg") && !secret.is(""));
    assert_eq!(format!("{secret:?}"), "Secret(..)");
    let text = format!("api = \"0.0.0.0:7400\"\nsecret_file = \"{}\"\n", path.display());
    assert!(load(&text, &[]).is_ok(), "off loopback with a secret");
}
