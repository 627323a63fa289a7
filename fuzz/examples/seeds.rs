// SPDX-License-Identifier: Apache-2.0
//! Writes the seeds below a directory, one file each: `DIR/TARGET/seed-N`. What else lies there stays. An example, for it is no target and is built
//! without the instrumentation.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return Err(std::io::Error::other("usage: seeds DIRECTORY"));
    };
    let mut numbers = std::collections::BTreeMap::new();
    for (target, bytes) in varve_fuzz::seeds::all() {
        let number = numbers.entry(target).or_insert(0);
        *number += 1;
        let place = directory.join(target);
        std::fs::create_dir_all(&place)?;
        std::fs::write(place.join(format!("seed-{number:02}")), bytes)?;
    }
    Ok(())
}
