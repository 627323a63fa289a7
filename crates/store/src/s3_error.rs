// SPDX-License-Identifier: Apache-2.0
//! What an S3 server's refusals mean for the engine, and for the person who has to mend them.
//!
//! `object_store` keeps the status and the body of an answer in its text only, so both are read from there; the conformance tests hold
//! that against a real server. What cannot be recognised counts as `Unavailable`: tried again, then reported, never taken for an answer
//! about the object. The body's `Code` and `Message` are shown; the rest of it, which may quote what was signed, is not.

use crate::error;
use crate::url::S3Url;
use object_store::Error;
use varve_env::{StoreError, StoreErrorKind};

/// How much of an unexpected answer is shown.
const SHOWN_CHARS: usize = 300;

/// Codes that say that there is no room, whatever their status.
const FULL: [&str; 6] = [
    "QuotaExceeded",
    "InsufficientStorage",
    "StorageFull",
    "XMinioStorageFull",
    "XMinioAdminBucketQuotaExceeded",
    "ServiceQuotaExceeded",
];
/// Codes of status 4xx that pass by themselves.
const PASSING: [&str; 5] =
    ["RequestTimeout", "SlowDown", "OperationAborted", "ConditionalRequestConflict", "TooManyRequests"];

/// What an answer said.
struct Answer<'a> {
    status: Option<u16>,
    code: &'a str,
    text: &'a str,
}

impl<'a> Answer<'a> {
    fn read(text: &'a str) -> Self {
        let status = text.split_once("status code: ").and_then(|(_, rest)| rest.get(..3)?.parse().ok());
        Self { status, code: element(text, "Code"), text }
    }

    /// The server's words, without what it may quote of the request.
    fn message(&self) -> String {
        match (self.code, element(self.text, "Message")) {
            // Up to the body, which is then of a kind that is not known.
            ("", _) => self.text.split('<').next().unwrap_or_default().chars().take(SHOWN_CHARS).collect(),
            (code, "") => code.to_owned(),
            (code, message) => format!("{code}: {}", message.chars().take(SHOWN_CHARS).collect::<String>()),
        }
    }
}

/// The text of the first XML element of that name, or nothing.
fn element<'a>(text: &'a str, name: &str) -> &'a str {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    text.split_once(&open).and_then(|(_, rest)| rest.split_once(&close)).map_or("", |(inside, _)| inside.trim())
}

/// Whether a conditional put was refused because the name is taken. A 409, which some servers send while two puts of one name run, is
/// not that: nothing is known then of what will be there.
pub(crate) fn is_taken(failure: &Error) -> bool {
    let Error::AlreadyExists { source, .. } = failure else {
        return matches!(failure, Error::Precondition { .. } | Error::NotModified { .. });
    };
    source.downcast_ref::<Error>().is_some_and(is_taken)
}

/// Whether a range was refused because it begins at or beyond the object's end.
pub(crate) fn is_beyond_end(failure: &Error) -> bool {
    matches!(failure, Error::Generic { .. }) && Answer::read(&failure.to_string()).status == Some(416)
}

/// The error of this crate for a failed request.
pub(crate) fn translate(operation: &'static str, name: &str, url: &S3Url, failure: &Error) -> StoreError {
    let text = failure.to_string();
    let answer = Answer::read(&text);
    let kind = kind(failure, &answer);
    let said = answer.message();
    let message = match hint(kind, url, &answer) {
        Some(hint) => format!("{hint} ({said})"),
        None => said,
    };
    error(kind, operation, name, message)
}

fn kind(failure: &Error, answer: &Answer<'_>) -> StoreErrorKind {
    if FULL.contains(&answer.code) {
        return StoreErrorKind::NoSpace;
    }
    if PASSING.contains(&answer.code) {
        return StoreErrorKind::Unavailable;
    }
    match failure {
        Error::NotFound { .. } if answer.code == "NoSuchBucket" => StoreErrorKind::Invalid,
        Error::NotFound { .. } => StoreErrorKind::NotFound,
        Error::AlreadyExists { .. } => StoreErrorKind::Unavailable,
        Error::PermissionDenied { .. }
        | Error::Unauthenticated { .. }
        | Error::InvalidPath { .. }
        | Error::NotSupported { .. }
        | Error::NotImplemented { .. }
        | Error::UnknownConfigurationKey { .. } => StoreErrorKind::Invalid,
        _ => match answer.status {
            Some(507) => StoreErrorKind::NoSpace,
            Some(501) => StoreErrorKind::Invalid,
            Some(404) if answer.code == "NoSuchBucket" => StoreErrorKind::Invalid,
            Some(404) if answer.code == "NoSuchKey" => StoreErrorKind::NotFound,
            Some(408 | 409 | 425 | 429) => StoreErrorKind::Unavailable,
            Some(300..=499) => StoreErrorKind::Invalid,
            None if no_s3(answer.text) || wrong_region(answer.text) => StoreErrorKind::Invalid,
            _ => StoreErrorKind::Unavailable,
        },
    }
}

/// An answer that is not of this protocol.
fn no_s3(text: &str) -> bool {
    text.contains("Got invalid list response")
}

/// What `object_store` says of a redirect that leads nowhere.
fn wrong_region(text: &str) -> bool {
    text.contains("redirect without LOCATION")
}

