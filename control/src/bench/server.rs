//! The remote store of imitated systems that bring none: a small server of the Redis protocol.
//!
//! It knows PING, SET, GET and DEL. Values are kept in memory, or each in a file (in the page cache, that
//! is: nothing is synced).

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Longest value. Bytes.
const VALUE_BYTES_MAX: usize = 4 << 30;
/// Most words of a command.
const WORDS_MAX: usize = 1 << 16;
/// Longest word but the last of a SET. Bytes.
const WORD_BYTES_MAX: usize = 4096;
/// Connections at one time.
const CONNECTIONS_MAX: usize = 1024;

/// A value: its bytes, or the file that has them.
#[derive(Clone)]
enum Held {
    Memory(Arc<[u8]>),
    File(Arc<Owned>),
}

/// A file that is removed with its last user.
struct Owned(PathBuf);

impl Drop for Owned {
    fn drop(&mut self) {
        // It is in a directory that its maker removes as a whole.
        let _ = fs::remove_file(&self.0);
    }
}

struct Shared {
    dir: Option<PathBuf>,
    values: Mutex<HashMap<Vec<u8>, Held>>,
    files: AtomicU64,
}

/// Serves until the listener fails. Values go to files of `dir`, if there is one.
///
/// # Errors
/// The listener's.
pub fn serve(listener: &TcpListener, dir: Option<&Path>) -> io::Result<()> {
    let shared =
        Shared { dir: dir.map(Path::to_path_buf), values: Mutex::default(), files: AtomicU64::new(0) };
    let shared = Arc::new(shared);
    let connections = Arc::new(());
    loop {
        let (stream, _) = listener.accept()?;
        if Arc::strong_count(&connections) > CONNECTIONS_MAX {
            continue;
        }
        let (shared, counted) = (shared.clone(), connections.clone());
        std::thread::spawn(move || {
            // A client that misbehaves or leaves ends its own connection only.
            if let Err(error) = converse(&shared, stream) {
                tracing::debug!(%error, "a client of the remote store is gone");
            }
            drop(counted);
        });
    }
}

fn converse(shared: &Shared, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(words) = read_count(&mut reader, b'*')? {
        if words == 0 || words > WORDS_MAX {
            return Err(bad("a command of too many words"));
        }
        let name = read_word(&mut reader, WORD_BYTES_MAX)?.to_ascii_uppercase();
        let mut keys = Vec::new();
        let is_set = name == b"SET" && words == 3;
        for _ in 1..words - usize::from(is_set) {
            keys.push(read_word(&mut reader, WORD_BYTES_MAX)?);
        }
        let value = if is_set { Some(read_word(&mut reader, VALUE_BYTES_MAX)?) } else { None };
        let stream = reader.get_mut();
        match (&name[..], value) {
            (b"PING", _) => stream.write_all(b"+PONG\r\n")?,
            (b"SET", Some(value)) => {
                let bytes = value.len();
                match shared.hold(value) {
                    Ok(held) => {
                        let old = shared.lock().insert(keys.swap_remove(0), held);
                        drop(old);
                        stream.write_all(b"+OK\r\n")?;
                    }
                    // A full disk, most often: its client is told, since a line that breaks off tells nothing.
                    Err(error) => {
                        stream
                            .write_all(format!("-ERR cannot keep {bytes} bytes: {error}\r\n").as_bytes())?;
                    }
                }
            }
            (b"GET", _) if keys.len() == 1 => {
                let held = shared.lock().get(&keys[0]).cloned();
                give(stream, held)?;
            }
            (b"DEL", _) => {
                let gone: Vec<_> = {
                    let mut values = shared.lock();
                    keys.iter().filter_map(|key| values.remove(key)).collect()
                };
                stream.write_all(format!(":{}\r\n", gone.len()).as_bytes())?;
            }
            _ => stream.write_all(b"-ERR only PING, SET key value, GET key and DEL keys are known\r\n")?,
        }
    }
    Ok(())
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Vec<u8>, Held>> {
        // A map has no invariant that a panicking writer could have broken half-way.
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self, value: Vec<u8>) -> io::Result<Held> {
        let Some(dir) = &self.dir else { return Ok(Held::Memory(value.into())) };
        let file = Owned(dir.join(self.files.fetch_add(1, Ordering::Relaxed).to_string()));
        fs::write(&file.0, value)?;
        Ok(Held::File(Arc::new(file)))
    }
}

