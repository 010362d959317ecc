//! The text of a `dflow/v1` file of synthetic steps.

use super::Kind;
use super::error::ImportError;
use super::names;
use super::options::{ImportOptions, Mode};
use super::plan::{self, Function, Plan, Step};
use super::traced::{Stats, Traced};
use std::fmt::Write as _;

/// Lines are broken here where they can be, in characters.
const WIDTH: usize = 110;

/// The workflow file.
///
/// # Errors
/// It would have more steps than a workflow may have.
pub(super) fn emit(
    traced: &Traced,
    stats: &Stats,
    kind: Kind,
    options: &ImportOptions,
) -> Result<String, ImportError> {
    let plan = plan::plan(traced, options)?;
    let mut text = String::new();
    header(&mut text, traced, stats, kind, options);
    let name = names::sanitised(if traced.name.is_empty() { kind.name() } else { &traced.name });
    text += "apiVersion: dflow/v1\nkind: Workflow\n";
    let mut metadata = vec![format!("name: {name}")];
    if !traced.description.is_empty() {
        metadata.push(format!("description: {}", quoted(&traced.description)));
    }
    wrapped(&mut text, "metadata: ", &metadata, 2);
    if !traced.inputs.is_empty() {
        text += "\ninputs:\n";
        for (name, input) in &traced.inputs {
            let mut parts = vec![format!("type: {}", input.ty), format!("default: {}", input.default)];
            parts.push(format!("description: {}", quoted(&input.description)));
            wrapped(&mut text, &format!("  {name}: "), &parts, 4);
        }
    }
    text += "\nfunctions:\n";
    plan.functions.iter().for_each(|f| function(&mut text, f));
    text += "\nsteps:\n";
    for (index, step) in plan.steps.iter().enumerate() {
        self::step(&mut text, &plan, index, step);
    }
    text += "\noutputs:\n";
    for step in plan.steps.iter().filter(|step| step.sum) {
        let item = if step.foreach.is_some() { "[*]" } else { "" };
        let _ = writeln!(text, "  {name}: {{from: \"steps.{name}.sum{item}\"}}", name = step.name);
    }
    Ok(text)
}

fn header(text: &mut String, traced: &Traced, stats: &Stats, kind: Kind, options: &ImportOptions) {
    let Stats { tasks, edges, edge_bytes, external_files, external_bytes } = stats;
    let mut line = |what: String| {
        text.push_str("# ");
        text.push_str(&what);
        text.push('\n');
    };
    line(format!(
        "Made by `dflow import {}` from {} ({}).",
        kind.name(),
        quoted(&traced.name),
        traced.format
    ));
    if let Some(origin) = &options.origin {
        origin.lines().for_each(|part| line(printable(part)));
    }
    line(format!("{tasks} tasks hand each other {edge_bytes} bytes over {edges} edges;"));
    let left_out = if options.externals { "" } else { " and are left out" };
    line(format!("{external_files} files of {external_bytes} bytes come from outside{left_out}."));
    if options.size_scale != 1.0 {
        line(format!("Sizes are {} times these.", options.size_scale));
    }
    match options.mode {
        Mode::Paper => {
            line(
                "Each task sleeps one second. The paper ran it on 7 workers of 8 cores: `--cpus 56`.".into(),
            );
        }
        Mode::Trace => {
            line(format!("Each task sleeps {} times as long as it was traced to run.", options.time_scale))
        }
        Mode::Zero => line("No task takes time beyond its reading and writing.".into()),
    }
    line("The result is what each last task read: how many bytes, and their checksum.".into());
}

fn function(text: &mut String, function: &Function) {
    let mut parts =
        vec!["runtime: builtin".to_owned(), "handler: synthetic".into(), "deterministic: true".into()];
    let mut outs: Vec<String> = function
        .lists
        .iter()
        .enumerate()
        .map(|(port, list)| format!("o{port}: {}", if *list { "{type: bytes, many: true}" } else { "bytes" }))
        .collect();
    if function.sum {
        outs.push("sum: json".into());
    }
    if !outs.is_empty() {
        let mut flow = String::new();
        fill(&mut flow, "    outputs: {", &outs, "}", 6);
        parts.push(flow.trim_start().to_owned());
    }
    wrapped(text, &format!("  {}: ", function.name), &parts, 4);
}

