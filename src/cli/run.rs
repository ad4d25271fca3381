//! a command for a running agent → a question, its answer on stdout, an exit code.
//!
//! Exit codes: 0 done or healthy, 1 not, also when there is no agent; 2 when the
//! configuration that was named cannot be used. A probe knows only 0 and 1.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::args::{Command, Shape};
use super::chart;
use super::show::{self, Colour, Look};
use super::{events, terminal, top};
use crate::control::client::{self, Search, SocketsOf, Trouble};
use crate::request::{ProbeAnswer, Reply, Request};

/// What is asked, of whom, and how long an answer may take.
#[derive(Debug)]
pub struct Question<'a> {
    pub request: Request,
    pub config: Option<&'a Path>,
    /// `None`: as long as the agent lives.
    pub limit: Option<Duration>,
}

/// For status, which an agent that lives answers at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// For `wait`, beyond its own time.
const MARGIN: Duration = Duration::from_secs(1);

/// An agent that has just been started is waited for, and how often it is looked for.
const COMING: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(50);

/// Performs `command` with the real agent, stdout and stderr. `None`: no command for a
/// running agent. `sockets_of` tells where the agent of a configuration listens; it is called
/// only when the usual place has no agent, or when a configuration was named.
pub fn client_verb(command: &Command, sockets_of: &SocketsOf) -> Option<i32> {
    let ask = |question: &Question<'_>| {
        let search = Search {
            variable: &|name| std::env::var_os(name),
            config: question.config,
            sockets_of,
        };
        client::ask(&question.request, &search, question.limit)
    };
    let (mut out, mut err) = (io::stdout(), io::stderr());
    match command {
        Command::Events { wanted, config } => {
            if wanted.follow {
                terminal::end_with_the_reader();
            }
            let ask = |request: &Request| {
                let limit = match request {
                    Request::Events { wait: true, .. } => events::PATIENCE,
                    _ => PATIENCE,
                };
                ask(&asking(request, config.as_deref(), limit))
            };
            return Some(events::tell(*wanted, ask, &mut out, &mut err, look()));
        }
        Command::Top { sort, config } => {
            let ask = |request: &Request| ask(&asking(request, config.as_deref(), top::PATIENCE));
            return Some(top::show(*sort, ask, &mut err, look()));
        }
        _ => {}
    }
    // Often the next line of the script that has just started the agent.
    if let Command::Wait { timeout, .. } = command {
        let until = Instant::now() + COMING.min(*timeout);
        let patiently = |question: &Question<'_>| loop {
            match ask(question) {
                Err(Trouble::NoAgent(_)) if Instant::now() < until => std::thread::sleep(AGAIN),
                answer => return answer,
            }
        };
        return perform(command, patiently, &mut out, &mut err, look);
    }
    perform(command, ask, &mut out, &mut err, look)
}

fn asking<'a>(request: &Request, config: Option<&'a Path>, limit: Duration) -> Question<'a> {
    Question {
        request: request.clone(),
        config,
        limit: Some(limit),
    }
}

/// Colour only where someone looks (NO_COLOR: no-color.org), and never for `TERM=dumb`.
fn look() -> Look {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return Look::default();
    }
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let plain = set("NO_COLOR").is_some() || set("TERM").is_none_or(|term| term == "dumb");
    let width = rustix::termios::tcgetwinsize(&stdout)
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|columns| *columns > 0);
    Look {
        colour: if plain { Colour::Never } else { Colour::Ansi },
        width,
    }
}

