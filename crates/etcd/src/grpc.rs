// SPDX-License-Identifier: Apache-2.0
//! gRPC over one HTTP/2 connection: as much of it as etcd's protocol needs.
//!
//! A call is a POST to the method's path. Messages go behind five bytes each (not compressed, length), in both directions; the status comes in the
//! trailers, or in the headers where there is no message. (The gRPC project's "gRPC over HTTP2" is the description.)
//!
//! What a caller most needs to know about a call that failed is whether the server can have done it: [`Fault`] tells. A message is bounded before
//! anything of it is kept, and a stream that is not read is not sent either, by HTTP/2's windows. Dropping a call resets its stream, which cancels it
//! at the server.

use crate::fault::{Code, Fault, Status};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http2::SendRequest;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE};
use hyper::{Method, Request, StatusCode, Uri};
use prost::Message;
use std::convert::Infallible;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// Bytes before each message: whether it is compressed, and its length.
const HEAD: usize = 5;
/// Most bytes of a message that is taken. A value has at most 1 MiB; etcd splits what a watch tells at its own limit of requests, 1.5 MiB by default.
pub(crate) const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// Messages of a call that wait to be sent.
const OUTGOING: usize = 2;
/// Most characters of a server's words that are passed on.
const MAX_WORDS: usize = 1024;

/// What is sent in a call.
pub(crate) enum Outgoing {
    /// One message.
    Once(Option<Bytes>),
    /// Messages until the other end is dropped.
    Many(mpsc::Receiver<Bytes>),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let message = match self.get_mut() {
            Self::Once(message) => Poll::Ready(message.take()),
            Self::Many(messages) => messages.poll_recv(context),
        };
        message.map(|message| message.map(|message| Ok(Frame::data(message))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Once(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Once(message) => SizeHint::with_exact(message.as_ref().map_or(0, |message| message.len() as u64)),
            Self::Many(_) => SizeHint::default(),
        }
    }
}

/// The sending half of a call of many messages.
pub(crate) struct Wishes<Q> {
    messages: mpsc::Sender<Bytes>,
    of: PhantomData<fn(Q)>,
}

impl<Q: Message> Wishes<Q> {
    /// Queues a message; `false` where there is no room or the call has ended.
    pub(crate) fn send(&self, message: &Q) -> bool {
        self.messages.try_send(frame(message)).is_ok()
    }
}

/// A connection on which calls are made. Clones are the same connection.
#[derive(Clone)]
pub(crate) struct Caller {
    sender: SendRequest<Outgoing>,
    /// `http://HOST:PORT`, before the method's path.
    origin: String,
}

impl Caller {
    pub(crate) fn new(sender: SendRequest<Outgoing>, origin: String) -> Self {
        Self { sender, origin }
    }

    /// Whether no further call can be made.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// A call of one message each way.
    pub(crate) async fn unary<Q: Message, A: Message + Default>(
        &self,
        path: &'static str,
        token: Option<&HeaderValue>,
        message: &Q,
        timeout: Duration,
    ) -> Result<A, Fault> {
        let call = async {
            let mut answers = self.open(path, token, Outgoing::Once(Some(frame(message))), Some(timeout)).await?;
            let answer = answers.next().await?.ok_or_else(|| Fault::Lost("the answer is empty".to_owned()))?;
            match answers.next().await? {
                None => Ok(answer),
                Some(_) => Err(Fault::Lost("there are two answers".to_owned())),
            }
        };
        let late = |_| Err(Fault::Lost(format!("no answer within {timeout:?}")));
        tokio::time::timeout(timeout, call).await.unwrap_or_else(late)
    }

    /// A call of any number of messages each way. It ends when the two halves are dropped.
    pub(crate) async fn stream<Q: Message, A: Message + Default>(
        &self,
        path: &'static str,
        token: Option<&HeaderValue>,
        first: &Q,
    ) -> Result<(Wishes<Q>, Answers<A>), Fault> {
        let (messages, queue) = mpsc::channel(OUTGOING);
        let wishes = Wishes { messages, of: PhantomData };
        // Queued before the call begins, for etcd sends no headers before it has something to answer.
        if !wishes.send(first) {
            return Err(Fault::NotSent("the queue of a new call is full".to_owned()));
        }
        let answers = self.open(path, token, Outgoing::Many(queue), None).await?;
        Ok((wishes, answers))
    }

