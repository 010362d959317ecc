//! Conditions: CEL expressions over values of the run, compiled when the file is loaded.
//!
//! An expression may name `inputs.X`, `steps.S.P` (then fields of the value, as in
//! `steps.probe.meta.duration_s`), `skipped(steps.S)`, and variables that its own macros bind. All
//! other names are refused at load, so that evaluation can fail only by the values' types.

use super::diagnostic::{Code, Problem, word};
use super::reference::Reference;
use super::spec::ValueType;
use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SourceInfo, operators};
use cel::objects::{Key, Map};
use cel::parser::Parser;
use cel::{Context, Env, Value};
use dflow_core::graph::{Source, StepIndex};
use dflow_proto::limits::CONDITION_BYTES_MAX;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// Longest expression, in bytes.
pub const EXPRESSION_BYTES_MAX: usize = 4 << 10;
/// Macros that iterate (`all`, `exists`, `map`, `filter`) may nest this deep: the time of an
/// evaluation is the size of the value to this power.
pub const ITERATION_DEPTH_MAX: usize = 2;

/// Deepest nesting of an expression's tree, in which `a + b + c` is deeper than `a + b`: evaluation
/// recurses over it.
const TREE_DEPTH_MAX: usize = 200;

const FUNCTIONS: [&str; 16] = [
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "int",
    "uint",
    "double",
    "string",
    "bool",
    "bytes",
    "type",
    "min",
    "max",
    "dyn",
    "skipped",
];
const TYPES: [&str; 10] =
    ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type"];

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// A condition, ready to be evaluated any number of times.
#[derive(Clone, Debug)]
pub struct CompiledCondition {
    text: String,
    /// References replaced by the variables `@v0`, `@v1`, ... and `@s0`, ...
    expression: IdedExpr,
    reads: Vec<(Source, ValueType)>,
    asks: Vec<StepIndex>,
}

/// Why a condition has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    /// A value is too large to look at.
    #[error(
        "condition `{condition}` reads a value of {bytes} bytes; at most {bytes_max} can be read: let the step put what you ask about as a small json port"
    )]
    TooLarge {
        /// The expression.
        condition: String,
        /// The value's size in bytes.
        bytes: u64,
        /// The limit in bytes.
        bytes_max: u64,
    },
    /// A value is not of its declared type.
    #[error("condition `{condition}` reads a value that is not the {ty} it was declared to be: {why}")]
    NotOfType {
        /// The expression.
        condition: String,
        /// The declared type.
        ty: &'static str,
        /// What the decoder said.
        why: String,
    },
    /// The expression failed: a missing field, a comparison of a text with a number, ...
    #[error("condition `{condition}` failed: {why}")]
    Failed {
        /// The expression.
        condition: String,
        /// What the evaluator said.
        why: String,
    },
    /// The result is neither true nor false.
    #[error("condition `{condition}` gave a {got}, not true or false: compare it with something")]
    NotBool {
        /// The expression.
        condition: String,
        /// The type of the result.
        got: String,
    },
    /// A switch without a default, none of whose cases holds.
    #[error("no case of switch `{step}` holds: add `{{default: true, value: ...}}` as the last one")]
    NoCase {
        /// The step.
        step: String,
    },
}

impl CompiledCondition {
    /// The expression as it is in the file.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The values it reads, each once: what `graph::Condition::reads` has.
    pub fn reads(&self) -> impl ExactSizeIterator<Item = &Source> {
        self.reads.iter().map(|(source, _)| source)
    }

    /// The steps it asks `skipped(..)` about, each once: what `graph::Condition::asks` has.
    pub fn asks(&self) -> &[StepIndex] {
        &self.asks
    }

