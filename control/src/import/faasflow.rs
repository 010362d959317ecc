//! FaaSFlow's flat workflow files, version 1.
//!
//! A function names what it takes and puts; who hands what to whom is found **by name**, since the
//! files say `function: INPUT` even of what another function puts. `next` tells what runs after it
//! and how: `pass` and `parallel` run all, `switch` the first whose condition holds, `foreach` once
//! for each of a list. A function whose `source` is `VIRTUAL` only branches, `END` is no function.

use super::condition;
use super::cursor::At;
use super::error::{ImportError, Warning};
use super::guard::{Guard, Taken};
use super::names;
use super::options::ImportOptions;
use super::traced::{File, RunInput, Task, Traced, find_cycle, topological};
use super::yaml;
use std::collections::{BTreeMap, BTreeSet, HashMap};

const FORMAT: &str = "FaaSFlow";
/// What ends a branch.
const END: &str = "END";
/// Who hands over what comes from outside.
const OUTSIDE: [&str; 2] = ["INPUT", "USER"];
/// Most items of one list.
const ITEMS_MAX: f64 = 1_000_000.0;

/// A function as the file has it.
#[derive(Default)]
struct Function {
    path: String,
    name: String,
    kind: String,
    runtime_s: f64,
    virtual_node: bool,
    split_ratio: Option<u32>,
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    next: Next,
}

struct Input {
    name: String,
    /// What the giver calls it.
    parameter: String,
    /// Who is said to hand it over.
    giver: Option<String>,
    bytes: Option<u64>,
}

struct Output {
    name: String,
    /// A list, to run a function once for each element of.
    keys: bool,
    bytes: Option<u64>,
}

/// What runs after a function.
#[derive(Default)]
enum Next {
    #[default]
    Nothing,
    All(Vec<usize>),
    /// Of each branch the condition (`None` always holds) and the function (`None` ends).
    Switch(Vec<(Option<String>, Option<usize>)>),
    Foreach(Vec<usize>),
}

impl Next {
    fn nodes(&self) -> impl Iterator<Item = usize> {
        let (plain, switch): (&[usize], &[_]) = match self {
            Next::Nothing => (&[], &[]),
            Next::All(nodes) | Next::Foreach(nodes) => (nodes, &[]),
            Next::Switch(branches) => (&[], branches),
        };
        plain.iter().copied().chain(switch.iter().filter_map(|(_, node)| *node))
    }
}

/// Reads a flat workflow file.
pub(super) fn read(
    text: &str,
    options: &ImportOptions,
    warnings: &mut Vec<Warning>,
) -> Result<Traced, ImportError> {
    let value = yaml::parse(text)?;
    let root = At::root(&value, FORMAT);
    let mut outside = BTreeMap::new();
    if let Some(inputs) = root.get("global_input") {
        for (name, at) in inputs.entries()? {
            at.check_name(name)?;
            outside.insert(name.to_owned(), at.get("size").map(|s| s.size_bytes()).transpose()?);
        }
    }
    let functions = functions(&root)?;
    let mut traced = Traced { format: format!("{FORMAT} flat workflow"), ..Traced::default() };
    traced.name = root.get("name").map(|at| at.name()).transpose()?.unwrap_or_default();
    let tasks = tasks(&functions, options, &mut traced, warnings)?;
    hand_over(&functions, &tasks, &outside, &mut traced, warnings);
    carry(&mut traced);
    order(&functions, &tasks, &mut traced);
    Ok(traced)
}

fn functions(root: &At<'_>) -> Result<Vec<Function>, ImportError> {
    let list = root.need("functions")?;
    let mut functions: Vec<Function> = Vec::new();
    let mut by_name = HashMap::new();
    for at in list.items()? {
        let name = at.need("name")?.name()?;
        if by_name.insert(name.clone(), functions.len()).is_some() {
            return Err(ImportError::DuplicateTask { path: at.path(), id: name });
        }
        functions.push(function(&at, name)?);
    }
    if functions.is_empty() {
        return Err(ImportError::NoTasks { path: list.path() });
    }
    for (at, function) in list.items()?.zip(&mut functions) {
        if let Some(at) = at.get("next") {
            function.next = next(&at, &by_name)?;
        }
    }
    Ok(functions)
}

