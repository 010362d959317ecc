//! Rules about what stands in source files.

use crate::lexer::{lex, lines_with_word};
use crate::{TextFile, expect_none, text_files};

/// The files that may say `unsafe`, each with what it needs it for. Everything else is safe code
/// over these.
const UNSAFE_FILES: [(&str, &str); 26] = [
    ("control/src/bench/clock.rs", "clock_gettime, for clocks that `std` does not read"),
    ("control/src/netns.rs", "entering a network namespace between fork and exec"),
    ("control/src/node/object.rs", "a view of a sealed, leased object as a slice"),
    ("dataplane/src/arena.rs", "views of sealed, leased objects as slices"),
    ("dataplane/src/prefault.rs", "a low priority for the thread that touches pages ahead of use"),
    (
        "dataplane/src/transport/rdma/card.rs",
        "an RDMA card's queues and registrations, which C frees and the card fills",
    ),
    ("dataplane/src/transport/rdma/library.rs", "loading libibverbs"),
    ("dataplane/src/transport/rdma/queue.rs", "work requests, whose entries point into memory of the arena"),
    ("dataplane/src/transport/rdma/survey.rs", "structs that libibverbs fills in"),
    ("dataplane/src/transport/rdma/window.rs", "memory windows, which C frees and requests name"),
    ("dataplane/src/transport/sys.rs", "socket calls that fill memory of the arena"),
    (
        "dataplane/src/transport/uring/mod.rs",
        "the submission queue, whose entries point into memory of the arena",
    ),
    ("dataplane/shm/src/futex.rs", "the futex system call"),
    ("dataplane/shm/src/ring_loom.rs", "the ring's memory as loom models it"),
    ("dataplane/shm/src/pass.rs", "control messages of sockets, and owning the descriptors they bring"),
    (
        "dataplane/shm/src/segment.rs",
        "mappings: the one place where addresses of shared memory become references",
    ),
    ("hwtests/src/conformance/forbid.rs", "a seccomp filter, to test what happens without io_uring"),
    ("ffi/src/abi.rs", "the C interface of functions: pointers that C hands over"),
    ("ffi/src/abi_worker.rs", "the C interface of language bindings: pointers that C hands over"),
    ("ffi/src/bin/zygote.rs", "loading libdflow"),
    ("ffi/src/input.rs", "views of inputs that C reads"),
    ("ffi/src/process.rs", "system calls about processes"),
    ("ffi/src/runtime/exec/mod.rs", "what happens between fork and exec"),
    ("ffi/src/runtime/exec/pump.rs", "splicing a program's output into the store"),
    ("ffi/src/runtime/native.rs", "calling a function of a loaded library"),
    ("ffi/src/zygote/child.rs", "what happens right after fork"),
];

/// Lines at which a file is to be thought about, and at which it is refused.
const LINES_WARN: usize = 600;
const LINES_MAX: usize = 1000;

/// A reason shorter than this cannot name an invariant and what upholds it. Bytes.
const SAFETY_BYTES_MIN: usize = 24;

/// What may not be written in any file, and why. Spelt in two parts so that this table does not
/// break its own rule.
const BANNED: [(&str, &str, &str); 12] = [
    ("to", "do!(", "finish it, or return a typed error"),
    ("unimple", "mented!(", "finish it, or return a typed error"),
    ("FIX", "ME", "mend it, or open an issue"),
    ("TO", "DO:", "do it, or open an issue"),
    ("#[ign", "ore", "a test that cannot run prints `SKIP what: why` and returns"),
    ("db", "g!(", "use tracing"),
    ("/wo", "rk/", "a path of one machine"),
    ("/ro", "ot/", "a path of one machine"),
    ("/ho", "me/", "a path of one machine"),
    ("/tmp/", "target", "a path of one machine"),
    ("crates", ".io", "registries are the reader's choice"),
    ("pypi", ".org", "registries are the reader's choice"),
];

/// Generated files, which say what their generator says.
const GENERATED: [&str; 1] = ["Cargo.lock"];

