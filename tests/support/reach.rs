//! Ways to reach Redis that need more than a server: certificates, sentinels.

#![allow(dead_code)] // each test binary uses its part

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use jettison_agent::config::{Endpoint, Tls};

use crate::support::{Scratch, die_with_parent, free_port, redis_program, within};

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

/// `ca.crt`, and `own.crt` with `own.key` of it for `localhost` (server and client alike).
pub fn certificates() -> Scratch {
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

/// What a server needs for them.
pub fn tls_options(folder: &Scratch, port: u16) -> Vec<String> {
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    [
        ("--tls-port", port.to_string()),
        ("--tls-cert-file", path("own.crt")),
        ("--tls-key-file", path("own.key")),
        ("--tls-ca-cert-file", path("ca.crt")),
    ]
    .into_iter()
    .flat_map(|(name, value)| [name.to_owned(), value])
    .collect()
}

/// A client that shows a certificate of its own.
pub fn mutual_tls(folder: &Scratch) -> Tls {
    Tls {
        ca_file: Some(folder.join("ca.crt")),
        own: Some((folder.join("own.crt"), folder.join("own.key"))),
        server_name: None,
    }
}

/// Sentinels that watch one master as `robots`, ended with the test.
pub struct Sentinels {
    children: Vec<Child>,
    ports: Vec<u16>,
    _folder: Scratch,
}

impl Sentinels {
    /// Waits until all of them know the master's replica and each other.
    pub fn start(count: usize, master_port: u16) -> Sentinels {
        let folder = Scratch::new("sentinels");
        let quorum = count / 2 + 1;
        let mut sentinels = Sentinels {
            children: Vec::new(),
            ports: Vec::new(),
            _folder: folder.share(),
        };
        for number in 0..count {
            let port = free_port();
            let home = folder.join(&number.to_string());
            std::fs::create_dir(&home).expect("a folder");
            let text = format!(
                "port {port}\nbind 127.0.0.1\ndir {}\n\
                 sentinel monitor robots 127.0.0.1 {master_port} {quorum}\n\
                 sentinel down-after-milliseconds robots 1000\n\
                 sentinel failover-timeout robots 5000\n",
                home.display()
            );
            let file = folder.file(&format!("{number}.conf"), &text);
            let mut command = Command::new(redis_program());
            command
                .arg(&file)
                .arg("--sentinel")
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            die_with_parent(&mut command);
            let child = command.spawn().expect("a sentinel");
            sentinels.children.push(child);
            sentinels.ports.push(port);
        }
        sentinels._folder = folder;
        for port in sentinels.ports.clone() {
            within(Duration::from_secs(60), "the sentinels know all", || {
                known(port, "replicas") == 1 && known(port, "sentinels") == count - 1
            });
        }
        sentinels
    }

    pub fn nodes(&self) -> Vec<Endpoint> {
        let node = |port: &u16| Endpoint::Tcp {
            host: "127.0.0.1".to_owned(),
            port: *port,
        };
        self.ports.iter().map(node).collect()
    }

    /// The port of the master, as the first of them knows it.
    pub fn master(&self) -> Option<u16> {
        let (_, port): (String, String) = ask(self.ports[0], "get-master-addr-by-name")?;
        port.parse().ok()
    }

    /// Without a fault: the replica takes over, the master becomes its replica.
    pub fn failover(&self) {
        let _: Option<String> = ask(self.ports[0], "failover");
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn ask<T: redis::FromRedisValue>(port: u16, what: &str) -> Option<T> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).ok()?;
    let mut connection = client.get_connection().ok()?;
    redis::cmd("SENTINEL")
        .arg(&[what, "robots"])
        .query(&mut connection)
        .ok()
}

fn known(port: u16, what: &str) -> usize {
    ask::<Vec<redis::Value>>(port, what).map_or(0, |others| others.len())
}