fn function(at: &At<'_>, name: String) -> Result<Function, ImportError> {
    let source = at.get("source").map(|s| s.name()).transpose()?.unwrap_or_else(|| name.clone());
    let mut function = Function {
        path: at.path(),
        kind: names::kind(&source).to_owned(),
        virtual_node: source == "VIRTUAL",
        name,
        ..Function::default()
    };
    function.runtime_s = at.get("runtime").map(|t| t.time_s()).transpose()?.unwrap_or(0.0);
    if let Some(at) = at.get("split_ratio") {
        function.split_ratio = Some(at.number(ITEMS_MAX)?.round().max(1.0) as u32);
    }
    if let Some(inputs) = at.get("input") {
        for (name, at) in inputs.entries()? {
            at.check_name(name)?;
            let value = at.get("value");
            let part = |key| value.as_ref().and_then(|v| v.get(key)).map(|p| p.name()).transpose();
            function.inputs.push(Input {
                parameter: part("parameter")?.unwrap_or_else(|| name.to_owned()),
                giver: part("function")?,
                name: name.to_owned(),
                bytes: at.get("size").map(|s| s.size_bytes()).transpose()?,
            });
        }
    }
    if let Some(outputs) = at.get("output") {
        for (name, at) in outputs.entries()? {
            at.check_name(name)?;
            let keys = at.get("type").map(|t| t.text()).transpose()?.is_some_and(|t| t == "keys");
            let bytes = at.get("size").map(|s| s.size_bytes()).transpose()?;
            function.outputs.push(Output { name: name.to_owned(), keys, bytes });
        }
    }
    Ok(function)
}

fn next(at: &At<'_>, by_name: &HashMap<String, usize>) -> Result<Next, ImportError> {
    let nodes = at.list("nodes", |node| {
        let id = node.name()?;
        match by_name.get(&id) {
            Some(index) => Ok(Some(*index)),
            None if id == END => Ok(None),
            None => Err(ImportError::UnknownTask { path: node.path(), id }),
        }
    })?;
    let kind = at.get("type");
    let text = kind.as_ref().map(|t| t.text()).transpose()?;
    match (text.as_deref().unwrap_or("pass"), kind) {
        ("pass" | "parallel", _) => Ok(Next::All(nodes.into_iter().flatten().collect())),
        ("foreach", _) => Ok(Next::Foreach(nodes.into_iter().flatten().collect())),
        ("switch", _) => {
            let conditions = at.list("conditions", |c| c.text())?;
            if conditions.len() != nodes.len() {
                let (have, want) = (conditions.len(), nodes.len());
                let what = format!(
                    "{want} nodes need as many `conditions`, found {have}; the last may be `default`"
                );
                return Err(ImportError::Unsupported { path: at.path(), what });
            }
            let condition = |text: String| (text.trim() != "default").then_some(text);
            Ok(Next::Switch(conditions.into_iter().map(condition).zip(nodes).collect()))
        }
        (_, Some(kind)) => Err(kind.wrong("`pass`, `parallel`, `switch` or `foreach`")),
        (_, None) => Ok(Next::Nothing),
    }
}

