//! Steps as they are declared, before their references are resolved.

use super::diagnostic::{Code, Diagnostics, Problem, Span, word};
use super::function::{self, FunctionDraft};
use super::reader::{self, Fields};
use super::settings::Settings;
use super::spec::PortSpec;
use super::yaml::{Kind, Node};
use dflow_core::graph::Tolerate;
use dflow_proto::limits::{ITEMS_DEFAULT_MAX, STEPS_MAX};
use std::collections::HashMap;
use std::path::Path;

const CALL_KEYS: [&str; 16] = [
    "function",
    "in",
    "when",
    "foreach",
    "tolerate",
    "after",
    "start",
    "retry",
    "timeout",
    "resources",
    "placement",
    "on_failure",
    "estimate",
    "description",
    "switch",
    "output",
];
const SWITCH_KEYS: [&str; 4] = ["switch", "output", "after", "description"];

/// A declared step.
pub(super) struct StepDraft<'n> {
    pub(super) name: &'n str,
    pub(super) fields: Option<Fields<'n>>,
    pub(super) body: Body<'n>,
    /// Its outputs; absent while they are unknown (a switch not yet typed, a function in error).
    pub(super) ports: Option<Vec<PortSpec>>,
    pub(super) settings: Settings,
    pub(super) foreach: Option<ForeachDraft<'n>>,
}

impl StepDraft<'_> {
    /// Whether it runs once for each item of a list, even if that list could not be read.
    pub(super) fn is_foreach(&self) -> bool {
        self.fields.as_ref().is_some_and(|fields| fields.get("foreach").is_some())
    }
}

/// What a declared step does.
pub(super) enum Body<'n> {
    /// Calls this function; absent after an error.
    Call(Option<u32>),
    /// Chooses.
    Switch { cases: Vec<CaseDraft<'n>>, output: &'n str },
    /// Unknown after an error.
    Broken,
}

/// A declared case of a switch.
pub(super) struct CaseDraft<'n> {
    /// Absent for the default.
    pub(super) when: Option<&'n Node>,
    pub(super) value: &'n Node,
}

/// A declared foreach.
pub(super) struct ForeachDraft<'n> {
    pub(super) item: &'n str,
    pub(super) over: &'n Node,
    pub(super) parallel_max: u32,
    pub(super) items_max: u32,
    pub(super) tolerate: Tolerate,
}

/// All functions: those of the section `functions`, then those declared inside steps.
pub(super) struct Functions<'n> {
    pub(super) drafts: Vec<FunctionDraft>,
    pub(super) by_name: HashMap<&'n str, u32>,
    /// Those declared inside steps, by all they say, so that equal ones share a pool.
    inline: HashMap<String, u32>,
}

impl<'n> Functions<'n> {
    pub(super) fn read(d: &mut Diagnostics<'_>, node: Option<&'n Node>, dir: &Path) -> Self {
        let entries = node.and_then(|node| reader::named(d, node, "`functions`")).unwrap_or_default();
        let mut functions = Functions { drafts: Vec::new(), by_name: HashMap::new(), inline: HashMap::new() };
        for (name, span, node) in entries {
            functions.by_name.insert(name, functions.drafts.len() as u32);
            functions.drafts.push(function::read(d, name, span, node, dir));
        }
        functions
    }

    /// The function that a step's `function` names or declares.
    fn of_step(&mut self, d: &mut Diagnostics<'_>, step: &'n str, node: &'n Node, dir: &Path) -> Option<u32> {
        if let Some(name) = node.scalar() {
            let found = self.by_name.get(name).copied();
            match found {
                Some(index) => self.drafts[index as usize].used = true,
                None => {
                    let message = format!("there is no function `{}`", word(name));
                    let mut known: Vec<&str> = self.by_name.keys().copied().collect();
                    known.sort_unstable();
                    d.problem(node.span, Problem::near(Code::UnknownName, message, name, known));
                }
            }
            return found;
        }
        let mut draft = function::read(d, step, node.span, node, dir);
        draft.used = true;
        let index = self.drafts.len() as u32;
        let Some(spec) = &draft.spec else {
            self.drafts.push(draft);
            return Some(index);
        };
        // Their names differ, and settings belong to the step; all else decides.
        let key = format!("{:?}", super::spec::FunctionSpec { name: String::new(), ..spec.clone() });
        if let Some(index) = self.inline.get(&key) {
            return Some(*index);
        }
        self.inline.insert(key, index);
        self.drafts.push(draft);
        Some(index)
    }
}

