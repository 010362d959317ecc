//! What names mean: inputs, steps and their ports, and what type a reference has.

use super::diagnostic::{Code, Problem, word};
use super::reference::{self, Reference};
use super::spec::{InputSpec, PortSpec, ValueType};
use super::step::{Body, Functions, StepDraft};
use dflow_core::graph::{PortKind, Source, StepIndex};
use dflow_proto::limits::ITEMS_DEFAULT_MAX;
use std::collections::HashMap;

/// All that is declared in a file.
pub(super) struct Names<'n> {
    pub(super) inputs: Vec<InputSpec>,
    input_names: HashMap<String, u16>,
    pub(super) functions: Functions<'n>,
    pub(super) steps: Vec<StepDraft<'n>>,
    step_names: HashMap<&'n str, StepIndex>,
}

/// What a reference or literal stands for.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    pub(super) source: Source,
    /// Of the value, or of each item of the list.
    pub(super) ty: ValueType,
    /// Of the elements, if `ty` is `list`.
    pub(super) items: ValueType,
    /// An ordered list of objects.
    pub(super) list: bool,
}

/// The foreach around a reference: the name and type of its item.
pub(super) type ItemScope<'n> = Option<(&'n str, ValueType)>;

impl<'n> Names<'n> {
    pub(super) fn new(inputs: Vec<InputSpec>, functions: Functions<'n>, steps: Vec<StepDraft<'n>>) -> Self {
        let input_names = inputs.iter().enumerate().map(|(i, spec)| (spec.name.clone(), i as u16)).collect();
        let step_names = steps.iter().enumerate().map(|(i, step)| (step.name, i as u32)).collect();
        let mut names = Names { inputs, input_names, functions, steps, step_names };
        names.type_switches();
        names
    }

    /// The index of a step.
    pub(super) fn step(&self, name: &str) -> Result<StepIndex, Problem> {
        self.step_names.get(name).copied().ok_or_else(|| {
            let message = format!("there is no step `{}`", word(name));
            Problem::near(Code::UnknownName, message, name, self.steps.iter().map(|s| s.name))
        })
    }

    /// What a reference inside the foreach `item` stands for; `Ok(None)` if that is unknown because
    /// of an error that has been reported.
    pub(super) fn resolve(
        &self,
        reference: &Reference<'_>,
        item: ItemScope<'_>,
    ) -> Result<Option<Resolved>, Problem> {
        let one = |source, ty, items| Ok(Some(Resolved { source, ty, items, list: false }));
        match *reference {
            Reference::Input { name } => {
                let Some(&index) = self.input_names.get(name) else {
                    let message = format!("there is no input `{}`", word(name));
                    let known = self.inputs.iter().map(|i| i.name.as_str());
                    return Err(Problem::near(Code::UnknownName, message, name, known));
                };
                let spec = &self.inputs[usize::from(index)];
                one(Source::Input(index), spec.ty, spec.items)
            }
            Reference::Item { name } => match item {
                Some((item, ty)) if item == name => one(Source::Item, ty, ValueType::Json),
                Some((item, _)) => {
                    let message = format!("there is no item `{}`", word(name));
                    Err(Problem::new(Code::UnknownName, message)
                        .help(format!("the item is called `{item}` here")))
                }
                None => {
                    let message = format!("`item.{}` outside a foreach", word(name));
                    Err(Problem::new(Code::BadReference, message)
                        .help("add `foreach: {item: NAME, over: LIST}`"))
                }
            },
            Reference::Output { step, port, gather } => self.output(step, port, gather),
        }
    }

