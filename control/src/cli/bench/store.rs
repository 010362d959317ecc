//! `dflow bench store`: the remote store of an imitated system.

use super::super::exit::Exit;
use crate::bench::server;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct StoreArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Keep values in files of this directory instead of in memory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn run(args: &StoreArgs) -> Exit {
    let listener = match TcpListener::bind(args.listen) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("error: cannot listen at {}: {error}", args.listen);
            return Exit::Environment;
        }
    };
    // Whoever started it holds the other end of stdin: when that is gone, so is the need for it.
    std::thread::spawn(|| {
        let mut rest = [0; 64];
        while matches!(std::io::stdin().read(&mut rest), Ok(1..)) {}
        std::process::exit(0);
    });
    match server::serve(&listener, args.dir.as_deref()) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            eprintln!("error: cannot serve at {}: {error}", args.listen);
            Exit::Environment
        }
    }
}