/// Reads the section `steps`.
pub(super) fn read<'n>(
    d: &mut Diagnostics<'_>,
    node: &'n Node,
    functions: &mut Functions<'n>,
    defaults: &Settings,
    dir: &Path,
) -> Vec<StepDraft<'n>> {
    let entries = reader::named(d, node, "`steps`").unwrap_or_default();
    if entries.len() > STEPS_MAX {
        d.error(Code::Limit, node.span, format!("{} steps; at most {STEPS_MAX} are allowed", entries.len()));
        return Vec::new();
    }
    let read = |(name, span, node)| read_one(d, name, span, node, functions, defaults, dir);
    entries.into_iter().map(read).collect()
}

fn read_one<'n>(
    d: &mut Diagnostics<'_>,
    name: &'n str,
    span: Span,
    node: &'n Node,
    functions: &mut Functions<'n>,
    defaults: &Settings,
    dir: &Path,
) -> StepDraft<'n> {
    let mut draft = StepDraft {
        name,
        fields: None,
        body: Body::Broken,
        ports: None,
        settings: defaults.clone(),
        foreach: None,
    };
    let Some(fields) = Fields::read(d, node, format!("step `{name}`"), &CALL_KEYS) else { return draft };
    if fields.get("switch").is_some() {
        draft.body = switch(d, &fields, span);
        draft.fields = Some(fields);
        return draft;
    }
    if let Some(output) = fields.get("output") {
        let message = format!("`output` has no meaning for {}, which is no switch", fields.what);
        d.error_help(Code::UnknownKey, output.span, message, "a function declares its `outputs` itself");
    }
    let Some(function) = fields.need(d, "function", span) else {
        draft.fields = Some(fields);
        return draft;
    };
    let function = functions.of_step(d, name, function, dir);
    let mut settings = Settings::read(d, &fields);
    if let Some(function) = function {
        let function = &functions.drafts[function as usize];
        settings = settings.over(&function.settings);
        draft.ports.clone_from(&function.ports);
    }
    draft.settings = settings.over(defaults);
    draft.body = Body::Call(function);
    draft.foreach = foreach(d, &fields);
    draft.fields = Some(fields);
    draft
}

fn foreach<'n>(d: &mut Diagnostics<'_>, fields: &Fields<'n>) -> Option<ForeachDraft<'n>> {
    let Some(node) = fields.get("foreach") else {
        if fields.get("tolerate").is_some() {
            let message = format!("`tolerate` has no meaning for {}, which has no `foreach`", fields.what);
            let help = "use `on_failure: ignore` for a step that runs once";
            d.error_help(Code::UnknownKey, fields.key_span("tolerate"), message, help);
        }
        return None;
    };
    let keys = ["item", "over", "max_items", "max_parallel"];
    let foreach = Fields::read(d, node, format!("`foreach` of {}", fields.what), &keys)?;
    let at = fields.key_span("foreach");
    let item = foreach.need(d, "item", at).and_then(|_| foreach.text(d, "item"));
    let over = foreach.need(d, "over", at);
    let range = 1..=u64::from(u32::MAX);
    let items_max = foreach.whole(d, "max_items", range.clone()).map_or(ITEMS_DEFAULT_MAX, |n| n as u32);
    let parallel_max = foreach.whole(d, "max_parallel", range).map_or(items_max, |n| n as u32);
    let tolerate = tolerate(d, fields).unwrap_or(Tolerate::Count(0));
    let (item, over) = (item?, over?);
    if !super::reference::is_name(item) {
        let message = format!("`{}` cannot be a name", word(item));
        d.error(Code::BadValue, foreach.get("item")?.span, message);
    }
    Some(ForeachDraft { item, over, parallel_max, items_max, tolerate })
}

fn tolerate(d: &mut Diagnostics<'_>, fields: &Fields<'_>) -> Option<Tolerate> {
    let node = fields.get("tolerate")?;
    let tolerate = Fields::read(d, node, format!("`tolerate` of {}", fields.what), &["failed"])?;
    let failed = tolerate.need(d, "failed", node.span)?;
    if let Some(percent) = failed.scalar().and_then(|text| text.strip_suffix('%')) {
        if let Some(percent) = percent.trim().parse().ok().filter(|p| *p <= 100) {
            return Some(Tolerate::Percent(percent));
        }
        let message =
            format!("`failed` of {} must be from 0% to 100%, found {}", tolerate.what, failed.describe());
        d.error(Code::BadValue, failed.span, message);
        return None;
    }
    tolerate.whole(d, "failed", 0..=u64::from(u32::MAX)).map(|n| Tolerate::Count(n as u32))
}

