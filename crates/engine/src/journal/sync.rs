// SPDX-License-Identifier: Apache-2.0
//! Group commit and trimming: one sync at a time covers all that was handed over before it began; who came later
//! waits for the next.
//!
//! The trim is the lowest pinned position, and not beyond the records, synced before, that tell what it passes to be in the store. Room
//! before it is used again only once a superblock that says so is on stable media.

use super::{FEW_COMMITS, Journal, MAX_RECORD, PAGE, SUPERBLOCK, State, io_failed, write};
use crate::Result;
use crate::stages::Stage;
use std::io::IoSlice;
use std::rc::Rc;
use varve_format::journal::{ALIGN, Body, SHORT_HEADER, Superblock};
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::mutant::{Mutant, planted};

/// Timelines that a trim tells of, at most: 400 KiB of records. Of more, the rest is only warned of.
const MAX_EVIDENCE: usize = 4096;

impl Journal {
    /// Waits until everything before `position` is on stable media. What was appended is handed over first.
    ///
    /// # Errors
    /// When the journal has failed: nobody knows then what is on stable media.
    pub async fn sync_to(self: &Rc<Self>, position: u64) -> Result<()> {
        self.commit()?;
        self.changed
            .until(|| {
                {
                    let state = self.state.borrow();
                    if state.synced >= position {
                        return Some(Ok(()));
                    }
                    if let Some(error) = &state.failed {
                        return Some(Err(error.clone()));
                    }
                }
                self.start_sync();
                None
            })
            .await
    }

    /// Waits until everything up to now is on stable media.
    ///
    /// # Errors
    /// When the journal has failed.
    pub async fn sync_all(self: &Rc<Self>) -> Result<()> {
        let head = self.state.borrow().head;
        self.sync_to(head).await
    }

    /// Begins a sync if none is under way and there is something to sync.
    pub fn start_sync(self: &Rc<Self>) {
        {
            let mut state = self.state.borrow_mut();
            // What was appended and not handed over counts: whoever waits for room may have appended it.
            let nothing = state.written == state.synced && state.parts.is_empty();
            if state.syncing || state.failed.is_some() || nothing {
                return;
            }
            state.syncing = true;
        }
        let this = Rc::clone(self);
        self.env.spawn(Box::pin(async move { this.sync_once().await }));
    }

    async fn sync_once(self: Rc<Self>) {
        let target = {
            let mut state = self.state.borrow_mut();
            if self.hand_over(&mut state).is_err() {
                state.syncing = false;
                drop(state);
                self.changed.ring();
                return;
            }
            let written = state.written;
            state.eager = std::mem::take(&mut state.commits) <= FEW_COMMITS;
            // What is appended from now on begins a page of its own.
            state.head = written.next_multiple_of(PAGE);
            state.written = state.head;
            state.batch_start = state.head;
            written
        };
        let timed = self.stages.begin(&*self.env, Stage::JournalSync);
        let mut done = if planted(Mutant::SkipJournalSync) { Ok(()) } else { self.disk.sync().await };
        if done.is_err() && planted(Mutant::RetryFailedSync) {
            done = self.disk.sync().await;
        }
        drop(timed);
        {
            let mut state = self.state.borrow_mut();
            state.syncing = false;
            match done {
                Ok(()) => {
                    // The jump to the next page holds nothing that could be lost.
                    let jumped = target.next_multiple_of(PAGE);
                    state.synced = if state.written == jumped { jumped } else { target };
                }
                Err(error) => {
                    reached(Branch::JournalSyncFails);
                    state.failed = Some(io_failed("sync", &error));
                }
            }
        }
        self.changed.ring();
        self.start_trim();
        self.start_carry();
    }

    /// Notes that a layer needs the journal from `position` on.
    pub fn pin(&self, position: u64) {
        *self.state.borrow_mut().pins.entry(position).or_insert(0) += 1;
    }

    /// Takes a pin away.
    pub fn unpin(self: &Rc<Self>, position: u64) {
        {
            let mut state = self.state.borrow_mut();
            let count = state.pins.get_mut(&position).expect("only what was pinned is unpinned");
            *count -= 1;
            if *count == 0 {
                state.pins.remove(&position);
            }
            state.carry_from = 0;
        }
        self.start_trim();
        self.start_carry();
    }

