//! The process that an imitated system keeps its objects in, at the other end of a link.

use super::System;
use crate::netns::Lab;
use crate::node::TempFolder;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Where a store in a namespace of its own listens.
const PORT: u16 = 7379;
/// A store answers by then.
const START: Duration = Duration::from_secs(10);

/// Why there is no remote store.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The program is not installed.
    #[error("{program} is missing: apt-get install --no-install-recommends {package}")]
    Missing {
        /// Its name.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// It did not start.
    #[error("cannot start {program}: {source}")]
    Start {
        /// Its name.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It does not answer.
    #[error("{program} at {at} does not answer within {} s", START.as_secs())]
    Silent {
        /// Its name.
        program: &'static str,
        /// Its address.
        at: SocketAddr,
    },
}

/// A store that runs as long as this is kept.
#[derive(Debug)]
pub(super) struct RemoteStore {
    child: Child,
    /// Its files.
    _folder: TempFolder,
    /// Where it answers.
    pub(super) at: SocketAddr,
    /// The network it is in, if not the caller's.
    pub(super) lab: Option<Arc<Lab>>,
    /// What lies between, in words.
    pub(super) link: String,
}

impl RemoteStore {
    /// Starts the store of a system, behind a link of that many bytes a second where this process may
    /// make one.
    pub(super) fn start(system: System, link_bytes_per_s: u64) -> Result<RemoteStore, RemoteError> {
        static STORES: AtomicU32 = AtomicU32::new(0);
        let redis = system == System::FaasflowRedis;
        let program = if redis { "redis-server" } else { "dflow bench store" };
        let failed = |source| RemoteError::Start { program, source };
        let (lab, link) = lab(system, link_bytes_per_s);
        let at = match &lab {
            Some(lab) => SocketAddr::new(IpAddr::V4(lab.address(1)), PORT),
            None => free_port().map_err(failed)?,
        };
        let store = STORES.fetch_add(1, Ordering::Relaxed);
        let folder = TempFolder::new("dflow-bench-", &store.to_string()).map_err(failed)?;
        let dir = folder.path();
        let mut command = if redis {
            // Ended by the kernel when this process is, by whatever signal.
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "redis-server", "--save", "", "--appendonly", "no"]);
            command.args(["--protected-mode", "no", "--bind", &at.ip().to_string()]);
            command.args(["--port", &at.port().to_string(), "--dir"]).arg(dir);
            command.stdin(Stdio::null());
            command
        } else {
            let mut command = Command::new(std::env::current_exe().map_err(failed)?);
            command.args(["bench", "store", "--listen", &at.to_string()]);
            if matches!(system, System::Cflow | System::Faasflow) {
                command.arg("--dir").arg(dir);
            }
            // It ends when this pipe closes.
            command.stdin(Stdio::piped());
            command
        };
        command.stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(lab) = &lab {
            lab.enter(1, &mut command);
        }
        if redis && !installed("redis-server") {
            return Err(RemoteError::Missing { program: "redis-server", package: "redis-server" });
        }
        let child = command.spawn().map_err(failed)?;
        let store = RemoteStore { child, _folder: folder, at, lab, link };
        let probe = (at, store.lab.clone());
        // Entering a network is for good, so a thread of its own does it.
        let answers = std::thread::spawn(move || answers(probe.0, probe.1.as_deref())).join();
        match answers {
            Ok(true) => Ok(store),
            _ => Err(RemoteError::Silent { program, at }),
        }
    }
}

impl Drop for RemoteStore {
    fn drop(&mut self) {
        // It may have been killed by somebody else, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A message bus is on the worker itself; every other store is behind a link.
fn lab(system: System, link_bytes_per_s: u64) -> (Option<Arc<Lab>>, String) {
    if system == System::Knix {
        return (None, "loopback, unshaped: a worker's own bus".into());
    }
    match Lab::new(2, Some(link_bytes_per_s)) {
        Ok(lab) => {
            let mb = link_bytes_per_s as f64 / 1e6;
            (Some(Arc::new(lab)), format!("veth between two namespaces, {mb} MB/s each way"))
        }
        Err(error) => (None, format!("loopback, unshaped, since there is no network to shape: {error}")),
    }
}

fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn answers(at: SocketAddr, lab: Option<&Lab>) -> bool {
    if lab.is_some_and(|lab| lab.enter_thread(0).is_err()) {
        return false;
    }
    let late = Instant::now() + START;
    let ping = || -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"*1\r\n$4\r\nPING\r\n")?;
        stream.read_exact(&mut [0; 7])
    };
    while Instant::now() < late {
        if ping().is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}
