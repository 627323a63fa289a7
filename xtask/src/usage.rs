// SPDX-License-Identifier: Apache-2.0
//! What a process uses of the machine, and when it has come to rest.
//!
//! Read from `/proc`, by the process id: of a process that has ended there is an error, never a zero.

use anyhow::{Context, Result, bail};
use std::fs;
use std::time::{Duration, Instant};

/// CPU seconds of a process, user and system, all its threads.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).context("the server's /proc/PID/stat")?;
    let ticks = cpu_ticks(&text).context("/proc/PID/stat is not as it should be")?;
    #[allow(clippy::cast_precision_loss, reason = "ticks of minutes are far below 2^52")]
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn cpu_ticks(stat: &str) -> Option<u64> {
    // The name, in parentheses, may hold anything; fields are counted behind it: utime and stime are the 14th and 15th.
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// Waits until the process has used next to no CPU for half a second: what it does in the background is done.
pub fn settle(pid: u32, deadline: Duration) -> Result<()> {
    const WINDOW: Duration = Duration::from_millis(250);
    let end = Instant::now() + deadline;
    let (mut before, mut idle) = (cpu_seconds(pid)?, 0);
    while idle < 2 {
        if Instant::now() >= end {
            bail!("process {pid} is still busy after {} s without a load", deadline.as_secs());
        }
        std::thread::sleep(WINDOW);
        let now = cpu_seconds(pid)?;
        idle = if now - before <= 0.02 { idle + 1 } else { 0 };
        before = now;
    }
    Ok(())
}

/// RAM of a process, now and the most so far, in MiB.
pub fn resident_mib(pid: u32) -> Result<(f64, f64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the process' /proc/PID/status")?;
    let mib = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).with_context(|| format!("no {name}"))?;
        Ok(kib.parse::<f64>()? / 1024.0)
    };
    Ok((mib("VmRSS:")?, mib("VmHWM:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ticks_are_found_behind_any_name() {
        let stat = "12 (a) b) (c) S 1 2 3 4 5 6 7 8 9 10 111 222 0 0 20";
        assert_eq!(cpu_ticks(stat), Some(333));
        assert_eq!(cpu_ticks("12 (a) S 1"), None);
        assert!(cpu_seconds(std::process::id()).unwrap() >= 0.0);
    }
}
