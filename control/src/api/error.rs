//! Answers to requests that cannot be met: a status, a code for programs, a message for people.

use super::types::{ErrorBody, ErrorDetail};
use crate::bundle::BundleError;
use crate::daemon::{Refusal, RegistryError};
use crate::history::HistoryError;
use crate::node::SubmitError;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dflow_proto::store::StoreError;

/// A refusal as it goes to the client.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry_s: Option<u64>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, code, message: message.into(), retry_s: None }
    }

    pub(super) fn bad(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub(super) fn too_large(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    pub(super) fn gone() -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "node_gone", "the engine of this node has ended")
    }

    pub(super) fn peer(name: &str, why: impl std::fmt::Display) -> ApiError {
        let message = format!("node {name} does not answer: {why}; `dflow nodes` shows who does");
        ApiError::new(StatusCode::BAD_GATEWAY, "peer", message)
    }

    fn retry(self, retry_s: u64) -> ApiError {
        ApiError { retry_s: Some(retry_s), ..self }
    }

    /// The same inside of another answer.
    pub(super) fn detail(&self) -> ErrorDetail {
        ErrorDetail { code: self.code.to_owned(), message: self.message.clone(), retry_s: self.retry_s }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = Json(ErrorBody { error: self.detail() });
        let mut response = (self.status, body).into_response();
        if let Some(retry_s) = self.retry_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_s));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        let message = refusal.to_string();
        let of = |status, code| ApiError::new(status, code, message.clone());
        match refusal {
            Refusal::Registry(error) => error.into(),
            Refusal::Submit(SubmitError::Input(_) | SubmitError::Read { .. }) => {
                of(StatusCode::BAD_REQUEST, "bad_input")
            }
            // Waiting makes no store larger.
            Refusal::Submit(SubmitError::Store { source: StoreError::TooLarge { .. }, .. }) => {
                of(StatusCode::INSUFFICIENT_STORAGE, "store_full")
            }
            Refusal::Submit(SubmitError::Store { .. }) => {
                of(StatusCode::INSUFFICIENT_STORAGE, "store_full").retry(5)
            }
            Refusal::Submit(SubmitError::Spread { .. }) => of(StatusCode::CONFLICT, "spread"),
            Refusal::Submit(SubmitError::Refused { .. } | SubmitError::Silent { .. }) => {
                of(StatusCode::SERVICE_UNAVAILABLE, "peer").retry(5)
            }
            Refusal::Submit(SubmitError::NodeGone) => ApiError::gone(),
            Refusal::Busy { retry_s, .. } => of(StatusCode::TOO_MANY_REQUESTS, "busy").retry(retry_s),
            Refusal::Draining { .. } => of(StatusCode::SERVICE_UNAVAILABLE, "draining").retry(30),
            Refusal::NoRun { .. } => of(StatusCode::NOT_FOUND, "no_run"),
            Refusal::NoOutput { .. } => of(StatusCode::NOT_FOUND, "no_output"),
            Refusal::Ambiguous { .. } => of(StatusCode::CONFLICT, "ambiguous"),
            Refusal::State { .. } => of(StatusCode::CONFLICT, "state"),
        }
    }
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> ApiError {
        let message = error.to_string();
        let of = |status, code| ApiError::new(status, code, message.clone());
        match error {
            RegistryError::Unknown { .. } => of(StatusCode::NOT_FOUND, "no_workflow"),
            RegistryError::Taken { .. } => of(StatusCode::CONFLICT, "taken"),
            RegistryError::Workflow(_) => of(StatusCode::UNPROCESSABLE_ENTITY, "bad_workflow"),
            RegistryError::Bundle(BundleError::TooLarge { .. }) => ApiError::too_large(message),
            RegistryError::Bundle(BundleError::Write { .. }) => {
                of(StatusCode::INTERNAL_SERVER_ERROR, "storage")
            }
            RegistryError::Bundle(_) => of(StatusCode::BAD_REQUEST, "bad_bundle"),
            RegistryError::InUse { .. } | RegistryError::Storage { .. } => {
                of(StatusCode::INTERNAL_SERVER_ERROR, "storage")
            }
        }
    }
}

impl From<HistoryError> for ApiError {
    fn from(error: HistoryError) -> ApiError {
        let message = error.to_string();
        match error {
            HistoryError::NoRun { .. } | HistoryError::Empty { .. } => ApiError::new(
                StatusCode::NOT_FOUND,
                "no_run",
                "this node has no such run; `dflow ps` lists them",
            ),
            HistoryError::Ambiguous { .. } => ApiError::new(StatusCode::CONFLICT, "ambiguous", message),
            HistoryError::Busy { .. } => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "history", message).retry(1)
            }
            _ => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "history", message),
        }
    }
}
