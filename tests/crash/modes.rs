// Ways for a Rust program to die, chosen by the first argument.
use std::hint::black_box;

#[derive(Debug, Clone)]
struct Ring {
    name: String,
    items: Vec<u32>,
    mode: Mode,
    place: (u8, i32),
    last: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
#[allow(dead_code)]
enum Mode {
    Idle,
    Busy { load: u8 },
}

trait Store {
    fn store(&mut self, value: u32) -> u32;
}

impl Store for Ring {
    #[inline(never)]
    fn store(&mut self, value: u32) -> u32 {
        let address = black_box(8usize);
        unsafe { *(address as *mut u32) = value };
        value + self.items.len() as u32
    }
}

#[inline(never)]
fn feed(ring: &mut Ring, label: &str, values: &[u32]) -> u32 {
    let mut sum = 0;
    let results: (Result<u32, &str>, Result<u32, u8>) = black_box((Err("bad"), Ok(7)));
    for value in values {
        sum += ring.store(*value);
    }
    sum + label.len() as u32 + results.1.is_err() as u32
}

#[inline(never)]
fn recurse(n: u64) -> u64 {
    let room = black_box([n; 32]);
    recurse(n + 1) + room[(n % 32) as usize]
}

#[inline(never)]
fn generic<T: Into<u64>>(value: T, divisor: u64) -> u64 {
    value.into() / divisor
}

async fn taken(ring: &mut Ring) -> u32 {
    feed(ring, "taken", &[9])
}

async fn serve(mut ring: Ring) -> u32 {
    std::future::ready(()).await;
    taken(&mut ring).await + 1
}

fn block_on<F: std::future::Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}

fn main() {
    let mode = std::env::args().nth(1).unwrap_or_else(|| "segv".into());
    let mut ring = Ring { name: "front".into(), items: vec![1, 2, 3], mode: Mode::Busy { load: 7 }, place: (4, -5), last: Some(6) };
    match mode.as_str() {
        "segv" => println!("{}", feed(&mut ring, "label", &[4, 5])),
        "panic" => panic!("ring {} is full: {:?}", ring.name, ring.mode),
        "unwrap" => println!("{}", "x".parse::<u32>().unwrap()),
        "index" => println!("{}", ring.items[black_box(7)]),
        "divide" => println!("{}", generic(black_box(3u32), black_box(0))),
        "overflow" => println!("{}", recurse(black_box(0))),
        "thread" => {
            let worker = std::thread::Builder::new().name("feeder".into());
            let handle = worker.spawn(move || feed(&mut ring, "inside", &[1])).unwrap();
            handle.join().unwrap();
        }
        "closure" => {
            let f: Box<dyn Fn(u32) -> u32> = Box::new(|n| feed(&mut ring.clone(), "closure", &[n]));
            println!("{}", f(black_box(3)));
        }
        "async" => println!("{}", block_on(serve(ring))),
        "abort" => std::process::abort(),
        _ => {}
    }
}
