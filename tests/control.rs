//! The control socket, with a scripted supervisor behind it and every kind of client before.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jettison_agent::control::bind::{self, Bound};
use jettison_agent::control::client::{self, Search, Trouble};
use jettison_agent::control::server::{self, Access};
use jettison_agent::event::Event;
use jettison_agent::request::{ProbeAnswer, Reply, Request, RequestId};
use serde_json::json;
use support::{Scratch, eventually};
use tokio::sync::mpsc;

const AGENT_UID: u32 = 61_001;
const AGENT_GROUP: u32 = 61_002;

/// A served socket. The supervisor behind it answers probes and status at once, `start` when
/// [`Agent::release`] is called, and `stop` never; it notes what it was asked.
struct Agent {
    folder: Scratch,
    asked: Arc<Mutex<Vec<Request>>>,
    release: mpsc::UnboundedSender<()>,
    end: Option<mpsc::Sender<()>>,
    serving: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Time {
    Real,
    /// Passes at once when nothing else happens.
    Virtual,
}

impl Agent {
    fn start() -> Agent {
        Agent::with(Time::Real)
    }

    fn with(time: Time) -> Agent {
        let folder = Scratch::new("control");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (release, released) = mpsc::unbounded_channel();
        let (end, ended) = mpsc::channel(1);
        let bound = bind::bind(folder.path(), "agent", None).expect("a free place");
        let noted = Arc::clone(&asked);
        let serving = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(time == Time::Virtual)
                .build()
                .expect("a runtime");
            runtime.block_on(serve(bound, noted, released, ended));
        });
        Agent {
            folder,
            asked,
            release,
            end: Some(end),
            serving: Some(serving),
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).expect("it listens");
        let limit = Some(Duration::from_secs(20));
        stream.set_read_timeout(limit).expect("a socket");
        stream.set_write_timeout(limit).expect("a socket");
        stream
    }

    fn asked(&self) -> usize {
        self.asked.lock().expect("no panic").len()
    }

    fn release(&self) {
        self.release.send(()).expect("it serves");
    }

    fn end(&mut self) {
        self.end = None;
        if let Some(serving) = self.serving.take() {
            serving.join().expect("it served without a panic");
        }
    }

    fn probe(&self) -> Result<Reply, Trouble> {
        ask(&self.socket(), &probe(), Some(Duration::from_secs(20)))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

async fn serve(
    bound: Bound,
    asked: Arc<Mutex<Vec<Request>>>,
    mut released: mpsc::UnboundedReceiver<()>,
    mut ended: mpsc::Receiver<()>,
) {
    let Bound { listener, place } = bound;
    let listener = tokio::net::UnixListener::from_std(listener).expect("non-blocking");
    let access = Access {
        agent_uid: AGENT_UID,
        group: Some(AGENT_GROUP),
    };
    let (inbox, mut events) = mpsc::channel(16);
    let (answers, replies) = mpsc::channel(16);
    let script = async move {
        let mut held: Vec<RequestId> = Vec::new();
        loop {
            tokio::select! {
                event = events.recv() => {
                    let Some(Event::Request { id, request }) = event else { break };
                    asked.lock().expect("no panic").push(request.clone());
                    match request {
                        Request::Probe { .. } => {
                            let answer = ProbeAnswer { healthy: true, reason: "all well".into() };
                            let data = serde_json::to_value(answer).expect("plain data");
                            let _ = answers.send((id, Reply::done(data))).await;
                        }
                        Request::Status { services, .. } => {
                            // As many bytes as asked for.
                            let size = services.first().and_then(|s| s.parse().ok()).unwrap_or(1);
                            let data = json!({ "echo": services, "x": "x".repeat(size) });
                            let _ = answers.send((id, Reply::done(data))).await;
                        }
                        Request::Start { .. } => held.push(id),
                        Request::Shutdown => break,
                        Request::Stop { .. }
                        | Request::Restart { .. }
                        | Request::Signal { .. }
                        | Request::Stacks { .. }
                        | Request::Graph
                        | Request::Core(_)
                        | Request::Detach { .. }
                        | Request::Events { .. }
                        | Request::Wait { .. }
                        | Request::Reload { .. } => {}
                    }
                }
                Some(()) = released.recv() => {
                    // Last asked, first answered: order across connections is nobody's.
                    for id in held.drain(..).rev() {
                        let _ = answers.send((id, Reply::done(json!("started")))).await;
                    }
                }
                _ = ended.recv() => break,
            }
        }
    };
    tokio::join!(script, server::run(listener, access, inbox, replies));
    drop(place);
}

fn ask(socket: &Path, request: &Request, limit: Option<Duration>) -> Result<Reply, Trouble> {
    let search = Search {
        variable: &|name| (name == "AGENT_SOCKET").then(|| socket.into()),
        config: None,
        sockets_of: &|_| Err("no configuration".to_owned()),
    };
    client::ask(request, &search, limit)
}

fn probe() -> Request {
    Request::Probe {
        ready: false,
        services: vec![],
    }
}

fn start() -> Request {
    Request::Start {
        services: vec!["a".into()],
        wait: true,
    }
}

fn line(stream: &mut BufReader<UnixStream>) -> Reply {
    let mut line = String::new();
    stream.read_line(&mut line).expect("an answer");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

#[test]
fn a_question_and_its_answer() {
    let agent = Agent::start();
    let reply = agent.probe().expect("an answer");
    assert_eq!(
        reply,
        Reply::done(json!({"healthy": true, "reason": "all well"}))
    );
    let big = Request::Status {
        services: vec!["3000000".into()],
        pss: false,
    };
    let reply = ask(&agent.socket(), &big, None).expect("an answer");
    assert_eq!(reply.data["x"].as_str().map(str::len), Some(3_000_000));
    assert_eq!(agent.asked.lock().expect("no panic")[..], [probe(), big]);
}

#[test]
fn requests_of_one_connection_are_answered_in_order() {
    let agent = Agent::start();
    let mut stream = agent.connect();
    let mut sent = String::new();
    for number in 0..500 {
        sent += &format!("{{\"verb\":\"status\",\"services\":[\"{number}\"]}}\n");
    }
    let mut writer = stream.try_clone().expect("a socket");
    let writing = std::thread::spawn(move || writer.write_all(sent.as_bytes()));
    let mut reader = BufReader::new(&mut stream);
    for number in 0..500 {
        let mut line = String::new();
        reader.read_line(&mut line).expect("an answer");
        let reply: Reply = serde_json::from_str(&line).expect("JSON");
        assert_eq!(reply.data["echo"], json!([number.to_string()]));
    }
    writing.join().expect("no panic").expect("written");
}

#[test]
fn a_waiting_request_holds_up_nobody_and_replies_find_their_askers() {
    let agent = Agent::start();
    let mut waiting: Vec<BufReader<UnixStream>> = (0..5)
        .map(|number| {
            let mut stream = agent.connect();
            stream
                .write_all(b"{\"verb\":\"start\",\"services\":[\"a\"]}\n")
                .expect("written");
            eventually("it is asked", || agent.asked() == number + 1);
            BufReader::new(stream)
        })
        .collect();
    agent.probe().expect("an answer meanwhile");
    // One leaves, one closes its half and still wants its answer (`nc -N`).
    drop(waiting.remove(0));
    waiting[0]
        .get_ref()
        .shutdown(Shutdown::Write)
        .expect("a socket");
    agent.probe().expect("an answer meanwhile");
    agent.release();
    for stream in &mut waiting {
        assert_eq!(line(stream), Reply::done(json!("started")));
    }
    agent.probe().expect("an answer after");
}

#[test]
fn nonsense_is_answered_in_words_and_the_next_request_is_understood() {
    let agent = Agent::start();
    let mut stream = BufReader::new(agent.connect());
    let mut huge = vec![b'x'; 1 << 20];
    huge.push(b'\n');
    for (sent, part) in [
        (&b"{\"verb\":\n"[..], "not a request"),
        (b"\xff\xfe\x00\n", "not a request"),
        (b"{\"verb\":\"dance\"}\n", "unknown variant `dance`"),
        (b"\"verb\"\n", "not a request"),
        (&huge, "at most 65536 bytes"),
    ] {
        stream.get_mut().write_all(sent).expect("written");
        let reply = line(&mut stream);
        assert!(!reply.ok);
        let error = reply.error.expect("words");
        assert!(error.contains(part), "{error}");
    }
    // In the smallest pieces, with the line end of another world.
    for byte in b"\n\r\n{\"verb\":\"probe\"}\r\n" {
        stream.get_mut().write_all(&[*byte]).expect("written");
    }
    assert!(line(&mut stream).ok);
    // An unfinished request is none.
    stream
        .get_mut()
        .write_all(b"{\"verb\":\"shutdown\"}")
        .expect("written");
    stream
        .get_mut()
        .shutdown(Shutdown::Write)
        .expect("a socket");
    assert_eq!(stream.read(&mut [0; 1]).expect("an end"), 0);
    assert_eq!(agent.asked(), 1);
}

#[test]
fn a_thousand_silent_connections_keep_nobody_out() {
    let agent = Agent::start();
    let mut silent = Vec::new();
    for number in 0..1000 {
        let mut stream = agent.connect();
        // Some say a little, some ask and never read.
        let said: &[u8] = match number % 20 {
            0 => b"{\"verb\":\"status\",\"services\":[\"500000\"]}\n",
            1..10 => b"{\"verb\"",
            _ => b"",
        };
        // One that was already closed again is gone, which is the point.
        let _ = stream.write_all(said);
        silent.push(stream);
        if number % 50 == 0 {
            agent.probe().expect("an answer between");
        }
    }
    agent.probe().expect("an answer after");
    let left = silent
        .iter()
        .filter(|stream| {
            stream.set_nonblocking(true).expect("a socket");
            let mut stream = *stream;
            let mut bytes = [0; 1 << 16];
            loop {
                match stream.read(&mut bytes) {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
                }
            }
        })
        .count();
    assert!(left <= 128, "{left} of them still hold a place");
}

#[test]
fn a_silent_client_is_closed_in_the_end() {
    let agent = Agent::with(Time::Virtual);
    for said in [&b""[..], b"{\"verb\":\"pro"] {
        let mut stream = agent.connect();
        let _ = stream.write_all(said);
        assert_eq!(stream.read(&mut [0; 1]).expect("an end"), 0);
    }
    // One that does not read is left, too. (Virtual time may close it before it has asked.)
    let stream = loop {
        let mut stream = agent.connect();
        let sent = stream.write_all(b"{\"verb\":\"status\",\"services\":[\"9000000\"]}\n");
        if sent.is_ok() && (agent.asked() > 0 || stream.read(&mut [0; 1]).is_ok_and(|got| got == 1))
        {
            break stream;
        }
    };
    eventually("it is left", || {
        use std::os::fd::AsRawFd;
        let mut polled = libc::pollfd {
            fd: stream.as_raw_fd(),
            events: 0,
            revents: 0,
        };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&mut polled, 1, 0) == 1 && polled.revents & libc::POLLHUP != 0 }
    });
}

