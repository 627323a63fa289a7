// SPDX-License-Identifier: Apache-2.0
//! The HTTP API over real sockets, in front of a node in memory: every route, who may ask, what is refused and how.

#![allow(clippy::unwrap_used)]

mod fake;
mod http;

use fake::name;
use http::{Server, ask};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use varve_server::api::{ApiConfig, ApiServer, MAX_DATA, ROUTES};
use varve_types::ErrorKind;

async fn job(server: &Server, begun: &Value) -> Value {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let job = server.send(ask("GET", format!("/v1/jobs/{}", begun["id"]))).await.json();
        if job["state"] != "running" {
            return job;
        }
        assert!(Instant::now() < deadline, "{job}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn volumes_are_made_shown_changed_deleted_and_brought_back() {
    let server = Server::start().await;
    let new = json!({"name": "v", "size_bytes": 1 << 30, "settings": {"compression": "zstd"}});
    let made = server.send(ask("POST", "/v1/volumes").json(&new)).await;
    assert_eq!((made.status, &made.json()["size_bytes"]), (201, &json!(1 << 30)));
    assert_eq!(made.json()["settings"][1], json!({"key": "compression", "value": "zstd", "source": "volume"}));
    assert_eq!(server.send(ask("POST", "/v1/volumes").json(&new)).await.error().0, "conflict");
    assert_eq!(server.send(ask("GET", "/v1/volumes")).await.json().as_array().unwrap().len(), 1);

    let set = json!({"settings": {"ack": "ram", "compression": "default"}});
    let after = server.send(ask("PATCH", "/v1/volumes/v/settings").json(&set)).await.json();
    assert_eq!(after["settings"][0]["value"], "ram");
    assert_eq!(after["settings"][1]["source"], "default");

    let resized = server.send(ask("POST", "/v1/volumes/v/resize").json(&json!({"size_bytes": 512}))).await;
    assert_eq!(resized.json()["size_bytes"], 512);
    assert_eq!(server.send(ask("POST", "/v1/volumes/v/rename").json(&json!({"name": "w"}))).await.json()["name"], "w");
    assert_eq!(server.send(ask("GET", "/v1/volumes/v")).await.error().0, "not-found");
    assert_eq!(server.send(ask("POST", "/v1/volumes/w/template")).await.json()["template"], true);

    assert_eq!(server.send(ask("DELETE", "/v1/volumes/w")).await.json()["state"], "deleted");
    assert_eq!(server.send(ask("POST", "/v1/volumes/w/undelete")).await.json()["state"], "ready");
    assert_eq!(server.send(ask("GET", "/v1/volumes/w")).await.json()["state"], "ready");
}

#[tokio::test]
async fn snapshots_roll_back_and_forth_and_clones_are_flattened() {
    let server = Server::start().await;
    server.fake.add("v", 1 << 20, b"one");
    for snapshot in ["a", "b", "c"] {
        let made = server.send(ask("POST", "/v1/volumes/v/snapshots").json(&json!({"name": snapshot}))).await;
        assert_eq!((made.status, &made.json()["name"]), (201, &json!(snapshot)));
    }
    let deleted = server.send(ask("DELETE", "/v1/volumes/v/snapshots/b")).await;
    assert_eq!(deleted.json()["name"], "b");
    let dry = server.send(ask("POST", "/v1/volumes/v/rollback").json(&json!({"snapshot": "a", "dry_run": true}))).await;
    assert_eq!((&dry.json()["done"], &dry.json()["hides"][0]["name"]), (&json!(false), &json!("c")));
    let done = server.send(ask("POST", "/v1/volumes/v/rollback").json(&json!({"snapshot": "a"}))).await;
    assert_eq!(done.json()["done"], true);
    assert_eq!(server.send(ask("GET", "/v1/volumes/v/snapshots")).await.json()[1]["hidden"], true);
    assert_eq!(server.send(ask("POST", "/v1/volumes/v/rollback/undo")).await.status, 200);
    assert_eq!(server.send(ask("POST", "/v1/volumes/v/rollback/undo")).await.status, 409);

    let clone = server.send(ask("POST", "/v1/volumes/v/clone").json(&json!({"name": "k", "snapshot": "a"}))).await;
    assert_eq!((clone.status, &clone.json()["origin"]), (201, &json!({"volume": "v", "snapshot": "a"})));
    let begun = server.send(ask("POST", "/v1/volumes/k/flatten")).await;
    assert_eq!(begun.status, 202);
    let ended = job(&server, &begun.json()).await;
    assert_eq!((&ended["state"], &ended["result"]["flatten"]["origin"]), (&json!("done"), &Value::Null));
    assert_eq!(server.send(ask("POST", "/v1/volumes/k/flatten")).await.error().0, "conflict");
}

#[tokio::test]
async fn data_goes_in_and_out_by_range() {
    let server = Server::start().await;
    server.fake.add("v", 64 << 20, b"");
    let bytes: Vec<u8> = (0..MAX_DATA).map(|n| (n % 251) as u8).collect();
    let put = ask("PUT", "/v1/volumes/v/data?offset=512").data(bytes.clone());
    assert_eq!(server.send(put).await.status, 204);
    let get = server.send(ask("GET", format!("/v1/volumes/v/data?offset=512&len={MAX_DATA}"))).await;
    assert_eq!((get.status, get.body == bytes), (200, true));
    assert_eq!(get.headers["content-type"], "application/octet-stream");

    server.send(ask("POST", "/v1/volumes/v/snapshots").json(&json!({"name": "s"}))).await;
    assert_eq!(server.send(ask("POST", "/v1/volumes/v/data/zero?offset=0&len=67108864")).await.status, 204);
    let map = server.send(ask("GET", "/v1/volumes/v/extents?offset=0&len=67108864")).await.json();
    assert_eq!(map["extents"], json!([{"len_bytes": 64 << 20, "hole": true}]));
    let map = server.send(ask("GET", "/v1/volumes/v@s/extents?offset=0&len=67108864")).await.json();
    assert_eq!(map["extents"][0], json!({"len_bytes": (8 << 20) + 4096, "hole": false}));
    let map = server.send(ask("GET", "/v1/volumes/v@s/extents?offset=0&len=0")).await.json();
    assert_eq!((&map["size_bytes"], &map["extents"]), (&json!(64 << 20), &json!([])));
    let old = server.send(ask("GET", "/v1/volumes/v@s/data?offset=512&len=512")).await;
    assert_eq!(old.body, bytes[..512]);
    assert_eq!(server.send(ask("POST", "/v1/volumes/v/flush")).await.status, 204);
    assert_eq!(server.fake.state().volumes[&name("v")].flushes, 1);
}

#[tokio::test]
async fn wrong_ranges_and_bodies_are_refused() {
    let server = Server::start().await;
    server.fake.add("v", 1 << 20, b"");
    for (method, path, status) in [
        ("GET", "/v1/volumes/v/data?offset=1&len=512", 400),
        ("GET", "/v1/volumes/v/data?offset=0&len=0", 400),
        ("GET", "/v1/volumes/v/data?offset=0&len=8389120", 400),
        ("GET", "/v1/volumes/v/data?offset=18446744073709551104&len=1024", 400),
        ("GET", "/v1/volumes/v/data?offset=1048576&len=512", 400),
        ("GET", "/v1/volumes/v/data?offset=0", 400),
        ("GET", "/v1/volumes/v/data?offset=0&len=512&size=1", 400),
        ("GET", "/v1/volumes/v/data?offset=-1&len=512", 400),
        ("GET", "/v1/volumes/v@/data?offset=0&len=512", 400),
        ("GET", "/v1/volumes/v@none/data?offset=0&len=512", 404),
        ("GET", "/v1/volumes/none/data?offset=0&len=512", 404),
        ("POST", "/v1/volumes/v/data/zero?offset=0&len=100", 400),
        ("GET", "/v1/volumes/v/extents?offset=0&len=70368744177665024", 400),
        ("GET", "/v1/volumes/a%20b", 400),
        ("GET", "/v1/volumes/v/nothing", 404),
        ("PUT", "/v1/volumes", 405),
        ("GET", "/v1/jobs/99", 404),
        ("GET", "/v1/jobs/x", 400),
    ] {
        let answer = server.send(ask(method, path)).await;
        assert_eq!(answer.status, status, "{method} {path}: {:?}", answer.body);
        assert!(!answer.error().1.is_empty());
    }
    let at = "/v1/volumes/v/data?offset=0";
    let large = vec![1u8; MAX_DATA as usize + 512];
    assert_eq!(server.send(ask("PUT", at).data(large)).await.status, 413);
    assert_eq!(server.send(ask("PUT", at).data(vec![0u8; 100])).await.status, 400);
    assert_eq!(server.send(ask("PUT", at).json(&json!({}))).await.status, 415);
    assert_eq!(server.send(ask("PUT", "/v1/volumes/v@s/data?offset=0").data(vec![0u8; 512])).await.status, 400);
}

#[tokio::test]
async fn wrong_documents_are_refused_by_what_is_wrong_with_them() {
    let server = Server::start().await;
    for (body, part) in [
        (json!({"name": "v"}), "size_bytes"),
        (json!({"name": "a b", "size_bytes": 512}), "not a name"),
        (json!({"name": "v", "size_bytes": 0}), "zero"),
        (json!({"name": "v", "size_bytes": 513}), "multiple of 512"),
        (json!({"name": "v", "size_bytes": 1u64 << 60}), "64 TiB"),
        (json!({"name": "v", "size_bytes": 512, "sise": 1}), "sise"),
        (json!({"name": "v", "size_bytes": 512, "settings": {"speed": "high"}}), "speed"),
        (json!({"name": "v", "size_bytes": 512, "settings": {"segment-size": "1M"}}), "segment-size"),
        (json!([]), "the body is wrong"),
    ] {
        let answer = server.send(ask("POST", "/v1/volumes").json(&body)).await;
        let (kind, message) = answer.error();
        assert_eq!((answer.status, kind.as_str(), message.contains(part)), (400, "invalid", true), "{message}");
    }
    let plain = ask("POST", "/v1/volumes").json(&json!({})).header("content-type", "text/plain");
    assert_eq!(server.send(plain).await.status, 415);
    let long = json!({"name": "x".repeat(70_000), "size_bytes": 512});
    assert_eq!(server.send(ask("POST", "/v1/volumes").json(&long)).await.status, 413);
    let store = json!({"name": "p", "store": "ftp://there"});
    assert_eq!(server.send(ask("POST", "/v1/pools").json(&store)).await.error().0, "invalid");
    assert!(server.fake.state().volumes.is_empty());
}

#[tokio::test]
async fn pools_are_made_changed_forgotten_and_imported() {
    let server = Server::start().await;
    let new = json!({"name": "p", "store": "file:///p"});
    assert_eq!(server.send(ask("POST", "/v1/pools").json(&new)).await.status, 201);
    let set = json!({"settings": {"undelete-window": "1d"}});
    let pool = server.send(ask("PATCH", "/v1/pools/p/settings").json(&set)).await.json();
    assert_eq!(pool["settings"][4], json!({"key": "undelete-window", "value": "1d", "source": "pool"}));
    assert_eq!(server.send(ask("GET", "/v1/pools")).await.json().as_array().unwrap().len(), 2);
    assert_eq!(server.send(ask("GET", "/v1/pools/p")).await.json()["store"], "file:///p");
    assert_eq!(server.send(ask("DELETE", "/v1/pools/p")).await.status, 200);
    assert_eq!(server.send(ask("GET", "/v1/pools/p")).await.status, 404);
    let begun = server.send(ask("POST", "/v1/pool-import").json(&json!({"store": "s3://bucket/p"}))).await;
    assert_eq!((begun.status, &begun.json()["kind"]), (202, &json!("pool-import")));
    let ended = job(&server, &begun.json()).await;
    assert_eq!(ended["result"]["pool-import"]["pool"]["volumes"], json!(["found"]));
}

#[tokio::test]
async fn a_check_is_a_job_with_progress_and_a_result() {
    let server = Server::start().await;
    server.fake.add("held", 1 << 20, b"x");
    server.fake.add("rotten", 1 << 20, b"x");
    let begun = server.send(ask("POST", "/v1/check").json(&json!({"volume": "held"}))).await;
    assert_eq!(begun.status, 202);
    let running = server.send(ask("GET", format!("/v1/jobs/{}", begun.json()["id"]))).await.json();
    assert_eq!((&running["state"], &running["target"]), (&json!("running"), &json!("held")));
    server.fake.release();
    assert_eq!(job(&server, &begun.json()).await["result"]["check"]["volumes"][0]["blocks_verified"], 1);
    let begun = server.send(ask("POST", "/v1/check").json(&json!({"volume": "rotten"}))).await.json();
    let result = job(&server, &begun).await;
    assert_eq!(result["result"]["check"]["volumes"][0]["errors"][0]["object"], "0000/segment/1");
    assert_eq!(server.send(ask("GET", "/v1/jobs")).await.json().as_array().unwrap().len(), 2);
    assert_eq!(server.send(ask("POST", "/v1/check").json(&json!({"volume": "none"}))).await.status, 404);
}

#[tokio::test]
async fn the_node_tells_its_state_version_and_metrics() {
    let server = Server::start().await;
    let status = server.send(ask("GET", "/v1/status")).await.json();
    assert_eq!((&status["node"], &status["pools"][0]["state"]), (&json!("node-1"), &json!("ok")));
    assert_eq!(server.send(ask("GET", "/v1/version")).await.json()["name"], "varve");
    let metrics = server.send(ask("GET", "/metrics")).await;
    assert!(metrics.headers["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    assert!(metrics.body.ends_with(b"# EOF\n"));
}

#[tokio::test]
async fn nodes_are_shown_and_removed_and_volumes_taken() {
    let server = Server::start().await;
    assert_eq!(server.send(ask("GET", "/v1/nodes")).await.json(), json!([]));
    server.fake.add_nodes();
    server.fake.add("theirs", 1 << 20, &[]);
    assert_eq!(server.send(ask("GET", "/v1/nodes/node-2")).await.json()["alive"], false);
    assert_eq!(server.send(ask("GET", "/v1/nodes/none")).await.status, 404);
    assert_eq!(server.send(ask("GET", "/v1/cluster")).await.json()["nodes"].as_array().unwrap().len(), 2);
    assert_eq!(server.send(ask("GET", "/v1/volumes/theirs")).await.json()["owner"]["name"], "node-2");
    let take = "/v1/volumes/theirs/take";
    assert_eq!(server.send(ask("POST", take).json(&json!({}))).await.status, 409, "it is told what may be lost");
    assert_eq!(server.send(ask("POST", take).json(&json!({ "force": true }))).await.status, 200);
    assert_eq!(server.send(ask("POST", take).json(&json!({ "force": true, "now": true }))).await.status, 400);
    assert_eq!(server.send(ask("DELETE", "/v1/nodes/node-1")).await.status, 409);
    assert_eq!(server.send(ask("DELETE", "/v1/nodes/node-2")).await.json()["name"], "node-2");
}

#[tokio::test]
async fn cleaning_is_shown_and_held_back() {
    let server = Server::start().await;
    let before = server.send(ask("GET", "/v1/cleaning")).await.json();
    assert_eq!((&before["paused"], &before["rate_bytes"]), (&json!(false), &json!(null)));
    let set = |body: serde_json::Value| ask("PATCH", "/v1/cleaning").json(&body);
    assert_eq!(server.send(set(json!({"paused": true}))).await.json()["paused"], true);
    let bounded = server.send(set(json!({"rate_bytes": 65536}))).await.json();
    assert_eq!((&bounded["paused"], &bounded["rate_bytes"]), (&json!(true), &json!(65536)));
    for too_low in [1, 65535] {
        let refused = server.send(set(json!({"paused": false, "rate_bytes": too_low}))).await;
        assert_eq!((refused.status, refused.error().0.as_str()), (400, "invalid"));
    }
    assert_eq!(server.send(ask("GET", "/v1/cleaning")).await.json(), bounded);
    let again = server.send(set(json!({"paused": false, "rate_bytes": 0}))).await.json();
    assert_eq!((&again["paused"], &again["rate_bytes"]), (&json!(false), &json!(null)));
    assert_eq!(server.send(set(json!({"pausd": true}))).await.status, 400);
}

#[tokio::test]
async fn jobs_of_cleaning_are_handed_out_and_taken_back() {
    let server = Server::start().await;
    let post = |path: &str, body: serde_json::Value| ask("POST", format!("/v1/cleaning/jobs{path}")).json(&body);
    let none = server.send(post("", json!({"worker": "w"}))).await.json();
    assert_eq!(none, json!({"job": null}));
    for bad in [json!({}), json!({"worker": "not a name"}), json!({"worker": "w", "more": 1})] {
        assert_eq!(server.send(post("", bad)).await.status, 400);
    }
    let id = "01010101-0101-0101-0101-010101010101";
    server.fake.state().cleaning_job = serde_json::from_value(json!({
        "id": id, "pool": "default", "store": "file:///s", "cluster": id, "owner_number": 1, "bundle": "b", "codec": "lz4", "made_ms": 5,
        "sources": [{"ordinal": 4, "object": "o", "live": [0, 3], "history": false}], "terms": {"lease_ms": 1000, "rate_bytes": null},
    }))
    .unwrap();
    let job = server.send(post("", json!({"worker": "w"}))).await.json();
    assert_eq!((&job["job"]["id"], &job["job"]["codec"]), (&json!(id), &json!("lz4")));
    let about = |what: &str, body| post(&format!("/{id}/{what}"), body);
    let terms = server.send(about("renew", json!({"read_bytes": 70_000}))).await.json();
    assert_eq!(terms, json!({"lease_ms": 1000, "rate_bytes": 70_000}));
    let done = |bundle: &str| json!({"bundle": bundle, "shares": 1, "read_bytes": 2, "put_bytes": 3});
    assert_eq!(server.send(about("complete", done("b"))).await.json(), json!({"segments": 1}));
    assert_eq!(server.send(about("complete", done("c"))).await.error().0, "invalid");
    assert_eq!(server.send(about("complete", done(&"b".repeat(70_000)))).await.status, 413);
    assert_eq!(server.send(about("fail", json!({"message": "x".repeat(1025)}))).await.status, 400);
    assert_eq!(server.send(about("fail", json!({"message": "no"}))).await.json()["failed_jobs"], 1);
    assert_eq!(server.send(about("fail", json!({"message": "no"}))).await.error().0, "not-found");
    assert_eq!(server.send(post("/7/renew", json!({"read_bytes": 0}))).await.status, 400, "no id");
}

#[tokio::test]
async fn scrubbing_is_shown_begun_and_bounded() {
    let server = Server::start().await;
    let before = server.send(ask("GET", "/v1/scrub")).await.json();
    assert_eq!((&before["findings"], &before["ended_ms"]), (&json!([]), &json!(null)));
    let set = |body: serde_json::Value| ask("PATCH", "/v1/scrub").json(&body);
    let begun = server.send(set(json!({"now": true, "rate_bytes": 1 << 20}))).await.json();
    assert_eq!((&begun["running"], &begun["rate_bytes"]), (&json!(true), &json!(1 << 20)));
    assert_eq!(server.send(set(json!({"rate_bytes": 0}))).await.json()["rate_bytes"], json!(null));
    assert_eq!(server.send(set(json!({"rate_bytes": 1000}))).await.status, 400);
    assert_eq!(server.send(set(json!({"soon": true}))).await.status, 400);
}

#[tokio::test]
async fn every_kind_of_error_has_its_status() {
    let server = Server::start().await;
    for kind in ["invalid", "not-found", "conflict", "fenced", "unavailable", "busy", "corrupt", "no-space", "internal"]
    {
        let answer = server.send(ask("GET", format!("/v1/volumes/fail-{kind}"))).await;
        assert_eq!((answer.status, answer.error().0.as_str()), (ErrorKind::parse(kind).unwrap().http(), kind));
    }
}

#[tokio::test]
async fn the_port_asks_for_the_token_and_a_loopback_name() {
    let server = Server::start().await;
    let bearer = format!("Bearer {}", server.token);
    let with = |host: &str, token: &str| ask("GET", "/v1/status").header("host", host).header("authorization", token);
    assert_eq!(server.send_tcp(with("localhost", &bearer)).await.status, 200);
    assert_eq!(server.send_tcp(with(&server.tcp.to_string(), &bearer)).await.status, 200);
    let none = server.send_tcp(ask("GET", "/v1/status")).await;
    assert_eq!((none.status, &none.headers["www-authenticate"]), (401, &"Bearer".parse().unwrap()));
    for wrong in ["Bearer x", "Bearer ", &format!("Basic {}", server.token), &format!("Bearer {}0", server.token)] {
        assert_eq!(server.send_tcp(with("localhost", wrong)).await.status, 401, "{wrong}");
    }
    for path in ["/metrics", "/openapi.json", "/nowhere", "/v1/volumes/v/data?offset=0&len=512"] {
        assert_eq!(server.send_tcp(ask("GET", path)).await.status, 401, "{path}");
    }
    let rebound = server.send_tcp(with("evil.example:7420", &bearer)).await;
    assert_eq!((rebound.status, rebound.error().0.as_str()), (403, "invalid"));
}

#[tokio::test]
async fn the_socket_is_ones_own_and_is_replaced_only_when_dead() {
    let server = Server::start().await;
    let mode = std::fs::metadata(server.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let config = ApiConfig { unix: server.socket(), tcp: None, token_file: server.dir.path().join("no-token") };
    assert_eq!(ApiServer::bind(&config).await.unwrap_err().kind, ErrorKind::Conflict);
    let dir = server.stop().await;
    assert!(!config.unix.exists());

    // What a killed process leaves: a socket that nobody answers.
    drop(std::os::unix::net::UnixListener::bind(&config.unix).unwrap());
    assert!(config.unix.exists());
    ApiServer::bind(&config).await.unwrap();
    assert!(!dir.path().join("no-token").exists());

    let outside = ApiConfig { tcp: Some("0.0.0.0:0".parse().unwrap()), ..config.clone() };
    assert_eq!(ApiServer::bind(&outside).await.unwrap_err().kind, ErrorKind::Invalid);
    let long = ApiConfig { unix: dir.path().join("x".repeat(120)), ..config };
    assert_eq!(ApiServer::bind(&long).await.unwrap_err().kind, ErrorKind::Invalid);
}

/// More clients at once than there is room for: the rest wait their turn.
#[tokio::test]
async fn many_clients_at_once_are_all_answered() {
    let server = Arc::new(Server::start().await);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..300 {
        let server = Arc::clone(&server);
        clients.spawn(async move { server.send(ask("GET", "/v1/version")).await.status });
    }
    while let Some(status) = clients.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
}

/// Nonsense, half a request, a client that goes away: the next one is served as ever.
#[tokio::test]
async fn clients_that_misbehave_harm_nobody() {
    let server = Server::start().await;
    server.fake.add("v", 1 << 20, b"");
    let half = "PUT /v1/volumes/v/data?offset=0 HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/octet-stream\r\n\
                content-length: 1024\r\n\r\nonly this";
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    for (text, status) in [("\0\x16nonsense\r\n\r\n", "400"), (half, ""), (&long, "4")] {
        let mut stream = tokio::net::UnixStream::connect(server.socket()).await.unwrap();
        // The server may have answered and closed before all of it was sent.
        let _ = stream.write_all(text.as_bytes()).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(status.is_empty() || answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert_eq!(server.send(ask("GET", "/v1/version")).await.status, 200);
    }
    assert_eq!(server.fake.state().volumes[&name("v")].writes, 0);
}

#[tokio::test]
async fn the_description_tells_of_every_route_and_only_of_those() {
    let server = Server::start().await;
    let document = server.send(ask("GET", "/openapi.json")).await.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            described.insert((method.clone(), path.clone()));
            assert!(operation["summary"].is_string(), "{method} {path} has no summary");
            let variables = path.matches('{').count();
            let described = operation["parameters"]
                .as_array()
                .map_or(0, |parameters| parameters.iter().filter(|parameter| parameter["in"] == "path").count());
            assert_eq!(described, variables, "{method} {path}");
        }
    }
    let routes: BTreeSet<_> = ROUTES.iter().map(|(method, path)| ((*method).to_owned(), (*path).to_owned())).collect();
    assert_eq!(described, routes);
    assert_eq!(references(&document), schemas(&document), "every schema is used, and every one used is there");
}

fn schemas(document: &Value) -> BTreeSet<String> {
    document["components"]["schemas"].as_object().unwrap().keys().cloned().collect()
}

fn references(value: &Value) -> BTreeSet<String> {
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| match (key.as_str(), value.as_str()) {
                ("$ref", Some(text)) => {
                    text.strip_prefix("#/components/schemas/").map(str::to_owned).into_iter().collect()
                }
                _ => references(value),
            })
            .collect(),
        Value::Array(values) => values.iter().flat_map(references).collect(),
        _ => BTreeSet::new(),
    }
}
