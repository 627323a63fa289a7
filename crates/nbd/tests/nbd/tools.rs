// SPDX-License-Identifier: Apache-2.0
//! The real clients: run to their end, with their output; a missing one fails the test and names its package.

use super::server::{DEADLINE, Server};
use std::process::Command;
use varve_lab::process::{Process, find_program};

const PACKAGES: [(&str, &str); 6] = [
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdsh", "python3-libnbd"),
    ("qemu-io", "qemu-utils"),
    ("qemu-img", "qemu-utils"),
    ("fio", "fio"),
];

/// Runs a program in the server's directory; gives whether it succeeded, and its output.
pub fn try_run(server: &Server, program: &str, arguments: &[&str]) -> (bool, String) {
    let package = PACKAGES.iter().find(|(name, _)| *name == program).map(|(_, package)| *package).unwrap();
    let mut command = Command::new(find_program(program, package).unwrap());
    command.args(arguments).current_dir(server.directory());
    if program == "nbdsh" {
        // It runs `python3`, and the one of the system is the one that has the module.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("/usr/bin:/bin:{path}"));
    }
    let logs = tempfile::tempdir_in(server.directory()).unwrap();
    let mut process = Process::start(program, command, logs.path()).unwrap();
    let status = process.wait(DEADLINE).unwrap();
    (status.success(), std::fs::read_to_string(process.log_path()).unwrap())
}

/// Runs a program that has to succeed; gives its output.
pub fn run(server: &Server, program: &str, arguments: &[&str]) -> String {
    let (success, output) = try_run(server, program, arguments);
    assert!(success, "{program} {arguments:?} failed:\n{output}");
    output
}

/// Runs a script in nbdsh, with `h` not yet connected and the URIs of the server at hand.
pub fn nbdsh(server: &Server, script: &str) -> String {
    let head = format!(
        "import errno, json\nunix = {:?}\ntcp = {:?}\nreadonly = {:?}\n\
         def expect(number, function, *arguments, **named):\n    \
             try:\n        function(*arguments, **named)\n    \
             except nbd.Error as error:\n        \
                 assert error.errnum == number, (error.string, error.errnum, number)\n        return error.string\n    \
             raise AssertionError('no error %d' % number)\n",
        server.unix("disk"),
        server.tcp("disk"),
        server.unix("disk@monday")
    );
    run(server, "nbdsh", &["-c", &head, "-c", script])
}
