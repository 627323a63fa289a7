// SPDX-License-Identifier: Apache-2.0
//! Finds functions and counts their lines, in source whose literals and comments were blanked by [`super::lexer`].
//!
//! A function reaches from the line of its `fn` to the line of its closing brace, both counted: signature, comments and blank
//! lines included, for a reader reads those too. A function inside another counts for both. Declarations without a body
//! have no length.

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// The line of its `fn`, from 1.
    pub line: usize,
    /// How many lines it has.
    pub lines: usize,
}

/// Every function with a body in masked source.
pub fn functions(masked: &str) -> Vec<Function> {
    let bytes = masked.as_bytes();
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = masked[from..].find("fn ").map(|offset| from + offset) {
        from = at + 3;
        let starts_word = at == 0 || !(bytes[at - 1].is_ascii_alphanumeric() || b"_#".contains(&bytes[at - 1]));
        let name: String =
            masked[from..].trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == '#').collect();
        if !starts_word || name.is_empty() {
            continue;
        }
        let Some(open) = body_start(bytes, from) else { continue };
        let close = matching_brace(bytes, open);
        let line_of = |position: usize| 1 + bytes[..position].iter().filter(|b| **b == b'\n').count();
        let line = line_of(at);
        found.push(Function { name, line, lines: line_of(close) - line + 1 });
    }
    found
}

/// The brace that opens the body, or `None` for a declaration that ends in a semicolon.
fn body_start(bytes: &[u8], from: usize) -> Option<usize> {
    let mut depth = 0_i32;
    for (offset, byte) in bytes[from..].iter().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(from + offset),
            b';' if depth == 0 => return None,
            _ => {}
        }
        if depth < 0 {
            // A pointer type such as `f: fn (u8)`, whose surroundings end here.
            return None;
        }
    }
    None
}

/// Where the brace that opens at `open` is closed; the last position when it never is.
fn matching_brace(bytes: &[u8], open: usize) -> usize {
    let mut depth = 0_i32;
    for (offset, byte) in bytes[open..].iter().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return open + offset;
        }
    }
    bytes.len() - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::lexer::mask;

    fn of(source: &str) -> Vec<(String, usize, usize)> {
        functions(&mask(source)).into_iter().map(|f| (f.name, f.line, f.lines)).collect()
    }

    #[test]
    fn bodies_are_measured_and_declarations_are_not() {
        let source = "trait T { fn declared(&self, a: [u8; 4]) -> u8; }\nfn one() {}\npub async fn three(a: [u8; 2])\nwhere [u8; 2]: Sized\n{ if a { \"}\"; } }\n";
        assert_eq!(of(source), [("one".to_owned(), 2, 1), ("three".to_owned(), 3, 3)]);
    }

    #[test]
    fn nested_functions_count_for_both() {
        let source = "fn outer() {\n    // }\n    fn inner() {\n    }\n}\n";
        assert_eq!(of(source), [("outer".to_owned(), 1, 5), ("inner".to_owned(), 3, 2)]);
    }

    #[test]
    fn words_that_only_look_like_functions_are_none() {
        assert_eq!(
            of(
                "let f: fn (u8) -> u8 = g;\n// fn no() {}\nlet s = \"fn no() {}\"; r#fn ;\nmacro_rules! m { ($n:ident) => { fn $n() {} } }"
            ),
            []
        );
    }
}
