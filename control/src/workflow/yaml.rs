//! YAML as a tree that knows where each node is.
//!
//! All errors of a file are to be reported at once, with their places; deserialising into types
//! stops at the first. So the parser's events become a tree, and the checks run over the tree.

use super::diagnostic::{Code, Diagnostics, Problem, Span};
use granit_parser::{Event, Parser, ScalarStyle};
use std::collections::HashMap;

/// Deepest nesting of lists and maps, aliases expanded. Recursion over the tree relies on it.
pub(super) const DEPTH_MAX: usize = 64;
/// Most nodes that aliases may add to a file: what keeps a "billion laughs" file small.
const ALIAS_NODES_MAX: usize = 1 << 20;

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) span: Span,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// `plain` if it was written without quotes.
    Scalar {
        text: String,
        plain: bool,
    },
    Seq(Vec<Node>),
    /// In file order, duplicates included.
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// The text of a scalar, whatever its type.
    pub(super) fn scalar(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { text, .. } => Some(text),
            Kind::Seq(_) | Kind::Map(_) => None,
        }
    }

    /// Where a key of a map is.
    pub(super) fn key_span(&self, key: &str) -> Option<Span> {
        match &self.kind {
            Kind::Map(entries) => entries.iter().find(|(k, _)| k.scalar() == Some(key)).map(|(k, _)| k.span),
            Kind::Scalar { .. } | Kind::Seq(_) => None,
        }
    }

    /// Nothing, `~` or `null`.
    pub(super) fn is_null(&self) -> bool {
        match &self.kind {
            Kind::Scalar { text, plain } => {
                *plain && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL")
            }
            Kind::Seq(_) | Kind::Map(_) => false,
        }
    }

    /// The value, by YAML's core schema. What JSON has no word for (`.inf`, a key that is a list) is text.
    pub(super) fn to_json(&self) -> serde_json::Value {
        match &self.kind {
            Kind::Scalar { text, plain: false } => serde_json::Value::String(text.clone()),
            Kind::Scalar { text, plain: true } => plain_json(text),
            Kind::Seq(items) => items.iter().map(Node::to_json).collect(),
            Kind::Map(entries) => {
                let pair = |(k, v): &(Node, Node)| (k.scalar().unwrap_or_default().to_owned(), v.to_json());
                serde_json::Value::Object(entries.iter().map(pair).collect())
            }
        }
    }

    /// What it is, for "expected ..., found ...".
    pub(super) fn describe(&self) -> String {
        match &self.kind {
            Kind::Seq(_) => "a list".to_owned(),
            Kind::Map(_) => "a map".to_owned(),
            Kind::Scalar { text, .. } => {
                let text = super::diagnostic::word(text);
                match self.to_json() {
                    serde_json::Value::Null => "nothing".to_owned(),
                    serde_json::Value::Bool(_) => format!("`{text}`"),
                    serde_json::Value::Number(_) => format!("the number `{text}`"),
                    _ => format!("the text `{text}`"),
                }
            }
        }
    }
}

/// A plain scalar by the core schema.
fn plain_json(text: &str) -> serde_json::Value {
    use serde_json::Value;
    let radix = |digits: &str, radix| i64::from_str_radix(digits, radix).ok().map(Value::from);
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let number = match text.get(..2) {
        Some("0x") => radix(&text[2..], 16),
        Some("0o") => radix(&text[2..], 8),
        _ => None,
    };
    let starts = text.trim_start_matches(['+', '-']).trim_start_matches('.');
    let numeric = starts.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    number
        .or_else(|| numeric.then(|| text.parse::<i64>().ok().map(Value::from)).flatten())
        .or_else(|| {
            let float = numeric.then(|| text.parse::<f64>().ok()).flatten()?;
            serde_json::Number::from_f64(float).map(Value::Number)
        })
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// An anchored node, and what expanding it costs.
struct Anchor {
    node: Node,
    nodes: usize,
    height: usize,
}

/// A list or map that is still being read.
struct Frame {
    span: Span,
    anchor: usize,
    kind: Kind,
    /// The key whose value comes next.
    key: Option<Node>,
    nodes: usize,
    height: usize,
}

/// The one document of a file, or `None` after reporting why there is none.
pub(super) fn parse(d: &mut Diagnostics<'_>) -> Option<Node> {
    let text = d.text();
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: DEPTH_MAX,
        block_nesting_limit: DEPTH_MAX,
    };
    let mut builder = Builder { stack: Vec::new(), anchors: HashMap::new(), alias_nodes: 0, root: None };
    let mut parser = Parser::new_from_str_with_options(text, options);
    let mut documents = 0;
    while let Some(event) = parser.next_event() {
        let (event, at) = match event {
            Ok(next) => next,
            Err(e) => {
                let at = e.marker().byte_offset().unwrap_or(text.len());
                let message =
                    format!("this is no valid YAML: {}", e.info().lines().next().unwrap_or_default());
                let span = Span { start: at, end: at };
                match text.contains("\n\t") {
                    true => d.error_help(Code::Syntax, span, message, "indent with spaces, not with tabs"),
                    false => d.error(Code::Syntax, span, message),
                }
                return None;
            }
        };
        let span = at.byte_range().map_or(Span::default(), |r| Span { start: r.start, end: r.end });
        if event.tag().is_some_and(|tag| !tag.is_yaml_core_schema()) {
            let at = at.tag_span().and_then(|tag| tag.byte_range());
            let span = at.map_or(span, |r| Span { start: r.start, end: r.end });
            let help = "remove the word that begins with `!`";
            d.error_help(Code::Syntax, span, "tags have no meaning in a workflow file", help);
            return None;
        }
        if let Event::DocumentStart(..) = event {
            documents += 1;
            if documents > 1 {
                d.error(Code::Syntax, span, "a workflow file holds one document; this is a second one");
                return None;
            }
        }
        if let Err((span, problem)) = builder.event(event, span) {
            d.problem(span, problem);
            return None;
        }
    }
    if builder.root.as_ref().is_none_or(|root| root.is_null()) {
        let help = "begin with `apiVersion: dflow/v1`";
        d.error_help(Code::Syntax, Span::default(), "the file is empty", help);
        return None;
    }
    builder.root
}

