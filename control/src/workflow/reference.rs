//! References: the only thing that makes a data edge.

use super::diagnostic::{Code, Problem, word};

/// A reference as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reference<'t> {
    /// `inputs.name`.
    Input { name: &'t str },
    /// `steps.step.port` or `steps.step.port[*]`.
    Output { step: &'t str, port: &'t str, gather: bool },
    /// `item.name`.
    Item { name: &'t str },
}

/// Whether a text is meant as a reference rather than a literal.
pub(super) fn is_reference(text: &str) -> bool {
    ["inputs.", "steps.", "item."].iter().any(|prefix| text.starts_with(prefix))
}

/// Takes a reference apart.
pub(super) fn parse(text: &str) -> Result<Reference<'_>, Problem> {
    let bad = |help: &str| {
        let message = format!("`{}` is no reference", word(text));
        Err(Problem::new(Code::BadReference, message).help(help))
    };
    let (path, gather) = match text.strip_suffix("[*]") {
        Some(path) => (path, true),
        None => (text, false),
    };
    let parts: Vec<&str> = path.splitn(5, '.').collect();
    if let Some(part) = parts.iter().find(|p| !is_name(p)) {
        let help = match part {
            p if p.contains('[') => "only `[*]` can follow a port: all items of a foreach step, in order",
            _ => {
                "write `inputs.NAME`, `steps.STEP.PORT`, `steps.STEP.PORT[*]` or `item.NAME`; a text that looks like a reference is given as `{value: \"...\"}`"
            }
        };
        return bad(help);
    }
    match (parts.as_slice(), gather) {
        (["inputs", name], false) => Ok(Reference::Input { name }),
        (["item", name], false) => Ok(Reference::Item { name }),
        (["steps", step, port], gather) => Ok(Reference::Output { step, port, gather }),
        (["inputs" | "item", _], true) => bad("`[*]` belongs to outputs of foreach steps"),
        (["steps", step], _) => bad(&format!("name one of the step's outputs: `steps.{step}.PORT`")),
        (["inputs" | "item", _, ..] | ["steps", _, _, ..], _) => {
            bad("a reference names a whole value; only conditions can look into json values")
        }
        _ => bad("write `inputs.NAME`, `steps.STEP.PORT`, `steps.STEP.PORT[*]` or `item.NAME`"),
    }
}

/// Longest name, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 128;

/// Whether a text can name a step, port, input or function.
pub(super) fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    let first = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    first && text.len() <= NAME_BYTES_MAX && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_apart() {
        assert_eq!(parse("inputs.a-b"), Ok(Reference::Input { name: "a-b" }));
        assert_eq!(parse("item.x"), Ok(Reference::Item { name: "x" }));
        let whole = Reference::Output { step: "s", port: "p", gather: false };
        assert_eq!(parse("steps.s.p"), Ok(whole));
        let gather = Reference::Output { step: "s", port: "p", gather: true };
        assert_eq!(parse("steps.s.p[*]"), Ok(gather));
        for bad in
            ["inputs.", "steps.s", "steps.s.p.q", "steps.s.p[0]", "inputs.a[*]", "item.a.b", "steps..p"]
        {
            assert_eq!(parse(bad).unwrap_err().code, Code::BadReference, "{bad}");
        }
    }
}