    async fn open<A>(
        &self,
        path: &'static str,
        token: Option<&HeaderValue>,
        body: Outgoing,
        timeout: Option<Duration>,
    ) -> Result<Answers<A>, Fault> {
        let uri = Uri::try_from(format!("{}{path}", self.origin)).map_err(|error| Fault::NotSent(error.to_string()))?;
        let mut request = Request::new(body);
        (*request.method_mut(), *request.uri_mut()) = (Method::POST, uri);
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        // A member that knows of no leader is to say so at once, and not to wait for one.
        headers.insert("hasleader", HeaderValue::from_static("true"));
        if let Some(timeout) = timeout {
            // Eight digits are the most that there may be.
            let milliseconds = timeout.as_millis().clamp(1, 99_999_999);
            headers.insert("grpc-timeout", words(&format!("{milliseconds}m"))?);
        }
        if let Some(token) = token {
            headers.insert("token", token.clone());
        }
        let response = self.sender.clone().try_send_request(request).await.map_err(|mut failure| {
            let unsent = failure.take_message().is_some();
            let reason = crate::fault::chain(failure.error());
            if unsent { Fault::NotSent(reason) } else { Fault::Lost(reason) }
        })?;
        let (head, body) = response.into_parts();
        let is_grpc =
            head.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if head.status != StatusCode::OK || !is_grpc {
            return Err(Fault::Foreign(format!("its answer is HTTP {} and no gRPC", head.status)));
        }
        let status = status(&head.headers)?;
        let mut answers = Answers { body, kept: BytesMut::new(), ended: false, of: PhantomData };
        if let Some(status) = status {
            answers.end(status)?;
        }
        Ok(answers)
    }
}

/// The receiving half of a call.
pub(crate) struct Answers<A> {
    body: Incoming,
    /// What came of messages that are not whole yet.
    kept: BytesMut,
    /// Whether the call has ended well.
    ended: bool,
    of: PhantomData<fn() -> A>,
}

impl<A: Message + Default> Answers<A> {
    /// The next message; `None` at the end of a call that ended well. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<A>, Fault> {
        loop {
            if let Some(message) = split(&mut self.kept, MAX_MESSAGE_BYTES)? {
                return A::decode(message)
                    .map(Some)
                    .map_err(|error| Fault::Foreign(format!("its answer is no message: {error}")));
            }
            if self.ended {
                return Ok(None);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.kept.put(data),
                    Err(frame) => {
                        let status = frame.trailers_ref().map(status).transpose()?.flatten();
                        self.end(status.ok_or_else(|| Fault::Lost("the answer has no status".to_owned()))?)?;
                    }
                },
                Some(Err(error)) => return Err(Fault::Lost(crate::fault::chain(&error))),
                None => return Err(Fault::Lost("the answer was cut short".to_owned())),
            }
        }
    }
}

impl<A> Answers<A> {
    fn end(&mut self, status: Status) -> Result<(), Fault> {
        if status.code != Code::Ok {
            return Err(Fault::Status(status));
        }
        if !self.kept.is_empty() {
            return Err(Fault::Lost("the last message was cut short".to_owned()));
        }
        self.ended = true;
        Ok(())
    }
}

/// A message as it is sent.
fn frame(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(HEAD + len);
    bytes.put_u8(0);
    // What is sent is bounded by the rules of transactions, far below 4 GiB.
    bytes.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    message.encode_raw(&mut bytes);
    bytes.freeze()
}

/// Takes the first message off what was received, if it is whole.
fn split(kept: &mut BytesMut, most: usize) -> Result<Option<Bytes>, Fault> {
    let Some(mut head) = kept.get(..HEAD) else { return Ok(None) };
    let (compressed, len) = (head.get_u8(), head.get_u32() as usize);
    if compressed != 0 {
        return Err(Fault::Foreign("its answer is compressed, which was not allowed".to_owned()));
    }
    if len > most {
        return Err(Fault::TooLarge(len));
    }
    if kept.len() < HEAD + len {
        return Ok(None);
    }
    kept.advance(HEAD);
    Ok(Some(kept.split_to(len).freeze()))
}

