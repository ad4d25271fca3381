//! client ⇄ proxy ⇄ server, with faults: cuts after so many bytes, stalls, delays.

#![allow(dead_code)] // each test binary uses its part

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to every connection, from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// New connections are closed at once, and those that are there too.
    Refuse,
    /// With a reset instead of an end.
    Reset,
    /// Nothing passes and nothing ends.
    Stall,
    /// Replies arrive so much later, one read at a time.
    SlowReplies(Duration),
    /// Each connection ends after up to so many bytes of replies, or of requests.
    CutReplies(u64),
    CutRequests(u64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Request,
    Reply,
}

/// Where a proxy leads to.
#[derive(Clone, Debug)]
pub enum Server {
    Unix(PathBuf),
    /// On the loopback.
    Port(u16),
}

pub struct Proxy {
    port: u16,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    fault: Fault,
    seed: u64,
    open: Vec<TcpStream>,
    server: Server,
}

impl Shared {
    fn random(&mut self, below: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % below.max(1)
    }
}

impl Proxy {
    pub fn start(server: Server, seed: u64) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Mutex::new(Shared {
            fault: Fault::None,
            seed: seed | 1,
            open: Vec::new(),
            server,
        }));
        let proxy = Proxy {
            port,
            shared: Arc::clone(&shared),
        };
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                accept(client, &shared);
            }
        });
        proxy
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// New connections lead to another server; those that are there end.
    pub fn lead_to(&self, server: Server) {
        let mut shared = self.shared.lock().expect("not poisoned");
        shared.server = server;
        for stream in std::mem::take(&mut shared.open) {
            end(&stream, Fault::Refuse);
        }
    }

    pub fn set(&self, fault: Fault) {
        let mut shared = self.shared.lock().expect("not poisoned");
        shared.fault = fault;
        if matches!(fault, Fault::Refuse | Fault::Reset) {
            for stream in std::mem::take(&mut shared.open) {
                end(&stream, fault);
            }
        }
    }
}

fn end(stream: &TcpStream, fault: Fault) {
    if fault == Fault::Reset {
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        // SAFETY: plain system call on an open socket, with a struct of the size that is told.
        unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const linger).cast(),
                size_of::<libc::linger>() as libc::socklen_t,
            );
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

fn accept(client: TcpStream, shared: &Arc<Mutex<Shared>>) {
    let (fault, server) = {
        let mut held = shared.lock().expect("not poisoned");
        if let Ok(copy) = client.try_clone() {
            held.open.push(copy);
        }
        (held.fault, held.server.clone())
    };
    if matches!(fault, Fault::Refuse | Fault::Reset) {
        end(&client, fault);
        return;
    }
    match server {
        Server::Unix(path) => {
            if let Ok(server) = UnixStream::connect(path) {
                join(
                    &client,
                    &server,
                    shared,
                    (UnixStream::try_clone, UnixStream::shutdown),
                );
            }
        }
        Server::Port(port) => {
            if let Ok(server) = TcpStream::connect(("127.0.0.1", port)) {
                join(
                    &client,
                    &server,
                    shared,
                    (TcpStream::try_clone, TcpStream::shutdown),
                );
            }
        }
    }
}

/// What both kinds of sockets can, and no trait of std says.
type Ways<S> = (
    fn(&S) -> std::io::Result<S>,
    fn(&S, Shutdown) -> std::io::Result<()>,
);

/// Copies both ways until one of them ends.
fn join<S>(client: &TcpStream, server: &S, shared: &Arc<Mutex<Shared>>, (dup, close): Ways<S>)
where
    S: Read + Write + Send + 'static,
{
    for way in [Way::Request, Way::Reply] {
        let shared = Arc::clone(shared);
        let (Ok(client), Ok(client_in), Ok(server), Ok(mut server_in)) = (
            client.try_clone(),
            client.try_clone(),
            dup(server),
            dup(server),
        ) else {
            return;
        };
        std::thread::spawn(move || {
            match way {
                Way::Request => copy(client_in, &mut server_in, way, &shared),
                Way::Reply => copy(server_in, &client, way, &shared),
            }
            let _ = client.shutdown(Shutdown::Both);
            let _ = close(&server, Shutdown::Both);
        });
    }
}

fn copy(mut from: impl Read, mut to: impl Write, way: Way, shared: &Mutex<Shared>) {
    let mut buffer = [0; 16 << 10];
    let mut left = None;
    loop {
        let Ok(count) = from.read(&mut buffer) else {
            return;
        };
        if count == 0 {
            return;
        }
        loop {
            let fault = shared.lock().expect("not poisoned").fault;
            match (fault, way) {
                (Fault::Stall, _) => std::thread::sleep(Duration::from_millis(10)),
                (Fault::SlowReplies(pause), Way::Reply) => {
                    std::thread::sleep(pause);
                    break;
                }
                (Fault::CutReplies(most), Way::Reply)
                | (Fault::CutRequests(most), Way::Request) => {
                    let most = *left
                        .get_or_insert_with(|| shared.lock().expect("not poisoned").random(most));
                    if count as u64 > most {
                        let _ = to.write_all(&buffer[..most as usize]);
                        return;
                    }
                    left = Some(most - count as u64);
                    break;
                }
                _ => break,
            }
        }
        if to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}
