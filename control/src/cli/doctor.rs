//! `dflow doctor`: whether this machine is fit for a node.

use super::exit::Exit;
use super::history::{Form, print};
use super::node::Given;
use crate::doctor::{Finding, Grade, examine};
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
What a node is told is read as `dflow node` reads it, from --config (default: /etc/dflow/node.toml if it is there),
variables and flags: `transport`, `cards` and `data` say which card carries its data, `spill` where its store spills.

Exit code 0 unless something fails without which no node can run here, or not as it is configured (then 3); 2 if the
configuration itself is wrong.

Examples:
  dflow doctor
  dflow doctor --config node.toml
  DFLOW_TRANSPORT=rdma dflow doctor --cards mlx5_0 --data 10.0.0.1:7401 --secret-file secret")]
pub(super) struct DoctorArgs {
    #[arg(short, long, value_enum, default_value = "table")]
    output: Form,
    /// The interpreter that Python functions would use
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: PathBuf,
    #[command(flatten)]
    given: Given,
}

pub(super) fn run(args: &DoctorArgs) -> Exit {
    let loaded = match args.given.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let findings = examine(&loaded.settings, &args.python);
    let code = if findings.iter().any(|f| f.grade == Grade::Fail) { Exit::Environment } else { Exit::Ok };
    let printed = match args.output {
        Form::Json | Form::Yaml => {
            print(&format!("{:#}\n", findings.iter().map(finding_json).collect::<Value>()))
        }
        Form::Table => print(&findings_text(&findings)),
    };
    if printed == Exit::Ok { code } else { printed }
}

fn finding_json(f: &Finding) -> Value {
    json!({"check": f.check, "grade": f.grade.word(), "found": f.found, "means": f.means, "mend": f.mend, "value": f.value})
}

fn findings_text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|f| f.check.len()).max().unwrap_or(0);
    let mut out = String::new();
    for f in findings {
        out.push_str(&format!("{:<4}  {:<width$}  {}\n", f.grade.word(), f.check, f.found));
        if f.grade != Grade::Ok {
            let indent = width + 8;
            if !f.means.is_empty() {
                out.push_str(&format!("{:indent$}{}\n", "", f.means));
            }
            for line in f.mend.lines() {
                out.push_str(&format!("{:indent$}mend: {line}\n", ""));
            }
        }
    }
    let count = |grade| findings.iter().filter(|f| f.grade == grade).count();
    out.push_str(&format!(
        "\n{} ok, {} warn, {} fail\n",
        count(Grade::Ok),
        count(Grade::Warn),
        count(Grade::Fail)
    ));
    out
}
