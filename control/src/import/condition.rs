//! Conditions of FaaSFlow, which are Python, as conditions of `dflow/v1`, which are CEL.
//!
//! What is understood are comparisons of names with literals, joined by `and`, `or` and `not`. The
//! names become run inputs: a synthetic function makes no value to decide on.

use super::cursor::NAME_BYTES_MAX;
use super::names;
use super::traced::RunInput;
use std::collections::BTreeMap;

/// Deepest nesting of parentheses and `not`.
const DEPTH_MAX: usize = 32;

/// A condition, and the run inputs that it reads.
#[derive(Debug, PartialEq)]
pub(super) struct Translated {
    pub(super) cel: String,
    pub(super) inputs: BTreeMap<String, RunInput>,
}

/// The condition in CEL; `None` if it is more than is understood here.
pub(super) fn translate(python: &str) -> Option<Translated> {
    if python.len() > NAME_BYTES_MAX {
        return None;
    }
    let mut reader = Reader { tokens: tokens(python)?, at: 0, depth: 0, inputs: BTreeMap::new() };
    let cel = reader.any()?;
    (reader.at == reader.tokens.len()).then_some(Translated { cel, inputs: reader.inputs })
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    /// As CEL writes it, and its type in a workflow file.
    Literal {
        cel: String,
        ty: &'static str,
    },
    Compare(&'static str),
    Open,
    Close,
}

fn tokens(text: &str) -> Option<Vec<Token>> {
    const COMPARES: [&str; 6] = ["==", "!=", "<=", ">=", "<", ">"];
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, len) = if let Some(sign) = COMPARES.iter().find(|sign| rest.starts_with(**sign)) {
            (Token::Compare(sign), sign.len())
        } else if first == '(' || first == ')' {
            (if first == '(' { Token::Open } else { Token::Close }, 1)
        } else if first == '\'' || first == '"' {
            let len = rest[1..].find(first)? + 2;
            let inner = &rest[1..len - 1];
            if inner.contains(|c: char| c == '\\' || c.is_control()) {
                return None;
            }
            (Token::Literal { cel: serde_json::Value::from(inner).to_string(), ty: "string" }, len)
        } else if first.is_ascii_digit() || first == '-' {
            let len = rest[1..].find(|c: char| !c.is_ascii_digit() && c != '.').map_or(rest.len(), |n| n + 1);
            let number = &rest[..len];
            let ty = if number.parse::<i64>().is_ok() { "int" } else { "float" };
            let finite = number.parse::<f64>().is_ok_and(f64::is_finite) && !number.ends_with('.');
            (Token::Literal { cel: finite.then(|| number.to_owned())?, ty }, len)
        } else if first.is_alphabetic() || first == '_' {
            let part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-');
            let len = rest.find(|c: char| !part(c)).unwrap_or(rest.len());
            (Token::Name(rest[..len].to_owned()), len)
        } else {
            return None;
        };
        tokens.push(token);
        rest = rest[len..].trim_start();
    }
    Some(tokens)
}

struct Reader {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    inputs: BTreeMap<String, RunInput>,
}