    /// Whether a layer that pins this position holds up the trim: the half of the ring behind it is used.
    pub fn is_old(&self, pin: u64) -> bool {
        self.state.borrow().head > pin + self.ring / 2
    }

    /// Trims, when that gives back enough room to be worth it.
    pub(super) fn start_trim(self: &Rc<Self>) {
        {
            let mut state = self.state.borrow_mut();
            let gain = gain(&state);
            let full = state.head + self.kept_free() + 3 * MAX_RECORD > state.superblock.trim + self.ring;
            let is_worth = gain >= self.ring / 16 || full || state.carried;
            if state.trimming || state.failed.is_some() || gain == 0 || !is_worth {
                return;
            }
            state.trimming = true;
            state.carried = false;
        }
        let this = Rc::clone(self);
        self.env.spawn(Box::pin(async move {
            let done = this.trim().await;
            {
                let mut state = this.state.borrow_mut();
                state.trimming = false;
                if let Err(error) = &done {
                    reached_if(state.failed.is_none(), Branch::JournalTrimFails);
                    state.failed.get_or_insert_with(|| error.clone());
                }
            }
            // Who waits for room asks for the next trim, so it is not woken where there is no more room than before.
            if !matches!(done, Ok(false)) {
                this.changed.ring();
                this.start_trim();
            }
            this.start_carry();
        }));
    }

    /// Writes a superblock with the trim of now, behind records of what is in the store. Whether there is more room now.
    async fn trim(self: &Rc<Self>) -> Result<bool> {
        let Some((first, end)) = self.append_evidence()? else { return Ok(false) };
        if end > first {
            self.sync_to(end).await?;
        }
        let superblock = {
            let state = self.state.borrow();
            let trim = lowest(&state).min(first);
            Superblock { trim, generation: state.superblock.generation + 1, ..state.superblock }
        };
        self.write_superblock(superblock).await?;
        let mut state = self.state.borrow_mut();
        state.superblock = superblock;
        state.told = first..end.next_multiple_of(PAGE);
        Ok(true)
    }

    /// Appends what the timelines have in the store. Gives where that begins and ends, or nothing where a trim would gain no more than it takes: puts
    /// that are under way will make it worth it.
    fn append_evidence(&self) -> Result<Option<(u64, u64)>> {
        let mut stamps = self.keeper.get().map(|keeper| keeper.evidence()).unwrap_or_default();
        if stamps.len() > MAX_EVIDENCE {
            let untold = stamps.len() - MAX_EVIDENCE;
            tracing::warn!(
                untold,
                "a store that loses their newest segments would not be found out for so many volumes, until their next checkpoints"
            );
            stamps.truncate(MAX_EVIDENCE);
        }
        let takes = stamps.len() as u64 * SHORT_HEADER;
        {
            let state = self.state.borrow();
            let fits = state.head + takes + MAX_RECORD / 2 <= state.superblock.trim + self.ring;
            if !stamps.is_empty() && (!fits || gain(&state) < 2 * takes) {
                reached(Branch::TrimPutOff);
                return Ok(None);
            }
        }
        let mut first = None;
        for stamp in stamps {
            let appended = self.append(stamp, Body::Counted)?;
            first.get_or_insert(appended.position);
        }
        let head = self.state.borrow().head;
        Ok(Some((first.unwrap_or(head), head)))
    }

    async fn write_superblock(&self, superblock: Superblock) -> Result<()> {
        let place = if planted(Mutant::OneSuperblock) { 0 } else { superblock.generation % 2 };
        let offset = place * SUPERBLOCK;
        write(&*self.disk, offset, &[IoSlice::new(&superblock.encode())])?;
        self.disk.sync().await.map_err(|error| io_failed("sync", &error))
    }
}

/// The lowest position that is still needed.
pub(super) fn lowest(state: &State) -> u64 {
    state.pins.keys().next().copied().unwrap_or(state.synced).min(state.synced) / ALIGN * ALIGN
}

/// Bytes that a trim would give back, without those that only the last trim has written.
pub(super) fn gain(state: &State) -> u64 {
    let (from, to) = (state.superblock.trim, lowest(state));
    let told = state.told.end.min(to).saturating_sub(state.told.start.max(from));
    to.saturating_sub(from).saturating_sub(told)
}
