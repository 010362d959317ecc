//! Just enough JSON to read a parameter. libdflow links nothing but libc.

/// Depth of nesting beyond which a document is refused.
const DEPTH_MAX: u32 = 64;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// Any number. Integers up to 2^53 are exact.
    Number(f64),
    /// A string, unescaped.
    Text(String),
    /// A list.
    List(Vec<Value>),
    /// An object, in the order of the document.
    Object(Vec<(String, Value)>),
}

impl Value {
    /// The member of this name, if this is an object that has it.
    pub(crate) fn member(&self, name: &str) -> Option<&Value> {
        match self {
            Value::Object(members) => members.iter().find(|(key, _)| key == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The number, if it is one that is not negative.
    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            Value::Number(number) if *number >= 0.0 => Some(*number),
            _ => None,
        }
    }

    /// The string, if it is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// The text of a scalar document: a string without quotes and escapes, a number or a word as
/// written. `None` for anything else.
pub(crate) fn scalar_text(document: &str) -> Option<String> {
    match parse(document).ok()? {
        Value::Text(text) => Some(text),
        Value::List(_) | Value::Object(_) => None,
        Value::Null | Value::Bool(_) | Value::Number(_) => Some(document.trim().to_owned()),
    }
}

/// Reads a document; the error says what is wrong at which byte.
pub(crate) fn parse(document: &str) -> Result<Value, String> {
    let mut reader = Reader { text: document.as_bytes(), at: 0 };
    let value = reader.value(0)?;
    reader.space();
    if reader.at < reader.text.len() {
        return Err(reader.error("the document should end here"));
    }
    Ok(value)
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn error(&self, what: &str) -> String {
        format!("{what} (at byte {})", self.at)
    }

    fn space(&mut self) {
        while self.peek().is_some_and(|c| c.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn take(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    fn value(&mut self, depth: u32) -> Result<Value, String> {
        if depth > DEPTH_MAX {
            return Err(self.error("nested too deeply"));
        }
        self.space();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => self.string().map(Value::Text),
            Some(b't') => self.word("true", Value::Bool(true)),
            Some(b'f') => self.word("false", Value::Bool(false)),
            Some(b'n') => self.word("null", Value::Null),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(_) => Err(self.error("a value should begin here")),
            None => Err(self.error("the document ends too early")),
        }
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value, String> {
        if !self.text[self.at..].starts_with(word.as_bytes()) {
            return Err(self.error("unknown word"));
        }
        self.at += word.len();
        Ok(value)
    }

    fn number(&mut self) -> Result<Value, String> {
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_digit() || b"+-.eE".contains(&c)) {
            self.at += 1;
        }
        let digits = std::str::from_utf8(&self.text[start..self.at]).unwrap_or_default();
        digits.parse().map(Value::Number).map_err(|_| self.error("not a number"))
    }

    fn list(&mut self, depth: u32) -> Result<Value, String> {
        let mut items = Vec::new();
        self.at += 1;
        self.space();
        if self.take(b']') {
            return Ok(Value::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.space();
            if self.take(b']') {
                return Ok(Value::List(items));
            }
            if !self.take(b',') {
                return Err(self.error("expected , or ]"));
            }
        }
    }

    fn object(&mut self, depth: u32) -> Result<Value, String> {
        let mut members = Vec::new();
        self.at += 1;
        self.space();
        if self.take(b'}') {
            return Ok(Value::Object(members));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.error("expected a name in quotes"));
            }
            let name = self.string()?;
            self.space();
            if !self.take(b':') {
                return Err(self.error("expected :"));
            }
            members.push((name, self.value(depth + 1)?));
            self.space();
            if self.take(b'}') {
                return Ok(Value::Object(members));
            }
            if !self.take(b',') {
                return Err(self.error("expected , or }"));
            }
        }
    }

    fn string(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            let Some(byte) = self.peek() else { return Err(self.error("a string does not end")) };
            self.at += 1;
            match byte {
                b'"' => return String::from_utf8(bytes).map_err(|_| self.error("not UTF-8")),
                b'\\' => {
                    let c = self.escape()?;
                    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                _ => bytes.push(byte),
            }
        }
    }

    fn escape(&mut self) -> Result<char, String> {
        let Some(byte) = self.peek() else { return Err(self.error("a string does not end")) };
        self.at += 1;
        Ok(match byte {
            b'n' => '\n',
            b't' => '\t',
            b'r' => '\r',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'"' | b'\\' | b'/' => byte as char,
            b'u' => {
                let high = self.hex()?;
                let code = if (0xD800..0xDC00).contains(&high) && self.take(b'\\') && self.take(b'u') {
                    let low = self.hex()?;
                    0x10000 + ((high - 0xD800) << 10) + low.wrapping_sub(0xDC00) % 0x400
                } else {
                    high
                };
                char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            _ => return Err(self.error("unknown escape")),
        })
    }

    fn hex(&mut self) -> Result<u32, String> {
        let digits = self.text.get(self.at..self.at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        self.at += 4;
        code.ok_or_else(|| self.error("four hexadecimal digits should stand here"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_read() {
        let value =
            parse(r#" {"a": [1, -2.5e1, true, null], "b\n\u00e9\ud83d\ude00": "x\"y"} "#).expect("valid");
        assert_eq!(value.member("b\né😀").and_then(Value::text), Some("x\"y"));
        let Some(Value::List(items)) = value.member("a") else { panic!("a list") };
        assert_eq!(items[1], Value::Number(-25.0));
        assert_eq!((items[0].number(), items[1].number()), (Some(1.0), None));
    }

    #[test]
    fn scalars_become_text() {
        for (document, text) in [("17", Some("17")), (r#""a b""#, Some("a b")), ("[1]", None), ("1 2", None)]
        {
            assert_eq!(scalar_text(document).as_deref(), text, "{document}");
        }
    }

    #[test]
    fn bad_documents_are_errors() {
        let deep = "[".repeat(1000);
        let bad = ["", "{", "[1,", "\"", "\"\\", "\"\\u12", "nul", "{a:1}", "1x", "-", deep.as_str()];
        for document in bad {
            assert!(parse(document).is_err(), "{document}");
        }
    }
}
