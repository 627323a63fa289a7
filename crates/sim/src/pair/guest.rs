// SPDX-License-Identifier: Apache-2.0
//! What a guest asks of its disk, and what it may be answered.
//!
//! Every write has a value of its own, and no two requests for one block are under way at once. So a read finds what was acknowledged last; or, where the end of a change is not known
//! (a client without a session has lost its connection), what that would have made, once or not at all: whatever is found then is what it is from there on.

use bytes::Bytes;
use std::cell::RefCell;
use std::rc::Rc;
use varve_block::BlockError;
use varve_wire::transmission::Ask;

/// Blocks that are used.
pub(super) const BLOCKS: u64 = 24;
/// Bytes of one.
pub(super) const BLOCK: u64 = 4096;

/// What a request came to; nothing yet.
pub(super) type Answer = Rc<RefCell<Option<Outcome>>>;

/// What a request came to.
pub(super) enum Outcome {
    /// It was answered, with the bytes of a read.
    Done(Bytes),
    /// It was refused.
    Failed(BlockError),
    /// Whether it was done nobody knows.
    Lost,
}

struct Block {
    is: u64,
    /// Values of changes of which nobody knows whether they were done.
    may: Vec<u64>,
    is_busy: bool,
}

struct Asked {
    ask: Ask,
    block: u64,
    value: u64,
    answer: Answer,
}

/// See the module.
pub(super) struct Guest {
    blocks: Vec<Block>,
    values: u64,
    asked: Vec<Asked>,
    /// Whatever is asked has to be done, however long that takes.
    is_sure: bool,
}

impl Guest {
    pub(super) fn new(is_sure: bool) -> Self {
        let blocks = (0..BLOCKS).map(|_| Block { is: 0, may: Vec::new(), is_busy: false }).collect();
        Self { blocks, values: 0, asked: Vec::new(), is_sure }
    }

    /// A request: what is to be asked, and where its answer goes; none where the block is busy.
    pub(super) fn ask(&mut self, ask: Ask, block: u64) -> Option<(Ask, u64, Bytes, Answer)> {
        if ask != Ask::Flush && std::mem::replace(&mut self.blocks[block as usize].is_busy, true) {
            return None;
        }
        self.values += 1;
        let value = if ask == Ask::Write { self.values } else { 0 };
        let answer = Answer::default();
        self.asked.push(Asked { ask, block, value, answer: Rc::clone(&answer) });
        let data = if ask == Ask::Write { value.to_le_bytes().repeat(BLOCK as usize / 8).into() } else { Bytes::new() };
        Some((ask, block, data, answer))
    }

    /// Requests of which nothing was heard.
    pub(super) fn waiting(&self) -> usize {
        self.asked.len()
    }

    /// Looks at the answers that have come.
    pub(super) fn look(&mut self, when: &str) {
        for asked in std::mem::take(&mut self.asked) {
            let Some(outcome) = asked.answer.take() else {
                self.asked.push(asked);
                continue;
            };
            if let (Outcome::Failed(error), true) = (&outcome, self.is_sure) {
                panic!("{when}: {:?} of block {}: {error}", asked.ask, asked.block);
            }
            if asked.ask == Ask::Flush {
                continue;
            }
            let block = &mut self.blocks[asked.block as usize];
            block.is_busy = false;
            match (asked.ask, outcome) {
                (Ask::Read, Outcome::Done(bytes)) => block.found(&bytes, &format!("{when}: block {}", asked.block)),
                (Ask::Read, _) => {}
                (_, Outcome::Done(_)) => (block.is, block.may) = (asked.value, Vec::new()),
                (_, Outcome::Failed(_) | Outcome::Lost) => block.may.push(asked.value),
            }
        }
    }
}

impl Block {
    fn found(&mut self, bytes: &[u8], what: &str) {
        let (words, rest) = bytes.as_chunks::<8>();
        assert!(rest.is_empty() && words.len() as u64 * 8 == BLOCK, "{what}: {} bytes", bytes.len());
        let found = u64::from_le_bytes(words[0]);
        assert!(words.iter().all(|word| *word == words[0]), "{what}: it is torn");
        let may = found == self.is || self.may.contains(&found);
        assert!(may, "{what}: {found}, which is not {} or one of {:?}", self.is, self.may);
        // Nothing that was begun before is still under way: what is there now stays.
        (self.is, self.may) = (found, Vec::new());
    }
}