    fn output(&self, step: &str, port: &str, gather: bool) -> Result<Option<Resolved>, Problem> {
        let index = self.step(step)?;
        let draft = &self.steps[index as usize];
        let Some(ports) = &draft.ports else { return Ok(None) };
        let Some(at) = ports.iter().position(|p| p.name == port) else {
            let message = format!("step `{step}` has no output `{}`", word(port));
            if ports.is_empty() {
                let problem = Problem::new(Code::UnknownName, message);
                return Err(problem.help("its function declares no `outputs`; add them there"));
            }
            return Err(Problem::near(
                Code::UnknownName,
                message,
                port,
                ports.iter().map(|p| p.name.as_str()),
            ));
        };
        let spec = &ports[at];
        let many = spec.kind == PortKind::Many;
        let written = format!("steps.{step}.{port}");
        let mismatch =
            |message: String, help: String| Err(Problem::new(Code::TypeMismatch, message).help(help));
        match (draft.is_foreach(), many, gather) {
            (true, true, _) => {
                let message =
                    format!("`{written}` is a list of lists: `{step}` is a foreach, and `{port}` a list");
                mismatch(message, "let the step put one object for each item".to_owned())
            }
            (true, false, false) => {
                let message = format!("`{written}` is one object for each item of a foreach");
                mismatch(message, format!("write `{written}[*]` for all of them, in item order"))
            }
            (false, true, true) => {
                let message = format!("`{step}` is no foreach step, and its `{port}` is a list already");
                mismatch(message, format!("write `{written}`"))
            }
            (false, false, true) => {
                let message = format!("`{step}` is no foreach step: there is one `{port}` only");
                mismatch(message, format!("write `{written}`"))
            }
            (true, false, true) => {
                let source = Source::Gather { step: index, port: at as u16 };
                Ok(Some(Resolved { source, ty: spec.ty, items: spec.items, list: true }))
            }
            (false, many, false) => {
                let source = Source::Output { step: index, port: at as u16 };
                Ok(Some(Resolved { source, ty: spec.ty, items: spec.items, list: many }))
            }
        }
    }

    /// Gives each switch the type of its first case whose type is known. Switches can choose among
    /// switches, so each is typed after those that it refers to.
    fn type_switches(&mut self) {
        #[derive(Clone, Copy, PartialEq)]
        enum State {
            New,
            Open,
            Done,
        }
        let is_switch = |draft: &StepDraft<'_>| matches!(draft.body, Body::Switch { .. });
        let mut state: Vec<State> =
            self.steps.iter().map(|s| if is_switch(s) { State::New } else { State::Done }).collect();
        for first in 0..self.steps.len() {
            let mut stack = vec![first];
            while let Some(&top) = stack.last() {
                if state[top] == State::Done {
                    stack.pop();
                    continue;
                }
                state[top] = State::Open;
                // An open one closes a cycle, which is reported elsewhere.
                let waits_for = self.case_references(top).find_map(|reference| match reference {
                    Reference::Output { step, .. } => {
                        let index = *self.step_names.get(step)? as usize;
                        (state[index] == State::New).then_some(index)
                    }
                    _ => None,
                });
                if let Some(next) = waits_for {
                    stack.push(next);
                    continue;
                }
                state[top] = State::Done;
                self.steps[top].ports = self.switch_port(top).map(|port| vec![port]);
            }
        }
    }

    fn case_references(&self, step: usize) -> impl Iterator<Item = Reference<'n>> {
        let cases = match &self.steps[step].body {
            Body::Switch { cases, .. } => cases.as_slice(),
            Body::Call(_) | Body::Broken => &[],
        };
        cases.iter().filter_map(|case| reference::parse(case.value.scalar()?).ok())
    }

    fn switch_port(&self, step: usize) -> Option<PortSpec> {
        let Body::Switch { cases, output } = &self.steps[step].body else { return None };
        let (ty, items) = cases.iter().find_map(|case| match case.value.scalar() {
            Some(text) if reference::is_reference(text) => {
                let resolved = self.resolve(&reference::parse(text).ok()?, None).ok()??;
                Some((resolved.ty, resolved.items))
            }
            _ => {
                let json = case.value.to_json();
                Some((ValueType::of(&json), ValueType::of_items(&json)))
            }
        })?;
        Some(PortSpec {
            name: (*output).to_owned(),
            ty,
            items,
            kind: PortKind::Plain,
            hint_bytes: 0,
            bytes_max: 0,
            items_max: ITEMS_DEFAULT_MAX,
        })
    }
}