#[test]
fn unsafe_stands_only_in_listed_files() {
    let mut wrongs = Vec::new();
    let files = text_files();
    for file in files.iter().filter(|f| f.has_extension("rs")) {
        let lines = lines_with_word(&lex(&file.text).code, "unsafe");
        let listed = UNSAFE_FILES.iter().any(|(path, _)| *path == file.path);
        match (listed, lines.first()) {
            (false, Some(line)) => wrongs.push(format!("{}:{line}: not a file for unsafe code", file.path)),
            (true, None) => {
                wrongs.push(format!("{}: listed, but has no unsafe code: take it off", file.path))
            }
            _ => {}
        }
    }
    for (path, reason) in UNSAFE_FILES {
        if !files.iter().any(|f| f.path == path) {
            wrongs.push(format!("{path}: listed, but does not exist: take it off"));
        }
        assert!(!reason.is_empty(), "{path} needs a reason");
    }
    expect_none(
        "unsafe code stands only in the files of UNSAFE_FILES (hwtests/tests/tidy/sources.rs):",
        &wrongs,
    );
}

#[test]
fn safety_comments_give_a_reason() {
    let mut wrongs = Vec::new();
    for file in text_files().iter().filter(|f| f.has_extension("rs")) {
        let comments = lex(&file.text).comments;
        for (index, (line, text)) in comments.iter().enumerate() {
            let Some(reason) = text.trim_start_matches(['/', '!', '*', ' ']).strip_prefix("SAFETY:") else {
                continue;
            };
            // Pointing to another comment of the same file is a reason, too.
            let points = reason.trim().starts_with("as in `");
            let goes_on = comments.get(index + 1).is_some_and(|(next, _)| next - line == 1);
            if reason.trim().len() < SAFETY_BYTES_MIN && !goes_on && !points {
                wrongs.push(format!("{}:{line}: {text}", file.path));
            }
        }
    }
    expect_none("a SAFETY comment names the invariant and what upholds it:", &wrongs);
}

#[test]
fn files_are_short() {
    let mut wrongs = Vec::new();
    for file in text_files().iter().filter(|f| is_source(f)) {
        match file.text.lines().count() {
            n if n > LINES_MAX => wrongs.push(format!("{}: {n} lines, more than {LINES_MAX}", file.path)),
            n if n > LINES_WARN => println!("think about splitting {}: {n} lines", file.path),
            _ => {}
        }
    }
    expect_none("long files hide their structure; split them:", &wrongs);
}

fn is_source(file: &TextFile) -> bool {
    ["rs", "py", "c", "h", "sh", "yaml"].iter().any(|e| file.has_extension(e))
}

#[test]
fn nothing_banned_is_written() {
    let mut wrongs = Vec::new();
    for file in text_files().iter().filter(|f| !GENERATED.contains(&f.path.as_str())) {
        for (first, second, why) in BANNED {
            let banned = format!("{first}{second}");
            for (index, line) in file.text.lines().enumerate() {
                if stands_alone(line, &banned) {
                    wrongs.push(format!("{}:{}: `{banned}`: {why}", file.path, index + 1));
                }
            }
        }
    }
    expect_none("not to be written in any file:", &wrongs);
}

/// Whether `banned` occurs in `line` other than as the end of a longer name or path.
fn stands_alone(line: &str, banned: &str) -> bool {
    line.match_indices(banned).any(|(at, _)| {
        !line[..at].ends_with(|c: char| {
            c.is_alphanumeric() || c == '_' || (banned.starts_with('/') && "-.}".contains(c))
        })
    })
}

#[test]
fn text_is_plain() {
    let mut wrongs = Vec::new();
    for file in text_files() {
        if file.text.contains('\r') {
            wrongs.push(format!("{}: carriage returns", file.path));
        }
        for (index, line) in file.text.lines().enumerate() {
            let code = !file.has_extension("md") && !file.has_extension("lock");
            if code && line.ends_with([' ', '\t']) {
                wrongs.push(format!("{}:{}: blanks at the end of the line", file.path, index + 1));
            }
        }
        if !file.text.is_empty() && !file.text.ends_with('\n') {
            wrongs.push(format!("{}: no newline at the end", file.path));
        }
    }
    expect_none("text files are plain:", &wrongs);
}