#[test]
fn an_ending_agent_says_so_to_those_who_wait() {
    let mut agent = Agent::start();
    let socket = agent.socket();
    let waiting = std::thread::spawn(move || ask(&socket, &start(), None));
    eventually("it is asked", || agent.asked() == 1);
    agent.end();
    let reply = waiting.join().expect("no panic").expect("an answer");
    assert_eq!(reply, Reply::refused("the agent is ending"));
    assert!(!agent.socket().exists());
    // And a shutdown that the agent does not survive is done.
    let agent = Agent::start();
    let reply = ask(&agent.socket(), &Request::Shutdown, None).expect("an answer");
    assert!(reply.ok, "{reply:?}");
}

#[test]
fn a_hung_agent_is_told_in_time_from_an_absent_one() {
    let folder = Scratch::new("hung");
    // Bound, and nobody serves: as after SIGSTOP.
    let bound = bind::bind(folder.path(), "agent", None).expect("a free place");
    let socket = folder.join("agent.sock");
    let limit = Duration::from_millis(300);
    let mut crowd = Vec::new();
    // The kernel's backlog fills up on the way: connect(2) itself must not wait for ever.
    for round in 0..3 {
        let began = Instant::now();
        let trouble = ask(&socket, &probe(), Some(limit)).expect_err("nobody answers");
        let took = began.elapsed();
        assert!(
            matches!(trouble, Trouble::Silent { .. }),
            "round {round}: {trouble}"
        );
        assert!(
            trouble
                .to_string()
                .ends_with("did not answer within 300 ms"),
            "{trouble}"
        );
        assert!(
            took >= limit && took < Duration::from_millis(600),
            "{took:?}"
        );
        if round == 1 {
            fill_backlog(&socket, &mut crowd);
        }
    }
    drop(bound);
    let trouble = ask(&socket, &probe(), Some(limit)).expect_err("nobody is there");
    let expected = format!(
        "no agent is running: looked at {} (no such file or directory)",
        socket.display()
    );
    assert_eq!(trouble.to_string(), expected);
}

