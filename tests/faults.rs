//! Every fault that a Redis connection can have × what becomes of lines and counters.
//!
//! Each row has its own server, proxy and sink, sends numbered lines (and counts them by a
//! marker) before, during and after the fault, and then reads the stream. The table is
//! printed: `cargo test --test faults every_fault_once -- --nocapture`.

#[path = "support/sink.rs"]
mod harness;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/reach.rs"]
mod reach;
mod support;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::{Sink, settings, unbounded};
use jettison_agent::config::{Endpoint, Overflow, Redis, Secret, Sentinel, Spool};
use jettison_agent::record::{Count, CountKind, Record};
use proxy::{Fault, Proxy};
use reach::Sentinels;
use support::{RedisServer, Scratch, free_port, messages, within};

/// One row's world.
struct World {
    /// What the agent finds first.
    server: RedisServer,
    /// What may take over.
    replica: Option<RedisServer>,
    /// Who is asked, and holds the truth at the end: the replica once it has taken over.
    took_over: bool,
    proxy: Proxy,
    sentinels: Option<Sentinels>,
    /// For certificates and secrets.
    folder: Scratch,
    /// Kept, because some faults let nobody else in.
    admin: RefCell<Option<redis::Connection>>,
}

impl World {
    fn ask(&self, words: &[&str]) {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        let mut admin = self.admin.borrow_mut();
        for _ in 0..2 {
            let connection = admin.get_or_insert_with(|| self.server.client(0));
            match command.query::<redis::Value>(connection) {
                Err(error) if error.is_io_error() => *admin = None,
                _ => return,
            }
        }
    }

    /// Who holds the truth.
    fn master(&self) -> &RedisServer {
        match &self.replica {
            Some(replica) if self.took_over => replica,
            _ => &self.server,
        }
    }

    fn replica(&self) -> &RedisServer {
        self.replica.as_ref().expect("a row with a replica")
    }

    /// Waits until the sentinels have made the replica master.
    fn await_failover(&mut self) {
        let port = self.replica().port();
        let sentinels = self.sentinels.as_ref().expect("a row with sentinels");
        within(Duration::from_secs(60), "a failover", || {
            sentinels.master() == Some(port)
        });
        self.took_over = true;
    }

    /// Waits until the old master, which forgets what it has taken since, is a replica.
    fn await_demotion(&self) {
        within(Duration::from_secs(60), "a demotion", || {
            // A sentinel ends all connections of whom it demotes.
            redis::cmd("INFO")
                .arg("replication")
                .query::<String>(&mut self.server.client(0))
                .is_ok_and(|info| info.contains("role:slave"))
        });
    }
}

/// How the agent reaches Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Through the proxy.
    Tcp,
    /// Through the proxy; the server knows no HELLO.
    Resp2,
    /// Through the proxy; the password is in a file.
    Secret,
    /// Through the proxy. The server does not ask for a certificate, or it does.
    Tls,
    MutualTls,
    /// Through the proxy, which leads to the replica later.
    Replicated,
    Unix,
    Sentinels,
}

/// How a row begins its fault and ends it.
struct Row {
    name: &'static str,
    way: Way,
    options: &'static [&'static str],
    /// How long it lasts.
    lasts: Duration,
    begin: fn(&mut World),
    /// Called again and again while it lasts.
    meanwhile: fn(&mut World),
    end: fn(&mut World),
}

fn nothing(_: &mut World) {}

const SHORT: Duration = Duration::from_millis(1_500);

fn row(name: &'static str, begin: fn(&mut World), end: fn(&mut World)) -> Row {
    Row {
        name,
        way: Way::Tcp,
        options: &[],
        lasts: SHORT,
        begin,
        meanwhile: nothing,
        end,
    }
}

fn heal(world: &mut World) {
    world.proxy.set(Fault::None);
}