fn switch<'n>(d: &mut Diagnostics<'_>, fields: &Fields<'n>, span: Span) -> Body<'n> {
    let before = d.errors();
    for key in CALL_KEYS {
        if !SWITCH_KEYS.contains(&key) && fields.get(key).is_some() {
            let message = format!("`{key}` has no meaning for {}, which is a switch", fields.what);
            let help = match key {
                "when" => "put the condition into its cases",
                "function" => "a step either calls a function or chooses a value: make it two steps",
                _ => "a switch runs no code; the keys are `switch`, `output`, `after` and `description`",
            };
            d.error_help(Code::UnknownKey, fields.key_span(key), message, help);
        }
    }
    let output = fields.need(d, "output", span).and_then(|_| fields.text(d, "output"));
    let items = fields.list(d, "switch").unwrap_or_default();
    if items.is_empty() && d.errors() == before {
        d.error(Code::MissingKey, fields.key_span("switch"), format!("{} has no cases", fields.what));
    }
    let mut cases = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let what = format!("case {} of {}", i + 1, fields.what);
        let Some(case) = Fields::read(d, item, what, &["when", "default", "value"]) else { continue };
        let value = case.need(d, "value", item.span);
        let default = case.boolean(d, "default").unwrap_or(false);
        let when = case.get("when");
        match (when, default) {
            (None, false) => {
                d.error(
                    Code::MissingKey,
                    item.span,
                    format!("{} needs `when` or `default: true`", case.what),
                );
            }
            (Some(_), true) => {
                let message = format!("{} has both `when` and `default`", case.what);
                d.error(Code::BadValue, case.key_span("default"), message);
            }
            (None, true) if i + 1 < items.len() => {
                let message = format!("no case after {} can be reached", case.what);
                d.error_help(Code::BadValue, case.key_span("default"), message, "put the default last");
            }
            _ => {}
        }
        cases.extend(value.map(|value| CaseDraft { when, value }));
    }
    match output {
        Some(output) if !super::reference::is_name(output) => {
            let message = format!("`{}` cannot be a name", word(output));
            d.error(Code::BadValue, fields.get("output").map_or(span, |n| n.span), message);
            Body::Broken
        }
        Some(output) if d.errors() == before => Body::Switch { cases, output },
        _ => Body::Broken,
    }
}

/// What a value under `in`, or the value of a case, says.
pub(super) enum ValueDraft<'n> {
    /// A reference; `optional` if a skipped source is to give null.
    Reference { text: &'n str, span: Span, optional: bool },
    /// A literal.
    Literal(&'n Node),
}

/// Tells references from literals: a text that begins like a reference, or `{from: REFERENCE,
/// optional: true}`, is one; `{value: ...}` and all else is a literal.
pub(super) fn value<'n>(d: &mut Diagnostics<'_>, node: &'n Node, what: &str) -> Option<ValueDraft<'n>> {
    match &node.kind {
        Kind::Scalar { text, .. } if super::reference::is_reference(text) => {
            Some(ValueDraft::Reference { text, span: node.span, optional: false })
        }
        Kind::Scalar { .. } => Some(ValueDraft::Literal(node)),
        Kind::Map(entries) => {
            let has = |key: &str| entries.iter().any(|(k, _)| k.scalar() == Some(key));
            if has("value") && entries.len() == 1 {
                return Some(ValueDraft::Literal(&entries[0].1));
            }
            if !has("from") {
                return literal(d, node, what);
            }
            let fields = Fields::read(d, node, what, &["from", "optional"])?;
            let optional = fields.boolean(d, "optional").unwrap_or(false);
            let text = fields.text(d, "from")?;
            Some(ValueDraft::Reference { text, span: fields.get("from")?.span, optional })
        }
        Kind::Seq(_) => literal(d, node, what),
    }
}

/// A literal list or map, after making sure that nothing in it was meant as a reference.
fn literal<'n>(d: &mut Diagnostics<'_>, node: &'n Node, what: &str) -> Option<ValueDraft<'n>> {
    fn first_reference(node: &Node) -> Option<&Node> {
        match &node.kind {
            Kind::Scalar { text, .. } => super::reference::is_reference(text).then_some(node),
            Kind::Seq(items) => items.iter().find_map(first_reference),
            Kind::Map(entries) => entries.iter().find_map(|(_, value)| first_reference(value)),
        }
    }
    match first_reference(node) {
        None => Some(ValueDraft::Literal(node)),
        Some(inner) => {
            let message = format!("a reference inside a literal, in {what}");
            let help = "give each reference an input of its own; to mean the text itself, wrap the literal: `{value: ...}`";
            d.error_help(Code::BadReference, inner.span, message, help);
            None
        }
    }
}
