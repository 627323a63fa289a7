// SPDX-License-Identifier: Apache-2.0
//! What an edge may ask, and that replies are what the wire says.

use super::*;
use bytes::Bytes;
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use varve_block::{StatusExtent, Submit};
use varve_serve::Tuning;
use varve_types::Sequence;
use varve_wire::transmission::get_extents;

const AT: Position = Position { sequence: Sequence(12), safe: Sequence(11) };

struct Small(bool);

impl BlockDevice for Small {
    fn size(&self) -> u64 {
        4096
    }
    fn read_only(&self) -> bool {
        self.0
    }
    fn read(&self, _: u64, _: u32, _: &mut BytesMut) -> Submit<Bytes> {
        Submit::Done(Ok(Bytes::new()))
    }
    fn write(&self, _: u64, _: Bytes, _: bool) -> Submit<()> {
        Submit::Done(Ok(()))
    }
    fn flush(&self) -> Submit<()> {
        Submit::Done(Ok(()))
    }
    fn discard(&self, _: u64, _: u64, _: bool) -> Submit<()> {
        Submit::Done(Ok(()))
    }
    fn block_status(&self, _: u64, _: u64, _: usize) -> Submit<Vec<StatusExtent>> {
        Submit::Done(Ok(Vec::new()))
    }
    fn prefetch(&self, _: u64, _: u64) -> Submit<()> {
        Submit::Done(Ok(()))
    }
    fn commit(&self) -> Submit<()> {
        Submit::Done(Ok(()))
    }
}

fn dialect() -> EdgeDialect {
    EdgeDialect { name: "test".to_owned(), size: 1 << 20 }
}

fn check(ask: Ask, offset: u64, length: u64, read_only: bool) -> Option<ErrorKind> {
    let head = Request { ask, flags: 0, id: 1, offset, length, payload_crc: 0 };
    dialect().check(&head, &Small(read_only)).err().map(|refusal| refusal.kind)
}

#[test]
fn a_range_has_to_lie_in_the_volume_and_on_sectors() {
    for ask in [Ask::Read, Ask::Write, Ask::Discard, Ask::WriteZeroes, Ask::Status, Ask::Prefetch] {
        assert_eq!(check(ask, 512, 3584, false), None);
        assert_eq!(check(ask, 512, 4096, false), Some(ErrorKind::Invalid));
        assert_eq!(check(ask, 4096 * 9, 512, false), Some(ErrorKind::Invalid));
        assert_eq!(check(ask, 1, 512, false), Some(ErrorKind::Invalid));
        let refused = ask.is_change().then_some(ErrorKind::Conflict);
        assert_eq!(check(ask, 0, 512, true), refused, "{ask:?} of what is read-only");
    }
    for ask in [Ask::Flush, Ask::Ping, Ask::Detach] {
        assert_eq!(check(ask, 7, 9, true), None);
    }
}

#[test]
fn replies_are_read_by_the_wire() {
    let (dialect, mut out) = (dialect(), BytesMut::new());
    dialect.put_data_head(&mut out, 5, 0, 4, true, AT);
    out.put_slice(b"data");
    dialect.end_data(&mut out);
    let read = Reply::decode(&out).unwrap().unwrap();
    assert_eq!((read.told, read.id, read.length, read.sequence, read.safe), (Told::Done, 5, 4, AT.sequence, AT.safe));
    read.verify(&out[REPLY_BYTES..]).unwrap();
    out.clear();
    let failed = Failed { kind: ErrorKind::NoSpace, text: &"é".repeat(MAX_TEXT), piece: None };
    dialect.put_failed(&mut out, 6, failed, AT);
    let read = Reply::decode(&out).unwrap().unwrap();
    assert_eq!(read.told, Told::Failed(ErrorKind::NoSpace));
    assert!(std::str::from_utf8(&out[REPLY_BYTES..]).is_ok());
    out.clear();
    dialect.put_status(&mut out, 7, &[(4096, true)], AT);
    assert_eq!(get_extents(&out[REPLY_BYTES..]).unwrap(), [Extent { length: 4096, hole: true }]);
    out.clear();
    dialect.put_size(&mut out, 8192, AT);
    let read = Reply::decode(&out).unwrap().unwrap();
    assert_eq!((read.told, read.id, &out[REPLY_BYTES..]), (Told::Size, 0, &8192_u64.to_le_bytes()[..]));
}

#[tokio::test]
async fn a_size_that_changed_since_the_greeting_is_told() {
    let (mut client, mut server) = tokio::io::duplex(1 << 16);
    let ping = Request { ask: Ask::Ping, flags: 0, id: 3, offset: 0, length: 0, payload_crc: 0 };
    let mut asked = Vec::new();
    ping.encode(&mut asked);
    client.write_all(&asked).await.unwrap();
    client.shutdown().await.unwrap();
    let (device, tuning): (Rc<dyn BlockDevice>, _) = (Rc::new(Small(false)), Tuning::default());
    varve_serve::serve(&mut server, device, dialect(), BytesMut::new(), Arc::default(), tuning).await.unwrap();
    drop(server);
    let mut said = Vec::new();
    client.read_to_end(&mut said).await.unwrap();
    let notice = said.windows(REPLY_BYTES + 8).find_map(|bytes| {
        let reply = Reply::decode(bytes).ok()??;
        (reply.told == Told::Size).then(|| bytes[REPLY_BYTES..].to_vec())
    });
    assert_eq!(notice.as_deref(), Some(&4096_u64.to_le_bytes()[..]));
}
