//! `dflow node` and `dflow config`: a node as a service, and what it is told.

use super::exit::Exit;
use super::history::{Form, print};
use crate::daemon;
use crate::daemon::config::{KEYS, Key, Loaded, LogFormat, Origin};
use crate::text::{plain, table};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches};
use serde_json::{Value, json};
use std::path::PathBuf;

/// A node's configuration as it is given on the command line: each key a flag and a variable.
#[derive(Clone, Debug)]
pub(super) struct Given {
    file: Option<PathBuf>,
    values: Vec<(&'static str, String, Origin)>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each key can be given in the file, as a variable and as a flag; a later one of these wins. `dflow config show` says
where each value comes from. SIGTERM ends a node: it takes no new runs, lets those under way end, and cancels what is
left after --drain-s.

Examples:
  dflow node
  dflow node --config node.toml --check
  dflow node --api 10.0.0.1:7400 --data 10.0.0.1:7401 --secret-file secret --peers 'b=10.0.0.2:7401'")]
pub(super) struct NodeArgs {
    /// Only check the configuration
    #[arg(long)]
    check: bool,
    /// The process that started this one, and that this one is to end with
    #[arg(long, hide = true, value_name = "PID")]
    end_with: Option<i32>,
    #[command(flatten)]
    given: Given,
}

#[derive(Debug, clap::Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ConfigCommand {
    /// Show every key of a node's configuration with its value and where that comes from
    Show(Box<ShowArgs>),
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    #[arg(short, long, value_enum, default_value = "table")]
    output: Form,
    #[command(flatten)]
    given: Given,
}

impl clap::Args for Given {
    fn augment_args(command: clap::Command) -> clap::Command {
        let file = Arg::new("config")
            .long("config")
            .env("DFLOW_CONFIG")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Configuration file (TOML); default: /etc/dflow/node.toml if it is there");
        let keys = KEYS.iter().filter(|key| !is_global(key)).map(|key| {
            let arg = Arg::new(key.name).long(key.flag()).env(key.variable()).value_name(key.value);
            let arg = arg.help(key.help).action(ArgAction::Set);
            if key.is_switch() {
                arg.num_args(0..=1).default_missing_value("true").require_equals(true)
            } else {
                arg
            }
        });
        command.arg(file).args(keys)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let value = |key: &Key| {
            let text = matches.try_get_one::<String>(key.name).ok().flatten()?;
            let origin = match matches.value_source(key.name)? {
                ValueSource::EnvVariable => Origin::Variable(key.variable()),
                ValueSource::CommandLine => Origin::Flag(key.flag()),
                _ => return None,
            };
            Some((key.name, text.clone(), origin))
        };
        Ok(Given {
            file: matches.get_one("config").cloned(),
            values: KEYS.iter().filter_map(value).collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// `--log` is a flag of all commands.
fn is_global(key: &Key) -> bool {
    key.name == "log"
}

impl Given {
    /// The configuration; what is wrong with it has been said.
    pub(super) fn load(&self) -> Result<Loaded, Exit> {
        let value = |key: &Key| {
            let found = self.values.iter().find(|(name, ..)| *name == key.name);
            found.map(|(_, value, origin)| (value.clone(), origin.clone()))
        };
        Loaded::load(self.file.as_deref(), value).map_err(|error| {
            eprintln!("error: {error}");
            Exit::Usage
        })
    }
}

pub(super) fn run(args: &NodeArgs) -> Exit {
    let loaded = match args.given.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    if args.check {
        eprintln!("the configuration of node {} is good", loaded.settings.name);
        return Exit::Ok;
    }
    if args.end_with.is_some_and(|parent| !ends_with(parent)) {
        return Exit::Ok;
    }
    init_logging(&loaded);
    let name = loaded.settings.name.clone();
    match daemon::run(loaded, |api| eprintln!("node {name} is ready: DFLOW_SERVER=http://{api}")) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            eprintln!("error: {error}");
            Exit::Environment
        }
    }
}

/// The end of its parent is a SIGTERM for this process from now on; false if the parent has ended already.
fn ends_with(parent: i32) -> bool {
    // It fails for no signal that exists.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
    rustix::process::getppid().is_some_and(|now| now.as_raw_nonzero().get() == parent)
}

fn init_logging(loaded: &Loaded) {
    // The filter was checked when it was loaded.
    let filter = tracing_subscriber::EnvFilter::new(&loaded.settings.log);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second initialisation (an embedding program's own) is no reason to stop.
    let _ = match loaded.settings.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

pub(super) fn config(args: &ConfigArgs) -> Exit {
    let ConfigCommand::Show(args) = &args.command;
    let loaded = match args.given.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let rows = KEYS.iter().zip(&loaded.origins);
    let rows = rows.map(|(key, origin)| (key.name, (key.show)(&loaded.settings), origin.to_string()));
    let list =
        || rows.clone().map(|(key, value, origin)| json!({"key": key, "value": value, "origin": origin}));
    match args.output {
        Form::Table => {
            let rows: Vec<Vec<String>> = rows
                .map(|(key, value, origin)| vec![key.to_owned(), plain(&value), plain(&origin)])
                .collect();
            print(&table(&["KEY", "VALUE", "FROM"], &rows))
        }
        form => form.print(&list().collect::<Value>()),
    }
}
