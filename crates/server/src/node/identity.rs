// SPDX-License-Identifier: Apache-2.0
//! Who a node of a cluster is: its id and its name, in the file `node` of its data directory.
//!
//! ```text
//! {"version":1,"id":"UUID","name":"NAME","cluster":"UUID"}
//! ```
//!
//! Always holds: the file is written before the cluster hears of the node, so that what is recorded there has somebody to go with; a data directory is of
//! one cluster for ever. A crash before the file is whole leaves none, and the next start makes another node that nobody has heard of.

use super::directory::{Directory, io_error, replace_file};
use crate::api::ControlError;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind as IoKind, Read};
use std::path::Path;
use varve_types::{ClusterId, ErrorKind, Name, NodeId};

/// The version that is written, and the newest that is read.
const VERSION: u32 = 1;
/// Most bytes of the file.
const MOST_FILE: u64 = 4096;

/// A node of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    version: u32,
    /// The node.
    pub(super) id: NodeId,
    /// What it is called.
    pub(super) name: Name,
    /// Its cluster.
    pub(super) cluster: ClusterId,
}

/// The name of this machine.
pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

impl Identity {
    /// Who the node of this directory is, if it is one of a cluster.
    ///
    /// # Errors
    /// When the file can not be read or is not one of those.
    pub(super) fn read(directory: &Directory) -> Result<Option<Self>, ControlError> {
        let path = directory.node();
        let fail = |error| io_error(path.display(), &error);
        let mut text = String::new();
        match File::open(&path) {
            Err(error) if error.kind() == IoKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error)),
            Ok(file) => file.take(MOST_FILE).read_to_string(&mut text).map_err(fail)?,
        };
        let corrupt = |reason: String| ControlError::new(ErrorKind::Corrupt, format!("{}: {reason}", path.display()));
        let identity: Self = serde_json::from_str(&text).map_err(|error| corrupt(error.to_string()))?;
        match identity.version {
            VERSION => Ok(Some(identity)),
            newer => Err(ControlError::invalid(format!(
                "{}: it has version {newer}, and this build knows {VERSION} at most: use a newer one",
                path.display()
            ))),
        }
    }

    /// The node of this directory, which is of the cluster: made when it is none yet, called `name` where that is given.
    ///
    /// # Errors
    /// `Conflict` where it is of another cluster; those of the file.
    pub(super) fn open(directory: &Directory, cluster: ClusterId, name: Option<&Name>) -> Result<Self, ControlError> {
        let known = Self::read(directory)?;
        let mut identity = match &known {
            Some(known) if known.cluster != cluster => {
                let (data, other) = (directory.path().display(), known.cluster);
                return Err(ControlError::conflict(format!(
                    "the data directory {data} is that of a node of cluster {other}, and etcd has cluster {cluster}"
                )));
            }
            Some(known) => known.clone(),
            None => Self { version: VERSION, id: fresh_id()?, name: first_name(name)?, cluster },
        };
        if let Some(name) = name {
            identity.name = name.clone();
        }
        if known.as_ref() != Some(&identity) {
            identity.write(&directory.node())?;
        }
        Ok(identity)
    }

    fn write(&self, path: &Path) -> Result<(), ControlError> {
        let text = serde_json::to_string(self);
        let text = text.map_err(|error| ControlError::new(ErrorKind::Internal, error.to_string()))?;
        replace_file(path, format!("{text}\n").as_bytes()).map_err(|error| io_error(path.display(), &error))
    }
}

fn fresh_id() -> Result<NodeId, ControlError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| ControlError::new(ErrorKind::Internal, error.to_string()))?;
    Ok(NodeId::from_random(random))
}

fn first_name(given: Option<&Name>) -> Result<Name, ControlError> {
    if let Some(name) = given {
        return Ok(name.clone());
    }
    let host = host_name();
    host.parse().map_err(|error| {
        ControlError::invalid(format!("the host's name can not be the node's: {error}; say --node-name"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_stays_the_node_that_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open_or_create(dir.path()).unwrap();
        assert_eq!(Identity::read(&directory).unwrap(), None);
        let (cluster, other) = (ClusterId::from_bytes([1; 16]), ClusterId::from_bytes([2; 16]));
        let name: Name = "n1".parse().unwrap();
        let first = Identity::open(&directory, cluster, Some(&name)).unwrap();
        assert_eq!(Identity::open(&directory, cluster, None).unwrap(), first, "the name stays, too");
        let renamed = Identity::open(&directory, cluster, Some(&"n2".parse().unwrap())).unwrap();
        assert_eq!((renamed.id, renamed.name.as_str()), (first.id, "n2"));
        assert_eq!(Identity::read(&directory).unwrap(), Some(renamed));
        let error = Identity::open(&directory, other, None).unwrap_err();
        assert!(error.kind == ErrorKind::Conflict && error.message.contains(&other.to_string()), "{error}");
    }

    #[test]
    fn what_is_no_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open_or_create(dir.path()).unwrap();
        let id = "636c7573-7465-722d-6964-2d76312d3030";
        let newer = format!(r#"{{"version":2,"id":"{id}","name":"n","cluster":"{id}"}}"#);
        for (text, kind) in [("", ErrorKind::Corrupt), ("{}", ErrorKind::Corrupt), (newer.as_str(), ErrorKind::Invalid)]
        {
            std::fs::write(directory.node(), text).unwrap();
            assert_eq!(Identity::read(&directory).unwrap_err().kind, kind, "{text:?}");
        }
    }
}
