//! `dflow node` as a service manager would start it: on ports of its own, known to be ready by what it
//! says, ended by SIGTERM.

use crate::run::{Ended, Scene};
use dflow_control::client::Client;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest that a node may take to be ready, to answer or to end, on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a node says when it is ready, before the address of its API.
const READY: &str = " is ready: DFLOW_SERVER=http://";

/// A node process. Dropped, it is killed.
pub struct Daemon {
    child: Child,
    /// Where its API listens, as HOST:PORT.
    pub api: String,
    stderr: Option<JoinHandle<String>>,
}

/// What a node answers to a plain request.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body as text.
    pub body: String,
}

impl Daemon {
    /// Starts a small node with a state directory of its own and these further arguments, and waits
    /// until it is ready.
    pub fn start(scene: &Scene, name: &str, args: &[&str]) -> Daemon {
        Daemon::begin(scene, name, args).ready()
    }

    /// Starts the process only: some cannot start.
    pub fn begin(scene: &Scene, name: &str, args: &[&str]) -> Starting {
        Daemon::begin_at(scene, (name, "127.0.0.1:0"), args, &[])
    }

    /// The same for an API at this address, with these further variables.
    pub fn begin_at(
        scene: &Scene,
        (name, api): (&str, &str),
        args: &[&str],
        variables: &[(&str, &str)],
    ) -> Starting {
        let mut command = Daemon::command(scene, (name, api), args);
        command.envs(variables.iter().copied());
        Daemon::spawn(command)
    }

    /// What starts a small node, for those who start it in a way of their own.
    pub fn command(scene: &Scene, (name, api): (&str, &str), args: &[&str]) -> Command {
        let state = scene.path(&format!("state-{name}"));
        let mut command = scene.dflow(&["node", "--name", name, "--api", api]);
        command.args(["--store", "256MiB", "--prefault", "8MiB", "--log", "warn", "--state"]).arg(state);
        command.args(args).env_remove("DFLOW_SERVER");
        command
    }

    /// Starts the process of a command that is, or becomes, a node.
    pub fn spawn(mut command: Command) -> Starting {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("dflow starts");
        let stderr = child.stderr.take().expect("piped");
        let (tell, ready) = sync_channel(1);
        let stderr = std::thread::spawn(move || {
            let mut all = String::new();
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Some((_, api)) = line.split_once(READY) {
                    // A test that has given up does not listen.
                    let _ = tell.send(api.to_owned());
                }
                all.push_str(&line);
                all.push('\n');
            }
            all
        });
        Starting { daemon: Daemon { child, api: String::new(), stderr: Some(stderr) }, ready }
    }

    /// A client of this node.
    pub fn client(&self) -> Client {
        Client::new(&self.api, None).expect("its own address")
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process has a number");
        kill_process(pid, Signal::TERM).expect("this test's own child, not yet reaped");
    }

    /// Waits for its end.
    pub fn end(mut self) -> Ended {
        let late = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("its own child") {
                break status;
            }
            assert!(Instant::now() < late, "the node does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        let stderr = self.stderr.take().expect("taken once").join().expect("no panic");
        Ended { code: status.code().unwrap_or(-1), stdout: Vec::new(), stderr }
    }

    /// Ends it as a service manager does. Fails unless it ends well.
    pub fn stop(self) {
        self.terminate();
        let ended = self.end();
        assert_eq!(ended.code, 0, "{ended}");
    }

    /// One request on a connection of its own; `head` are further lines of its head, each with its end.
    pub fn ask(&self, method: &str, path: &str, head: &str, body: &[u8]) -> Answer {
        let mut stream = self.send(method, path, head, body);
        let mut text = Vec::new();
        // A node that refuses a body may close before it has read it; its answer is there all the same.
        let _ = stream.read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        Answer { status: status.unwrap_or_else(|| panic!("no answer: {text:?}")), body: body.to_owned() }
    }

    /// The same, without reading the answer.
    pub fn send(&self, method: &str, path: &str, head: &str, body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(&self.api).expect("the node accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time that is not zero");
        let (api, length) = (&self.api, body.len());
        let head =
            format!("{method} {path} HTTP/1.0\r\nHost: {api}\r\nContent-Length: {length}\r\n{head}\r\n");
        stream.write_all(head.as_bytes()).expect("the node reads");
        // As above.
        let _ = stream.write_all(body);
        stream
    }

    /// A POST of JSON.
    pub fn post(&self, path: &str, body: &str) -> Answer {
        self.ask("POST", path, "Content-Type: application/json\r\n", body.as_bytes())
    }

    /// A GET.
    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", b"")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // One that has ended already cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A node that is not ready yet.
pub struct Starting {
    daemon: Daemon,
    ready: Receiver<String>,
}

impl Starting {
    /// Waits until it is.
    pub fn ready(mut self) -> Daemon {
        match self.ready.recv_timeout(PATIENCE) {
            Ok(api) => {
                self.daemon.api = api;
                self.daemon
            }
            Err(_) => {
                let _ = self.daemon.child.kill();
                panic!("the node is not ready: {}", self.daemon.end());
            }
        }
    }

    /// Waits for the end of one that cannot start.
    pub fn end(self) -> Ended {
        self.daemon.end()
    }
}

/// An address with a port that was free a moment ago.
pub fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound one").to_string()
}
