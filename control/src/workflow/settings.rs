//! What `defaults`, functions and steps can all say; the nearest to the step wins, key by key.

use super::diagnostic::{Code, Diagnostics, Problem, word};
use super::reader::Fields;
use super::spec::Placement;
use super::yaml::{Kind, Node};
use dflow_core::graph::{ErrorClass, OnFailure, Retry, StartPolicy};
use dflow_proto::limits::ATTEMPTS_MAX;

/// CPU tokens of a step that does not say, in thousandths of a core.
const CPU_MILLI_DEFAULT: u32 = 1000;

/// One layer of settings; what is `None` is left to the layer below.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    timeout_ms: Option<u64>,
    cpu_milli: Option<u32>,
    memory_bytes: Option<u64>,
    scratch_bytes: Option<u64>,
    start: Option<StartPolicy>,
    on_failure: Option<OnFailure>,
    placement: Option<Placement>,
    retry: Option<RetryLayer>,
}

#[derive(Clone, Debug, Default)]
struct RetryLayer {
    retries_max: Option<u32>,
    backoff_ms: Option<u64>,
    factor_milli: Option<u32>,
    backoff_ms_max: Option<u64>,
    jitter_milli: Option<u32>,
    on: Option<Vec<ErrorClass>>,
}

impl Settings {
    /// Reads the keys that `fields` has; which of them are allowed was decided when it was read.
    pub(super) fn read(d: &mut Diagnostics<'_>, fields: &Fields<'_>) -> Settings {
        let mut settings = Settings {
            timeout_ms: fields.duration_ms(d, "timeout"),
            start: fields.get("start").and_then(|node| start(d, node, &fields.what)),
            on_failure: on_failure(d, fields),
            placement: placement(d, fields),
            retry: retry(d, fields),
            ..Settings::default()
        };
        let what = format!("`resources` of {}", fields.what);
        let resources = fields
            .get("resources")
            .and_then(|node| Fields::read(d, node, what, &["cpu", "memory", "scratch"]));
        if let Some(resources) = resources {
            settings.cpu_milli = resources.cpu_milli(d, "cpu");
            settings.memory_bytes = resources.size_bytes(d, "memory");
            settings.scratch_bytes = resources.size_bytes(d, "scratch");
        }
        settings
    }

    /// These settings, completed from `below`.
    pub(super) fn over(&self, below: &Settings) -> Settings {
        let retry = match (&self.retry, &below.retry) {
            (Some(mine), Some(below)) => Some(mine.over(below)),
            (mine, below) => mine.clone().or_else(|| below.clone()),
        };
        Settings {
            timeout_ms: self.timeout_ms.or(below.timeout_ms),
            cpu_milli: self.cpu_milli.or(below.cpu_milli),
            memory_bytes: self.memory_bytes.or(below.memory_bytes),
            scratch_bytes: self.scratch_bytes.or(below.scratch_bytes),
            start: self.start.or(below.start),
            on_failure: self.on_failure.or(below.on_failure),
            placement: self.placement.clone().or_else(|| below.placement.clone()),
            retry,
        }
    }

    pub(super) fn set_start(&mut self, start: StartPolicy) {
        self.start = Some(start);
    }

    pub(super) fn timeout_ms(&self) -> u64 {
        self.timeout_ms.unwrap_or(0)
    }

    pub(super) fn cpu_milli(&self) -> u32 {
        self.cpu_milli.unwrap_or(CPU_MILLI_DEFAULT)
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes.unwrap_or(0)
    }

    pub(super) fn scratch_bytes(&self) -> u64 {
        self.scratch_bytes.unwrap_or(0)
    }

    pub(super) fn start(&self) -> StartPolicy {
        self.start.unwrap_or_default()
    }

    pub(super) fn on_failure(&self) -> OnFailure {
        self.on_failure.unwrap_or_default()
    }

    pub(super) fn placement(&self) -> Placement {
        self.placement.clone().unwrap_or_default()
    }

    /// No retries unless some layer has a `retry`.
    pub(super) fn retry(&self) -> Retry {
        let Some(layer) = &self.retry else { return Retry::default() };
        let backoff_ms = layer.backoff_ms.unwrap_or(200);
        Retry {
            retries_max: layer.retries_max.unwrap_or(2),
            backoff_ms,
            factor_milli: layer.factor_milli.unwrap_or(2000),
            backoff_ms_max: layer.backoff_ms_max.unwrap_or(30_000).max(backoff_ms),
            jitter_milli: layer.jitter_milli.unwrap_or(200),
            on: layer
                .on
                .clone()
                .unwrap_or_else(|| vec![ErrorClass::Crash, ErrorClass::NodeLost, ErrorClass::Timeout]),
        }
    }
}

impl RetryLayer {
    fn over(&self, below: &RetryLayer) -> RetryLayer {
        RetryLayer {
            retries_max: self.retries_max.or(below.retries_max),
            backoff_ms: self.backoff_ms.or(below.backoff_ms),
            factor_milli: self.factor_milli.or(below.factor_milli),
            backoff_ms_max: self.backoff_ms_max.or(below.backoff_ms_max),
            jitter_milli: self.jitter_milli.or(below.jitter_milli),
            on: self.on.clone().or_else(|| below.on.clone()),
        }
    }
}

