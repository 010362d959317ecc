//! From declared steps to the graph's: references become indices, literals and conditions get handles.

use super::condition::{self, CompiledCondition};
use super::diagnostic::{Code, Diagnostics, Problem, Span};
use super::names::{ItemScope, Names, Resolved};
use super::reader::{self, Fields};
use super::reference::{self, Reference};
use super::spec::{
    Constant, FunctionSpec, InputUse, OutputSpec, PortSpec, Runtime, StepSpec, Template, TemplatePart,
    ValueType,
};
use super::step::{self, Body, CaseDraft, StepDraft, ValueDraft};
use super::value;
use super::yaml::Node;
use dflow_core::graph::{
    Case, Condition, Foreach, InputPort, OutputPort, RunOutput, Source, StartPolicy, Step, StepIndex,
    StepKind,
};
use dflow_proto::limits::PORTS_MAX;

/// A wait of one step for another, and where the file says so.
pub(super) type Edge = (StepIndex, Span);

/// Resolves the references of a file.
pub(super) struct Linker<'a, 'n> {
    names: &'a Names<'n>,
    pub(super) constants: Vec<Constant>,
    pub(super) conditions: Vec<CompiledCondition>,
    /// For each step, the steps that it waits for.
    pub(super) edges: Vec<Vec<Edge>>,
}

impl<'a, 'n> Linker<'a, 'n> {
    pub(super) fn new(names: &'a Names<'n>) -> Self {
        let edges = vec![Vec::new(); names.steps.len()];
        Linker { names, constants: Vec::new(), conditions: Vec::new(), edges }
    }

    /// The graph's form of a step; `None` after an error.
    pub(super) fn step(&mut self, d: &mut Diagnostics<'_>, index: StepIndex) -> Option<(Step, StepSpec)> {
        let names = self.names;
        let draft = &names.steps[index as usize];
        let fields = draft.fields.as_ref()?;
        let before = d.errors();
        let after = self.after(d, index, fields);
        let description = fields.text(d, "description").unwrap_or_default().to_owned();
        let estimate_us = fields.duration_ms(d, "estimate").unwrap_or(0).saturating_mul(1000);
        let (mut when, mut foreach, mut inputs) = (None, None, Vec::new());
        let kind = match &draft.body {
            Body::Call(function) => {
                when = fields.get("when").and_then(|node| self.condition(d, node, index));
                let (over, item) = self.foreach(d, index, draft);
                foreach = over;
                let spec = function.and_then(|f| names.functions.drafts[f as usize].spec.as_ref());
                let complete = self.inputs(d, index, fields, item, spec, &mut inputs);
                if let (Some(spec), true) = (spec, complete) {
                    check_call(d, fields, spec, &inputs);
                }
                function.map(StepKind::Call)
            }
            Body::Switch { cases, .. } => {
                self.cases(d, index, draft, cases).map(|cases| StepKind::Switch(cases.into()))
            }
            Body::Broken => None,
        };
        let (kind, ports) = (kind?, draft.ports.as_deref()?);
        let start = start(d, draft, fields, &inputs);
        if d.errors() > before {
            return None;
        }
        let settings = &draft.settings;
        let spec = StepSpec {
            description,
            inputs: inputs.iter().map(|(_, usage)| *usage).collect(),
            outputs: ports.iter().map(|p| p.ty).collect(),
            memory_bytes: settings.memory_bytes(),
            scratch_bytes: settings.scratch_bytes(),
            placement: settings.placement(),
        };
        // A switch runs no code, so `defaults` are not for it.
        let runs = matches!(kind, StepKind::Call(_));
        let step = Step {
            name: draft.name.to_owned(),
            kind,
            inputs: inputs.into_iter().map(|(port, _)| port).collect(),
            outputs: ports.iter().map(output_port).collect(),
            when,
            foreach,
            after,
            start,
            retry: if runs { settings.retry() } else { Default::default() },
            timeout_ms: if runs { settings.timeout_ms() } else { 0 },
            cpu_milli: if runs { settings.cpu_milli() } else { 0 },
            estimate_us,
            on_failure: if runs { settings.on_failure() } else { Default::default() },
        };
        Some((step, spec))
    }

