//! What a loaded workflow file is: the graph the scheduler runs, and beside it what only the node
//! needs to know (how to start a function, how much memory a step may take, what its bytes mean).

use super::condition::CompiledCondition;
use super::diagnostic::Report;
use dflow_core::graph::{Graph, PortKind, PortType};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// A workflow file, checked and compiled.
///
/// Tables that the graph refers to by index have the same index here: [`functions`] as
/// `graph.functions`, [`inputs`] as `graph.inputs`, [`steps`] as `graph.steps`, [`outputs`] as
/// `graph.outputs`; `Source::Const(i)` is `constants[i]` and `Condition::id` indexes [`conditions`].
///
/// [`functions`]: Workflow::functions
/// [`inputs`]: Workflow::inputs
/// [`steps`]: Workflow::steps
/// [`outputs`]: Workflow::outputs
/// [`conditions`]: Workflow::conditions
#[derive(Debug)]
pub struct Workflow {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.version`; `0` if the file has none. `name@version` is `graph.name`.
    pub version: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// What the scheduler runs.
    pub graph: Arc<Graph>,
    /// How each function is run.
    pub functions: Vec<FunctionSpec>,
    /// What each run input must be.
    pub inputs: Vec<InputSpec>,
    /// Literals of the file, encoded.
    pub constants: Vec<Constant>,
    /// Compiled expressions of `when` and of switch cases.
    pub conditions: Vec<CompiledCondition>,
    /// What the node must know of each step beyond the graph.
    pub steps: Vec<StepSpec>,
    /// What the run hands back.
    pub outputs: Vec<OutputSpec>,
    /// `policy.priority`: runs of higher priority go first. From 0 to 100, 50 unless set.
    pub priority: u8,
    /// What was read: what another node must be given to read the same.
    pub text: Arc<str>,
    /// SHA-256 over all that was read and where: workflows with the same are the same.
    pub digest: [u8; 32],
    /// The file's name as given, for messages.
    pub file: String,
    /// The directory that relative paths in the file are relative to.
    pub source_dir: PathBuf,
    /// `files`: what else the functions need, relative to [`source_dir`](Workflow::source_dir); `None`
    /// if the file does not say.
    pub files: Option<Vec<PathBuf>>,
    /// What is suspect but no error.
    pub warnings: Report,
}

/// The type of a value, as the file declares it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// Opaque bytes, of any size.
    #[default]
    Bytes,
    /// UTF-8 text, of any size.
    Text,
    /// A short UTF-8 text, at most `CONDITION_BYTES_MAX` bytes.
    String,
    /// A JSON document.
    Json,
    /// A whole number from -2^63 to 2^63-1, encoded as JSON.
    Int,
    /// A finite number, encoded as JSON.
    Float,
    /// `true` or `false`, encoded as JSON.
    Bool,
    /// A JSON array.
    List,
}

impl ValueType {
    /// All types, in the order messages name them.
    pub const ALL: [ValueType; 8] = [
        ValueType::Bytes,
        ValueType::Text,
        ValueType::String,
        ValueType::Json,
        ValueType::Int,
        ValueType::Float,
        ValueType::Bool,
        ValueType::List,
    ];

    /// Its name in the file.
    pub const fn name(self) -> &'static str {
        match self {
            ValueType::Bytes => "bytes",
            ValueType::Text => "text",
            ValueType::String => "string",
            ValueType::Json => "json",
            ValueType::Int => "int",
            ValueType::Float => "float",
            ValueType::Bool => "bool",
            ValueType::List => "list",
        }
    }

    /// How its bytes are read by a language binding.
    pub const fn port_type(self) -> PortType {
        match self {
            ValueType::Bytes => PortType::Bytes,
            ValueType::Text | ValueType::String => PortType::Text,
            ValueType::Json | ValueType::Int | ValueType::Float | ValueType::Bool | ValueType::List => {
                PortType::Json
            }
        }
    }

    /// Whether a command line takes the value itself rather than the path of a file that holds it.
    pub const fn is_scalar(self) -> bool {
        matches!(self, ValueType::String | ValueType::Int | ValueType::Float | ValueType::Bool)
    }
}

/// An input of the run.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSpec {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: ValueType,
    /// The type of the elements of a `list`.
    pub items: ValueType,
    /// For people.
    pub description: String,
    /// The encoded value when the caller gives none; `None` if the caller must give one.
    pub default: Option<Vec<u8>>,
    /// The values allowed; empty for any. Only of `string`, `int` and `float`.
    pub allowed: Vec<serde_json::Value>,
    /// Smallest `int` or `float`.
    pub min: Option<f64>,
    /// Largest `int` or `float`.
    pub max: Option<f64>,
    /// Largest encoded size in bytes; 0 for no limit.
    pub bytes_max: u64,
    /// A program reads it by path: store it as a file of its own.
    pub file: bool,
}

/// A literal of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constant {
    /// Its encoded value.
    pub bytes: Vec<u8>,
    /// Its type.
    pub ty: ValueType,
    /// A program reads it by path: store it as a file of its own.
    pub file: bool,
}

/// How a function is run. Equal functions share a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionSpec {
    /// Its name; for one declared inside a step, the step's (or the built-in's).
    pub name: String,
    /// What runs it.
    pub runtime: Runtime,
    /// How many workers there are, and for how long.
    pub pool: PoolSpec,
    /// Environment variables added to the worker's.
    pub env: BTreeMap<String, String>,
    /// Run hostile code: outputs are copied or write-sealed at seal.
    pub strict: bool,
    /// Each attempt puts the same bytes.
    pub deterministic: bool,
    /// Declared inputs; `None` leaves them to the steps.
    pub params: Option<Vec<ParamSpec>>,
    /// Declared outputs, in file order.
    pub ports: Vec<PortSpec>,
}

/// A declared input of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSpec {
    /// Its name.
    pub name: String,
    /// Its type; `None` for any.
    pub ty: Option<ValueType>,
    /// A step may leave it out.
    pub optional: bool,
}

/// A declared output of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: ValueType,
    /// The type of the elements of a `list`.
    pub items: ValueType,
    /// Plain, stream or many.
    pub kind: PortKind,
    /// Expected size of one object in bytes, 0 if unknown.
    pub hint_bytes: u64,
    /// Largest size of one object in bytes, 0 for no limit.
    pub bytes_max: u64,
    /// Most items of a `many` port.
    pub items_max: u32,
}

/// What runs a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// A Python callable, imported before the fork.
    Python {
        /// Where it is defined.
        module: PythonModule,
        /// The callable's name in it; may have dots (`Class.method`).
        function: String,
        /// Directories that go before `sys.path`, absolute or relative to the caller's directory as
        /// [`Workflow::source_dir`] is. The workflow's own directory is the last of them.
        path: Vec<PathBuf>,
    },
    /// A function of a shared library with DFlow's C ABI, opened before the fork.
    Native {
        /// The library file.
        library: PathBuf,
        /// The exported function.
        symbol: String,
    },
    /// Any program.
    Exec {
        /// Program and arguments. A program written with a `/` has been made relative to
        /// [`Workflow::source_dir`]; one without is looked up in `PATH`.
        command: Vec<Template>,
        /// The input whose bytes are its standard input.
        stdin: Option<String>,
        /// The output whose bytes are its standard output.
        stdout: Option<String>,
    },
    /// Part of DFlow.
    Builtin {
        /// Which.
        handler: Builtin,
    },
}

impl Runtime {
    /// Its name in the file.
    pub const fn name(&self) -> &'static str {
        match self {
            Runtime::Python { .. } => "python",
            Runtime::Native { .. } => "native",
            Runtime::Exec { .. } => "exec",
            Runtime::Builtin { .. } => "builtin",
        }
    }
}

/// Where a Python function is defined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PythonModule {
    /// `package.module`, imported by name.
    Name(String),
    /// A `.py` file, imported by path.
    File(PathBuf),
}

/// A function that is part of DFlow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Builtin {
    /// Reads its inputs with a checksum, sleeps or computes, writes random bytes.
    Synthetic,
    /// Writes its inputs to the log.
    Log,
    /// Does nothing.
    Noop,
    /// Tells when its parts happened.
    Probe,
}

impl Builtin {
    /// All of them.
    pub const ALL: [Builtin; 4] = [Builtin::Synthetic, Builtin::Log, Builtin::Noop, Builtin::Probe];

    /// Its name in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Builtin::Synthetic => "synthetic",
            Builtin::Log => "log",
            Builtin::Noop => "noop",
            Builtin::Probe => "probe",
        }
    }
}

/// One word of a command, with placeholders.
///
/// An input of a scalar type ([`ValueType::is_scalar`]) is replaced by its text, any other by the
/// path of a file with its bytes, an output by the path to write (a directory for a `many` port).
/// A word that is nothing but the placeholder of a list becomes one word for each of its items.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    /// Its parts, to be joined.
    pub parts: Vec<TemplatePart>,
}

/// A part of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplatePart {
    /// As it is.
    Text(String),
    /// `{in.name}`.
    Input(String),
    /// `{out.name}`.
    Output(String),
}

/// How many workers of a function there are, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// Workers kept warm though idle.
    pub min_warm: u32,
    /// Most workers at one time.
    pub max: u32,
    /// Milliseconds an idle worker beyond `min_warm` is kept.
    pub keep_warm_ms: u64,
    /// Invocations after which a worker is replaced; 0 for no limit.
    pub max_uses: u64,
}

impl Default for PoolSpec {
    fn default() -> Self {
        PoolSpec { min_warm: 0, max: super::WORKERS_DEFAULT_MAX, keep_warm_ms: 60_000, max_uses: 0 }
    }
}

/// What the node must know of a step beyond the graph.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepSpec {
    /// For people.
    pub description: String,
    /// The types of the inputs, in the order of the graph's step.
    pub inputs: Vec<InputUse>,
    /// The types of the outputs, in the order of the graph's step.
    pub outputs: Vec<ValueType>,
    /// Memory one invocation may use, in bytes; 0 for no limit.
    pub memory_bytes: u64,
    /// Scratch space one invocation may use, in bytes; 0 for none asked.
    pub scratch_bytes: u64,
    /// Where it should run.
    pub placement: Placement,
}

/// How a step uses an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputUse {
    /// The type of the value, or of each item of the list.
    pub ty: ValueType,
    /// It is an ordered list of objects.
    pub list: bool,
}

/// On which node a step should run. One node ignores it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// Where most of its input bytes are.
    #[default]
    Data,
    /// Away from other invocations of the step.
    Spread,
    /// With other invocations.
    Pack,
    /// On nodes that have the label.
    Label(String),
}

/// An output of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputSpec {
    /// Its name.
    pub name: String,
    /// For people.
    pub description: String,
    /// The type of the value, or of each item of the list.
    pub ty: ValueType,
    /// It is an ordered list of objects.
    pub list: bool,
    /// Milliseconds it is kept after the run; `None` until the caller has fetched it.
    pub keep_ms: Option<u64>,
}