/// A start policy; `what` has it.
pub(super) fn start(d: &mut Diagnostics<'_>, node: &Node, what: &str) -> Option<StartPolicy> {
    const WORDS: [(&str, StartPolicy); 3] = [
        ("eager", StartPolicy::Eager),
        ("first-byte", StartPolicy::FirstByte),
        ("all-ready", StartPolicy::AllReady),
    ];
    match &node.kind {
        Kind::Scalar { text, .. } => {
            let found = WORDS.iter().find(|(name, _)| name == text).map(|(_, policy)| *policy);
            if found.is_none() {
                let message = format!("`start` of {what} cannot be `{}`", word(text));
                let problem =
                    Problem::near(Code::BadValue, message, text, WORDS.iter().map(|(name, _)| *name));
                d.problem(node.span, problem.help("or write `{first: K}`"));
            }
            found
        }
        Kind::Map(_) | Kind::Seq(_) => {
            let fields = Fields::read(d, node, format!("`start` of {what}"), &["first"])?;
            fields.need(d, "first", node.span)?;
            let first = fields.whole(d, "first", 1..=u64::from(u16::MAX))?;
            Some(StartPolicy::First(first as u32))
        }
    }
}

fn retry(d: &mut Diagnostics<'_>, fields: &Fields<'_>) -> Option<RetryLayer> {
    const KEYS: [&str; 6] = ["max", "backoff", "factor", "max_delay", "jitter", "on"];
    let node = fields.get("retry")?;
    let retry = Fields::read(d, node, format!("`retry` of {}", fields.what), &KEYS)?;
    let milli = |n: f64| (n * 1000.0).round() as u32;
    let mut on = None;
    if let Some(words) = retry.texts(d, "on") {
        let mut classes = Vec::with_capacity(words.len());
        for (text, span) in words {
            match error_class(text) {
                Ok(class) => classes.push(class),
                Err(problem) => d.problem(span, problem),
            }
        }
        on = Some(classes);
    }
    Some(RetryLayer {
        retries_max: retry.whole(d, "max", 0..=u64::from(ATTEMPTS_MAX - 1)).map(|n| n as u32),
        backoff_ms: retry.duration_ms(d, "backoff"),
        factor_milli: retry.number(d, "factor", 1.0..=100.0).map(milli),
        backoff_ms_max: retry.duration_ms(d, "max_delay"),
        jitter_milli: retry.number(d, "jitter", 0.0..=1.0).map(milli),
        on,
    })
}

fn error_class(text: &str) -> Result<ErrorClass, Problem> {
    const WORDS: [(&str, ErrorClass); 5] = [
        ("crash", ErrorClass::Crash),
        ("node-lost", ErrorClass::NodeLost),
        ("timeout", ErrorClass::Timeout),
        ("oom", ErrorClass::Oom),
        ("all", ErrorClass::All),
    ];
    if let Some((_, class)) = WORDS.iter().find(|(name, _)| *name == text) {
        return Ok(class.clone());
    }
    if let Some(status) = text.strip_prefix("exit:") {
        let status: u8 = status.parse().ok().filter(|n| *n > 0).ok_or_else(|| {
            let message = format!("`{}` names no exit status", word(text));
            Problem::new(Code::BadValue, message).help("write `exit:N`, N from 1 to 255")
        })?;
        return Ok(ErrorClass::Exit(i32::from(status)));
    }
    if let Some(name) = text.strip_prefix("error:").filter(|name| !name.is_empty()) {
        return Ok(ErrorClass::Error(name.to_owned()));
    }
    let message = format!("`{}` is no class of errors", word(text));
    let known = WORDS.iter().map(|(name, _)| *name).chain(["exit:N", "error:NAME"]);
    Err(Problem::near(Code::BadValue, message, text, known))
}

fn on_failure(d: &mut Diagnostics<'_>, fields: &Fields<'_>) -> Option<OnFailure> {
    let node = fields.get("on_failure")?;
    if let Kind::Map(_) = node.kind {
        let message = format!("`on_failure` of {} cannot go to another step", fields.what);
        let help = "use `fail` or `ignore`, and a step with `when: skipped(steps.NAME)` for the other way";
        d.error_help(Code::Unsupported, node.span, message, help);
        return None;
    }
    fields.choice(d, "on_failure", &[("fail", OnFailure::Fail), ("ignore", OnFailure::Ignore)])
}

fn placement(d: &mut Diagnostics<'_>, fields: &Fields<'_>) -> Option<Placement> {
    let node = fields.get("placement")?;
    let placement = Fields::read(d, node, format!("`placement` of {}", fields.what), &["prefer"])?;
    placement.need(d, "prefer", node.span)?;
    let text = placement.text(d, "prefer")?;
    match text {
        "data" => Some(Placement::Data),
        "spread" => Some(Placement::Spread),
        "pack" => Some(Placement::Pack),
        _ => {
            if let Some(label) = text.strip_prefix("label:").filter(|label| !label.is_empty()) {
                return Some(Placement::Label(label.to_owned()));
            }
            let message = format!("`prefer` of {} cannot be `{}`", placement.what, word(text));
            let known = ["data", "spread", "pack", "label:NAME"];
            d.problem(placement.get("prefer")?.span, Problem::near(Code::BadValue, message, text, known));
            None
        }
    }
}