    fn after(&mut self, d: &mut Diagnostics<'_>, index: StepIndex, fields: &Fields<'_>) -> Vec<StepIndex> {
        let mut after = Vec::new();
        for (name, span) in fields.texts(d, "after").unwrap_or_default() {
            match self.names.step(name) {
                Ok(step) => {
                    self.edges[index as usize].push((step, span));
                    if !after.contains(&step) {
                        after.push(step);
                    }
                }
                Err(problem) => d.problem(span, problem),
            }
        }
        after
    }

    fn foreach(
        &mut self,
        d: &mut Diagnostics<'_>,
        index: StepIndex,
        draft: &StepDraft<'n>,
    ) -> (Option<Foreach>, ItemScope<'n>) {
        let Some(declared) = &draft.foreach else { return (None, None) };
        let what = format!("`over` of step `{}`", draft.name);
        // An unknown list must not turn references to its item into errors too.
        let unknown = (None, Some((declared.item, ValueType::Json)));
        let Some((over, optional)) = self.value(d, declared.over, &what, None, index) else { return unknown };
        if optional {
            d.error(Code::BadValue, declared.over.span, format!("{what} cannot be optional"));
        }
        let json = !over.list && matches!(over.ty, ValueType::Json | ValueType::List);
        if !over.list && !json {
            let message = format!("{what} must be a list, found one object of type {}", over.ty.name());
            let help = "a list is a `many` output, `steps.STEP.PORT[*]` of a foreach, or a value of type list or json";
            d.error_help(Code::TypeMismatch, declared.over.span, message, help);
            return unknown;
        }
        let item = if json { over.items } else { over.ty };
        let foreach = Foreach {
            over: over.source,
            json,
            parallel_max: declared.parallel_max,
            items_max: declared.items_max,
            tolerate: declared.tolerate,
        };
        (Some(foreach), Some((declared.item, item)))
    }

    /// Reads `in`; whether all of it could be read.
    fn inputs(
        &mut self,
        d: &mut Diagnostics<'_>,
        index: StepIndex,
        fields: &Fields<'n>,
        item: ItemScope<'n>,
        function: Option<&FunctionSpec>,
        inputs: &mut Vec<(InputPort, InputUse)>,
    ) -> bool {
        let Some(node) = fields.get("in") else { return true };
        let Some(entries) = reader::named(d, node, &format!("`in` of {}", fields.what)) else { return false };
        if entries.len() > PORTS_MAX {
            let message =
                format!("{} has {} inputs; at most {PORTS_MAX} are allowed", fields.what, entries.len());
            d.error(Code::Limit, fields.key_span("in"), message);
            return false;
        }
        let given = entries.len();
        let params = function.and_then(|f| Some((f, f.params.as_deref()?)));
        for (name, span, node) in entries {
            let what = format!("input `{name}` of {}", fields.what);
            let Some((resolved, optional)) = self.value(d, node, &what, item, index) else { continue };
            let mut ty = resolved.ty;
            if let Some((function, params)) = params {
                match params.iter().find(|p| p.name == name) {
                    Some(param) => ty = read_as(d, node, name, function, param.ty, &resolved),
                    None => {
                        let message = format!("function `{}` has no input `{name}`", function.name);
                        let known = params.iter().map(|p| p.name.as_str());
                        d.problem(span, Problem::near(Code::UnknownName, message, name, known));
                    }
                }
            }
            let port =
                InputPort { name: name.to_owned(), ty: ty.port_type(), source: resolved.source, optional };
            inputs.push((port, InputUse { ty, list: resolved.list }));
        }
        inputs.len() == given
    }

