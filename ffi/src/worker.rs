//! The worker: executes invocations one after the other until the node retires it.

use crate::fault::Fault;
use crate::invocation::{Invocation, Returned};
use crate::node::{Node, Urgency};
use crate::process;
use dflow_proto::link::Report;
use dflow_shm::pass::Channel;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

/// A function process's side of its connection, and the invocation it executes.
#[derive(Debug)]
pub struct Worker {
    node: Arc<Node>,
    current: Option<Box<Invocation>>,
    tainted: bool,
}

impl Worker {
    /// Connects with what came with the fork, and says that it is ready.
    pub fn start(link: OwnedFd, socket: OwnedFd, bell: OwnedFd) -> Result<Worker, Fault> {
        let node = Node::connect(link, Channel::from_fd(socket), bell)?;
        node.report(&Report::Ready { pid: std::process::id() }, Urgency::Now)?;
        Ok(Worker { node: Arc::new(node), current: None, tainted: false })
    }

    /// Waits for the next invocation, `None` if there will be none. One that was not ended fails.
    pub fn next_invocation(&mut self) -> Result<Option<&Invocation>, Fault> {
        if self.current.is_some() {
            let message = "the language binding asked for an invocation before it ended the one before";
            self.end(Returned::Error { name: "BindingError".into(), message: message.into() })?;
        }
        let Some(invoke) = self.node.next()? else { return Ok(None) };
        let taken = Instant::now();
        let invocation = Invocation::begin(self.node.clone(), invoke, taken)?;
        Ok(Some(&**self.current.insert(Box::new(invocation))))
    }

    /// The invocation being executed.
    pub fn current(&self) -> Option<&Invocation> {
        self.current.as_deref()
    }

    /// This process is not fit for another invocation than the current one.
    pub fn taint(&mut self) {
        self.tainted = true;
    }

    /// Ends it.
    pub fn end(&mut self, returned: Returned) -> Result<(), Fault> {
        let Some(invocation) = self.current.take() else { return Ok(()) };
        // Children of the function's, also those that their own parents have left behind (this
        // process is their subreaper), make it unfit for further use.
        let tainted = process::has_children() || std::mem::take(&mut self.tainted);
        invocation.end(returned, tainted)?;
        drop(invocation);
        self.node.segments.tidy()
    }

    /// Executes invocations with `function` until the worker is retired.
    pub fn work(&mut self, mut function: impl FnMut(&Invocation) -> Returned) -> Result<(), Fault> {
        while let Some(invocation) = self.next_invocation()? {
            let returned = function(invocation);
            self.end(returned)?;
        }
        Ok(())
    }
}
