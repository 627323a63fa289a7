// SPDX-License-Identifier: Apache-2.0
//! The proxy before a server of a few lines, which answers each GET with a body of its own.

use super::*;
use std::io::BufRead;

/// Answers `GET /PATH` with 1,000 times the last letter of the path, until a request for `/end`.
fn server() -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let mut requests = BufReader::new(&stream);
            while let Ok(Some(request)) = read_request(&mut requests) {
                let line = request.first_line();
                let path = line.split(' ').nth(1).unwrap().to_owned();
                let body = path[path.len() - 1..].repeat(1000);
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                (&stream).write_all(answer.as_bytes()).unwrap();
                if path == "/end" {
                    return;
                }
            }
        }
    });
    (endpoint, thread)
}

/// The status line and what came of the body.
fn get(endpoint: &str, path: &str) -> Result<(String, Vec<u8>)> {
    let mut stream = TcpStream::connect(endpoint.strip_prefix("http://").unwrap())?;
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes())?;
    let mut reader = BufReader::new(stream);
    let (mut line, mut first) = (String::new(), String::new());
    reader.read_line(&mut first)?;
    anyhow::ensure!(!first.is_empty(), "closed without an answer");
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line)?;
    }
    let mut body = vec![0; if first.contains(" 200 ") { 1000 } else { 0 }];
    let mut filled = 0;
    while filled < body.len() {
        let read = reader.read(&mut body[filled..])?;
        if read == 0 {
            break;
        }
        filled += read;
    }
    body.truncate(filled);
    Ok((first, body))
}

#[test]
fn each_fault_is_what_it_says_and_ends() {
    let (endpoint, server) = server();
    let proxy = FaultProxy::start(&endpoint).unwrap();
    let (at, right) = (proxy.endpoint(), |letter: u8| vec![letter; 1000]);
    let passes = || assert_eq!(get(&at, "/a").unwrap().1, right(b'a'));
    passes();
    proxy.set(Fault::Down);
    assert!(get(&at, "/a").is_err());
    proxy.set(Fault::HalfOpen);
    assert!(get(&at, "/a").is_err());
    assert_eq!(proxy.hits(), 1);
    proxy.set(Fault::Truncating { one_in: 1 });
    assert_eq!(get(&at, "/a").unwrap().1, vec![b'a'; 500]);
    proxy.set(Fault::Erring { one_in: 1 });
    assert!(get(&at, "/a").is_err());
    assert!(get(&at, "/a").unwrap().0.contains("503"));
    proxy.set(Fault::Wrong { one_in: 1 });
    assert_eq!(get(&at, "/b").unwrap().1, right(b'a'), "the earlier answer to another question");
    assert_ne!(get(&at, "/a").unwrap().1, right(b'a'), "a flipped bit");
    proxy.set(Fault::Wrong { one_in: 2 });
    passes();
    proxy.set(Fault::Slow(Duration::from_millis(100)));
    let begin = std::time::Instant::now();
    passes();
    assert!(begin.elapsed() >= Duration::from_millis(100));
    proxy.set(Fault::Pass);
    passes();
    assert_eq!(get(&at, "/end").unwrap().1, right(b'd'));
    drop(proxy);
    server.join().unwrap();
    assert!(get(&at, "/a").is_err(), "its port is closed");
}