impl Reader {
    fn word(&mut self, word: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Name(name)) if name == word);
        self.at += usize::from(found);
        found
    }

    fn any(&mut self) -> Option<String> {
        let mut cel = self.all()?;
        while self.word("or") {
            cel = format!("{cel} || {}", self.all()?);
        }
        Some(cel)
    }

    fn all(&mut self) -> Option<String> {
        let mut cel = self.one()?;
        while self.word("and") {
            cel = format!("{cel} && {}", self.one()?);
        }
        Some(cel)
    }

    fn one(&mut self) -> Option<String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return None;
        }
        let cel = if self.word("not") {
            format!("!({})", self.one()?)
        } else if self.tokens.get(self.at) == Some(&Token::Open) {
            self.at += 1;
            let inner = self.any()?;
            let closed = self.tokens.get(self.at) == Some(&Token::Close);
            self.at += 1;
            closed.then(|| format!("({inner})"))?
        } else {
            self.comparison()?
        };
        self.depth -= 1;
        Some(cel)
    }

    fn comparison(&mut self) -> Option<String> {
        let left = self.operand()?;
        let Some(Token::Compare(sign)) = self.tokens.get(self.at).cloned() else {
            return match left {
                Token::Name(name) => self.input(&name, "bool", "true".into()),
                Token::Literal { cel, ty: "bool" } => Some(cel),
                _ => None,
            };
        };
        self.at += 1;
        match (left, self.operand()?) {
            (Token::Name(name), Token::Literal { cel, ty }) => {
                let input = self.input(&name, ty, default(sign, &cel, ty)?)?;
                Some(format!("{input} {sign} {cel}"))
            }
            (Token::Literal { cel, ty }, Token::Name(name)) => {
                let turned = match sign {
                    "<" => ">",
                    ">" => "<",
                    "<=" => ">=",
                    ">=" => "<=",
                    same => same,
                };
                let input = self.input(&name, ty, default(turned, &cel, ty)?)?;
                Some(format!("{cel} {sign} {input}"))
            }
            _ => None,
        }
    }

    fn operand(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned()?;
        self.at += 1;
        match token {
            Token::Name(word) if word == "True" => Some(Token::Literal { cel: "true".into(), ty: "bool" }),
            Token::Name(word) if word == "False" => Some(Token::Literal { cel: "false".into(), ty: "bool" }),
            Token::Name(word) if matches!(word.as_str(), "and" | "or" | "not" | "in" | "is" | "None") => None,
            Token::Name(_) | Token::Literal { .. } => Some(token),
            Token::Compare(_) | Token::Open | Token::Close => None,
        }
    }

    /// The reference to the run input that stands for a name. One name has one type.
    fn input(&mut self, name: &str, ty: &'static str, default: String) -> Option<String> {
        let input = names::identifier(name.strip_prefix("INPUT.").unwrap_or(name));
        let description = format!("Decides on a branch, in place of `{}`.", super::error::word(name));
        let known = self.inputs.entry(input.clone()).or_insert(RunInput { ty, default, description });
        (known.ty == ty).then(|| format!("inputs.{input}"))
    }
}

/// A value of type `ty` of which `value sign literal` is true, so that the first branch is the default.
fn default(sign: &str, literal: &str, ty: &str) -> Option<String> {
    let step = |by: i64| match ty {
        "int" => literal.parse::<i64>().ok().and_then(|n| n.checked_add(by)).map(|n| n.to_string()),
        "float" => literal.parse::<f64>().ok().map(|n| format!("{:?}", n + by as f64)),
        _ => None,
    };
    match (sign, ty) {
        ("==" | "<=" | ">=", "float") => step(0),
        ("==" | "<=" | ">=", _) => Some(literal.to_owned()),
        ("!=", "bool") => Some(if literal == "true" { "false".into() } else { "true".into() }),
        ("!=", "string") => Some(if literal == "\"\"" { "\"other\"".into() } else { "\"\"".into() }),
        ("!=" | ">", _) => step(1),
        ("<", _) => step(-1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cel(python: &str) -> Option<String> {
        translate(python).map(|t| t.cel)
    }

    #[test]
    fn comparisons_and_words_are_translated() {
        let cases = [
            ("INPUT.split", "inputs.split"),
            ("not INPUT.split", "!(inputs.split)"),
            ("INPUT.n >= 5 and INPUT.kind == 'avi'", "inputs.n >= 5 && inputs.kind == \"avi\""),
            ("(check.illegal == True) or 2.5 < INPUT.x", "(inputs.check_illegal == true) || 2.5 < inputs.x"),
        ];
        for (python, expected) in cases {
            assert_eq!(cel(python).as_deref(), Some(expected), "{python}");
        }
    }

    #[test]
    fn defaults_take_the_first_branch() {
        let inputs =
            translate("INPUT.n > 5 and INPUT.m != 1 and 3.0 < INPUT.x and INPUT.s != ''").unwrap().inputs;
        let default = |name: &str| (inputs[name].ty, inputs[name].default.as_str());
        assert_eq!(default("n"), ("int", "6"));
        assert_eq!(default("m"), ("int", "2"));
        assert_eq!(default("x"), ("float", "4.0"));
        assert_eq!(default("s"), ("string", "\"other\""));
    }

    #[test]
    fn what_is_not_understood_is_left() {
        for python in [
            "",
            "__import__('os').system('x')",
            "INPUT.x + 1",
            "a < b",
            "len(INPUT.x)",
            "x and x > 3",
            "'a",
            "5",
            "x ==",
            "(x",
            "x)",
            "not",
            &"(".repeat(10_000),
            "x == 'a\\n'",
        ] {
            assert_eq!(translate(python), None, "{python}");
        }
    }
}
