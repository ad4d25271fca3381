//! TLS, mutual TLS and sentinels, with real servers.

#[path = "support/sink.rs"]
mod harness;
mod support;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::{Sink, numbered, settings, unbounded};
use jettison_agent::config::{Endpoint, Redis, Sentinel, Tls};
use jettison_agent::handoff::Answer;
use jettison_agent::sink;
use support::{RedisServer, Scratch, eventually, free_port, messages, within};

fn openssl(folder: &Scratch, words: &str) {
    let status = Command::new("openssl")
        .args(words.split(' '))
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("openssl is installed");
    assert!(status.success(), "openssl {words}");
}

/// A CA, and a certificate of it for `localhost` (server and client alike).
fn certificates() -> Scratch {
    let folder = Scratch::new("tls");
    folder.file("names", "subjectAltName=DNS:localhost,DNS:other.test");
    openssl(
        &folder,
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca",
    );
    openssl(
        &folder,
        "req -newkey rsa:2048 -nodes -keyout own.key -out own.csr -subj /CN=localhost",
    );
    openssl(
        &folder,
        "x509 -req -in own.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out own.crt -days 2 -extfile names",
    );
    folder
}

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
    let text = |name: &str| path(name).to_string_lossy().into_owned();
    let server = RedisServer::start(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &text("own.crt"),
        "--tls-key-file",
        &text("own.key"),
        "--tls-ca-cert-file",
        &text("ca.crt"),
    ]);
    let own = || Some((path("own.crt"), path("own.key")));
    let ca_file = || Some(path("ca.crt"));
    let streams = unbounded("tls");

    // The server asks for a certificate, and gets one.
    let good = Tls {
        ca_file: ca_file(),
        own: own(),
        server_name: None,
    };
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

/// A sentinel of its own, ended with the test.
struct SentinelServer(Child);

impl Drop for SentinelServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_failover_under_load_loses_and_doubles_nothing_that_was_replicated() {
    let mut master = RedisServer::start(&[]);
    let master_port = master.port().to_string();
    let replica = RedisServer::start(&["--replicaof", "127.0.0.1", &master_port]);
    let folder = Scratch::new("sentinel");
    let port = free_port();
    let file = folder.file(
        "sentinel.conf",
        &format!(
            "port {port}\nbind 127.0.0.1\ndir {}\n\
             sentinel monitor robots 127.0.0.1 {master_port} 1\n\
             sentinel down-after-milliseconds robots 500\n\
             sentinel failover-timeout robots 3000\n",
            folder.path().display()
        ),
    );
    let sentinel = SentinelServer(
        Command::new("redis-server")
            .arg(&file)
            .arg("--sentinel")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a sentinel"),
    );
    let knows_replica = || {
        redis::Client::open(format!("redis://127.0.0.1:{port}"))
            .and_then(|client| client.get_connection())
            .and_then(|mut connection| {
                redis::cmd("SENTINEL")
                    .arg(&["replicas", "robots"])
                    .query::<Vec<redis::Value>>(&mut connection)
            })
            .is_ok_and(|replicas| !replicas.is_empty())
    };
    within(
        Duration::from_secs(30),
        "the sentinel knows both",
        knows_replica,
    );
    let redis = Redis {
        sentinel: Some(Sentinel {
            master: "robots".to_owned(),
            nodes: vec![
                // Nobody is there; the next one is asked.
                Endpoint::Tcp {
                    host: "127.0.0.1".to_owned(),
                    port: free_port(),
                },
                Endpoint::Tcp {
                    host: "127.0.0.1".to_owned(),
                    port,
                },
            ],
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
    drop(sentinel);
}