fn fill_backlog(socket: &Path, crowd: &mut Vec<rustix::fd::OwnedFd>) {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    };
    let address = SocketAddrUnix::new(socket).expect("short enough");
    loop {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let one =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("a socket");
        match connect(&one, &address) {
            Ok(()) => crowd.push(one),
            Err(rustix::io::Errno::AGAIN) => return,
            Err(error) => panic!("{error}"),
        }
        assert!(crowd.len() < 20_000, "the backlog has no end");
    }
}

#[test]
fn where_an_agent_is_looked_for() {
    let agent = Agent::start();
    let here = agent.folder.path().to_owned();
    let nowhere = here.join("nowhere");
    let found = |variables: &[(&str, &Path)], config: Option<&Path>, of_config: &Path| {
        let variables: Vec<_> = variables
            .iter()
            .map(|(n, v)| (n.to_string(), v.to_path_buf()))
            .collect();
        let of_config = of_config.join("agent.sock");
        let search = Search {
            variable: &|name| {
                let found = variables.iter().find(|(n, _)| n == name);
                found.map(|(_, value)| value.clone().into_os_string())
            },
            config,
            sockets_of: &move |_| Ok(vec![of_config.clone()]),
        };
        client::ask(&probe(), &search, Some(Duration::from_secs(5))).map(|_| ())
    };
    let socket = agent.socket();
    found(&[("AGENT_SOCKET", &socket)], None, &nowhere).expect("by its socket");
    found(
        &[
            ("AGENT_RUNTIME_DIR", &here),
            ("AGENT_SOCKET", Path::new("")),
        ],
        None,
        &nowhere,
    )
    .expect("by its folder");
    found(
        &[("AGENT_RUNTIME_DIR", &nowhere)],
        Some(Path::new("x")),
        &here,
    )
    .expect("by the configuration that was named");
    found(&[("AGENT_CONFIG", Path::new("x"))], None, &here).expect("by the default configuration");
    found(&[("AGENT_SOCKET", &nowhere)], Some(Path::new("x")), &here).expect("named beats set");
    // What was set explicitly is not replaced by another agent.
    found(&[("AGENT_SOCKET", &nowhere)], None, &here).expect_err("that one is not there");
    let trouble = found(&[("AGENT_RUNTIME_DIR", &nowhere)], None, &here).expect_err("not there");
    let text = trouble.to_string();
    assert!(
        text.contains("nowhere/agent.sock (no such file or directory), /tmp/agent-"),
        "{text}"
    );
}