fn give(stream: &mut TcpStream, held: Option<Held>) -> io::Result<()> {
    let file;
    let bytes: &[u8] = match &held {
        None => return stream.write_all(b"$-1\r\n"),
        Some(Held::Memory(bytes)) => bytes,
        Some(Held::File(path)) => {
            file = fs::read(&path.0)?;
            &file
        }
    };
    let head = format!("${}\r\n", bytes.len());
    let mut slices = &mut [IoSlice::new(head.as_bytes()), IoSlice::new(bytes), IoSlice::new(b"\r\n")][..];
    while !slices.is_empty() {
        match stream.write_vectored(slices)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => IoSlice::advance_slices(&mut slices, written),
        }
    }
    Ok(())
}

/// The number on a line that begins with `mark`; `None` at the end of the stream.
fn read_count(reader: &mut BufReader<TcpStream>, mark: u8) -> io::Result<Option<usize>> {
    let mut line = Vec::new();
    if reader.take(64).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    let text = line.strip_prefix(&[mark]).and_then(|line| line.strip_suffix(b"\r\n"));
    let number = text.and_then(|text| std::str::from_utf8(text).ok()).and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| bad("no number where one is due"))
}

fn read_word(reader: &mut BufReader<TcpStream>, bytes_max: usize) -> io::Result<Vec<u8>> {
    let bytes = read_count(reader, b'$')?.ok_or(io::ErrorKind::UnexpectedEof)?;
    if bytes > bytes_max {
        return Err(bad("a word that is too long"));
    }
    let mut word = Vec::new();
    // Grows with what comes, so that a number alone takes no memory.
    let got = reader.take(bytes as u64).read_to_end(&mut word)?;
    let mut end = [0; 2];
    reader.read_exact(&mut end)?;
    if got == bytes && end == *b"\r\n" { Ok(word) } else { Err(bad("a word without its end")) }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(stream: &mut TcpStream, text: &str, answer: &str) {
        stream.write_all(text.as_bytes()).expect("sent");
        let mut got = vec![0; answer.len()];
        stream.read_exact(&mut got).expect("an answer");
        assert_eq!(String::from_utf8_lossy(&got), answer);
    }

    #[test]
    fn what_cannot_be_kept_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().expect("a directory");
        let gone = dir.path().join("gone");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = listener.local_addr().expect("an address");
        std::thread::spawn(move || serve(&listener, Some(&gone)));
        let mut stream = TcpStream::connect(at).expect("it listens");
        ask(
            &mut stream,
            "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$3\r\nxyz\r\n",
            "-ERR cannot keep 3 bytes: No such file",
        );
        let mut rest = BufReader::new(&stream);
        rest.read_line(&mut String::new()).expect("the rest of the line");
        ask(&mut stream, "*2\r\n$3\r\nGET\r\n$1\r\na\r\n", "$-1\r\n");
    }

    #[test]
    fn what_is_put_is_given_until_it_is_deleted() {
        let dir = tempfile::tempdir().expect("a directory");
        for dir in [None, Some(dir.path().to_path_buf())] {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let at = listener.local_addr().expect("an address");
            let files = dir.clone();
            std::thread::spawn(move || serve(&listener, files.as_deref()));
            let mut stream = TcpStream::connect(at).expect("it listens");
            ask(&mut stream, "*1\r\n$4\r\nPING\r\n", "+PONG\r\n");
            ask(&mut stream, "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$5\r\nx\r\ny\n\r\n", "+OK\r\n");
            ask(&mut stream, "*2\r\n$3\r\nGET\r\n$1\r\na\r\n", "$5\r\nx\r\ny\n\r\n");
            ask(&mut stream, "*2\r\n$3\r\nGET\r\n$1\r\nb\r\n", "$-1\r\n");
            ask(&mut stream, "*3\r\n$3\r\nDEL\r\n$1\r\na\r\n$1\r\nb\r\n", ":1\r\n");
            ask(&mut stream, "*2\r\n$3\r\nGET\r\n$1\r\na\r\n", "$-1\r\n");
            if let Some(dir) = dir {
                assert_eq!(fs::read_dir(dir).expect("still there").count(), 0);
            }
            // Nonsense ends this connection, and no other.
            stream.write_all(b"*999999999\r\n").expect("sent");
            assert_eq!(stream.read(&mut [0; 1]).expect("closed"), 0);
            ask(&mut TcpStream::connect(at).expect("still there"), "*1\r\n$4\r\nPING\r\n", "+PONG\r\n");
        }
    }
}
