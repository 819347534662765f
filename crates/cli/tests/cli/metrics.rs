//! What an agent tells about itself over HTTP.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use crate::support::{Cli, wait_for};
use bson::{Document, doc};
use hindsight_testkit::ReplicaSet;
use jiff::Timestamp;

/// The status line and the body that a path gives; none while nobody listens.
fn get(address: SocketAddr, path: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    Some((head.lines().next().unwrap().to_owned(), body.to_owned()))
}

/// The figures, by name; each is labelled with the cluster.
fn figures(address: SocketAddr) -> Option<BTreeMap<String, f64>> {
    let (status, body) = get(address, "/metrics")?;
    assert!(status.ends_with("200 OK") && body.ends_with("# EOF\n"), "{status}\n{body}");
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    let figure = |line: &str| {
        let (name, value) = line.split_once("{cluster=\"rs0\"} ").unwrap_or_else(|| panic!("no cluster: {line}"));
        (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
    };
    Some(samples.map(figure).collect())
}

/// An address that is free now.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_tells_what_it_does_and_what_goes_wrong() {
    let set = ReplicaSet::single().await.unwrap();
    let address = free();
    let cli = Cli::new(&set.uri()).with([("HINDSIGHT_METRICS_LISTEN", address.to_string())]);
    let client = set.client().await.unwrap();
    let orders = client.database("shop").collection::<Document>("orders");
    orders.insert_one(doc! {"_id": 1}).await.unwrap();
    cli.ok("backup");
    cli.ok("verify");

    let agent = cli.start("agent");
    let is = |name: &'static str, fits: fn(f64) -> bool| {
        wait_for(name, || figures(address)?.get(name).copied().filter(|value| fits(*value)))
    };
    is("hindsight_capture_enabled", |value| value == 0.0);
    let found = figures(address).unwrap();
    assert!(found["hindsight_capture_running"] == 0.0 && found["hindsight_capture_lag_seconds"].is_nan(), "{found:?}");

    cli.ok("config --set pitr.enabled=true --set pitr.uploadIntervalSec=1");
    is("hindsight_capture_running", |value| value == 1.0);
    orders.insert_one(doc! {"_id": 2, "text": "something"}).await.unwrap();
    is("hindsight_capture_stored_bytes_total", |value| value > 100.0);
    is("hindsight_capture_lag_seconds", |value| value < 5.0);
    is("hindsight_capture_log_left_seconds", |value| value > 60.0);
    is("hindsight_last_snapshot_success", |value| value == 1.0);
    is("hindsight_last_proof_success", |value| value == 1.0);
    let found = figures(address).unwrap();
    for name in ["hindsight_last_snapshot_timestamp_seconds", "hindsight_last_proven_timestamp_seconds"] {
        let ago = Timestamp::now().as_second() as f64 - found[name];
        assert!((0.0..120.0).contains(&ago), "{name}: {ago} s ago");
    }
    assert!(found["hindsight_capture_stored_slices_total"] >= 1.0 && found["hindsight_capture_enabled"] == 1.0);
    let failures = ["hindsight_capture_failed_uploads_total", "hindsight_repository_errors_total"];
    assert_eq!(failures.map(|name| found[name]), [0.0; 2], "{found:?}");

    // The repository goes away, and comes back.
    let (folder, away) = (cli.repository(), cli.folder().join("away"));
    std::fs::rename(&folder, &away).unwrap();
    std::fs::write(&folder, "").unwrap();
    orders.insert_one(doc! {"_id": 3}).await.unwrap();
    is("hindsight_capture_failed_uploads_total", |value| value > 0.0);
    is("hindsight_repository_errors_total", |value| value > 0.0);
    is("hindsight_capture_lag_seconds", |value| value > 4.0);
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&away, &folder).unwrap();
    is("hindsight_capture_lag_seconds", |value| value < 3.0);

    assert!(get(address, "/").unwrap().0.ends_with("404 Not Found"));
    agent.end("TERM").ends(0, "");
    assert!(get(address, "/metrics").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_cannot_be_had_is_told_before_anything_happens() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    // Nobody is there: an agent that got so far would wait for the database.
    let cli = Cli::new("mongodb://127.0.0.1:1/?directConnection=true");
    cli.run(&format!("agent --metrics-listen {address}")).ends(1, "Address already in use");
    std::fs::write(cli.folder().join("hindsight.toml"), format!("metrics_listen = {address:?}\n")).unwrap();
    cli.run("agent").ends(1, &format!("metrics cannot be offered at {address}"));
    for bad in ["9216", "localhost", "127.0.0.1:http", "127.0.0.1:70000"] {
        cli.run(&format!("agent --metrics-listen {bad}")).ends(2, "HOST:PORT");
    }
    assert!(!cli.repository().exists());
}