/// As [`client_verb`], with everything given.
pub fn perform(
    command: &Command,
    ask: impl FnOnce(&Question<'_>) -> Result<Reply, Trouble>,
    out: &mut dyn Write,
    err: &mut dyn Write,
    look: impl FnOnce() -> Look,
) -> Option<i32> {
    let question = question(command)?;
    let answer = ask(&question);
    if let Command::Probe { .. } = command {
        let (healthy, reason) = verdict(answer);
        let told = say(out, &show::probe(healthy, &reason), err);
        return Some(if healthy && told { 0 } else { 1 });
    }
    let data = match answer {
        Ok(Reply { ok: true, data, .. }) => data,
        Ok(Reply { error, .. }) => {
            let error = error.unwrap_or_else(|| "the agent refused, without a reason".to_owned());
            let code = complain(err, &error);
            // What a reload is refused for is the configuration.
            return Some(match command {
                Command::Reload { .. } => 2,
                _ => code,
            });
        }
        Err(trouble) => {
            let words = match (&trouble, &question.request) {
                (
                    Trouble::Silent { limit, .. },
                    Request::Start { .. }
                    | Request::Stop { .. }
                    | Request::Restart { .. }
                    | Request::Reload { .. },
                ) => format!(
                    "not done within {} ms: the agent goes on with it, and \"agent status\" shows how far it is",
                    limit.as_millis()
                ),
                _ => trouble.to_string(),
            };
            let code = complain(err, &words);
            return Some(match trouble {
                Trouble::Configuration(_) => 2,
                Trouble::NoAgent(_) | Trouble::Silent { .. } | Trouble::Broken { .. } => code,
            });
        }
    };
    let text = match command {
        Command::Status { json: true, .. } => format!("{data:#}\n"),
        Command::Status { json: false, .. } => show::status(&data, look()),
        Command::Graph { shape, .. } => match shape {
            Shape::Page => chart::page(&data),
            Shape::Dot => chart::dot(&data),
            Shape::Json => format!("{data:#}\n"),
        },
        Command::Stacks { json: true, .. } => format!("{:#}\n", data["report"]),
        Command::Stacks { json: false, .. } => {
            let text = data["text"].as_str().unwrap_or_default();
            text.lines().map(|line| show::clean(line) + "\n").collect()
        }
        _ => show::outcome(&data),
    };
    Some(if say(out, &text, err) { 0 } else { 1 })
}

fn question(command: &Command) -> Option<Question<'_>> {
    let (request, agent, limit) = match command {
        Command::Probe {
            ready,
            services,
            timeout,
            config,
        } => {
            let request = Request::Probe {
                ready: *ready,
                services: services.clone(),
            };
            // The whole program must be done in time, not only the answer be here.
            let margin = Duration::from_millis(50).min(*timeout / 20);
            return Some(Question {
                request,
                config: config.as_deref(),
                limit: Some(*timeout - margin),
            });
        }
        Command::Status {
            services,
            pss,
            agent,
            ..
        } => {
            let request = Request::Status {
                services: services.clone(),
                pss: *pss,
            };
            (request, agent, agent.timeout.or(Some(PATIENCE)))
        }
        Command::Start {
            services,
            wait,
            agent,
        } => {
            let (services, wait) = (services.clone(), *wait);
            (Request::Start { services, wait }, agent, agent.timeout)
        }
        Command::Stop {
            services,
            wait,
            agent,
        } => {
            let (services, wait) = (services.clone(), *wait);
            (Request::Stop { services, wait }, agent, agent.timeout)
        }
        Command::Restart {
            services,
            wait,
            agent,
        } => {
            let (services, wait) = (services.clone(), *wait);
            (Request::Restart { services, wait }, agent, agent.timeout)
        }
        Command::Signal {
            signal,
            services,
            agent,
        } => {
            let request = Request::Signal {
                signal: signal.0.to_string(),
                services: services.clone(),
            };
            (request, agent, agent.timeout)
        }
        Command::Reload {
            dry_run,
            wait,
            agent,
        } => {
            let (dry_run, wait) = (*dry_run, *wait);
            (Request::Reload { dry_run, wait }, agent, agent.timeout)
        }
        Command::Detach { service, agent } => {
            let service = service.clone();
            (Request::Detach { service }, agent, agent.timeout)
        }
        Command::Stacks { service, agent, .. } => {
            let service = service.clone();
            (Request::Stacks { service }, agent, agent.timeout)
        }
        Command::Graph { agent, .. } => (Request::Graph, agent, agent.timeout.or(Some(PATIENCE))),
        Command::Wait {
            services,
            state,
            timeout,
            config,
        } => {
            let request = Request::Wait {
                services: services.clone(),
                state: *state,
                timeout_ms: Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            };
            // The agent says what is not there yet; only one that hangs is not waited for.
            return Some(Question {
                request,
                config: config.as_deref(),
                limit: Some(timeout.saturating_add(MARGIN)),
            });
        }
        Command::Shutdown { agent } => (Request::Shutdown, agent, agent.timeout),
        Command::Run { .. }
        | Command::RunCommand { .. }
        | Command::Wrapp { .. }
        | Command::Check { .. }
        | Command::Health { .. }
        | Command::Symbolize { .. }
        | Command::Core { .. }
        | Command::Logs { .. }
        | Command::Crashes { .. }
        | Command::Events { .. }
        | Command::Top { .. }
        | Command::Demo { .. }
        | Command::Init { .. }
        | Command::Version
        | Command::Help(_) => return None,
    };
    Some(Question {
        request,
        config: agent.config.as_deref(),
        limit,
    })
}

fn verdict(answer: Result<Reply, Trouble>) -> (bool, String) {
    match answer {
        Ok(Reply { ok: true, data, .. }) => match serde_json::from_value::<ProbeAnswer>(data) {
            Ok(answer) => (answer.healthy, answer.reason),
            Err(error) => (
                false,
                format!("the agent's answer is not understood: {error}"),
            ),
        },
        Ok(Reply { error, .. }) => (false, error.unwrap_or_default()),
        Err(trouble) => (false, trouble.to_string()),
    }
}

/// False when nobody reads any more, or the disk is full; only the latter is worth a word.
fn say(out: &mut dyn Write, text: &str, err: &mut dyn Write) -> bool {
    let told = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if let Err(error) = &told
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        complain(err, &format!("stdout: {error}"));
    }
    told.is_ok()
}

