// SPDX-License-Identifier: Apache-2.0
//! Blanks out what is not code, so that the rules can look for words and braces without being fooled.
//!
//! Comments (nested ones too), strings (raw, byte, C and plain), and character literals become spaces; line breaks and byte
//! positions stay as they are, so a line number in the masked text is a line number in the file. This is not a parser:
//! it knows where Rust's literals and comments begin and end, and nothing else. Text that does not end properly is blanked
//! to its end, and the compiler will say what is wrong with it.

/// The source with comments, strings and character literals blanked.
pub fn mask(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match literal_end(bytes, at) {
            Some(end) => {
                blank(&mut out, at, end);
                end
            }
            // A name is skipped whole, lest its last letter be taken for the `r` of a raw string.
            None => word_end(bytes, at),
        };
        at = end;
    }
    // Only whole tokens were blanked, and they begin and end on character boundaries; anything else would be our fault.
    String::from_utf8_lossy(&out).into_owned()
}

fn blank(out: &mut [u8], from: usize, to: usize) {
    for byte in &mut out[from..to] {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn word_end(bytes: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    if is_word(bytes[at]) {
        while end < bytes.len() && is_word(bytes[end]) {
            end += 1;
        }
    }
    end
}

/// Where the comment or literal that begins at `at` ends, if one does.
fn literal_end(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    if rest.starts_with(b"//") {
        return Some(at + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()));
    }
    if rest.starts_with(b"/*") {
        return Some(block_comment_end(bytes, at));
    }
    for prefix in [&b"r"[..], b"br", b"cr"] {
        if rest.starts_with(prefix)
            && let Some(end) = raw_string_end(bytes, at + prefix.len())
        {
            return Some(end);
        }
    }
    for prefix in [&b"\""[..], b"b\"", b"c\""] {
        if rest.starts_with(prefix) {
            return Some(quoted_end(bytes, at + prefix.len(), b'"'));
        }
    }
    if rest.starts_with(b"b'") {
        return Some(quoted_end(bytes, at + 2, b'\''));
    }
    (rest[0] == b'\'').then(|| character_end(bytes, at)).flatten()
}

fn block_comment_end(bytes: &[u8], at: usize) -> usize {
    let (mut depth, mut i) = (0, at);
    while i < bytes.len() {
        if bytes[i..].starts_with(b"/*") {
            depth += 1;
            i += 2;
        } else if bytes[i..].starts_with(b"*/") {
            depth -= 1;
            i += 2;
            if depth == 0 {
                return i;
            }
        } else {
            i += 1;
        }
    }
    bytes.len()
}

/// `at` is behind the `r`; `None` if no raw string begins there.
fn raw_string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let hashes = bytes[at..].iter().take_while(|b| **b == b'#').count();
    let open = at + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None;
    }
    let mut i = open + 1;
    while i < bytes.len() {
        if bytes[i] == b'"' && bytes[i + 1..].iter().take_while(|b| **b == b'#').count() >= hashes {
            return Some(i + 1 + hashes);
        }
        i += 1;
    }
    Some(bytes.len())
}

/// `at` is behind the opening quote.
fn quoted_end(bytes: &[u8], at: usize, quote: u8) -> usize {
    let mut i = at;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => i += 2,
            byte if byte == quote => return i + 1,
            _ => i += 1,
        }
    }
    bytes.len()
}

/// A character literal, as opposed to a lifetime or a label.
fn character_end(bytes: &[u8], at: usize) -> Option<usize> {
    if bytes.get(at + 1) == Some(&b'\\') {
        return Some(quoted_end(bytes, at + 1, b'\''));
    }
    // One character, of up to four bytes, and a quote; `'a` in `&'a str` has no quote behind it.
    let first = *bytes.get(at + 1)?;
    let length = match first {
        0..0x80 => 1,
        0x80..0xe0 => 2,
        0xe0..0xf0 => 3,
        _ => 4,
    };
    (first != b'\'' && bytes.get(at + 1 + length) == Some(&b'\'')).then_some(at + 2 + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_comments_vanish_and_lines_stay() {
        let source = "let a = \"{\\\"\"; // }\nlet b = '{'; /* { /* { */ */ let c: &'a str = r#\"\"{\"#;\nlet d = b'\\''; br\"\\\";x";
        let masked = mask(source);
        assert_eq!(masked.len(), source.len());
        assert_eq!(masked.lines().count(), 3);
        assert!(!masked.contains(['{', '}', '"']), "{masked}");
        assert!(masked.contains("&'a str") && masked.ends_with(";x"), "{masked}");
    }

    #[test]
    fn names_that_end_like_prefixes_are_names() {
        assert_eq!(mask("var\"s\" r#fn 'outer: loop"), "var    r#fn 'outer: loop");
        assert_eq!(mask("'é' 'x' '\\u{7b}'"), " ".repeat(17));
    }

    #[test]
    fn what_never_ends_is_blanked_to_the_end() {
        for source in ["a \"bcd", "a /* bcd", "a r#\"bcd\"", "a '\\"] {
            assert_eq!(mask(source).trim_end(), "a");
        }
    }
}
