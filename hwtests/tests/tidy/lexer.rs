//! Just enough of Rust's lexical structure to tell code from comments and literals.

/// A Rust source with everything that is not code blanked out (newlines stay, so line numbers
/// hold), and the comments by line.
pub(crate) struct Lexed {
    /// The code. Comments and the insides of literals are spaces.
    pub(crate) code: String,
    /// (line from 1, text) of each comment line.
    pub(crate) comments: Vec<(usize, String)>,
}

/// Splits `source` into code and comments.
pub(crate) fn lex(source: &str) -> Lexed {
    let bytes = source.as_bytes();
    let mut code = vec![b' '; bytes.len()];
    let mut comments = Vec::new();
    let mut line = 1;
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = at + literal_or_comment(rest, at.checked_sub(1).map(|before| bytes[before]));
        if end == at {
            code[at] = bytes[at];
            line += usize::from(bytes[at] == b'\n');
            at += 1;
            continue;
        }
        if rest.starts_with(b"//") || rest.starts_with(b"/*") {
            let text = &source[at..end];
            comments.extend(text.lines().enumerate().map(|(i, l)| (line + i, l.trim().to_owned())));
        }
        for (blank, byte) in code[at..end].iter_mut().zip(&bytes[at..end]) {
            if *byte == b'\n' {
                *blank = b'\n';
                line += 1;
            }
        }
        at = end;
    }
    // A blanked multi-byte character became as many spaces; code itself is copied whole.
    Lexed { code: String::from_utf8_lossy(&code).into_owned(), comments }
}

/// The length of the comment or literal that `rest` begins with, 0 when it begins with code.
/// `before` is the byte in front of it.
fn literal_or_comment(rest: &[u8], before: Option<u8>) -> usize {
    let in_word = before.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    match rest {
        [b'/', b'/', ..] => rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment(rest),
        [b'"', ..] => 1 + quoted(&rest[1..], b'"'),
        [b'r', b'"' | b'#', ..] if !in_word => raw_string(rest, 1),
        [b'b' | b'c', b'r', b'"' | b'#', ..] if !in_word => raw_string(rest, 2),
        // A character, told from a lifetime by its closing quote.
        [b'\'', b'\\', ..] => 1 + quoted(&rest[1..], b'\''),
        [b'\'', ..] => match rest.iter().skip(1).take(5).position(|&b| b == b'\'') {
            Some(length)
                if length > 0
                    && std::str::from_utf8(&rest[1..=length]).is_ok_and(|s| s.chars().count() == 1) =>
            {
                length + 2
            }
            _ => 0,
        },
        _ => 0,
    }
}

/// The length up to and with the closing `quote`, honouring backslashes.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 0;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b if b == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// The length of `r"…"`, `r#"…"#` and so on, 0 for a raw identifier; `prefix` is what stands before the hashes.
fn raw_string(rest: &[u8], prefix: usize) -> usize {
    let hashes = rest[prefix..].iter().take_while(|&&b| b == b'#').count();
    if rest.get(prefix + hashes) != Some(&b'"') {
        return 0;
    }
    let body = prefix + hashes + 1;
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    rest[body..]
        .windows(close.len())
        .position(|w| w == close)
        .map_or(rest.len(), |at| body + at + close.len())
}

/// The length of a block comment, which may nest.
fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at + 1 < rest.len() {
        match &rest[at..at + 2] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// The lines (from 1) on which `word` stands in `code` as a whole word.
pub(crate) fn lines_with_word(code: &str, word: &str) -> Vec<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut lines = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let found = line
            .match_indices(word)
            .any(|(at, _)| !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word));
        if found {
            lines.push(index + 1);
        }
    }
    lines
}

#[test]
fn code_is_told_from_comments_and_literals() {
    let source = "let a = \"unsafe // \\\" x\"; // unsafe here\nlet b = r#\"unsafe \" \"#; /* unsafe\n */ let c = '\"'; unsafe { f::<'a>(b'x') }";
    let lexed = lex(source);
    assert_eq!(lines_with_word(&lexed.code, "unsafe"), [3]);
    assert_eq!(lexed.comments.len(), 3);
    assert_eq!(lexed.comments[0], (1, "// unsafe here".to_owned()));
    assert_eq!(lexed.comments[2], (3, "*/".to_owned()));
    assert!(lexed.code.contains("f::<'a>("), "lifetimes are code");
    assert!(lines_with_word("forbid(unsafe_code)", "unsafe").is_empty());
}