struct Builder {
    stack: Vec<Frame>,
    anchors: HashMap<usize, Anchor>,
    alias_nodes: usize,
    root: Option<Node>,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), (Span, Problem)> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let text_tag = tag.is_some_and(|t| t.is_yaml_core_schema_tag("str"));
                let plain = style == ScalarStyle::Plain && !text_tag;
                let node = Node { span, kind: Kind::Scalar { text: text.into_owned(), plain } };
                self.done(node, anchor, 1, 0)
            }
            Event::SequenceStart(_, anchor, _) => self.open(span, anchor, Kind::Seq(Vec::new())),
            Event::MappingStart(_, anchor, _) => self.open(span, anchor, Kind::Map(Vec::new())),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(mut frame) = self.stack.pop() else { return Ok(()) };
                if let Kind::Map(entries) = &mut frame.kind {
                    merge(entries)?;
                }
                // The marked part is what the first line shows: up to the end of the collection.
                let span = Span { start: frame.span.start, end: span.end.max(frame.span.end) };
                let node = Node { span, kind: frame.kind };
                self.done(node, frame.anchor, frame.nodes, frame.height)
            }
            Event::Alias(id) => {
                let Some(anchor) = self.anchors.get(&id) else {
                    return Err((span, Problem::new(Code::Syntax, "an alias inside the node it stands for")));
                };
                let (nodes, height) = (anchor.nodes, anchor.height);
                self.alias_nodes += nodes;
                if self.alias_nodes > ALIAS_NODES_MAX {
                    let message = format!("aliases expand to more than {ALIAS_NODES_MAX} nodes");
                    return Err((span, Problem::new(Code::Limit, message)));
                }
                if self.stack.len() + height > DEPTH_MAX {
                    let message = format!("aliases nest lists and maps more than {DEPTH_MAX} deep");
                    return Err((span, Problem::new(Code::Limit, message)));
                }
                let node = anchor.node.clone();
                self.done(node, 0, nodes, height)
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, span: Span, anchor: usize, kind: Kind) -> Result<(), (Span, Problem)> {
        if self.stack.len() >= DEPTH_MAX {
            let message = format!("lists and maps may nest {DEPTH_MAX} deep");
            return Err((span, Problem::new(Code::Limit, message)));
        }
        self.stack.push(Frame { span, anchor, kind, key: None, nodes: 1, height: 1 });
        Ok(())
    }

    /// Hands a finished node to the list or map around it.
    fn done(
        &mut self,
        node: Node,
        anchor: usize,
        nodes: usize,
        height: usize,
    ) -> Result<(), (Span, Problem)> {
        if anchor != 0 {
            // The copy kept for aliases counts too.
            self.alias_nodes += nodes;
            if self.alias_nodes > ALIAS_NODES_MAX {
                let message = format!("anchors and aliases hold more than {ALIAS_NODES_MAX} nodes");
                return Err((node.span, Problem::new(Code::Limit, message)));
            }
            self.anchors.insert(anchor, Anchor { node: node.clone(), nodes, height });
        }
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        frame.nodes += nodes;
        frame.height = frame.height.max(height + 1);
        match &mut frame.kind {
            Kind::Seq(items) => items.push(node),
            Kind::Map(entries) => match frame.key.take() {
                None => frame.key = Some(node),
                Some(key) => entries.push((key, node)),
            },
            Kind::Scalar { .. } => unreachable!("frames are opened for lists and maps only"),
        }
        Ok(())
    }
}

/// Replaces `<<: *other` by the entries of `other` that the map does not have itself.
fn merge(entries: &mut Vec<(Node, Node)>) -> Result<(), (Span, Problem)> {
    let is_merge = |key: &Node| matches!(&key.kind, Kind::Scalar { text, plain: true } if text == "<<");
    if !entries.iter().any(|(key, _)| is_merge(key)) {
        return Ok(());
    }
    let (merges, mut own): (Vec<_>, Vec<_>) =
        std::mem::take(entries).into_iter().partition(|(key, _)| is_merge(key));
    let mut have: std::collections::HashSet<String> =
        own.iter().filter_map(|(k, _)| k.scalar().map(str::to_owned)).collect();
    for (key, value) in merges {
        let maps = match value.kind {
            Kind::Seq(items) => items,
            _ => vec![value],
        };
        for map in maps {
            let Kind::Map(inherited) = map.kind else {
                let problem = Problem::new(Code::WrongType, "`<<` merges a map or a list of maps");
                return Err((key.span, problem));
            };
            own.extend(inherited.into_iter().filter(|(k, _)| match k.scalar() {
                Some(name) => have.insert(name.to_owned()),
                None => true,
            }));
        }
    }
    *entries = own;
    Ok(())
}
