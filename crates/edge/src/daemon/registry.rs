// SPDX-License-Identifier: Apache-2.0
//! The volumes of a process, and who uses them.
//!
//! The registry is asked by the control socket, by the NBD front end, and by the commands that serve in the foreground; all of them on the one thread of the volumes.
//!
//! Always holds: a name has one volume; a volume is shown from when it was attached until it is detached or has failed for good, and one that has failed stays listed until it is
//! detached, so that a person sees why.

use super::MOST_VOLUMES;
use super::document::{self, StatsDocument, VolumeDocument};
use super::exports::Shown;
use super::spec::Spec;
use crate::session::Standing;
use crate::volume::{Edge, Volume};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::Duration;
use tracing::warn;
use varve_block::{BlockError, Result};
use varve_types::ErrorKind;

/// How long a volume may take to be given up.
const CLOSE_TIME: Duration = Duration::from_secs(30);
/// Between two tries to attach a volume that can not be had yet.
const AGAIN: Duration = Duration::from_secs(5);

#[derive(Clone)]
enum State {
    /// It is being attached.
    Attaching,
    /// It was attached.
    Attached(Volume),
}

struct Entry {
    state: State,
    clients: Rc<Cell<u64>>,
}

/// See the module.
pub struct Registry {
    edge: Edge,
    socket: PathBuf,
    shown: Shown,
    all: RefCell<BTreeMap<String, Entry>>,
}

/// A client of a volume, from here until it is dropped.
pub(crate) struct Client(Rc<Cell<u64>>);

impl Drop for Client {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Registry {
    /// No volumes yet; they will be shown at the NBD socket of this path.
    #[must_use]
    pub fn new(edge: Edge, socket: PathBuf) -> Rc<Self> {
        let socket = std::path::absolute(&socket).unwrap_or(socket);
        Rc::new(Self { edge, socket, shown: Shown::default(), all: RefCell::default() })
    }

    pub(crate) fn shown(&self) -> Shown {
        self.shown.clone()
    }

    /// Attaches a volume and shows it. Without a timeout it is asked for until it can be had, also where another has it for itself or it is not there yet.
    ///
    /// # Errors
    /// When it is here already, there is no room for it, or it can not be had in time.
    pub async fn attach(self: &Rc<Self>, spec: &Spec, timeout: Option<Duration>) -> Result<VolumeDocument> {
        let options = spec.options(timeout)?;
        let name = options.volume.clone();
        self.begin(&name)?;
        let attaching = Attaching { registry: self, name: &name };
        let mut tries = 0_u64;
        let volume = loop {
            match self.edge.open(options.clone()).await {
                Ok(volume) => break volume,
                Err(why) if timeout.is_some() => return Err(why),
                Err(why) => {
                    tries += 1;
                    if tries.is_power_of_two() {
                        warn!(volume = name, error = %why, tries, "the volume is not attached; it is asked for again");
                    }
                }
            }
            #[allow(clippy::disallowed_methods, reason = "nobody tells when it can be had")]
            tokio::time::sleep(AGAIN).await;
        };
        std::mem::forget(attaching);
        self.shown.put(&name, volume.device().size(), volume.device().read_only());
        if let Some(entry) = self.all.borrow_mut().get_mut(&name) {
            entry.state = State::Attached(volume.clone());
        }
        #[allow(clippy::disallowed_methods, reason = "what is shown follows the volume")]
        drop(tokio::task::spawn_local(follow(volume, Rc::downgrade(self))));
        self.document(&name)
    }

    fn begin(&self, name: &str) -> Result<()> {
        let mut all = self.all.borrow_mut();
        if all.contains_key(name) {
            return Err(BlockError::new(ErrorKind::Conflict, format!("volume {name}: it is attached here already")));
        }
        if all.len() >= MOST_VOLUMES {
            let why = format!("volume {name}: there are {MOST_VOLUMES} volumes here, and no room for another");
            return Err(BlockError::new(ErrorKind::Busy, why));
        }
        all.insert(name.to_owned(), Entry { state: State::Attaching, clients: Rc::default() });
        Ok(())
    }

    /// Gives a volume up. One that is in use only by force; one that is just being attached, not at all.
    ///
    /// # Errors
    /// When it is not here or in use, or its owner does not take it back in time: then it is attached on.
    pub async fn detach(&self, name: &str, force: bool) -> Result<()> {
        let (volume, clients) = self.find(name)?;
        if clients > 0 && !force && volume.stat().failure.is_none() {
            let why = format!("volume {name}: {clients} NBD clients use it; let them go first, or give --force");
            return Err(BlockError::new(ErrorKind::Conflict, why));
        }
        self.shown.remove(name);
        self.close(name, &volume).await
    }

    async fn close(&self, name: &str, volume: &Volume) -> Result<()> {
        if volume.stat().failure.is_none() {
            #[allow(clippy::disallowed_methods, reason = "a person waits for it")]
            let closed = tokio::time::timeout(CLOSE_TIME, volume.close()).await;
            match closed {
                Ok(closed) => closed?,
                Err(_) => {
                    let trouble = volume.stat().trouble;
                    let why =
                        format!("volume {name}: its owner does not take it back: {trouble}; it is being detached on");
                    return Err(BlockError::new(ErrorKind::Unavailable, why));
                }
            }
        }
        self.all.borrow_mut().remove(name);
        Ok(())
    }

