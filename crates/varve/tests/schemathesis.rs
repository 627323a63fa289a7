// SPDX-License-Identifier: Apache-2.0
//! The API against its own description: a program that reads the OpenAPI document of a running node makes requests of all that it allows, and of what it
//! forbids, and holds every answer to it.
//!
//! No request may make the node fail (5xx), none is answered with a status, a type or a form that the document does not name. The requests
//! are the same in every run. Volumes that they name are there, so that they get past the look-up; some volumes are there to be deleted.

#![allow(clippy::unwrap_used)]

mod real;

use real::{DEADLINE, Node};
use std::process::Command;
use varve_lab::process::{Process, find_program, free_port};

/// What stands for the names in paths; what deletes and renames gets volumes of its own.
const NAMES: &str = r#"
[parameters]
volume = "disk"
snapshot = "monday"
pool = "default"

[[operations]]
include-name = "DELETE /v1/volumes/{volume}"
parameters = { volume = ["gone", "away"] }

[[operations]]
include-name = "POST /v1/volumes/{volume}/undelete"
parameters = { volume = ["gone", "away"] }

[[operations]]
include-name = "POST /v1/volumes/{volume}/rename"
parameters = { volume = ["gone", "away"] }

[[operations]]
include-name = "POST /v1/volumes/{volume}/template"
parameters = { volume = ["gone", "away"] }
"#;
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
/// Requests of an operation in the random phase, on top of those that the document's bounds give.
const EXAMPLES: &str = "40";
/// Fewer than this would mean that the document lost operations.
const LEAST_REQUESTS: u64 = 500;

/// The number before `word` on the line of the summary that has it.
fn count(out: &str, word: &str) -> Option<u64> {
    let line = out.lines().find(|line| line.contains("generated,"))?;
    let words: Vec<&str> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
    let at = words.iter().position(|found| *found == word)?;
    words.get(at.checked_sub(1)?)?.parse().ok()
}

#[test]
fn every_answer_is_as_the_document_says() {
    let address = format!("127.0.0.1:{}", free_port().unwrap());
    let mut args = vec!["--api-listen", &address];
    args.extend(["disk:16M", "gone:16M", "away:16M"].iter().flat_map(|volume| ["--volume", volume]));
    let mut node = Node::start(&args);
    node.varve(&["snapshot", "create", "disk", "monday"]).ok();
    std::fs::write(node.path("names.toml"), NAMES).unwrap();
    let token = std::fs::read_to_string(node.data().join("token")).unwrap();

    let program = find_program("schemathesis", "schemathesis (PyPI; `cargo xtask provision` installs it)").unwrap();
    let mut command = Command::new(program);
    command.current_dir(node.dir.path()).args(["--no-color", "--config-file", "names.toml", "run"]);
    command.arg(format!("http://{address}/openapi.json"));
    command.args(["--header", &format!("Authorization: Bearer {}", token.trim()), "--checks", CHECKS]);
    command.args(["--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES, "--request-timeout", "20"]);
    command.args(["--generation-deterministic", "--continue-on-failure", "--warnings", "off"]);
    let mut run = Process::start("schemathesis", command, node.dir.path()).unwrap();
    let status = run.wait(2 * DEADLINE).unwrap();
    let out = std::fs::read_to_string(run.log_path()).unwrap();
    assert!(status.success(), "{out}");
    let (made, passed) = (count(&out, "generated").unwrap(), count(&out, "passed").unwrap());
    assert!(made == passed && made >= LEAST_REQUESTS, "{out}");

    // Requests went through: there are volumes that nobody but they have made, and the node is whole.
    let volumes = node.varve(&["volume", "list", "--json"]).json();
    assert!(volumes.as_array().unwrap().len() > 3, "{volumes}");
    node.varve(&["check"]).ok();
    let log = node.log();
    assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
    node.stop();
}