fn rows() -> Vec<Row> {
    vec![
        row("refused", |w| w.proxy.set(Fault::Refuse), heal),
        Row {
            meanwhile: |w| {
                w.proxy.set(Fault::Reset);
                w.proxy.set(Fault::None);
            },
            ..row("reset", nothing, heal)
        },
        Row {
            // Longer than the sink waits for an answer.
            lasts: Duration::from_secs(12),
            ..row("half-open (no FIN)", |w| w.proxy.set(Fault::Stall), heal)
        },
        row(
            "SIGSTOP",
            |w| w.server.signal(libc::SIGSTOP),
            |w| w.server.signal(libc::SIGCONT),
        ),
        Row {
            lasts: Duration::from_secs(12),
            ..row(
                "SIGSTOP, given up",
                |w| w.server.signal(libc::SIGSTOP),
                |w| w.server.signal(libc::SIGCONT),
            )
        },
        Row {
            options: &["--appendonly", "yes"],
            ..row(
                "killed, with its data",
                |w| w.server.kill(),
                |w| w.server.up(),
            )
        },
        row(
            "killed, without its last second",
            |w| w.server.kill(),
            |w| w.server.up(),
        ),
        Row {
            options: &[
                "--key-load-delay",
                "4000",
                "--loading-process-events-interval-bytes",
                "1024",
            ],
            ..row(
                "LOADING",
                |w| {
                    w.ask(&["DEBUG", "POPULATE", "500"]);
                    w.ask(&["SAVE"]);
                    w.server.kill();
                    w.server.up();
                },
                nothing,
            )
        },
        Row {
            ..row(
                "OOM",
                |w| w.ask(&["CONFIG", "SET", "maxmemory", "1"]),
                |w| w.ask(&["CONFIG", "SET", "maxmemory", "0"]),
            )
        },
        Row {
            ..row(
                "READONLY",
                |w| w.ask(&["REPLICAOF", "127.0.0.1", "1"]),
                |w| w.ask(&["REPLICAOF", "NO", "ONE"]),
            )
        },
        Row {
            options: &["--enable-debug-command", "yes"],
            ..row(
                "MISCONF",
                |w| {
                    std::fs::create_dir(w.server.data()).expect("in the way of the snapshot");
                    w.ask(&["CONFIG", "SET", "save", "3600 1"]);
                    w.ask(&["BGSAVE"]);
                },
                |w| w.ask(&["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"]),
            )
        },
        Row {
            ..row(
                "NOPERM after an ACL change",
                |w| w.ask(&["ACL", "SETUSER", "robot", "-xadd", "-incr", "-incrby"]),
                |w| w.ask(&["ACL", "SETUSER", "robot", "+xadd", "+incr", "+incrby"]),
            )
        },
        row(
            "NOAUTH: user off, then on",
            |w| {
                w.ask(&["ACL", "SETUSER", "robot", "off"]);
                w.ask(&["CLIENT", "KILL", "USER", "robot"]);
            },
            |w| w.ask(&["ACL", "SETUSER", "robot", "on"]),
        ),
        Row {
            meanwhile: |w| w.ask(&["CLIENT", "KILL", "USER", "robot"]),
            ..row("CLIENT KILL", nothing, nothing)
        },
        row(
            "CLIENT PAUSE",
            |w| w.ask(&["CLIENT", "PAUSE", "1500", "ALL"]),
            nothing,
        ),
        row(
            "maxclients",
            |w| {
                w.ask(&["CONFIG", "SET", "maxclients", "1"]);
                w.ask(&["CLIENT", "KILL", "USER", "robot"]);
            },
            |w| w.ask(&["CONFIG", "SET", "maxclients", "1000"]),
        ),
        row(
            "slow: a reply per 100 ms",
            |w| {
                w.proxy.set(Fault::SlowReplies(Duration::from_millis(100)));
            },
            heal,
        ),
        Row {
            lasts: Duration::from_secs(3),
            ..row(
                "replies cut at any byte",
                |w| w.proxy.set(Fault::CutReplies(3_000)),
                heal,
            )
        },
        Row {
            lasts: Duration::from_secs(3),
            ..row(
                "requests cut at any byte",
                |w| w.proxy.set(Fault::CutRequests(9_000)),
                heal,
            )
        },
        Row {
            way: Way::Resp2,
            options: &["--rename-command", "HELLO", ""],
            lasts: Duration::from_secs(3),
            ..row(
                "RESP2 only, replies cut",
                |w| w.proxy.set(Fault::CutReplies(3_000)),
                heal,
            )
        },
        Row {
            way: Way::Tls,
            options: &["--tls-auth-clients", "no"],
            meanwhile: |w| {
                w.proxy.set(Fault::Reset);
                w.proxy.set(Fault::None);
            },
            ..row("TLS, reset", nothing, heal)
        },
        Row {
            way: Way::Tls,
            options: &["--tls-auth-clients", "no"],
            lasts: Duration::from_secs(12),
            ..row("TLS, half-open", |w| w.proxy.set(Fault::Stall), heal)
        },
        Row {
            way: Way::MutualTls,
            lasts: Duration::from_secs(3),
            ..row(
                "mutual TLS, replies cut",
                // A handshake's replies are longer than others.
                |w| w.proxy.set(Fault::CutReplies(12_000)),
                heal,
            )
        },
        Row {
            way: Way::MutualTls,
            options: &["--appendonly", "yes"],
            ..row(
                "mutual TLS, killed, with its data",
                |w| w.server.kill(),
                |w| w.server.up(),
            )
        },
        Row {
            way: Way::Unix,
            meanwhile: |w| w.ask(&["CLIENT", "KILL", "USER", "robot"]),
            ..row("unix socket, CLIENT KILL", nothing, nothing)
        },
        Row {
            way: Way::Unix,
            options: &["--appendonly", "yes"],
            ..row(
                "unix socket, killed, with its data",
                |w| w.server.kill(),
                |w| w.server.up(),
            )
        },
        Row {
            way: Way::Secret,
            ..row(
                "secret rotated, file later",
                |w| {
                    w.ask(&["ACL", "SETUSER", "robot", "resetpass", ">second"]);
                    w.ask(&["CLIENT", "KILL", "USER", "robot"]);
                },
                |w| drop(w.folder.file("password", "second\n")),
            )
        },
        Row {
            way: Way::Secret,
            ..row(
                "secret rotated, file first",
                |w| drop(w.folder.file("password", "second\n")),
                |w| {
                    w.ask(&["ACL", "SETUSER", "robot", "resetpass", ">second"]);
                    w.ask(&["CLIENT", "KILL", "USER", "robot"]);
                },
            )
        },
        Row {
            way: Way::Replicated,
            ..row(
                "READONLY: the replica took over",
                |w| {
                    let mut replica = w.replica().client(0);
                    let (host, port) = ("127.0.0.1", w.replica().port().to_string());
                    // Nothing is written until the replica has everything.
                    w.ask(&["CLIENT", "PAUSE", "60000", "WRITE"]);
                    w.ask(&["WAIT", "1", "5000"]);
                    let promoted: redis::Value = redis::cmd("REPLICAOF")
                        .arg(&["NO", "ONE"])
                        .query(&mut replica)
                        .expect("promoted");
                    drop(promoted);
                    w.ask(&["REPLICAOF", host, &port]);
                    w.ask(&["CLIENT", "UNPAUSE"]);
                    w.took_over = true;
                },
                |w| {
                    let there = proxy::Server::Port(w.replica().port());
                    w.proxy.lead_to(there);
                },
            )
        },
        Row {
            way: Way::Sentinels,
            lasts: Duration::from_secs(5),
            ..row(
                "3 sentinels, master killed",
                |w| w.server.kill(),
                World::await_failover,
            )
        },
        Row {
            way: Way::Sentinels,
            lasts: Duration::from_secs(5),
            ..row(
                "3 sentinels, master frozen, thawed",
                |w| w.server.signal(libc::SIGSTOP),
                |w| {
                    w.await_failover();
                    w.server.signal(libc::SIGCONT);
                    w.await_demotion();
                },
            )
        },
        Row {
            way: Way::Sentinels,
            lasts: Duration::from_secs(5),
            ..row(
                "3 sentinels, failover (READONLY)",
                |w| w.sentinels.as_ref().expect("sentinels").failover(),
                |w| {
                    w.await_failover();
                    w.await_demotion();
                },
            )
        },
    ]
}

