//! TLS, mutual TLS and sentinels, with real servers.

#[path = "support/sink.rs"]
mod harness;
#[path = "support/reach.rs"]
mod reach;
mod support;

use std::path::PathBuf;
use std::time::Duration;

use harness::{Sink, numbered, settings, unbounded};
use jettison_agent::config::{Endpoint, Redis, Sentinel, Tls};
use jettison_agent::handoff::Answer;
use jettison_agent::sink;
use reach::{Sentinels, certificates, mutual_tls, tls_options};
use support::{RedisServer, eventually, free_port, messages, within};

fn over_tls(server: &RedisServer, port: u16, tls: Tls) -> Redis {
    Redis {
        endpoint: Endpoint::Tcp {
            host: "localhost".to_owned(),
            port,
        },
        tls: Some(tls),
        ..settings(server)
    }
}

/// Whether a question beside the outbox finds the same way.
fn answers(redis: &Redis) -> bool {
    let command = vec!["PING".to_owned()];
    let told = sink::ask::ask_within(redis, &[command], Duration::from_secs(10));
    told == Ok(vec![Answer::Text(b"PONG".to_vec())])
}

#[test]
fn mutual_tls_and_what_is_not_trusted() {
    let folder = certificates();
    let port = free_port();
    let path = |name: &str| folder.join(name);
    let options = tls_options(&folder, port);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let server = RedisServer::start(&options);
    let own = || Some((path("own.crt"), path("own.key")));
    let ca_file = || Some(path("ca.crt"));
    let streams = unbounded("tls");

    // The server asks for a certificate, and gets one.
    let good = mutual_tls(&folder);
    assert!(answers(&over_tls(&server, port, good.clone())));
    let sink = Sink::start(over_tls(&server, port, good), 8 << 20);
    for texts in numbered(20_000).chunks(100) {
        sink.lines(&streams, texts.to_vec());
    }
    assert_eq!(sink.finish(), 0);
    let got = messages(&mut server.client(1), "logs:app:tls:info");
    assert!(got == numbered(20_000));

    // No certificate of ours; a CA that we do not know; a name that is not the server's.
    let bundle: Option<PathBuf> = None;
    for (what, tls) in [
        (
            "no certificate",
            Tls {
                ca_file: ca_file(),
                ..Tls::default()
            },
        ),
        (
            "unknown CA",
            Tls {
                ca_file: bundle,
                own: own(),
                server_name: None,
            },
        ),
        (
            "another name",
            Tls {
                ca_file: ca_file(),
                own: own(),
                server_name: Some("wrong.test".to_owned()),
            },
        ),
    ] {
        let mut sink = Sink::start(over_tls(&server, port, tls), 8 << 20);
        sink.lines(&streams, ["never".to_owned()]);
        sink.wait(what, |gauge| gauge.state == "away");
        assert_eq!(sink.finish(), 1, "{what}");
    }
    let other = Tls {
        ca_file: ca_file(),
        own: own(),
        server_name: Some("other.test".to_owned()),
    };
    let sink = Sink::start(over_tls(&server, port, other), 8 << 20);
    sink.lines(&streams, ["last".to_owned()]);
    assert_eq!(sink.finish(), 0);
}

#[test]
fn a_failover_under_load_loses_and_doubles_nothing_that_was_replicated() {
    let mut master = RedisServer::start(&[]);
    let master_port = master.port().to_string();
    let replica = RedisServer::start(&["--replicaof", "127.0.0.1", &master_port]);
    let sentinels = Sentinels::start(3, master.port());
    // Nobody is at the first; the next one is asked.
    let nobody = Endpoint::Tcp {
        host: "127.0.0.1".to_owned(),
        port: free_port(),
    };
    let nodes = std::iter::once(nobody).chain(sentinels.nodes());
    let redis = Redis {
        sentinel: Some(Sentinel {
            master: "robots".to_owned(),
            nodes: nodes.collect(),
        }),
        ..settings(&master)
    };
    assert!(answers(&redis));
    let streams = unbounded("failover");
    let sink = Sink::start(redis, 32 << 20);
    for (index, texts) in numbered(40_000).chunks(20).enumerate() {
        sink.lines(&streams, texts.to_vec());
        std::thread::sleep(Duration::from_millis(2));
        if index == 500 {
            master.kill();
        }
    }
    let mut client = replica.client(1);
    within(
        Duration::from_secs(40),
        "the replica took over and has all",
        || {
            redis::cmd("XLEN")
                .arg("logs:app:failover:info")
                .query::<usize>(&mut client)
                .is_ok_and(|length| length >= 40_000)
        },
    );
    eventually("it is settled", || {
        let gauge = sink.gauge.borrow();
        gauge.connected && gauge.spooled_lines == 0
    });
    assert_eq!(sink.finish(), 0);
    assert!(messages(&mut client, "logs:app:failover:info") == numbered(40_000));
}