fn complain(err: &mut dyn Write, error: &str) -> i32 {
    // A configuration's error may show its line and point at a column.
    let lines: Vec<String> = error.lines().map(show::clean).collect();
    // A closed stderr leaves the exit code.
    let _ = writeln!(err, "agent: {}", lines.join("\n"));
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::parse;
    use serde_json::json;
    use std::ffi::OsString;

    struct Told {
        code: i32,
        out: String,
        err: String,
    }

    fn told(line: &str, answer: Result<Reply, Trouble>) -> Told {
        let argv: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let command = parse(&argv, 2).expect("a valid line");
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = perform(&command, |_| answer, &mut out, &mut err, Look::default);
        Told {
            code: code.expect("a verb for a running agent"),
            out: String::from_utf8(out).expect("UTF-8"),
            err: String::from_utf8(err).expect("UTF-8"),
        }
    }

    fn wrong_file(words: &str) -> Trouble {
        Trouble::Configuration(words.to_owned())
    }

    fn asked(line: &str) -> (String, Option<Duration>) {
        let argv: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let command = parse(&argv, 2).expect("a valid line");
        let question = question(&command).expect("a verb for a running agent");
        let request = serde_json::to_string(&question.request).expect("plain data");
        (request, question.limit)
    }

    #[test]
    fn what_is_asked() {
        let probe = |ready, millis| {
            let request = format!(r#"{{"verb":"probe","ready":{ready},"services":["a"]}}"#);
            (request, Some(Duration::from_millis(millis)))
        };
        assert_eq!(asked("agent --probe a"), probe(false, 950));
        assert_eq!(
            asked("agent --probe --ready --timeout 10s a"),
            probe(true, 9950)
        );
        for (line, request) in [
            (
                "agent stop a b",
                r#"{"verb":"stop","services":["a","b"],"wait":true}"#,
            ),
            (
                "agent restart --no-wait a",
                r#"{"verb":"restart","services":["a"],"wait":false}"#,
            ),
            (
                "agent signal HUP a",
                r#"{"verb":"signal","signal":"1","services":["a"]}"#,
            ),
            (
                "agent reload --dry-run",
                r#"{"verb":"reload","dry_run":true,"wait":true}"#,
            ),
            ("agent shutdown", r#"{"verb":"shutdown"}"#),
        ] {
            assert_eq!(asked(line), (request.to_owned(), None), "{line}");
        }
    }

    #[test]
    fn a_probe_is_one_line_whatever_happens() {
        for (answer, code, line) in [
            (Ok(json!({"healthy": true, "reason": ""})), 0, "healthy\n"),
            (
                Ok(json!({"healthy": false, "reason": "lidar is\nfailed"})),
                1,
                "unhealthy: lidar is failed\n",
            ),
            (Err("no toml"), 1, "unhealthy: no toml\n"),
        ] {
            let told = told("agent --probe", answer.map(Reply::done).map_err(wrong_file));
            assert_eq!(
                (told.code, told.out.as_str(), told.err.as_str()),
                (code, line, "")
            );
        }
        let strange = told("agent --probe", Ok(Reply::done(json!([1]))));
        assert_eq!((strange.code, strange.out.lines().count()), (1, 1));
        let refused = told(
            "agent --probe x",
            Ok(Reply::refused("no service is called x")),
        );
        assert_eq!(
            (refused.code, refused.out.as_str()),
            (1, "unhealthy: no service is called x\n")
        );
    }

    #[test]
    fn answers_on_stdout_and_trouble_on_stderr() {
        let done = told("agent stop a", Ok(Reply::done(json!("a stopped"))));
        assert_eq!(
            (done.code, done.out.as_str(), done.err.as_str()),
            (0, "a stopped\n", "")
        );
        let refused = told("agent stop a", Ok(Reply::refused("no service is called a")));
        assert_eq!(
            (refused.code, refused.out.as_str(), refused.err.as_str()),
            (1, "", "agent: no service is called a\n")
        );
        let absent = told("agent status", Err(Trouble::NoAgent(vec![])));
        assert_eq!(
            (absent.code, absent.err.as_str()),
            (1, "agent: no agent is running: looked at \n")
        );
        let wrong = told(
            "agent status --config x",
            Err(wrong_file("x: no such file")),
        );
        assert_eq!(
            (wrong.code, wrong.err.as_str()),
            (2, "agent: x: no such file\n")
        );
        let json = told(
            "agent status --json",
            Ok(Reply::done(json!({"services": []}))),
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&json.out).ok(),
            Some(json!({"services": []}))
        );
    }

    #[test]
    fn nobody_reads() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let command = parse(&["agent".into(), "status".into()], 2).expect("valid");
        let answer = |_: &Question<'_>| Ok(Reply::done(json!({})));
        let code = perform(&command, answer, &mut Closed, &mut Closed, Look::default);
        assert_eq!(code, Some(1));
    }
}