    fn cases(
        &mut self,
        d: &mut Diagnostics<'_>,
        index: StepIndex,
        draft: &StepDraft<'n>,
        cases: &[CaseDraft<'n>],
    ) -> Option<Vec<Case>> {
        let mut linked = Vec::with_capacity(cases.len());
        for (i, case) in cases.iter().enumerate() {
            let when = match case.when {
                Some(node) => self.condition(d, node, index).map(Some),
                None => Some(None),
            };
            let what = format!("case {} of step `{}`", i + 1, draft.name);
            let Some((value, optional)) = self.value(d, case.value, &what, None, index) else { continue };
            if optional {
                d.error(Code::BadValue, case.value.span, format!("the value of {what} cannot be optional"));
            }
            if value.list {
                let message =
                    format!("the value of {what} is a list of objects, and a switch hands on one object");
                d.error_help(
                    Code::TypeMismatch,
                    case.value.span,
                    message,
                    "choose after the list has been merged",
                );
            }
            let switch = draft.ports.as_deref().and_then(|ports| ports.first());
            if let Some(port) = switch.filter(|port| port.ty.port_type() != value.ty.port_type()) {
                let message = format!(
                    "{what} is of type {}, and the first case of type {}",
                    value.ty.name(),
                    port.ty.name()
                );
                d.error(Code::TypeMismatch, case.value.span, message);
            }
            linked.extend(when.map(|when| Case { when, value: value.source }));
        }
        (linked.len() == cases.len()).then_some(linked)
    }

    /// A value under `in`, `over` or a case, and whether it is optional; notes the edge.
    fn value(
        &mut self,
        d: &mut Diagnostics<'_>,
        node: &Node,
        what: &str,
        item: ItemScope<'_>,
        reader: StepIndex,
    ) -> Option<(Resolved, bool)> {
        match step::value(d, node, what)? {
            ValueDraft::Literal(node) => Some((self.constant(node), false)),
            ValueDraft::Reference { text, span, optional } => {
                let resolved = self.reference(d, text, span, item)?;
                self.edges[reader as usize].extend(producer(&resolved.source).map(|step| (step, span)));
                Some((resolved, optional))
            }
        }
    }

    fn reference(
        &self,
        d: &mut Diagnostics<'_>,
        text: &str,
        span: Span,
        item: ItemScope<'_>,
    ) -> Option<Resolved> {
        let resolved = reference::parse(text).and_then(|reference| self.names.resolve(&reference, item));
        resolved.unwrap_or_else(|problem| {
            d.problem(span, problem);
            None
        })
    }

    fn constant(&mut self, node: &Node) -> Resolved {
        let json = node.to_json();
        let ty = ValueType::of(&json);
        // A literal can always be encoded as what it is.
        let bytes = value::encode(ty, &json).unwrap_or_default();
        self.constants.push(Constant { bytes, ty, file: false });
        let source = Source::Const(self.constants.len() as u32 - 1);
        Resolved { source, ty, items: ValueType::of_items(&json), list: false }
    }

    fn condition(&mut self, d: &mut Diagnostics<'_>, node: &Node, reader: StepIndex) -> Option<Condition> {
        let Some(text) = node.scalar().filter(|_| !node.is_null()) else {
            let message = format!("a condition must be a text, found {}", node.describe());
            d.error(Code::WrongType, node.span, message);
            return None;
        };
        let mut names = ConditionNames { names: self.names, unknown: false };
        let compiled = match condition::compile(text, &mut names) {
            Ok(compiled) if !names.unknown => compiled,
            Ok(_) => return None,
            Err(problems) => {
                for (range, problem) in problems {
                    d.problem(inside(d.text(), node, text, range), problem);
                }
                return None;
            }
        };
        let reads: Vec<Source> = compiled.reads().cloned().collect();
        let asks = compiled.asks().to_vec();
        let waits = reads.iter().filter_map(producer).chain(asks.iter().copied());
        self.edges[reader as usize].extend(waits.map(|step| (step, node.span)));
        self.conditions.push(compiled);
        Some(Condition { id: self.conditions.len() as u32 - 1, reads, asks })
    }

    /// Reads the section `outputs`.
    pub(super) fn outputs(&self, d: &mut Diagnostics<'_>, node: &Node) -> Vec<(RunOutput, OutputSpec)> {
        let entries = reader::named(d, node, "`outputs`").unwrap_or_default();
        let mut outputs = Vec::with_capacity(entries.len());
        for (name, span, node) in entries {
            let mut keep_ms = None;
            let mut description = String::new();
            // `video: steps.merge.video` is short for `video: {from: steps.merge.video}`.
            let (text, at) = match node.scalar() {
                Some(text) if !node.is_null() => (text, node.span),
                _ => {
                    let what = format!("output `{name}`");
                    let Some(fields) = Fields::read(d, node, what, &["from", "keep", "description"]) else {
                        continue;
                    };
                    keep_ms = fields.duration_ms(d, "keep");
                    description = fields.text(d, "description").unwrap_or_default().to_owned();
                    let Some(from) = fields.need(d, "from", span) else { continue };
                    let Some(text) = fields.text(d, "from") else { continue };
                    (text, from.span)
                }
            };
            let Some(resolved) = self.reference(d, text, at, None) else { continue };
            let (ty, list) = (resolved.ty, resolved.list);
            let output = RunOutput { name: name.to_owned(), source: resolved.source };
            outputs.push((output, OutputSpec { name: name.to_owned(), description, ty, list, keep_ms }));
        }
        outputs
    }
}

/// The names a condition can read.
struct ConditionNames<'a, 'n> {
    names: &'a Names<'n>,
    /// Something is unknown because of an error that has been reported.
    unknown: bool,
}

impl condition::Names for ConditionNames<'_, '_> {
    fn read(&mut self, reference: &Reference<'_>) -> Result<(Source, ValueType), Problem> {
        let Some(resolved) = self.names.resolve(reference, None)? else {
            self.unknown = true;
            return Ok((Source::Item, ValueType::Json));
        };
        if resolved.list {
            let problem = Problem::new(Code::TypeMismatch, "a condition cannot read a list of objects");
            return Err(problem.help("let the step put what you ask about as a json port of its own"));
        }
        if resolved.ty == ValueType::Bytes {
            let problem = Problem::new(Code::TypeMismatch, "a condition cannot read a value of type bytes");
            return Err(
                problem.help("declare it `text` or `json`, or let a step put what you ask about as json")
            );
        }
        Ok((resolved.source, resolved.ty))
    }