    /// Whether it holds.
    ///
    /// `value` gives the encoded bytes of a source, `None` if it was skipped: then the condition does
    /// not hold, whatever else it says. `skipped` tells whether a step was skipped.
    ///
    /// # Errors
    /// The values are not what the expression needs; see [`ConditionError`].
    pub fn evaluate<B: AsRef<[u8]>>(
        &self,
        value: impl Fn(&Source) -> Option<B>,
        skipped: impl Fn(StepIndex) -> bool,
    ) -> Result<bool, ConditionError> {
        let mut context = Context::with_env(ENV.clone());
        for (i, (source, ty)) in self.reads.iter().enumerate() {
            let Some(bytes) = value(source) else { return Ok(false) };
            context.add_variable_from_value(format!("@v{i}"), self.decode(*ty, bytes.as_ref())?);
        }
        for (i, step) in self.asks.iter().enumerate() {
            context.add_variable_from_value(format!("@s{i}"), skipped(*step));
        }
        match Value::resolve(&self.expression, &context) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(other) => Err(ConditionError::NotBool {
                condition: self.text.clone(),
                got: other.type_of().to_string(),
            }),
            Err(e) => Err(ConditionError::Failed { condition: self.text.clone(), why: e.to_string() }),
        }
    }

    fn decode(&self, ty: ValueType, bytes: &[u8]) -> Result<Value, ConditionError> {
        if bytes.len() as u64 > CONDITION_BYTES_MAX {
            return Err(ConditionError::TooLarge {
                condition: self.text.clone(),
                bytes: bytes.len() as u64,
                bytes_max: CONDITION_BYTES_MAX,
            });
        }
        let wrong =
            |why: String| ConditionError::NotOfType { condition: self.text.clone(), ty: ty.name(), why };
        match ty {
            ValueType::Bytes => Ok(Value::Bytes(Arc::new(bytes.to_vec()))),
            ValueType::Text | ValueType::String => {
                let text = std::str::from_utf8(bytes).map_err(|e| wrong(e.to_string()))?;
                Ok(Value::from(text))
            }
            ValueType::Json | ValueType::Int | ValueType::Float | ValueType::Bool | ValueType::List => {
                let json = serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
                Ok(to_cel(json))
            }
        }
    }
}

/// JSON as CEL sees it. Whole numbers become `int`, so that they mix with literals.
fn to_cel(json: serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(b) => Value::Bool(b),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::Int(i),
            (None, Some(u)) => Value::UInt(u),
            (None, None) => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(s) => Value::String(Arc::new(s)),
        serde_json::Value::Array(items) => Value::List(Arc::new(items.into_iter().map(to_cel).collect())),
        serde_json::Value::Object(fields) => {
            let map: HashMap<Key, Value> =
                fields.into_iter().map(|(k, v)| (Key::String(Arc::new(k)), to_cel(v))).collect();
            Value::Map(Map { map: Arc::new(map) })
        }
    }
}

/// What names in a condition stand for.
pub(super) trait Names {
    /// The source and type of a reference.
    fn read(&mut self, reference: &Reference<'_>) -> Result<(Source, ValueType), Problem>;
    /// The index of a step.
    fn step(&mut self, name: &str) -> Result<StepIndex, Problem>;
}

/// A problem at a range of characters of the expression; `None` for all of it.
pub(super) type Located = (Option<(u32, u32)>, Problem);

/// Compiles `text`; all problems at once.
pub(super) fn compile(text: &str, names: &mut dyn Names) -> Result<CompiledCondition, Vec<Located>> {
    if text.len() > EXPRESSION_BYTES_MAX {
        let message =
            format!("a condition of {} bytes; at most {EXPRESSION_BYTES_MAX} are allowed", text.len());
        return Err(vec![(None, Problem::new(Code::Limit, message))]);
    }
    let (mut expression, info) =
        Parser::default().parse_with_source_info(text).map_err(|e| syntax_problems(text, &e))?;
    let mut binder = Binder {
        names,
        info: &info,
        bound: Vec::new(),
        iterations: 0,
        depth: 0,
        too_deep: false,
        reads: Vec::new(),
        asks: Vec::new(),
        problems: Vec::new(),
    };
    binder.bind(&mut expression);
    let Binder { reads, asks, problems, .. } = binder;
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(CompiledCondition { text: text.to_owned(), expression, reads, asks })
}

/// The parser's errors; those after the first one mostly follow from it.
fn syntax_problems(text: &str, errors: &cel::ParseErrors) -> Vec<Located> {
    let Some(first) = errors.errors.first() else {
        return vec![(None, Problem::new(Code::BadCondition, "the condition is no CEL expression"))];
    };
    let (line, column) = first.pos;
    // The parser counts lines from 1 and columns from 1; (0, 0) is no place.
    let before: usize =
        text.split_inclusive('\n').take(line.max(1) as usize - 1).map(|l| l.chars().count()).sum();
    let at = before + (column.max(1) as usize - 1);
    let range = (line > 0).then_some((at as u32, at as u32));
    // What the parser would have expected is a list of all tokens: of no use to people.
    let said = first.msg.trim_start_matches("Syntax error: ").split(" expecting ").next().unwrap_or_default();
    let said = said.replace("mismatched input", "unexpected").replace("extraneous input", "unexpected");
    let said = said.replace("'<EOF>'", "end");
    let message = format!("the condition is no CEL expression: {}", word(&said));
    vec![(range, Problem::new(Code::BadCondition, message))]
}

/// Replaces references by variables and refuses every other name.
struct Binder<'a> {
    names: &'a mut dyn Names,
    info: &'a SourceInfo,
    /// Variables of the macros around the place.
    bound: Vec<String>,
    iterations: usize,
    depth: usize,
    too_deep: bool,
    reads: Vec<(Source, ValueType)>,
    asks: Vec<StepIndex>,
    problems: Vec<Located>,
}

