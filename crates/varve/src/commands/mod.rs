// SPDX-License-Identifier: Apache-2.0
//! The commands: each reads its arguments, asks the node, and shows the answer. None keeps anything.

pub mod check;
pub mod clean;
pub mod cluster;
pub mod job;
pub mod node;
pub mod pool;
pub mod rewind;
pub mod scrub;
pub mod snapshot;
pub mod status;
pub mod up;
pub mod volume;
pub mod worker;

use crate::failure::Result;
use crate::out;
use varve_server::api::model::{Setting, Version};

/// Prints the version of this program.
pub fn version(json: bool) -> Result<()> {
    let version = Version { name: "varve".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
    out::show(json, &version, |version| format!("{} {}\n", version.name, version.version))
}

/// The settings of a volume or a pool, with where each comes from.
fn settings_table(settings: &[Setting]) -> String {
    let mut table = out::Table::new(&["SETTING", "VALUE", "FROM"]);
    for setting in settings {
        let source = match setting.source {
            varve_types::Source::Volume => "volume",
            varve_types::Source::Pool => "pool",
            varve_types::Source::Default => "default",
        };
        table.row(vec![setting.key.clone(), setting.value.clone(), source.to_owned()]);
    }
    table.render("")
}