fn step(text: &mut String, plan: &Plan, index: usize, step: &Step) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "  {}:", step.name);
    if !step.description.is_empty() {
        let _ = writeln!(text, "    description: {}", quoted(&step.description));
    }
    let _ = writeln!(text, "    function: {}", plan.functions[step.function].name);
    if let Some(when) = &step.when {
        let _ = writeln!(text, "    when: {}", quoted(when));
    }
    if let Some(list) = &step.foreach {
        let _ = writeln!(text, "    foreach: {{item: item, over: {list}}}");
    }
    if !step.after.is_empty() {
        fill(text, "    after: [", &step.after, "]", 6);
        text.push('\n');
    }
    if step.sleep_us > 0 {
        let _ = writeln!(text, "    estimate: {}ms", step.sleep_us.div_ceil(1000));
    }
    if step.helper {
        text.push_str("    resources: {cpu: 0}\n");
    }
    text.push_str("    in:\n");
    let outs = step.outs.iter().enumerate().map(|(port, out)| match out.items {
        Some(items) => format!("{{port: o{port}, bytes: {}, items: {items}}}", out.bytes),
        None => format!("{{port: o{port}, bytes: {}}}", out.bytes),
    });
    let spec = format!("      spec: {{seed: {index}, sleep_ms: {}, out: [", step.sleep_us as f64 / 1000.0);
    fill(text, &spec, &outs.collect::<Vec<_>>(), "]}", 8);
    text.push('\n');
    if step.foreach.is_some() {
        text.push_str("      item: item.item\n");
    }
    for (number, read) in step.reads.iter().enumerate() {
        let _ = match read.optional {
            true => writeln!(text, "      p{number}: {{from: \"{}\", optional: true}}", read.reference),
            // `[` ends a plain text in some places, so that those with `[*]` are quoted.
            false if read.reference.ends_with(']') => {
                writeln!(text, "      p{number}: \"{}\"", read.reference)
            }
            false => writeln!(text, "      p{number}: {}", read.reference),
        };
    }
}

/// A map in braces, on as few lines as it takes.
fn wrapped(text: &mut String, lead: &str, parts: &[String], indent: usize) {
    fill(text, &format!("{lead}{{"), parts, "}", indent);
    text.push('\n');
}

/// A list of parts that is broken into lines of [`WIDTH`].
fn fill(text: &mut String, lead: &str, parts: &[String], end: &str, indent: usize) {
    text.push_str(lead);
    let mut column = lead.chars().count();
    for (index, part) in parts.iter().enumerate() {
        let last = index + 1 == parts.len();
        let len = part.chars().count() + if last { end.len() } else { 1 };
        if index > 0 {
            if column + 1 + len > WIDTH {
                text.push('\n');
                text.push_str(&" ".repeat(indent));
                column = indent;
            } else {
                text.push(' ');
                column += 1;
            }
        }
        text.push_str(part);
        if !last {
            text.push(',');
        }
        column += len;
    }
    text.push_str(end);
}

/// A text in double quotes, with everything escaped that an editor or a parser may stumble over.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            ' '..='~' => quoted.push(c),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            // Writing to a String cannot fail.
            c if (c as u32) < 0x1_0000 => drop(write!(quoted, "\\u{:04X}", c as u32)),
            c => drop(write!(quoted, "\\U{:08X}", c as u32)),
        }
    }
    quoted.push('"');
    quoted
}

/// A line of a comment.
fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_broken_between_parts() {
        let parts: Vec<String> = (0..40).map(|n| format!("part{n}: value")).collect();
        let mut text = String::new();
        wrapped(&mut text, "  lead: ", &parts, 4);
        assert!(text.lines().count() > 4 && text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert!(text.ends_with("part39: value}\n"));
    }

    #[test]
    fn anything_can_be_quoted() {
        assert_eq!(quoted("a\"b\\c\n"), r#""a\"b\\c\n""#);
        assert_eq!(quoted("é\u{85}\u{1F600}"), r#""\u00E9\u0085\U0001F600""#);
    }
}