/// What a person can do about it.
fn hint(kind: StoreErrorKind, url: &S3Url, answer: &Answer<'_>) -> Option<String> {
    let bucket = &url.bucket;
    let server = url.endpoint.as_deref().unwrap_or("the S3 of Amazon");
    if kind == StoreErrorKind::NoSpace {
        return Some(format!("the store is full or a quota of bucket `{bucket}` is used up"));
    }
    if kind == StoreErrorKind::Unavailable && answer.status.is_none() {
        return Some(format!("{server} does not answer"));
    }
    if kind != StoreErrorKind::Invalid {
        return None;
    }
    Some(match (answer.code, answer.status) {
        ("NoSuchBucket", _) => {
            format!("there is no bucket `{bucket}` on {server}: make it, or mend the store's address")
        }
        ("InvalidAccessKeyId", _) => {
            format!("{server} does not know the access key: check AWS_ACCESS_KEY_ID or the credentials file")
        }
        ("SignatureDoesNotMatch", _) => {
            "the secret does not fit the access key: check AWS_SECRET_ACCESS_KEY or the credentials file".into()
        }
        ("ExpiredToken" | "InvalidToken", _) => {
            "the session token is not valid any more: get a new AWS_SESSION_TOKEN".into()
        }
        ("RequestTimeTooSkewed", _) => "the clock of this machine differs too much from the server's: set it".into(),
        (_, Some(401 | 403)) => {
            format!(
                "access to bucket `{bucket}` is denied: check the credentials and what they may do (read, write, list, delete)"
            )
        }
        ("AuthorizationHeaderMalformed" | "PermanentRedirect", _) | (_, Some(300..=399)) => {
            format!("bucket `{bucket}` is elsewhere: check region=… and endpoint=… in the store's address")
        }
        (_, Some(501)) => format!("{server} lacks something that is needed, perhaps conditional puts (If-None-Match)"),
        _ if wrong_region(answer.text) => {
            format!("bucket `{bucket}` is elsewhere: check region=… in the store's address")
        }
        _ if no_s3(answer.text) => format!("{server} does not speak S3: check endpoint=… in the store's address"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url() -> S3Url {
        match crate::StoreUrl::parse("s3://my-bucket?endpoint=http://host:1").unwrap() {
            crate::StoreUrl::S3(url) => url,
            crate::StoreUrl::File { .. } => unreachable!(),
        }
    }

    fn generic(text: &str) -> Error {
        Error::Generic { store: "S3", source: text.to_owned().into() }
    }

    fn status(status: &str, code: &str) -> Error {
        let body =
            format!("<Error><Code>{code}</Code><Message>words</Message><StringToSign>hunter2</StringToSign></Error>");
        generic(&format!(
            "Error performing GET http://host:1/ in 1ms - Server returned non-2xx status code: {status}: {body}"
        ))
    }

    #[test]
    fn kinds_say_what_to_do() {
        use StoreErrorKind::{Invalid, NoSpace, NotFound, Unavailable};
        for (failure, kind, word) in [
            (status("500 Internal Server Error", "InternalError"), Unavailable, "InternalError"),
            (status("503 Service Unavailable", "SlowDown"), Unavailable, "SlowDown"),
            (status("429 Too Many Requests", ""), Unavailable, ""),
            (status("400 Bad Request", "RequestTimeout"), Unavailable, ""),
            (status("507 Insufficient Storage", ""), NoSpace, "full"),
            (status("403 Forbidden", "QuotaExceeded"), NoSpace, "quota"),
            (status("404 Not Found", "NoSuchBucket"), Invalid, "make it"),
            (status("404 Not Found", "NoSuchKey"), NotFound, ""),
            (status("404 Not Found", "Odd"), Invalid, ""),
            (status("403 Forbidden", "SignatureDoesNotMatch"), Invalid, "AWS_SECRET_ACCESS_KEY"),
            (status("403 Forbidden", "InvalidAccessKeyId"), Invalid, "AWS_ACCESS_KEY_ID"),
            (status("403 Forbidden", "RequestTimeTooSkewed"), Invalid, "clock"),
            (status("403 Forbidden", "AccessDenied"), Invalid, "denied"),
            (status("400 Bad Request", "ExpiredToken"), Invalid, "token"),
            (status("301 Moved Permanently", "PermanentRedirect"), Invalid, "region"),
            (status("501 Not Implemented", "NotImplemented"), Invalid, "If-None-Match"),
            (generic("HTTP error: error sending request"), Unavailable, "does not answer"),
            (generic("Received redirect without LOCATION"), Invalid, "region"),
            (generic("Got invalid list response: x"), Invalid, "does not speak S3"),
        ] {
            let error = translate("get", "a/b", &url(), &failure);
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.message.contains(word), "{error}");
            assert!(!error.message.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn only_a_failed_condition_means_taken() {
        let precondition = || Error::Precondition { path: "a".into(), source: "412".into() };
        assert!(is_taken(&precondition()));
        assert!(is_taken(&Error::AlreadyExists { path: "a".into(), source: Box::new(precondition()) }));
        let conflict = Error::AlreadyExists { path: "a".into(), source: "409".into() };
        assert!(!is_taken(&conflict));
        assert_eq!(translate("put", "a", &url(), &conflict).kind, StoreErrorKind::Unavailable);
    }
}
