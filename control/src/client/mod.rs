//! Asking a node over HTTP: what the command line does, and any other program of this crate's users.

use crate::api::types::ErrorBody;
use crate::daemon::config::{API_PORT, Secret};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{BufRead, BufReader, Read};
use std::time::Duration;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body, SendBody};

/// How long a node may take to accept.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long it may take to begin its answer.
const ANSWER_MAX: Duration = Duration::from_secs(120);
/// Longest answer that is read whole. Bytes.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// A connection to a node; it is kept open between requests.
#[derive(Clone, Debug)]
pub struct Client {
    server: String,
    secret: Option<Secret>,
    agent: Agent,
}

/// A request that was not met.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address.
    #[error("{address:?} is no address of a node: write http://HOST:PORT, or HOST:PORT")]
    Address {
        /// What was given.
        address: String,
    },
    /// No answer, or half of one.
    #[error("{server} does not answer: {source}; is a node running there (`dflow node`)?")]
    Silent {
        /// The node.
        server: String,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// The node refuses.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// For programs.
        code: String,
        /// For people.
        message: String,
        /// Come back after so many seconds.
        retry_s: Option<u64>,
    },
    /// An answer that is not understood.
    #[error("{server} gives an answer that this dflow does not understand: {why}")]
    Strange {
        /// The node.
        server: String,
        /// Why.
        why: String,
    },
}

/// One server-sent event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// Its data, JSON.
    pub data: String,
}

impl Client {
    /// A client of the node at `server`: `http://HOST:PORT`, `HOST:PORT` or `HOST`.
    ///
    /// # Errors
    /// When that is no address.
    pub fn new(server: &str, secret: Option<Secret>) -> Result<Client, ClientError> {
        let wrong = || ClientError::Address { address: server.to_owned() };
        let rest = server.strip_prefix("http://").unwrap_or(server).trim_end_matches('/');
        let odd = |c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '@');
        if rest.is_empty() || rest.contains(odd) {
            return Err(wrong());
        }
        let has_port = rest.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let server = if has_port { format!("http://{rest}") } else { format!("http://{rest}:{API_PORT}") };
        let agent = Agent::config_builder()
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_recv_response(Some(ANSWER_MAX))
            .http_status_as_error(false)
            .proxy(None)
            .build()
            .new_agent();
        Ok(Client { server, secret, agent })
    }

    /// The node's address.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// What a GET gives.
    ///
    /// # Errors
    /// When there is no answer, or a refusal.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.decode(self.open("GET", path, &[], SendBody::none())?)
    }

    /// What a POST of JSON gives.
    ///
    /// # Errors
    /// As of [`Client::get`].
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        // Requests are plain data, which always encodes.
        let text = serde_json::to_vec(body).unwrap_or_default();
        let kind = [("Content-Type", "application/json".to_owned())];
        self.decode(self.open("POST", path, &kind, SendBody::from_reader(&mut &text[..]))?)
    }

    /// What a request with a body of `bytes` gives; the body is read as it is sent.
    ///
    /// # Errors
    /// As of [`Client::get`].
    pub fn send<T: DeserializeOwned>(
        &self,
        (method, path): (&str, &str),
        kind: &str,
        bytes: u64,
        body: &mut impl Read,
    ) -> Result<T, ClientError> {
        let headers = [("Content-Type", kind.to_owned()), ("Content-Length", bytes.to_string())];
        self.decode(self.open(method, path, &headers, SendBody::from_reader(body))?)
    }

    /// The body of what a GET gives, to be read as it comes; its length, if it is known; and whether there
    /// is one at all.
    ///
    /// # Errors
    /// As of [`Client::get`].
    pub fn read(&self, path: &str) -> Result<Option<impl Read + use<>>, ClientError> {
        let response = self.open("GET", path, &[], SendBody::none())?;
        let is_there = response.status() != StatusCode::NO_CONTENT;
        Ok(is_there.then(|| response.into_body().into_reader()))
    }

    /// Calls `each` with server-sent events until there are no more, or it returns false.
    ///
    /// # Errors
    /// As of [`Client::get`]; a stream that breaks off is an error, too.
    pub fn follow(&self, path: &str, mut each: impl FnMut(Event) -> bool) -> Result<(), ClientError> {
        let response = self.open("GET", path, &[], SendBody::none())?;
        let mut event = Event { name: String::new(), data: String::new() };
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let line = line.map_err(|e| self.silent(e.into()))?;
            if let Some(name) = line.strip_prefix("event: ") {
                event.name = name.to_owned();
            } else if let Some(data) = line.strip_prefix("data: ") {
                event.data = data.to_owned();
            } else if line.is_empty() && !event.data.is_empty() {
                let whole = std::mem::replace(&mut event, Event { name: String::new(), data: String::new() });
                if !each(whole) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, String)],
        body: SendBody<'_>,
    ) -> Result<Response<Body>, ClientError> {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.server));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(secret) = &self.secret {
            request = request.header("Authorization", format!("Bearer {}", secret.expose()));
        }
        let request = request.body(body).map_err(|e| self.strange(&e))?;
        let mut response = self.agent.run(request).map_err(|e| self.silent(e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
        let text = text.map_err(|e| self.silent(e))?;
        let (code, message, retry_s) = match serde_json::from_str::<ErrorBody>(&text) {
            Ok(ErrorBody { error }) => (error.code, error.message, error.retry_s),
            Err(_) => (String::new(), format!("{} says {status}", self.server), None),
        };
        Err(ClientError::Refused { status: status.as_u16(), code, message, retry_s })
    }

    fn decode<T: DeserializeOwned>(&self, mut response: Response<Body>) -> Result<T, ClientError> {
        let bytes = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        serde_json::from_slice(&bytes.map_err(|e| self.silent(e))?).map_err(|e| self.strange(&e))
    }

    fn silent(&self, source: ureq::Error) -> ClientError {
        ClientError::Silent { server: self.server.clone(), source: Box::new(source) }
    }

    fn strange(&self, why: &dyn std::fmt::Display) -> ClientError {
        ClientError::Strange { server: self.server.clone(), why: why.to_string() }
    }
}

/// A part of a path or query, with all that has a meaning there escaped.
pub fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~' | b'@');
    let one = |b: u8| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") };
    text.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_completed() {
        let table = [
            ("127.0.0.1", "http://127.0.0.1:7400"),
            ("host:1", "http://host:1"),
            ("http://host:1/", "http://host:1"),
            ("[::1]:9", "http://[::1]:9"),
        ];
        for (given, wanted) in table {
            assert_eq!(Client::new(given, None).expect(given).server(), wanted);
        }
        for bad in ["", "http://", "a b", "host:1/path", "user@host"] {
            assert!(Client::new(bad, None).is_err(), "{bad}");
        }
        assert_eq!(escape("a b/c@1"), "a%20b%2Fc@1");
    }
}