/// Fills in the tasks; returns the task of each function, `None` for the virtual ones.
fn tasks(
    functions: &[Function],
    options: &ImportOptions,
    traced: &mut Traced,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Option<usize>>, ImportError> {
    let conditions = conditions(functions, traced, warnings);
    let guards = guards(functions)?;
    let mut tasks = vec![None; functions.len()];
    for (index, function) in functions.iter().enumerate().filter(|(_, f)| !f.virtual_node) {
        tasks[index] = Some(traced.tasks.len());
        traced.tasks.push(Task {
            id: function.name.clone(),
            kind: function.kind.clone(),
            runtime_s: function.runtime_s,
            when: guards[index].condition(|taken| branch(&conditions[taken.switch], taken.branch)),
            ..Task::default()
        });
    }
    for (index, function) in functions.iter().enumerate() {
        let Next::Foreach(nodes) = &function.next else { continue };
        let Some(task) = tasks[index] else {
            let what = "a virtual function has no list to run others over; let the function that makes it say `foreach`";
            return Err(ImportError::Unsupported { path: function.path.clone(), what: what.into() });
        };
        let told = nodes.iter().filter_map(|n| functions[*n].split_ratio).max();
        traced.tasks[task].items = Some(told.unwrap_or_else(|| {
            warnings.push(Warning::ItemsAssumed { function: function.name.clone(), items: options.items });
            options.items
        }));
        for node in nodes {
            let Some(each) = tasks[*node] else {
                let what = "`foreach` leads to a virtual function; name the functions themselves".into();
                return Err(ImportError::Unsupported { path: function.path.clone(), what });
            };
            if traced.tasks[each].foreach.replace(task).is_some_and(|other| other != task) {
                let what = "two lists are to be run over by this function; make it two functions".into();
                return Err(ImportError::Unsupported { path: functions[*node].path.clone(), what });
            }
        }
    }
    for (function, task) in functions.iter().zip(&tasks) {
        if task.is_some_and(|t| traced.tasks[t].foreach.is_some() && traced.tasks[t].items.is_some()) {
            let what =
                "a `foreach` inside a `foreach`: only one level is supported; join the lists first".into();
            return Err(ImportError::Unsupported { path: function.path.clone(), what });
        }
    }
    Ok(tasks)
}

/// For each function its branches' conditions in CEL. What cannot be translated is decided by a run
/// input of its own.
fn conditions(
    functions: &[Function],
    traced: &mut Traced,
    warnings: &mut Vec<Warning>,
) -> Vec<Vec<Option<String>>> {
    let mut all = Vec::with_capacity(functions.len());
    for function in functions {
        let Next::Switch(branches) = &function.next else {
            all.push(Vec::new());
            continue;
        };
        let mut of = Vec::with_capacity(branches.len());
        for (number, (python, _)) in branches.iter().enumerate() {
            of.push(python.as_ref().map(|python| {
                let fits = |known: &BTreeMap<String, RunInput>, inputs: &BTreeMap<String, RunInput>| {
                    inputs
                        .iter()
                        .all(|(name, input)| known.get(name).is_none_or(|known| known.ty == input.ty))
                };
                if let Some(done) = condition::translate(python).filter(|t| fits(&traced.inputs, &t.inputs)) {
                    for (name, input) in done.inputs {
                        traced.inputs.entry(name).or_insert(input);
                    }
                    return done.cel;
                }
                let mut input = names::identifier(&format!("{}_branch_{}", function.name, number + 1));
                while traced.inputs.contains_key(&input) {
                    input.push('_');
                }
                warnings.push(Warning::ConditionReplaced { condition: python.clone(), input: input.clone() });
                let description =
                    format!("Decides on a branch, in place of `{}`.", super::error::word(python));
                let run_input = RunInput { ty: "bool", default: "true".into(), description };
                traced.inputs.insert(input.clone(), run_input);
                format!("inputs.{input}")
            }));
        }
        all.push(of);
    }
    all
}

/// The condition of one branch: its own holds, and none of those before it.
fn branch(conditions: &[Option<String>], branch: usize) -> String {
    let mut parts: Vec<String> = conditions[..branch].iter().flatten().map(|c| format!("!({c})")).collect();
    if let Some(own) = &conditions[branch] {
        parts.push(if own.contains(' ') { format!("({own})") } else { own.clone() });
    }
    if parts.is_empty() { "true".into() } else { parts.join(" && ") }
}

/// For each function when it is reached.
fn guards(functions: &[Function]) -> Result<Vec<Guard>, ImportError> {
    let mut precursors = vec![Vec::new(); functions.len()];
    for (index, function) in functions.iter().enumerate() {
        function.next.nodes().for_each(|node| precursors[node].push(index));
    }
    for of in &mut precursors {
        of.sort_unstable();
        of.dedup();
    }
    if let Some(cycle) = find_cycle(&precursors) {
        let tasks = cycle.into_iter().map(|index| functions[index].name.clone()).collect();
        return Err(ImportError::Cycle { tasks });
    }
    // A branch is taken in any case if the last of them needs no condition.
    let branches = |switch: usize| match &functions[switch].next {
        Next::Switch(branches) => branches.last().is_some_and(|(c, _)| c.is_none()).then_some(branches.len()),
        _ => None,
    };
    let mut guards: Vec<Guard> =
        precursors.iter().map(|of| if of.is_empty() { Guard::always() } else { Guard::default() }).collect();
    for index in topological(&precursors) {
        let from = guards[index].clone();
        let mut reach =
            |node: usize, taken| guards[node].reach(&from, taken, branches, || functions[node].path.clone());
        match &functions[index].next {
            Next::Nothing => {}
            Next::All(nodes) | Next::Foreach(nodes) => {
                nodes.iter().try_for_each(|node| reach(*node, None))?;
            }
            Next::Switch(of) => {
                for (branch, (_, node)) in of.iter().enumerate() {
                    let taken = Some(Taken { switch: index, branch });
                    node.map_or(Ok(()), |node| reach(node, taken))?;
                }
            }
        }
    }
    Ok(guards)
}

/// Finds who hands what to whom.
fn hand_over(
    functions: &[Function],
    tasks: &[Option<usize>],
    outside: &BTreeMap<String, Option<u64>>,
    traced: &mut Traced,
    warnings: &mut Vec<Warning>,
) {
    let mut makers: HashMap<&str, Vec<usize>> = HashMap::new();
    let mut made: BTreeMap<(&str, usize), File> = BTreeMap::new();
    for (index, function) in functions.iter().enumerate() {
        let Some(task) = tasks[index] else { continue };
        for output in &function.outputs {
            makers.entry(&output.name).or_default().push(index);
            let file = File {
                name: output.name.clone(),
                bytes: output.bytes.unwrap_or(0),
                writer: Some(task),
                carried: output.keys && traced.tasks[task].items.is_some(),
                ..File::default()
            };
            made.insert((&output.name, index), file);
        }
    }
    let mut external: BTreeMap<&str, File> = BTreeMap::new();
    let mut no_size = BTreeSet::new();
    for (index, function) in functions.iter().enumerate() {
        let Some(task) = tasks[index] else { continue };
        for input in &function.inputs {
            let others = |name: &str| -> Vec<usize> {
                makers.get(name).into_iter().flatten().copied().filter(|maker| *maker != index).collect()
            };
            let mut name = input.parameter.as_str();
            let mut from = others(name);
            if from.is_empty() {
                name = &input.name;
                from = others(name);
            }
            let giver = input.giver.as_deref().filter(|giver| !OUTSIDE.contains(giver));
            if let Some(giver) = giver {
                let said: Vec<usize> =
                    from.iter().copied().filter(|maker| functions[*maker].name == giver).collect();
                if !said.is_empty() {
                    from = said;
                }
            }
            for maker in &from {
                let file = made.get_mut(&(name, *maker));
                file.into_iter().for_each(|file| push_new(&mut file.readers, task));
            }
            if !from.is_empty() {
                continue;
            }
            let name = input.parameter.as_str();
            if let (Some(giver), false) = (giver, outside.contains_key(name)) {
                warnings.push(Warning::NotMade { file: name.into(), function: giver.into() });
            }
            let bytes = outside.get(name).copied().flatten().or(input.bytes);
            if bytes.is_none() {
                no_size.insert(name);
            }
            let file = external.entry(name).or_insert_with(|| File {
                name: name.to_owned(),
                bytes: bytes.unwrap_or(0),
                ..File::default()
            });
            push_new(&mut file.readers, task);
        }
    }
    let unsized_outputs = functions.iter().flat_map(|f| &f.outputs).filter(|o| o.bytes.is_none());
    no_size.extend(unsized_outputs.map(|o| o.name.as_str()));
    if let Some(first) = no_size.first() {
        warnings.push(Warning::NoSize { files: no_size.len(), first: (*first).to_owned() });
    }
    traced.files = made.into_values().chain(external.into_values()).collect();
}

fn push_new(list: &mut Vec<usize>, item: usize) {
    if !list.contains(&item) {
        list.push(item);
    }
}

/// What goes into the items of lists: the keys, and what only the functions run over the list read.
/// What somebody else reads too is an object of its own.
fn carry(traced: &mut Traced) {
    for file in &mut traced.files {
        let Some(writer) = file.writer.filter(|w| traced.tasks[*w].items.is_some()) else { continue };
        if !file.readers.is_empty() {
            file.carried = file.readers.iter().all(|reader| traced.tasks[*reader].foreach == Some(writer));
        }
    }
}

/// What `next` orders without handing anything over.
fn order(functions: &[Function], tasks: &[Option<usize>], traced: &mut Traced) {
    let data: BTreeSet<(usize, usize)> = traced
        .files
        .iter()
        .flat_map(|f| f.writer.into_iter().flat_map(|w| f.readers.iter().map(move |r| (w, *r))))
        .collect();
    for (index, _) in functions.iter().enumerate() {
        let Some(task) = tasks[index] else { continue };
        // Through virtual functions to those that run next.
        let mut after: Vec<usize> = functions[index].next.nodes().collect();
        let mut seen = BTreeSet::new();
        while let Some(node) = after.pop() {
            match tasks[node] {
                _ if !seen.insert(node) => {}
                None => after.extend(functions[node].next.nodes()),
                Some(next) => {
                    let list = traced.tasks[next].foreach == Some(task);
                    if !list && !data.contains(&(task, next)) {
                        push_new(&mut traced.tasks[next].after, task);
                    }
                }
            }
        }
    }
}
