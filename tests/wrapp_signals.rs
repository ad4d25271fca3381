//! Signals to `wrapp` are the application's: on the real binary.

mod support;
#[path = "support/wrapp.rs"]
mod wrapp;

use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use support::{RedisServer, eventually};
use wrapp::{Place, Wrapp, lines, lives, start, texts};

fn ready(wrapp: &Wrapp) -> i32 {
    wrapp.wait_for_file("pid");
    eventually("a whole pid", || wrapp.read("pid").ends_with('\n'));
    wrapp.read("pid").trim().parse().expect("a pid")
}

#[test]
fn every_signal_that_may_be_the_applications_is_handed_on() {
    let names = [
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("ABRT", libc::SIGABRT),
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
        ("ALRM", libc::SIGALRM),
        ("CONT", libc::SIGCONT),
        ("URG", libc::SIGURG),
        ("VTALRM", libc::SIGVTALRM),
        ("PROF", libc::SIGPROF),
        ("WINCH", libc::SIGWINCH),
        ("IO", libc::SIGIO),
        ("PWR", libc::SIGPWR),
        // Sent, these are no faults of the wrapper's.
        ("PIPE", libc::SIGPIPE),
        ("TTIN", libc::SIGTTIN),
        ("TTOU", libc::SIGTTOU),
        ("TRAP", libc::SIGTRAP),
        ("SYS", libc::SIGSYS),
        ("BUS", libc::SIGBUS),
        ("FPE", libc::SIGFPE),
        ("SEGV", libc::SIGSEGV),
        ("40", 40),
        ("RTMAX", libc::SIGRTMAX()),
        ("TERM", libc::SIGTERM),
    ];
    let server = RedisServer::start(&[]);
    let mut script = String::new();
    for (name, _) in names {
        // The shell's own name for it, or its number.
        let trapped = if name == "RTMAX" { "64" } else { name };
        script.push_str(&format!("trap 'echo {name} >> heard' {trapped}\n"));
    }
    // A shell handles a trap between two commands.
    script.push_str("echo $$ > pid; while [ ! -e stop ]; do sleep 0.02; done; exit 9");
    let mut wrapp = start(Some(&server), &script);
    ready(&wrapp);
    let mut expected = String::new();
    for (name, number) in names {
        wrapp.signal(number);
        expected.push_str(&format!("{name}\n"));
        eventually(&format!("the application hears {name}"), || {
            wrapp.read("heard").contains(&format!("{name}\n"))
        });
    }
    // TERM also brings CONT: a stopped process would hear nothing else.
    let heard: String = wrapp.read("heard");
    assert!(heard.starts_with(&expected), "{heard}");
    // It has its time to end, and its own exit code.
    wrapp.place.folder.file("stop", "");
    assert_eq!(wrapp.code(), Some(9));
    let end = texts(&server, "info").pop().expect("an end");
    assert!(end.ends_with("_exit_9}}"), "{end}");
}

#[test]
fn term_ends_an_application_and_closes_its_run() {
    let server = RedisServer::start(&[]);
    let mut wrapp = start(Some(&server), "echo $$ > pid; sleep 1000 & wait");
    let pid = ready(&wrapp);
    wrapp.signal(libc::SIGTERM);
    assert_eq!(wrapp.code(), Some(143));
    assert!(!lives(pid));
    for kind in ["info", "status"] {
        let end = texts(&server, kind).pop().expect("an end");
        assert!(end.ends_with("_exit_143}}"), "{kind}: {end}");
    }
    assert!(texts(&server, "status").contains(&"Stopping with SIGTERM.".to_owned()));
}

#[test]
fn an_application_that_ignores_term_is_killed_after_its_grace() {
    let server = RedisServer::start(&[]);
    let place = Place::new();
    let script = "trap '' TERM; echo $$ > pid; while :; do sleep 0.1; done";
    let mut config = place.script(Some(&server), script);
    config["agent"]["shutdown_timeout"] = serde_json::json!("1s");
    let mut wrapp = place.start(&config);
    let pid = ready(&wrapp);
    let asked = Instant::now();
    wrapp.signal(libc::SIGTERM);
    // Asking again changes nothing: it is the application's signal.
    wrapp.signal(libc::SIGTERM);
    assert_eq!(wrapp.code(), Some(137));
    assert!(asked.elapsed() >= Duration::from_secs(1));
    assert!(!lives(pid));
    let end = texts(&server, "info").pop().expect("an end");
    assert!(end.ends_with("_exit_137}}"), "{end}");
}

#[test]
fn an_interrupt_is_the_applications_to_answer() {
    let server = RedisServer::start(&[]);
    let script = "trap 'echo not yet >> heard' INT; echo $$ > pid; while :; do sleep 0.02; done";
    let mut wrapp = start(Some(&server), script);
    ready(&wrapp);
    for count in 1..=2 {
        wrapp.signal(libc::SIGINT);
        eventually("it is heard", || {
            wrapp.read("heard").lines().count() == count
        });
    }
    assert!(!wrapp.has_ended());
    wrapp.signal(libc::SIGQUIT);
    assert_eq!(wrapp.code(), Some(131));
}

#[test]
fn what_was_ignored_stays_ignored() {
    let server = RedisServer::start(&[]);
    let place = Place::new();
    // As nohup does. HUP would end the application, USR1 says that it came after.
    let script =
        "trap 'echo usr1 > heard' USR1; echo $$ > pid; while [ ! -e heard ]; do sleep 0.02; done";
    let config = place.script(Some(&server), script);
    let mut wrapp = place.start_as(&config, |command| {
        // SAFETY: signal is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGHUP, libc::SIG_IGN);
                Ok(())
            });
        }
    });
    ready(&wrapp);
    wrapp.signal(libc::SIGHUP);
    wrapp.signal(libc::SIGUSR1);
    assert_eq!(wrapp.code(), Some(0));
    assert_eq!(wrapp.read("heard"), "usr1\n");
}

fn state(pid: i32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.trim_start().chars().next().unwrap_or('?')
}

#[test]
fn a_pause_is_one_of_both_and_ends_with_cont() {
    let server = RedisServer::start(&[]);
    let script = "echo $$ > pid; while [ ! -e stop ]; do sleep 0.02; done; echo resumed";
    let mut wrapp = start(Some(&server), script);
    let pid = ready(&wrapp);
    wrapp.signal(libc::SIGTSTP);
    eventually("both are stopped", || {
        // `t` where it is traced as well (proc(5)).
        matches!(state(pid), 'T' | 't') && state(wrapp.pid()) == 'T'
    });
    wrapp.place.folder.file("stop", "");
    wrapp.signal(libc::SIGCONT);
    assert_eq!(wrapp.code(), Some(0));
    assert_eq!(lines(&server), ["resumed"]);

    // SIGSTOP cannot be caught: the wrapper stops alone, and goes on where it was.
    let mut wrapp = start(
        Some(&server),
        "echo $$ > pid; sleep 0.5; echo later; exit 8",
    );
    ready(&wrapp);
    wrapp.signal(libc::SIGSTOP);
    eventually("it is stopped", || state(wrapp.pid()) == 'T');
    wrapp.signal(libc::SIGCONT);
    assert_eq!(wrapp.code(), Some(8));
    assert!(lines(&server).contains(&"later".to_owned()));
}

#[test]
fn the_application_dies_with_a_killed_wrapper() {
    let mut wrapp = start(None, "echo $$ > pid; sleep 1000");
    let pid = ready(&wrapp);
    wrapp.signal(libc::SIGKILL);
    wrapp.wait();
    eventually("it is gone", || !lives(pid));
}