/// The servers of a row, and how the agent finds them.
fn world(row: &Row, seed: u64) -> (World, Redis) {
    let folder = Scratch::new("faults");
    let mut options: Vec<String> = row.options.iter().map(|word| (*word).to_owned()).collect();
    let mut option = |name: &str, value: &str| {
        if !options.iter().any(|option| option == name) {
            options.extend([name.to_owned(), value.to_owned()]);
        }
    };
    option("--maxmemory-policy", "noeviction");
    option("--enable-debug-command", "yes");
    let tls_port = free_port();
    let mut certificates = None;
    if matches!(row.way, Way::Tls | Way::MutualTls) {
        let made = reach::certificates();
        options.extend(reach::tls_options(&made, tls_port));
        certificates = Some(made);
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let server = RedisServer::start(&options);
    let port = server.port();
    let replicated = matches!(row.way, Way::Replicated | Way::Sentinels);
    let replica =
        replicated.then(|| RedisServer::start(&["--replicaof", "127.0.0.1", &port.to_string()]));
    if let Some(replica) = &replica {
        let mut client = replica.client(0);
        within(Duration::from_secs(60), "a replica in step", || {
            redis::cmd("INFO")
                .arg("replication")
                .query::<String>(&mut client)
                .is_ok_and(|info| info.contains("master_link_status:up"))
        });
    }
    let sentinels = (row.way == Way::Sentinels).then(|| Sentinels::start(3, port));
    let upstream = match certificates {
        Some(_) => proxy::Server::Port(tls_port),
        None => proxy::Server::Unix(server.socket()),
    };
    let proxy = Proxy::start(upstream, seed);
    let through_proxy = |host: &str| Endpoint::Tcp {
        host: host.to_owned(),
        port: proxy.port(),
    };
    let own = Redis {
        username: "robot".to_owned(),
        password: Some(Secret::Inline("secret".to_owned())),
        endpoint: through_proxy("127.0.0.1"),
        ..settings(&server)
    };
    let redis = match row.way {
        Way::Tcp | Way::Resp2 | Way::Replicated => own,
        Way::Unix => Redis {
            endpoint: Endpoint::Unix(server.socket()),
            ..own
        },
        Way::Secret => Redis {
            password: Some(Secret::File(folder.file("password", "secret\n"))),
            ..own
        },
        Way::Tls | Way::MutualTls => {
            let made = certificates.as_ref().expect("made above");
            let mut tls = reach::mutual_tls(made);
            if row.way == Way::Tls {
                tls.own = None;
            }
            Redis {
                endpoint: through_proxy("localhost"),
                tls: Some(tls),
                ..own
            }
        }
        Way::Sentinels => Redis {
            sentinel: sentinels.as_ref().map(|sentinels| Sentinel {
                master: "robots".to_owned(),
                nodes: sentinels.nodes(),
            }),
            ..own
        },
    };
    let world = World {
        server,
        replica,
        took_over: false,
        proxy,
        sentinels,
        // The certificates are read anew at each connection.
        folder: certificates.unwrap_or(folder),
        admin: RefCell::new(None),
    };
    (world, redis)
}

/// The user as whom the agent comes.
fn robot(server: &RedisServer) {
    redis::cmd("ACL")
        .arg(&["SETUSER", "robot", "on", ">secret", "~*", "&*", "+@all"])
        .exec(&mut server.client(0))
        .expect("ACL SETUSER");
}

#[derive(Debug, Default)]
struct Result {
    sent: usize,
    lost: usize,
    twice: usize,
    disordered: usize,
    /// Of one per line.
    counted: i64,
    recovery: Duration,
}

fn run(row: &Row, seed: u64) -> Result {
    let (mut world, redis) = world(row, seed);
    robot(&world.server);
    if let Some(replica) = &world.replica {
        robot(replica);
    }
    let folder = Scratch::new("faults");
    let spool = Spool {
        memory: 1 << 20,
        disk: 16 << 20,
        overflow: Overflow::DropOldest,
    };
    let sink = Sink::with(redis, spool, Some(folder.join("spool")));
    let streams = unbounded("row");
    let mut sent = 0;
    let mut send = |pause: u64| {
        let texts: Vec<String> = (sent..sent + 20).map(|n| format!("line {n}")).collect();
        sent += 20;
        sink.lines(&streams, texts);
        sink.word(Record::Count(Count {
            streams: Arc::clone(&streams),
            key: "n".to_owned(),
            what: CountKind::Increment(20),
        }));
        std::thread::sleep(Duration::from_millis(pause));
    };
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(700) {
        send(5 + seed % 7);
    }
    (row.begin)(&mut world);
    let begun = Instant::now();
    while begun.elapsed() < row.lasts {
        send(20);
        (row.meanwhile)(&mut world);
    }
    (row.end)(&mut world);
    // A server that was started again knows its users no more.
    if row.name.contains("killed, with") || row.name == "LOADING" {
        robot(&world.server);
    }
    let healed = Instant::now();
    let gauge = sink.gauge.clone();
    within(Duration::from_secs(90), row.name, || {
        let gauge = gauge.borrow();
        gauge.connected && gauge.spooled_lines == 0
    });
    let recovery = healed.elapsed();
    assert_eq!(sink.finish(), 0, "{}", row.name);
    let got = messages(&mut world.master().client(1), "logs:app:row:info");
    let counted: Option<i64> = redis::cmd("GET")
        .arg("wrapp:row:n")
        .query(&mut world.master().client(2))
        .unwrap_or(None);
    let mut result = judge(sent, &got);
    result.counted = counted.unwrap_or(0) - sent as i64;
    result.recovery = recovery;
    result
}

fn judge(sent: usize, got: &[String]) -> Result {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let mut result = Result {
        sent,
        ..Result::default()
    };
    let mut last = None;
    for message in got {
        let times = seen.entry(message).or_default();
        *times += 1;
        if *times > 1 {
            result.twice += 1;
        }
        let number: Option<usize> = message.strip_prefix("line ").and_then(|n| n.parse().ok());
        if number < last {
            result.disordered += 1;
        }
        last = last.max(number);
    }
    result.lost = (0..sent)
        .filter(|number| !seen.contains_key(format!("line {number}").as_str()))
        .count();
    result
}

/// Rows that run at once: more would only wait for the processor.
const AT_ONCE: usize = 12;

fn matrix(seeds: std::ops::Range<u64>) {
    println!("\n| fault | sent | lost | twice | out of order | counters off by | recovery |");
    println!("|---|---|---|---|---|---|---|");
    let mut failed = Vec::new();
    for seed in seeds {
        let mut waiting = rows();
        // `FAULTS=sentinels` runs those rows only.
        if let Ok(wanted) = std::env::var("FAULTS") {
            waiting.retain(|row| row.name.contains(&wanted));
        }
        while !waiting.is_empty() {
            let later = waiting.split_off(waiting.len().min(AT_ONCE));
            let now = std::mem::replace(&mut waiting, later);
            failed.extend(together(now, seed));
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

/// Runs some rows, prints them, returns the names of those that failed.
fn together(rows: Vec<Row>, seed: u64) -> Vec<&'static str> {
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = rows
            .iter()
            .map(|row| scope.spawn(move || run(row, seed)))
            .collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    let mut failed = Vec::new();
    for (row, result) in rows.iter().zip(results) {
        let Ok(result) = result else {
            println!("| {} | did not recover | | | | | |", row.name);
            failed.push(row.name);
            continue;
        };
        println!(
            "| {} | {} | {} | {} | {} | {} | {:.1} s |",
            row.name,
            result.sent,
            result.lost,
            result.twice,
            result.disordered,
            result.counted,
            result.recovery.as_secs_f64()
        );
        if result.lost + result.twice + result.disordered > 0 || result.counted != 0 {
            failed.push(row.name);
        }
    }
    failed
}

/// One of the faults that may come in any order, for a while.
fn random_fault(world: &mut World, random: &mut impl FnMut(u64) -> u64) {
    let ms = Duration::from_millis;
    let short = ms(100 + random(3_000));
    let proxied = match random(13) {
        0 => Some((Fault::Refuse, short)),
        1 => Some((Fault::Reset, ms(1))),
        2 => Some((Fault::Stall, short)),
        // Longer than the sink waits for an answer.
        3 => Some((Fault::Stall, ms(11_000))),
        4 => Some((Fault::SlowReplies(ms(random(150))), short)),
        5 => Some((Fault::CutReplies(1 + random(9_000)), short)),
        6 => Some((Fault::CutRequests(1 + random(20_000)), short)),
        _ => None,
    };
    if let Some((fault, lasts)) = proxied {
        world.proxy.set(fault);
        std::thread::sleep(lasts);
        heal(world);
        return;
    }
    match random(6) {
        0 => {
            world.server.signal(libc::SIGSTOP);
            std::thread::sleep(short);
            world.server.signal(libc::SIGCONT);
        }
        1 => {
            world.server.kill();
            std::thread::sleep(short);
            world.server.up();
            world.ask(&["PING"]);
            robot_again(world);
        }
        2 => world.ask(&["CLIENT", "KILL", "USER", "robot"]),
        3 => {
            world.ask(&["CONFIG", "SET", "maxmemory", "1"]);
            std::thread::sleep(short);
            world.ask(&["CONFIG", "SET", "maxmemory", "0"]);
        }
        4 => {
            world.ask(&["REPLICAOF", "127.0.0.1", "1"]);
            std::thread::sleep(short);
            world.ask(&["REPLICAOF", "NO", "ONE"]);
        }
        _ => world.ask(&["CLIENT", "PAUSE", "1500", "ALL"]),
    }
}

/// While it loads its data a server lets nobody be made.
fn robot_again(world: &World) {
    within(Duration::from_secs(60), "the user is there again", || {
        redis::cmd("ACL")
            .arg(&["SETUSER", "robot", "on", ">secret", "~*", "&*", "+@all"])
            .exec(&mut world.server.client(0))
            .is_ok()
    });
}

/// `SOAK_SECONDS` of it, ten minutes unless told.
#[test]
#[ignore = "ten minutes: four services, one fault after the other"]
fn soak() {
    let seconds = std::env::var("SOAK_SECONDS").ok();
    let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(600);
    let fault = Row {
        options: &["--appendonly", "yes"],
        ..row("soak", nothing, nothing)
    };
    let (mut world, redis) = world(&fault, 7);
    robot(&world.server);
    let folder = Scratch::new("soak");
    let spool = Spool {
        memory: 1 << 20,
        disk: 64 << 20,
        overflow: Overflow::DropOldest,
    };
    let sink = Sink::with(redis, spool, Some(folder.join("spool")));
    let names = ["one", "two", "three", "four"];
    let services = names.map(unbounded);
    let over = std::sync::atomic::AtomicBool::new(false);
    let mut faults = 0;
    let sent = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut sent = 0;
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                for streams in &services {
                    let texts = (sent..sent + 5).map(|n| format!("line {n}"));
                    sink.lines(streams, texts);
                    sink.word(Record::Count(Count {
                        streams: Arc::clone(streams),
                        key: "n".to_owned(),
                        what: CountKind::Increment(5),
                    }));
                }
                sent += 5;
                std::thread::sleep(Duration::from_millis(20));
            }
            sent
        });
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(seconds) {
            random_fault(&mut world, &mut random);
            faults += 1;
            std::thread::sleep(Duration::from_millis(random(2_500)));
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().expect("the writer does not panic")
    });
    within(Duration::from_secs(90), "the soak is through", || {
        let gauge = sink.gauge.borrow();
        gauge.connected && gauge.spooled_lines == 0
    });
    assert_eq!(sink.finish(), 0);
    println!("\n{faults} faults in {seconds} s");
    let mut wrong = Vec::new();
    for name in names {
        let got = messages(
            &mut world.server.client(1),
            &format!("logs:app:{name}:info"),
        );
        let counted: i64 = redis::cmd("GET")
            .arg(format!("wrapp:{name}:n"))
            .query(&mut world.server.client(2))
            .expect("a counter");
        let mut result = judge(sent, &got);
        result.counted = counted - sent as i64;
        println!("{name}: {result:?}");
        if result.lost + result.twice + result.disordered > 0 || result.counted != 0 {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn every_fault_once() {
    matrix(1..2);
}

#[test]
#[ignore = "minutes: the same with other seeds"]
fn every_fault_with_many_seeds() {
    matrix(2..12);
}