/// Sends one line as another user and returns the answer's line.
fn ask_as(socket: &Path, identity: &[&str], request: &str) -> Option<Reply> {
    let script = "import socket,sys\n\
                  s=socket.socket(socket.AF_UNIX)\n\
                  s.settimeout(20)\n\
                  s.connect(sys.argv[1])\n\
                  s.sendall(sys.argv[2].encode()+b'\\n')\n\
                  print(s.makefile().readline())";
    let output = Command::new("setpriv")
        .args(identity)
        .args(["/usr/bin/python3", "-c", script])
        .arg(socket)
        .arg(request)
        .output()
        .ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

#[test]
fn who_may_do_what() {
    let agent = Agent::start();
    let socket = agent.socket();
    let stranger = &["--reuid=61999", "--regid=61999", "--clear-groups"][..];
    if ask_as(&socket, stranger, "{\"verb\":\"probe\"}").is_none() {
        eprintln!("skipped: needs root, setpriv and /usr/bin/python3");
        return;
    }
    let many: String = (100_000..100_300).map(|gid| format!("{gid},")).collect();
    let many = format!("--groups={many}61002");
    let status = "{\"verb\":\"status\"}";
    for identity in [
        &["--reuid=0", "--clear-groups"][..],
        &["--reuid=61001", "--regid=61999", "--clear-groups"],
        &["--reuid=61999", "--regid=61002", "--clear-groups"],
        &["--reuid=61999", "--regid=61999", "--groups=61003,61002"],
        &["--reuid=61999", "--regid=61999", &many],
    ] {
        let reply = ask_as(&socket, identity, status).expect("an answer");
        assert!(reply.ok, "{identity:?}: {reply:?}");
    }
    for identity in [
        stranger,
        &["--reuid=61999", "--regid=61999", "--groups=61003"],
    ] {
        assert!(
            ask_as(&socket, identity, "{\"verb\":\"probe\"}")
                .expect("an answer")
                .ok
        );
        for request in [
            status,
            "{\"verb\":\"start\",\"services\":[\"a\"]}",
            "{\"verb\":\"stop\",\"services\":[\"a\"]}",
            "{\"verb\":\"restart\",\"services\":[\"a\"]}",
            "{\"verb\":\"signal\",\"signal\":\"KILL\",\"services\":[\"a\"]}",
            "{\"verb\":\"reload\"}",
            "{\"verb\":\"reload\",\"dry_run\":true}",
            "{\"verb\":\"shutdown\"}",
        ] {
            let reply = ask_as(&socket, identity, request).expect("an answer");
            let error = reply.error.expect("a reason");
            assert!(
                !reply.ok && error.starts_with("uid 61999 may only probe"),
                "{error}"
            );
        }
    }
    let reached = agent.asked.lock().expect("no panic").clone();
    assert!(
        reached
            .iter()
            .all(|r| matches!(r, Request::Probe { .. } | Request::Status { .. }))
    );
}

#[test]
fn operators_who_wait_keep_no_probe_out() {
    let agent = Agent::start();
    let stranger = ["--reuid=61999", "--regid=61999", "--clear-groups"];
    let probe = || ask_as(&agent.socket(), &stranger, "{\"verb\":\"probe\"}");
    if probe().is_none() {
        eprintln!("skipped: needs root, setpriv and /usr/bin/python3");
        return;
    }
    let mut waiting = Vec::new();
    for _ in 0..200 {
        let mut stream = agent.connect();
        // Never answered.
        let _ = stream.write_all(b"{\"verb\":\"stop\",\"services\":[\"s\"]}\n");
        waiting.push(stream);
    }
    eventually("all who have a place wait", || agent.asked() >= 128);
    assert!(probe().expect("an answer").ok);
}

#[test]
fn strangers_do_not_push_an_operator_out() {
    let agent = Agent::start();
    let mut operator = BufReader::new(agent.connect());
    operator
        .get_mut()
        .write_all(b"{\"verb\":\"status\"}\n")
        .expect("written");
    assert!(line(&mut operator).ok);
    let crowd = "import socket,sys\n\
                 l=[]\n\
                 for i in range(300):\n s=socket.socket(socket.AF_UNIX)\n s.connect(sys.argv[1])\n l.append(s)\n\
                 print(len(l))";
    let output = Command::new("setpriv")
        .args(["--reuid=61999", "--regid=61999", "--clear-groups"])
        .args(["/usr/bin/python3", "-c", crowd])
        .arg(agent.socket())
        .output();
    match output {
        Ok(output) if output.stdout == b"300\n" => {}
        _ => {
            eprintln!("skipped: needs root, setpriv and /usr/bin/python3");
            return;
        }
    }
    operator
        .get_mut()
        .write_all(b"{\"verb\":\"status\"}\n")
        .expect("still there");
    assert!(line(&mut operator).ok);
}