impl Binder<'_> {
    fn problem(&mut self, id: u64, problem: Problem) {
        self.problems.push((self.info.offset_for(id), problem));
    }

    fn bind(&mut self, expr: &mut IdedExpr) {
        if self.depth >= TREE_DEPTH_MAX {
            if !std::mem::replace(&mut self.too_deep, true) {
                let problem =
                    Problem::new(Code::Limit, format!("a condition nested more than {TREE_DEPTH_MAX} deep"));
                self.problems.push((None, problem.help("split it among several steps")));
            }
            return;
        }
        self.depth += 1;
        self.bind_here(expr);
        self.depth -= 1;
    }

    fn bind_here(&mut self, expr: &mut IdedExpr) {
        let path = self.path(&expr.expr);
        if let Some(new) = path.and_then(|path| self.bind_path(root_id(expr), &path)) {
            expr.expr = new;
            return;
        }
        let id = expr.id;
        match &mut expr.expr {
            Expr::Unspecified | Expr::Literal(_) => {}
            Expr::Ident(name) => {
                let name = name.clone();
                self.free_name(id, &name);
            }
            Expr::Select(select) => self.bind(&mut select.operand),
            Expr::List(list) => list.elements.iter_mut().for_each(|e| self.bind(e)),
            Expr::Map(map) => {
                for entry in &mut map.entries {
                    if let EntryExpr::MapEntry(entry) = &mut entry.expr {
                        self.bind(&mut entry.key);
                        self.bind(&mut entry.value);
                    }
                }
            }
            Expr::Struct(s) => {
                let message = format!("unknown type `{}`", word(&s.type_name));
                self.problem(id, Problem::new(Code::BadCondition, message));
            }
            Expr::Call(call) => {
                if let Some(new) = self.bind_call(id, call) {
                    expr.expr = new;
                }
            }
            Expr::Comprehension(c) => {
                self.bind(&mut c.iter_range);
                self.iterations += 1;
                if self.iterations == ITERATION_DEPTH_MAX + 1 {
                    let message = format!("macros that iterate may nest {ITERATION_DEPTH_MAX} deep");
                    self.problem(id, Problem::new(Code::Limit, message));
                }
                let bound = self.bound.len();
                self.bound.push(c.iter_var.clone());
                self.bound.extend(c.iter_var2.clone());
                self.bound.push(c.accu_var.clone());
                for part in [&mut c.accu_init, &mut c.loop_cond, &mut c.loop_step, &mut c.result] {
                    self.bind(part);
                }
                self.bound.truncate(bound);
                self.iterations -= 1;
            }
        }
    }

    /// The segments of `a.b["c"].d`, if its root is not bound by a macro.
    fn path(&self, expr: &Expr) -> Option<Vec<String>> {
        let mut segments = Vec::new();
        let mut expr = expr;
        loop {
            match expr {
                Expr::Ident(name) if self.bound.contains(name) => return None,
                Expr::Ident(name) => {
                    segments.push(name.clone());
                    segments.reverse();
                    return Some(segments);
                }
                Expr::Select(select) if !select.test => {
                    segments.push(select.field.clone());
                    expr = &select.operand.expr;
                }
                Expr::Call(CallExpr { func_name, target: None, args }) if func_name == operators::INDEX => {
                    let [operand, index] = args.as_slice() else { return None };
                    let Expr::Literal(LiteralValue::String(key)) = &index.expr else { return None };
                    segments.push(key.inner().to_owned());
                    expr = &operand.expr;
                }
                _ => return None,
            }
        }
    }

    /// The variable that stands for a path that is a whole reference.
    fn bind_path(&mut self, id: u64, path: &[String]) -> Option<Expr> {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let reference = match path[..] {
            ["inputs", name] => Reference::Input { name },
            ["steps", step, port] => Reference::Output { step, port, gather: false },
            ["steps", step] => {
                let message = format!("`steps.{step}` is a step, not a value");
                let help = format!("name one of its outputs, or write `skipped(steps.{step})`");
                self.problem(id, Problem::new(Code::BadCondition, message).help(help));
                return Some(Expr::Unspecified);
            }
            _ => return None,
        };
        match self.names.read(&reference) {
            Ok((source, ty)) => {
                let known = self.reads.iter().position(|(s, _)| *s == source);
                let index = known.unwrap_or_else(|| {
                    self.reads.push((source, ty));
                    self.reads.len() - 1
                });
                Some(Expr::Ident(format!("@v{index}")))
            }
            Err(problem) => {
                self.problem(id, problem);
                Some(Expr::Unspecified)
            }
        }
    }

    fn free_name(&mut self, id: u64, name: &str) {
        if name.starts_with('@') || self.bound.iter().any(|b| b == name) || TYPES.contains(&name) {
            return;
        }
        let message = format!("unknown name `{}` in the condition", word(name));
        let help = match name {
            "inputs" => "write `inputs.` and the name of an input",
            "steps" => "write `steps.`, the name of a step, a dot and the name of an output",
            "item" => "`when` is decided once for the whole step, before there are items",
            _ => "a condition can name `inputs.X`, `steps.S.P` and `skipped(steps.S)`; texts go in quotes",
        };
        self.problem(id, Problem::new(Code::BadCondition, message).help(help));
    }

    fn bind_call(&mut self, id: u64, call: &mut CallExpr) -> Option<Expr> {
        let operator = call.func_name.chars().any(|c| !c.is_alphanumeric() && c != '_');
        if call.func_name == "skipped" && call.target.is_none() {
            return Some(self.bind_skipped(id, &call.args));
        }
        if !operator && !FUNCTIONS.contains(&call.func_name.as_str()) {
            let message = format!("unknown function `{}` in the condition", word(&call.func_name));
            let range = self
                .info
                .offset_for(id)
                .map(|range| before_parenthesis(&self.info.source, range, &call.func_name));
            self.problems
                .push((range, Problem::near(Code::BadCondition, message, &call.func_name, FUNCTIONS)));
        }
        if let Some(target) = &mut call.target {
            self.bind(target);
        }
        call.args.iter_mut().for_each(|a| self.bind(a));
        None
    }

    fn bind_skipped(&mut self, id: u64, args: &[IdedExpr]) -> Expr {
        let path = match args {
            [arg] => self.path(&arg.expr).unwrap_or_default(),
            _ => Vec::new(),
        };
        let [root, name] = path.as_slice() else {
            let problem = Problem::new(Code::BadCondition, "`skipped` asks about one step");
            self.problem(id, problem.help("write `skipped(steps.NAME)`"));
            return Expr::Unspecified;
        };
        if root != "steps" {
            let problem = Problem::new(Code::BadCondition, "only steps can be skipped");
            self.problem(id, problem.help("write `skipped(steps.NAME)`"));
            return Expr::Unspecified;
        }
        match self.names.step(name) {
            Ok(step) => {
                let known = self.asks.iter().position(|s| *s == step);
                let index = known.unwrap_or_else(|| {
                    self.asks.push(step);
                    self.asks.len() - 1
                });
                Expr::Ident(format!("@s{index}"))
            }
            Err(problem) => {
                self.problem(root_id(&args[0]), problem);
                Expr::Unspecified
            }
        }
    }
}

/// The node of a path where its text begins: a selection is located at its dot.
fn root_id(expr: &IdedExpr) -> u64 {
    match &expr.expr {
        Expr::Select(select) => root_id(&select.operand),
        Expr::Call(call) if call.func_name == operators::INDEX => call.args.first().map_or(expr.id, root_id),
        _ => expr.id,
    }
}

/// Where the name of a call is, which the parser locates at its parenthesis.
fn before_parenthesis(source: &str, (start, stop): (u32, u32), name: &str) -> (u32, u32) {
    let length = name.chars().count() as u32;
    let Some(begin) = start.checked_sub(length) else { return (start, stop) };
    let found: String = source.chars().skip(begin as usize).take(length as usize).collect();
    if found == name { (begin, start) } else { (start, stop) }
}
