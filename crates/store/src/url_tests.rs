// SPDX-License-Identifier: Apache-2.0
//! Addresses: what is read, what is written back, and what is refused with which words.

use super::*;

fn s3(text: &str) -> S3Url {
    match StoreUrl::parse(text).unwrap() {
        StoreUrl::S3(url) => url,
        other => panic!("{other:?}"),
    }
}

#[test]
fn reads_directories() {
    for (text, path) in [
        ("file:///var/lib/varve", "/var/lib/varve"),
        ("file:///a//b/", "/a/b"),
        ("file:///a%20b/%C3%A4", "/a b/ä"),
        ("file:///a b", "/a b"),
        ("file:///100%25", "/100%"),
    ] {
        assert_eq!(StoreUrl::parse(text).unwrap(), StoreUrl::File { path: path.into() }, "{text}");
    }
}

#[test]
fn reads_buckets() {
    let plain = s3("s3://bucket");
    assert_eq!((plain.bucket.as_str(), plain.prefix.as_str(), plain.path_style), ("bucket", "", false));
    let full = s3(
        "s3://my-bucket/a/b/?endpoint=http://127.0.0.1:8333/&region=eu-west-1&path-style=true&credentials=/etc/my%20keys",
    );
    let expected = S3Url {
        bucket: "my-bucket".into(),
        prefix: "a/b".into(),
        endpoint: Some("http://127.0.0.1:8333".into()),
        region: Some("eu-west-1".into()),
        path_style: true,
        credentials: Some("/etc/my keys".into()),
    };
    assert_eq!(full, expected);
    assert!(s3("s3://bucket?endpoint=https://store.example").path_style, "the default for a server of one's own");
    assert!(!s3("s3://bucket?endpoint=https%3A%2F%2Fstore.example&path-style=false").path_style);
}

#[test]
fn writes_what_it_reads() {
    for text in [
        "file:///var/lib/varve",
        "file:///a%20b/%C3%A4%3F%23%25",
        "s3://bucket",
        "s3://bucket/a/b",
        "s3://bucket?path-style=true",
        "s3://bucket/p?endpoint=http://[::1]:9000&region=r&path-style=false&credentials=/a%26b",
    ] {
        let url = StoreUrl::parse(text).unwrap();
        assert_eq!(url.to_string(), text);
        assert_eq!(StoreUrl::parse(&url.to_string()).unwrap(), url);
    }
    let odd = Path::new("/tmp/50% ?#x");
    let url = StoreUrl::try_from(odd).unwrap();
    assert_eq!(url, StoreUrl::File { path: odd.into() });
    assert_eq!(StoreUrl::parse(&url.to_string()).unwrap(), url);
}

#[test]
fn refuses_with_words_that_help() {
    for (text, word) in [
        ("", "begins with"),
        ("/var/lib/varve", "begins with"),
        ("file:/var", "begins with"),
        ("ftp://x/y", "`ftp` is no kind"),
        ("FILE:///x", "`FILE` is no kind"),
        ("file://var/lib", "absolute"),
        ("file://", "absolute"),
        ("file:///", "root"),
        ("file:///a/../b", "`..`"),
        ("file:///a?x=1", "options"),
        ("file:///a%2", "hexadecimal"),
        ("file:///a%zz", "hexadecimal"),
        ("file:///a%00", "zero"),
        ("file:///%ff", "UTF-8"),
        ("s3://", "bucket is missing"),
        ("s3:///prefix", "bucket is missing"),
        ("s3://Bucket", "cannot be a bucket"),
        ("s3://ab", "cannot be a bucket"),
        ("s3://bucket/a//b", "prefix"),
        ("s3://bucket/../b", "prefix"),
        ("s3://bucket/a b", "prefix"),
        ("s3://bucket?endpont=http://x", "`endpont` is no option"),
        ("s3://bucket?endpoint", "no value"),
        ("s3://bucket?endpoint=host:1", "http://"),
        ("s3://bucket?endpoint=http://", "host:port"),
        ("s3://bucket?region=", "region"),
        ("s3://bucket?region=a&region=b", "twice"),
        ("s3://bucket?path-style=yes", "true or false"),
        ("s3://bucket?credentials=keys", "absolute"),
        ("s3://bucket#x", "#"),
    ] {
        let error = StoreUrl::parse(text).unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Invalid);
        assert!(error.message.contains(word), "{text}: {error}");
    }
}

#[test]
fn passwords_are_refused_and_not_repeated() {
    for text in ["s3://key:hunter2@bucket/x", "s3://bucket?endpoint=http://key:hunter2@host"] {
        let error = StoreUrl::parse(text).unwrap_err().to_string();
        assert!(error.contains("environment") && !error.contains("hunter2"), "{error}");
    }
}