/// The status in headers or trailers, if there is one.
fn status(headers: &HeaderMap) -> Result<Option<Status>, Fault> {
    let Some(code) = headers.get("grpc-status") else { return Ok(None) };
    let number = code.to_str().ok().and_then(|text| text.parse::<u32>().ok());
    let number = number.ok_or_else(|| Fault::Foreign(format!("its status {code:?} is no number")))?;
    let message = headers.get("grpc-message").map(|text| unescape(text.as_bytes())).unwrap_or_default();
    Ok(Some(Status { code: Code::from(number), message }))
}

/// The words of a status, in which `%` and two hexadecimal digits stand for a byte.
fn unescape(text: &[u8]) -> String {
    let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let (mut bytes, mut at) = (Vec::new(), 0);
    while let Some(byte) = text.get(at).filter(|_| bytes.len() < MAX_WORDS) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                bytes.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn words(text: &str) -> Result<HeaderValue, Fault> {
    HeaderValue::from_str(text).map_err(|error| Fault::NotSent(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{LeaseRequest, WatchResponse};
    use proptest::prelude::*;

    #[test]
    fn a_message_comes_back_from_any_pieces() {
        let messages = [LeaseRequest { id: 7 }, LeaseRequest { id: 0 }, LeaseRequest { id: i64::MAX }];
        let whole: Vec<u8> = messages.iter().flat_map(|message| frame(message).to_vec()).collect();
        for piece in 1..whole.len() {
            let (mut kept, mut found) = (BytesMut::new(), Vec::new());
            for part in whole.chunks(piece) {
                kept.put(part);
                while let Some(message) = split(&mut kept, 100).unwrap() {
                    found.push(LeaseRequest::decode(message).unwrap());
                }
            }
            assert_eq!((found.as_slice(), kept.len()), (messages.as_slice(), 0));
        }
    }

    proptest! {
        /// What comes from a network is taken, waited for or refused; nothing else happens to it.
        #[test]
        fn any_bytes_are_messages_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0_u8..2) {
            // Half of them with a head that is right, so that the decoder has something to do.
            let len = u8::try_from(bytes.len()).unwrap();
            let whole = if kind == 0 { bytes } else { [&[0, 0, 0, 0, len][..], &bytes].concat() };
            let mut kept = BytesMut::from(whole.as_slice());
            while let Ok(Some(message)) = split(&mut kept, 1000) {
                let len = message.len();
                if let Ok(response) = WatchResponse::decode(message) {
                    prop_assert!(response.encoded_len() <= 3 * len + 16);
                }
            }
            unescape(&whole);
        }
    }

    #[test]
    fn a_length_is_refused_before_its_bytes_come() {
        let refused = |bytes: &[u8]| split(&mut BytesMut::from(bytes), 100).unwrap_err();
        assert!(matches!(refused(&[0, 0, 0, 0, 101]), Fault::TooLarge(101)));
        assert!(matches!(refused(&[0, 255, 255, 255, 255]), Fault::TooLarge(0xffff_ffff)));
        assert!(matches!(refused(&[1, 0, 0, 0, 1]), Fault::Foreign(_)));
        assert!(split(&mut BytesMut::from(&[0, 0, 0, 0][..]), 100).unwrap().is_none());
    }

    #[test]
    fn a_status_is_read_as_it_was_meant() {
        let read = |code: &str, message: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", HeaderValue::from_str(code).unwrap());
            headers.insert("grpc-message", HeaderValue::from_str(message).unwrap());
            status(&headers)
        };
        let found = read("14", "etcdserver: no leader%0A 100%25 %e2%82%ac %4").unwrap().unwrap();
        assert_eq!((found.code, found.message.as_str()), (Code::Unavailable, "etcdserver: no leader\n 100% € %4"));
        assert!(matches!(read("many", ""), Err(Fault::Foreign(_))));
        assert_eq!(read("99", "").unwrap().unwrap().code, Code::Other(99));
        assert!(status(&HeaderMap::new()).unwrap().is_none());
        assert!(unescape("x".repeat(9999).as_bytes()).len() <= MAX_WORDS);
    }
}
