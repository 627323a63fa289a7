// SPDX-License-Identifier: Apache-2.0
//! Frames cut out of a stream: one buffer, filled with what there is.
//!
//! Data are slices of the buffer that they came in: nothing is copied. No frame is longer than its header may say, so the buffer is bounded by one of them.

use bytes::BytesMut;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};
use varve_engine::TailRecord;
use varve_wire::WireError;
use varve_wire::mirror::{Change, HEADER_BYTES, Header, Message};

/// Bytes that are read at a time, at least.
const ROOM: usize = 64 << 10;

/// See the module.
#[derive(Default)]
pub(super) struct Frames {
    bytes: BytesMut,
    /// The frame whose rest has yet to come.
    header: Option<Header>,
}

impl Frames {
    /// The next whole frame in what was received: the id of its request, and what it says.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Message)>, WireError> {
        if self.header.is_none() {
            let Some(head) = self.bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
            self.header = Some(Header::decode(head)?);
            drop(self.bytes.split_to(HEADER_BYTES));
        }
        let Some(header) = self.header else { return Ok(None) };
        let (meta, data) = (header.meta as usize, header.data as usize);
        if self.bytes.len() < meta + data {
            // What is still to come in one piece.
            self.bytes.reserve(meta + data - self.bytes.len());
            return Ok(None);
        }
        self.header = None;
        let meta = self.bytes.split_to(meta);
        let data = self.bytes.split_to(data).freeze();
        header.message(&meta, &data).map(|message| Some((header.id, message)))
    }

    /// Receives what there is. Whether the other end is still there. Dropping the future loses nothing.
    pub(super) async fn receive(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> io::Result<bool> {
        self.bytes.reserve(ROOM);
        Ok(stream.read_buf(&mut self.bytes).await? > 0)
    }
}

/// A change as it is sent.
pub(super) fn change(record: TailRecord) -> Change {
    let TailRecord { epoch, sequence, flushed_through, body, data } = record;
    Change { epoch, sequence, flushed_through, body, data }
}

/// A change as it was received: its data are a slice of the buffer that it came in.
pub(super) fn record(change: Change) -> TailRecord {
    let Change { epoch, sequence, flushed_through, body, data } = change;
    TailRecord { epoch, sequence, flushed_through, body, data }
}
