// SPDX-License-Identifier: Apache-2.0
//! Messages of HTTP/1.1 as a proxy needs them: the head as it came, the body as it was sent, and where both end.

use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, Read};

/// A head is a few lines.
const HEAD_MAX_BYTES: usize = 64 << 10;
/// More than any object in a test.
const BODY_MAX_BYTES: usize = 256 << 20;

/// A request or an answer, byte for byte.
pub(super) struct Message {
    /// The first line and all headers, with the empty line behind them.
    pub head: Vec<u8>,
    /// The body as it goes over the wire: with the sizes of its chunks where it has such.
    pub body: Vec<u8>,
    /// Whether the body is in chunks.
    pub chunked: bool,
}

impl Message {
    pub fn first_line(&self) -> String {
        let end = self.head.iter().position(|byte| *byte == b'\r').unwrap_or(self.head.len());
        String::from_utf8_lossy(&self.head[..end]).into_owned()
    }

    /// Whether this is a request by that method.
    pub fn is(&self, method: &str) -> bool {
        self.head.starts_with(method.as_bytes()) && self.head.get(method.len()) == Some(&b' ')
    }

    /// What a GET asks for: the object, and the range of it.
    pub fn question(&self) -> String {
        format!("{} {}", self.first_line(), self.header("range").unwrap_or_default())
    }

    /// Whether this is an answer that has what was asked for.
    pub fn succeeded(&self) -> bool {
        self.head.starts_with(b"HTTP/1.1 2")
    }

    /// Whether the sender closes the connection behind it.
    pub fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    fn header(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.head);
        let found =
            text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim().to_owned())
    }

    fn read_body(&mut self, from: &mut impl BufRead) -> Result<()> {
        self.chunked = self.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        if self.chunked {
            return self.read_chunks(from);
        }
        let len = self.header("content-length").map_or(Ok(0), |len| len.parse()).context("a content-length")?;
        ensure!(len <= BODY_MAX_BYTES, "a body of {len} bytes is more than a test sends");
        self.body.resize(len, 0);
        from.read_exact(&mut self.body).context("a body")
    }

    fn read_chunks(&mut self, from: &mut impl BufRead) -> Result<()> {
        loop {
            let line = read_line(from)?;
            let digits = String::from_utf8_lossy(&line);
            let digits = digits.trim().split(';').next().unwrap_or_default();
            let len = usize::from_str_radix(digits, 16).context("the size of a chunk")?;
            ensure!(len <= BODY_MAX_BYTES - self.body.len().min(BODY_MAX_BYTES), "chunks of more than a test sends");
            self.body.extend(&line);
            if len == 0 {
                break;
            }
            let begin = self.body.len();
            self.body.resize(begin + len + 2, 0);
            from.read_exact(&mut self.body[begin..]).context("a chunk")?;
        }
        // Trailers, which end with an empty line.
        loop {
            let line = read_line(from)?;
            self.body.extend(&line);
            if line == b"\r\n" {
                return Ok(());
            }
        }
    }
}

fn read_line(from: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut line = Vec::new();
    from.take(HEAD_MAX_BYTES as u64).read_until(b'\n', &mut line).context("a line")?;
    ensure!(line.ends_with(b"\n"), "the connection ended within a line, or the line is too long");
    Ok(line)
}

fn read_head(from: &mut impl BufRead) -> Result<Message> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(read_line(from)?);
        if head.len() > HEAD_MAX_BYTES {
            bail!("a head of more than {HEAD_MAX_BYTES} bytes");
        }
    }
    Ok(Message { head, body: Vec::new(), chunked: false })
}

/// The next request, or nothing where the client has closed the connection.
pub(super) fn read_request(from: &mut impl BufRead) -> Result<Option<Message>> {
    if from.fill_buf().context("a request")?.is_empty() {
        return Ok(None);
    }
    let mut request = read_head(from)?;
    request.read_body(from)?;
    Ok(Some(request))
}

/// The next answer; one to HEAD has no body, whatever it says.
pub(super) fn read_answer(from: &mut impl BufRead, to_head: bool) -> Result<Message> {
    let mut answer = read_head(from)?;
    let empty = ["HTTP/1.1 204", "HTTP/1.1 304"].iter().any(|status| answer.head.starts_with(status.as_bytes()));
    if !to_head && !empty {
        answer.read_body(from)?;
    }
    Ok(answer)
}