    fn step(&mut self, name: &str) -> Result<StepIndex, Problem> {
        self.names.step(name)
    }
}

/// The step that makes a source.
pub(super) fn producer(source: &Source) -> Option<StepIndex> {
    match source {
        Source::Output { step, .. } | Source::Gather { step, .. } => Some(*step),
        Source::Const(_) | Source::Input(_) | Source::Item => None,
    }
}

/// The place of a range of characters of a scalar's text in the file; all of the scalar if it is
/// written with escapes. Folded lines may differ in white space.
fn inside(file: &str, node: &Node, text: &str, range: Option<(u32, u32)>) -> Span {
    let Some((from, to)) = range else { return node.span };
    // A range may end at its last character or after it, and short of a selection: all of the word
    // it begins in is marked.
    let in_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.');
    let rest = text.chars().skip(from as usize).take_while(|c| in_word(*c)).count();
    let to = (to as usize).max(from as usize + rest);
    let written = &file[node.span.start..node.span.end];
    let mut raw = written.char_indices().peekable();
    if written.starts_with(['"', '\'', '|', '>']) && !text.starts_with(['"', '\'']) {
        // The quote, or the header of a block.
        let block = written.starts_with(['|', '>']);
        while raw.next_if(|(at, c)| if block { *c != '\n' } else { *at == 0 }).is_some() {}
    }
    let mut span = Span { start: node.span.end, end: node.span.end };
    for (i, c) in text.chars().chain(['\0']).enumerate() {
        let spaces = |c: char| c.is_whitespace();
        if !c.is_whitespace() {
            while raw.next_if(|(_, r)| spaces(*r)).is_some() {}
        }
        let at = raw.peek().map_or(node.span.end, |(at, _)| node.span.start + at);
        if i == from as usize {
            span.start = at;
        }
        if i == to {
            span.end = at;
        }
        match raw.peek() {
            Some((_, r)) if *r == c => {
                raw.next();
            }
            _ if c.is_whitespace() || c == '\0' => {}
            _ => return node.span,
        }
    }
    Span { start: span.start, end: span.end.max(span.start) }
}

fn output_port(port: &PortSpec) -> OutputPort {
    OutputPort {
        name: port.name.clone(),
        ty: port.ty.port_type(),
        kind: port.kind,
        hint_bytes: port.hint_bytes,
        bytes_max: port.bytes_max,
        items_max: port.items_max,
        file: false,
    }
}

/// The type as which a function reads an input.
fn read_as(
    d: &mut Diagnostics<'_>,
    node: &Node,
    name: &str,
    function: &FunctionSpec,
    wanted: Option<ValueType>,
    resolved: &Resolved,
) -> ValueType {
    let Some(wanted) = wanted else { return resolved.ty };
    if !resolved.ty.fits(wanted) {
        let (want, have) = (wanted.name(), resolved.ty.name());
        let message = format!(
            "input `{name}` of function `{}` is of type {want}, and this is of type {have}",
            function.name
        );
        d.error(Code::TypeMismatch, node.span, message);
    }
    wanted
}

/// Whether a step gives its function what that needs.
fn check_call(
    d: &mut Diagnostics<'_>,
    fields: &Fields<'_>,
    function: &FunctionSpec,
    inputs: &[(InputPort, InputUse)],
) {
    let at = fields.get("in").map_or(fields.key_span("function"), |_| fields.key_span("in"));
    let given = |name: &str| inputs.iter().find(|(port, _)| port.name == name);
    let mut missing: Vec<&str> = Vec::new();
    let params = function.params.iter().flatten().filter(|p| !p.optional);
    missing.extend(params.map(|p| p.name.as_str()).filter(|name| given(name).is_none()));
    if let Runtime::Exec { command, stdin, .. } = &function.runtime {
        for template in command {
            for part in &template.parts {
                let TemplatePart::Input(name) = part else { continue };
                match given(name) {
                    None => missing.push(name),
                    Some((_, usage)) if usage.list && !is_alone(template) => {
                        let message = format!(
                            "`{{in.{name}}}` is a list in {}, and part of a longer word in the command",
                            fields.what
                        );
                        let help =
                            "a word that is nothing but the placeholder becomes one word for each item";
                        d.error_help(Code::TypeMismatch, at, message, help);
                    }
                    Some(_) => {}
                }
            }
        }
        match stdin.as_ref().map(|name| (name, given(name))) {
            Some((name, None)) => missing.push(name),
            Some((name, Some((_, usage)))) if usage.list => {
                let message =
                    format!("standard input is one object, and `{name}` of {} is a list", fields.what);
                d.error_help(Code::TypeMismatch, at, message, format!("use `{{in.{name}}}` in the command"));
            }
            _ => {}
        }
    }
    missing.sort_unstable();
    missing.dedup();
    for name in missing {
        let message = format!(
            "{} does not give the input `{name}` that function `{}` needs",
            fields.what, function.name
        );
        d.error_help(Code::MissingKey, at, message, format!("add `{name}` under `in`"));
    }
}

fn is_alone(template: &Template) -> bool {
    template.parts.len() == 1
}

/// The start policy, with `{first: k}` bounded by the inputs there are.
fn start(
    d: &mut Diagnostics<'_>,
    draft: &StepDraft<'_>,
    fields: &Fields<'_>,
    inputs: &[(InputPort, InputUse)],
) -> StartPolicy {
    let data = inputs.iter().filter(|(port, _)| !matches!(port.source, Source::Const(_))).count() as u32;
    match draft.settings.start() {
        StartPolicy::First(k) if k > data && fields.get("start").is_some() => {
            let message = format!("{} starts after {k} of its inputs, and has {data}", fields.what);
            d.error_help(Code::BadValue, fields.key_span("start"), message, "literals do not count");
            StartPolicy::AllReady
        }
        // Asked of all steps: as many as this one has.
        StartPolicy::First(k) if k > data => StartPolicy::AllReady,
        start => start,
    }
}
