// SPDX-License-Identifier: Apache-2.0
//! Accepting connections, each in a thread of its own.
//!
//! Always holds: when [`accept`] comes back every thread of it has ended.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread::JoinHandle;

/// Has every client served, until `is_ending` when one comes. However that ends, the client then sees a closed connection.
pub(crate) fn accept(
    listener: &TcpListener,
    is_ending: impl Fn() -> bool,
    serve: impl Fn(&TcpStream) + Clone + Send + 'static,
) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    for client in listener.incoming() {
        if is_ending() {
            break;
        }
        threads.retain(|thread| !thread.is_finished());
        let Ok(client) = client else { continue };
        let serve = serve.clone();
        threads.push(std::thread::spawn(move || {
            serve(&client);
            drop(client.shutdown(Shutdown::Both));
        }));
    }
    for thread in threads {
        drop(thread.join());
    }
}
