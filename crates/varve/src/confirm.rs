// SPDX-License-Identifier: Apache-2.0
//! Asks a person before something is done that can not, or not wholly, be taken back.

use crate::failure::{Failure, Result};
use std::io::{BufRead, IsTerminal, Write};

/// Shows what will happen, and asks. `what` is the deed: "roll back".
///
/// # Errors
/// Where nobody can be asked, or the answer is no: nothing is to be done then.
pub fn confirm(text: &str, what: &str) -> Result<()> {
    let stderr = |error| Failure::io("standard error", &error);
    let mut screen = std::io::stderr().lock();
    screen.write_all(text.as_bytes()).map_err(stderr)?;
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!("nobody can be asked here; say --yes to {what}. Nothing was done")));
    }
    let question = format!("{}{}? [y/N] ", what[..1].to_uppercase(), &what[1..]);
    screen.write_all(question.as_bytes()).and_then(|()| screen.flush()).map_err(stderr)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|error| Failure::io("standard input", &error))?;
    if ["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()) {
        return Ok(());
    }
    Err(Failure::failed("nothing was done"))
}