    /// Lets go of a volume that was given up, however long that took.
    fn forget(&self, name: &str) {
        let mut all = self.all.borrow_mut();
        let is_over = |state: &State| matches!(state, State::Attached(volume) if matches!(volume.stat().standing, Standing::Detached(_)));
        if all.get(name).is_some_and(|entry| is_over(&entry.state)) {
            all.remove(name);
        }
    }

    /// Gives all volumes up, at once; the first error, if there is one.
    ///
    /// # Errors
    /// When an owner does not take its volume back in time.
    pub async fn detach_all(&self) -> Result<()> {
        let names: Vec<String> = self.all.borrow().keys().cloned().collect();
        let volumes: Vec<(String, Volume)> = names
            .into_iter()
            .filter_map(|name| self.find(&name).ok().map(|(volume, _)| (name, volume)))
            .filter(|(_, volume)| volume.stat().failure.is_none())
            .collect();
        let mut all = tokio::task::JoinSet::new();
        for (name, volume) in volumes {
            self.shown.remove(&name);
            #[allow(clippy::disallowed_methods, reason = "one that is slow holds up no other")]
            all.spawn_local(async move {
                let closed = tokio::time::timeout(CLOSE_TIME, volume.close()).await;
                closed.unwrap_or_else(|_| {
                    let kept = volume.stat().kept_bytes;
                    let why = format!(
                        "volume {name}: its owner was not found; {kept} bytes of changes that are not safe are given up"
                    );
                    Err(BlockError::new(ErrorKind::Unavailable, why))
                })
            });
        }
        let mut result = Ok(());
        while let Some(joined) = all.join_next().await {
            let closed = joined.unwrap_or_else(|why| Err(BlockError::new(ErrorKind::Internal, why.to_string())));
            result = result.and(closed);
        }
        result
    }

    fn find(&self, name: &str) -> Result<(Volume, u64)> {
        let all = self.all.borrow();
        match all.get(name) {
            Some(Entry { state: State::Attached(volume), clients }) => Ok((volume.clone(), clients.get())),
            Some(_) => Err(BlockError::new(
                ErrorKind::Conflict,
                format!("volume {name}: it is just being attached; wait for that"),
            )),
            None => Err(BlockError::new(ErrorKind::NotFound, format!("there is no volume {name:?} attached here"))),
        }
    }

    /// A client begins to use a volume.
    pub(crate) fn join(&self, name: &str) -> Result<(Volume, Client)> {
        let (volume, _) = self.find(name)?;
        let all = self.all.borrow();
        let clients = all.get(name).map(|entry| Rc::clone(&entry.clients)).unwrap_or_default();
        clients.set(clients.get() + 1);
        Ok((volume, Client(clients)))
    }

    fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket.display())
    }

    /// What there is to say of a volume.
    ///
    /// # Errors
    /// When it is not here.
    pub fn document(&self, name: &str) -> Result<VolumeDocument> {
        let (volume, clients) = self.find(name)?;
        Ok(document::volume(&volume, &volume.stat(), clients, self.uri(name)))
    }

    /// All volumes, by name.
    #[must_use]
    pub fn list(&self) -> Vec<VolumeDocument> {
        let all = self.all.borrow();
        let document = |(name, entry): (&String, &Entry)| match &entry.state {
            State::Attached(volume) => document::volume(volume, &volume.stat(), entry.clients.get(), self.uri(name)),
            State::Attaching => VolumeDocument {
                volume: name.clone(),
                state: "attaching".to_owned(),
                node: None,
                for_ms: 0,
                trouble: None,
                size_bytes: 0,
                read_only: false,
                clients: 0,
                nbd_uri: self.uri(name),
            },
        };
        all.iter().map(document).collect()
    }

    /// What one volume, or each of them, has done.
    ///
    /// # Errors
    /// When it is not here.
    pub fn stats(&self, name: Option<&str>) -> Result<Vec<StatsDocument>> {
        let names: Vec<String> = match name {
            Some(name) => vec![name.to_owned()],
            None => self.all.borrow().keys().cloned().collect(),
        };
        let mut documents = Vec::new();
        for one in names {
            match self.find(&one) {
                Ok((volume, clients)) => {
                    let stat = volume.stat();
                    let shown = document::volume(&volume, &stat, clients, self.uri(&one));
                    documents.push(document::stats(shown, &stat));
                }
                Err(error) if name.is_some() => return Err(error),
                Err(_) => {}
            }
        }
        Ok(documents)
    }
}

/// Takes the name back when an attach fails, or is given up.
struct Attaching<'a> {
    registry: &'a Registry,
    name: &'a str,
}

impl Drop for Attaching<'_> {
    fn drop(&mut self) {
        self.registry.all.borrow_mut().remove(self.name);
    }
}

/// Keeps what is shown of a volume as it is, until there is nothing more to show.
async fn follow(volume: Volume, registry: Weak<Registry>) {
    while let Some(registry) = registry.upgrade() {
        let (name, shown) = (volume.name(), &registry.shown);
        match volume.stat().standing {
            Standing::Failed(_) => return shown.remove(name),
            Standing::Detached(_) => return registry.forget(name),
            Standing::Looking(_) | Standing::Connected(..) => {
                if shown.has(name) {
                    shown.put(name, volume.device().size(), volume.device().read_only());
                }
            }
        }
        drop(registry);
        volume.changed().await;
    }
}
