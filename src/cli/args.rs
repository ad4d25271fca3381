//! argv → a command, or what is wrong with it.
//!
//! Total: any argv, also one that is not text, gives a command or one clear sentence. The
//! base name of argv[0] decides first (CONTRACTS section 1): `wrapp` and `jettison_health`
//! take all their arguments as the tools of that name did.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::events::Wanted;
use super::gather::{Given, gather, text};
use super::help;
use super::screen::Sort;
use super::show::clean;
use super::verbs::{self, LATER, Name, VERBS, Verb, Words};
use crate::config::Restart;
use crate::handoff::State;
use crate::nearest::nearest;
use crate::service::Signal;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Run {
        config: Option<PathBuf>,
    },
    RunCommand {
        redis: Option<String>,
        name: Option<String>,
        restart: Option<Restart>,
        /// At least the program.
        argv: Vec<OsString>,
    },
    /// Its arguments as they stand: anything but one is its own usage error.
    Wrapp {
        args: Vec<OsString>,
    },
    Check {
        config: Option<PathBuf>,
    },
    Probe {
        ready: bool,
        services: Vec<String>,
        timeout: Duration,
        config: Option<PathBuf>,
    },
    /// Its arguments as they stand.
    Health {
        args: Vec<OsString>,
    },
    Status {
        json: bool,
        pss: bool,
        services: Vec<String>,
        agent: Whom,
    },
    Events {
        wanted: Wanted,
        config: Option<PathBuf>,
    },
    Wait {
        services: Vec<String>,
        state: State,
        timeout: Duration,
        config: Option<PathBuf>,
    },
    Top {
        sort: Sort,
        config: Option<PathBuf>,
    },
    Start {
        services: Vec<String>,
        wait: bool,
        agent: Whom,
    },
    Stop {
        services: Vec<String>,
        wait: bool,
        agent: Whom,
    },
    Restart {
        services: Vec<String>,
        wait: bool,
        agent: Whom,
    },
    Signal {
        signal: Signal,
        services: Vec<String>,
        agent: Whom,
    },
    Reload {
        dry_run: bool,
        wait: bool,
        agent: Whom,
    },
    Detach {
        service: String,
        agent: Whom,
    },
    Stacks {
        json: bool,
        service: String,
        agent: Whom,
    },
    Graph {
        shape: Shape,
        agent: Whom,
    },
    /// Programs, each a word or a command line.
    Init {
        programs: Vec<String>,
    },
    Shutdown {
        agent: Whom,
    },
    /// Its arguments as they stand.
    Logs {
        args: Vec<OsString>,
    },
    /// Its arguments as they stand.
    Crashes {
        args: Vec<OsString>,
    },
    /// Its arguments as they stand.
    Symbolize {
        args: Vec<OsString>,
    },
    /// Called by the kernel, and in no help: its arguments as they stand.
    Core {
        args: Vec<OsString>,
    },
    /// Its arguments as they stand.
    Demo {
        args: Vec<OsString>,
    },
    Version,
    /// For stdout; exit code 0.
    Help(String),
}

/// How the graph is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Page,
    /// For dot(1).
    Dot,
    Json,
}

/// Which agent is asked, and for how long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whom {
    pub config: Option<PathBuf>,
    pub timeout: Option<Duration>,
}

/// Nothing is done; exit code 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing was asked: the help, for stderr.
    Nothing(String),
    /// One sentence, for stderr after `agent: `.
    Wrong(String),
}

const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// `pid` is our own: as PID 1 `agent` alone means `agent run`.
pub fn parse(argv: &[OsString], pid: u32) -> Result<Command, Refusal> {
    let (started_as, rest) = match argv.split_first() {
        Some((first, rest)) => (Path::new(first).file_name(), rest),
        None => (None, argv),
    };
    let args = || rest.to_vec();
    match started_as.and_then(OsStr::to_str) {
        Some("wrapp") => return Ok(Command::Wrapp { args: args() }),
        Some("jettison_health") => return Ok(Command::Health { args: args() }),
        Some(_) | None => {}
    }
    let Some((first, after)) = rest.split_first() else {
        return match pid {
            1 => Ok(Command::Run { config: None }),
            _ => Err(Refusal::Nothing(help::all())),
        };
    };
    let word = first.to_string_lossy();
    match word.as_ref() {
        "--help" | "-h" => return Ok(Command::Help(help::all())),
        "--version" | "-V" => return Ok(Command::Version),
        "help" => return help_on(after),
        "core" => {
            return Ok(Command::Core {
                args: after.to_vec(),
            });
        }
        _ => {}
    }
    if let Some(verb) = verbs::find(&word) {
        return of_verb(verb, after);
    }
    // `agent --ready --probe` asks the same.
    let flags = rest.iter().take_while(|arg| *arg != "--");
    if word.starts_with('-')
        && let Some(at) = flags.into_iter().position(|arg| arg == "--probe")
        && let Some(probe) = verbs::find("--probe")
    {
        let others: Vec<OsString> = [&rest[..at], &rest[at + 1..]].concat();
        return of_verb(probe, &others);
    }
    Err(Refusal::Wrong(unknown_verb(&word)))
}

fn help_on(words: &[OsString]) -> Result<Command, Refusal> {
    let Some(word) = words.first() else {
        return Ok(Command::Help(help::all()));
    };
    let word = word.to_string_lossy();
    match verbs::find(&word) {
        Some(verb) => Ok(Command::Help(help::one(verb))),
        None => Err(Refusal::Wrong(unknown_verb(&word))),
    }
}

fn unknown_verb(word: &str) -> String {
    if LATER.contains(&word) {
        return format!("{word}: not in this version");
    }
    let others = ["--help", "--version"];
    let words = VERBS.iter().map(|verb| verb.word).chain(others);
    let what = if word.starts_with('-') {
        "option"
    } else {
        "verb"
    };
    let hint = match nearest(word, words) {
        Some(meant) => format!("did you mean {meant}?"),
        None if word == "probe" => "did you mean --probe?".to_owned(),
        None => "agent --help lists them".to_owned(),
    };
    format!("unknown {what} {word:?}; {hint}")
}

fn of_verb(verb: &'static Verb, args: &[OsString]) -> Result<Command, Refusal> {
    let asks_help = |arg: &OsString| arg == "--help" || arg == "-h";
    // `agent health -h` keeps the old tool's answer.
    let own_help = verb.name == Name::Health;
    if verb.words == Words::Own {
        return match args.first() {
            Some(first) if asks_help(first) && !own_help => Ok(Command::Help(help::one(verb))),
            Some(_) | None => Ok(own_arguments(verb.name, args.to_vec())),
        };
    }
    let before_dashes = args.iter().take_while(|arg| *arg != "--");
    if before_dashes.into_iter().any(asks_help) {
        return Ok(Command::Help(help::one(verb)));
    }
    gather(verb, args)
        .and_then(command)
        .map_err(|wrong| Refusal::Wrong(clean(&format!("{}: {wrong}", verb.word))))
}

fn own_arguments(name: Name, args: Vec<OsString>) -> Command {
    match name {
        Name::Wrapp => Command::Wrapp { args },
        Name::Symbolize => Command::Symbolize { args },
        Name::Crashes => Command::Crashes { args },
        Name::Logs => Command::Logs { args },
        Name::Demo => Command::Demo { args },
        Name::Health
        | Name::Run
        | Name::Check
        | Name::Probe
        | Name::Status
        | Name::Start
        | Name::Stop
        | Name::Restart
        | Name::Signal
        | Name::Reload
        | Name::Detach
        | Name::Stacks
        | Name::Graph
        | Name::Init
        | Name::Events
        | Name::Wait
        | Name::Top
        | Name::Shutdown => Command::Health { args },
    }
}

fn command(given: Given) -> Result<Command, String> {
    let wait = !given.has("--no-wait");
    Ok(match given.verb.name {
        Name::Run => return run(&given),
        Name::Check => Command::Check {
            config: checked(&given)?,
        },
        Name::Probe => Command::Probe {
            ready: given.has("--ready"),
            services: given.services()?,
            timeout: given.timeout()?.unwrap_or(PROBE_TIMEOUT),
            config: given.path("--config")?,
        },
        Name::Status => Command::Status {
            json: given.has("--json"),
            pss: given.has("--pss"),
            services: given.services()?,
            agent: given.whom()?,
        },
        Name::Events => {
            given.no_words()?;
            Command::Events {
                wanted: Wanted {
                    follow: given.has("-f") || given.has("--follow"),
                    json: given.has("--json"),
                },
                config: given.path("--config")?,
            }
        }
        Name::Wait => Command::Wait {
            services: given.some_services()?,
            state: state(&given)?,
            timeout: given.timeout()?.unwrap_or(WAIT_TIMEOUT),
            config: given.path("--config")?,
        },
        Name::Top => {
            given.no_words()?;
            Command::Top {
                sort: sort(&given)?,
                config: given.path("--config")?,
            }
        }
        Name::Start => Command::Start {
            services: given.some_services()?,
            wait,
            agent: given.whom()?,
        },
        Name::Stop => Command::Stop {
            services: given.some_services()?,
            wait,
            agent: given.whom()?,
        },
        Name::Restart => Command::Restart {
            services: given.some_services()?,
            wait,
            agent: given.whom()?,
        },
        Name::Signal => return signal(&given),
        Name::Reload => {
            given.no_words()?;
            Command::Reload {
                dry_run: given.has("--dry-run"),
                wait,
                agent: given.whom()?,
            }
        }
        Name::Detach => Command::Detach {
            service: one_service(&given)?,
            agent: given.whom()?,
        },
        Name::Stacks => Command::Stacks {
            json: given.has("--json"),
            service: one_service(&given)?,
            agent: given.whom()?,
        },
        Name::Graph => {
            given.no_words()?;
            let shape = match (given.has("--dot"), given.has("--json")) {
                (true, true) => return Err("--dot and --json exclude each other".to_owned()),
                (true, false) => Shape::Dot,
                (false, true) => Shape::Json,
                (false, false) => Shape::Page,
            };
            Command::Graph {
                shape,
                agent: given.whom()?,
            }
        }
        Name::Init => {
            let programs = given.words.iter().map(|word| text(word));
            let programs = programs.collect::<Result<Vec<_>, _>>()?;
            if programs.is_empty() {
                return Err("names no program; agent init PROGRAM…".to_owned());
            }
            Command::Init { programs }
        }
        Name::Shutdown => {
            given.no_words()?;
            Command::Shutdown {
                agent: given.whom()?,
            }
        }
        Name::Wrapp | Name::Health | Name::Symbolize | Name::Crashes | Name::Logs | Name::Demo => {
            own_arguments(given.verb.name, given.words)
        }
    })
}

fn state(given: &Given) -> Result<State, String> {
    let names = || State::ALL.into_iter().map(State::as_str);
    let Some(word) = given.text("--state")? else {
        let all: Vec<&str> = names().collect();
        return Err(format!("names no state; --state {}", all.join("|")));
    };
    let state = State::ALL.into_iter().find(|state| state.as_str() == word);
    state.ok_or_else(|| match nearest(&word, names()) {
        Some(meant) => format!("unknown state {word:?}; did you mean {meant}?"),
        None => format!("unknown state {word:?}; agent wait --help lists them"),
    })
}

fn sort(given: &Given) -> Result<Sort, String> {
    let Some(word) = given.text("--sort")? else {
        return Ok(Sort::Name);
    };
    let names = || Sort::ALL.into_iter().map(Sort::as_str);
    let found = Sort::ALL.into_iter().find(|sort| sort.as_str() == word);
    found.ok_or_else(|| match nearest(&word, names()) {
        Some(meant) => format!("cannot sort by {word:?}; did you mean {meant}?"),
        None => format!("cannot sort by {word:?}; agent top --help lists the keys"),
    })
}

fn one_service(given: &Given) -> Result<String, String> {
    let mut services = given.some_services()?;
    match (services.pop(), services.is_empty()) {
        (Some(service), true) => Ok(service),
        (_, _) => Err("names more than one service".to_owned()),
    }
}

fn run(given: &Given) -> Result<Command, String> {
    if let Some(word) = given.words.first() {
        return Err(format!(
            "unexpected word {word:?}; a command goes after \"--\": agent run -- {}",
            word.to_string_lossy()
        ));
    }
    let config = given.path("--config")?;
    let Some(argv) = given.command.clone() else {
        let of_command = ["--redis", "--name", "--restart"];
        return match of_command.into_iter().find(|flag| given.has(flag)) {
            Some(flag) => Err(format!("{flag} goes with a command: agent run -- COMMAND")),
            None => Ok(Command::Run { config }),
        };
    };
    if argv.is_empty() {
        return Err("no command after \"--\"".to_owned());
    }
    if config.is_some() {
        return Err("--config and a command after \"--\" exclude each other".to_owned());
    }
    Ok(Command::RunCommand {
        redis: given.text("--redis")?,
        name: given.text("--name")?,
        restart: given
            .text("--restart")?
            .map(|when| restart(&when))
            .transpose()?,
        argv,
    })
}

fn restart(when: &str) -> Result<Restart, String> {
    match when {
        "always" => Ok(Restart::Always),
        "on-failure" => Ok(Restart::OnFailure),
        "never" => Ok(Restart::Never),
        _ => Err(format!("--restart {when:?}: always, on-failure or never")),
    }
}

/// `agent check FILE` is what many will type.
fn checked(given: &Given) -> Result<Option<PathBuf>, String> {
    match (given.path("--config")?, given.words.as_slice()) {
        (config, []) => Ok(config),
        (None, [path]) => Ok(Some(PathBuf::from(path))),
        (None, [_, word, ..]) | (Some(_), [word, ..]) => Err(format!("unexpected word {word:?}")),
    }
}

fn signal(given: &Given) -> Result<Command, String> {
    let Some((first, names)) = given.words.split_first() else {
        return Err("names no signal; agent signal SIGNAL SERVICE…".to_owned());
    };
    let word = text(first)?;
    let Some(signal) = Signal::parse(&word) else {
        let upper = word.to_uppercase();
        let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
        return Err(match nearest(bare, Signal::names()) {
            Some(meant) => format!("unknown signal {word:?}; did you mean {meant}?"),
            None => format!("unknown signal {word:?}"),
        });
    };
    let services = given.names(names)?;
    if services.is_empty() {
        return Err("names no service; agent signal SIGNAL SERVICE…".to_owned());
    }
    Ok(Command::Signal {
        signal,
        services,
        agent: given.whom()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    fn typed(line: &str) -> Result<Command, Refusal> {
        parse(&words(line), 4242)
    }

    fn wrong(line: &str) -> String {
        match typed(line) {
            Err(Refusal::Wrong(sentence)) => sentence,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_base_name_decides_first() {
        let args = words("a --help -x");
        assert_eq!(
            typed("/usr/bin/wrapp a --help -x"),
            Ok(Command::Wrapp { args: args.clone() })
        );
        assert_eq!(
            typed("jettison_health a --help -x"),
            Ok(Command::Health { args: args.clone() })
        );
        assert_eq!(
            typed("./agent wrapp a --help -x"),
            Ok(Command::Wrapp { args: args.clone() })
        );
        assert_eq!(
            typed("renamed health a --help -x"),
            Ok(Command::Health { args })
        );
        assert_eq!(
            typed("agent health -h"),
            Ok(Command::Health { args: words("-h") })
        );
    }

    #[test]
    fn alone_it_runs_as_pid_1_and_explains_itself_elsewhere() {
        assert_eq!(parse(&words("agent"), 1), Ok(Command::Run { config: None }));
        assert!(matches!(typed("agent"), Err(Refusal::Nothing(_))));
        assert!(matches!(parse(&[], 7), Err(Refusal::Nothing(_))));
        assert_eq!(
            parse(&words("wrapp"), 1),
            Ok(Command::Wrapp { args: vec![] })
        );
    }

    #[test]
    fn every_verb() {
        let config = Some(PathBuf::from("/x.toml"));
        assert_eq!(typed("agent run"), Ok(Command::Run { config: None }));
        assert_eq!(
            typed("agent run --config /x.toml"),
            Ok(Command::Run {
                config: config.clone()
            })
        );
        assert_eq!(
            typed(
                "agent run --redis redis://h:1 --name=web --restart never -- ./srv --config y -- z"
            ),
            Ok(Command::RunCommand {
                redis: Some("redis://h:1".into()),
                name: Some("web".into()),
                restart: Some(Restart::Never),
                argv: words("./srv --config y -- z"),
            })
        );
        assert_eq!(
            typed("agent check --config=/x.toml"),
            Ok(Command::Check {
                config: config.clone()
            })
        );
        assert_eq!(
            typed("agent check /x.toml"),
            Ok(Command::Check {
                config: config.clone()
            })
        );
        assert_eq!(
            typed("agent status --json a b"),
            Ok(Command::Status {
                json: true,
                pss: false,
                services: names(&["a", "b"]),
                agent: Whom::default()
            })
        );
        assert_eq!(
            typed("agent stop a --no-wait --timeout 5m --config /x.toml"),
            Ok(Command::Stop {
                services: names(&["a"]),
                wait: false,
                agent: Whom {
                    config,
                    timeout: Some(Duration::from_secs(300))
                },
            })
        );
        assert_eq!(
            typed("agent signal sighup a -- --b"),
            Ok(Command::Signal {
                signal: Signal::HUP,
                services: names(&["a", "--b"]),
                agent: Whom::default()
            })
        );
        assert_eq!(
            typed("agent reload --dry-run"),
            Ok(Command::Reload {
                dry_run: true,
                wait: true,
                agent: Whom::default()
            })
        );
        assert_eq!(
            typed("agent shutdown"),
            Ok(Command::Shutdown {
                agent: Whom::default()
            })
        );
        assert_eq!(
            typed("agent symbolize core --json --debug-dir x"),
            Ok(Command::Symbolize {
                args: words("core --json --debug-dir x")
            })
        );
        assert_eq!(typed("agent demo"), Ok(Command::Demo { args: vec![] }));
        assert_eq!(typed("agent --version"), Ok(Command::Version));
        for line in [
            "agent --help",
            "agent help",
            "agent -h",
            "agent stop -h",
            "agent run --help -- x",
            "agent help stop",
            "agent symbolize --help",
        ] {
            assert!(matches!(typed(line), Ok(Command::Help(_))), "{line}");
        }
    }

    #[test]
    fn probes() {
        let probe = |ready, services: &[&str], milliseconds| {
            Ok(Command::Probe {
                ready,
                services: names(services),
                timeout: Duration::from_millis(milliseconds),
                config: None,
            })
        };
        assert_eq!(typed("agent --probe"), probe(false, &[], 1000));
        assert_eq!(
            typed("agent --probe --ready a b"),
            probe(true, &["a", "b"], 1000)
        );
        assert_eq!(typed("agent --ready --probe a"), probe(true, &["a"], 1000));
        assert_eq!(
            typed("agent --probe --timeout=250ms"),
            probe(false, &[], 250)
        );
        assert_eq!(typed("agent --timeout 2 --probe"), probe(false, &[], 2000));
    }

    #[test]
    fn mistakes_are_one_sentence_with_the_nearest_valid_word() {
        for (line, part) in [
            ("agent stat", "did you mean status?"),
            ("agent --prob", "did you mean --probe?"),
            ("agent probe", "did you mean --probe?"),
            (
                "agent xyzzy",
                "unknown verb \"xyzzy\"; agent --help lists them",
            ),
            ("agent status --jsn", "did you mean --json?"),
            ("agent start", "names no service"),
            ("agent signal FOO a", "unknown signal \"FOO\""),
            ("agent signal SIGHPU a", "did you mean HUP?"),
            ("agent signal HUP", "names no service"),
            ("agent run lidar", "agent run -- lidar"),
            ("agent run --", "no command"),
            (
                "agent run --config",
                "--config needs a value: --config PATH",
            ),
            ("agent run --config x -- y", "exclude each other"),
            ("agent run --name x", "goes with a command"),
            ("agent --probe --timeout soon", "\"soon\" is not a time"),
            ("agent --probe --timeout 0", "is not a time"),
            ("agent --probe --ready=1", "takes no value"),
            ("agent reload x", "unexpected word \"x\""),
            ("agent upgrade", "not in this version"),
        ] {
            let sentence = wrong(line);
            assert!(sentence.contains(part), "{line}: {sentence}");
            assert!(!sentence.contains('\n'), "{line}: {sentence}");
        }
    }

    /// xorshift64*: repeatable, and enough to reach every branch.
    struct Dice(u64);
    impl Dice {
        fn below(&mut self, n: usize) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
        }
    }

    #[test]
    fn no_argv_is_too_strange() {
        use std::os::unix::ffi::OsStringExt;
        let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
        let mut vocabulary: Vec<Vec<u8>> = VERBS
            .iter()
            .flat_map(|verb| {
                std::iter::once(verb.word).chain(verb.flags.iter().map(|flag| flag.long))
            })
            .chain([
                "--",
                "-",
                "",
                "=",
                "--=",
                "-h",
                "--help",
                "1e999",
                "-1",
                "5s",
                "HUP",
                "--timeout=",
                "--timeout=NaN",
            ])
            .map(|word| word.as_bytes().to_vec())
            .collect();
        vocabulary.push(b"\xff\xfe".to_vec());
        vocabulary.push(b"--config=\xff".to_vec());
        vocabulary.push("…ẞ🦀".as_bytes().to_vec());
        for _ in 0..30_000 {
            let argv: Vec<OsString> = (0..dice.below(7))
                .map(|_| {
                    let mut word = vocabulary[dice.below(vocabulary.len())].clone();
                    if dice.below(8) == 0 && !word.is_empty() {
                        let at = dice.below(word.len());
                        word[at] = dice.below(255) as u8 + 1;
                    }
                    OsString::from_vec(word)
                })
                .collect();
            if let Err(Refusal::Wrong(sentence)) = parse(&argv, dice.below(3) as u32) {
                assert!(!sentence.is_empty() && !sentence.contains('\n'), "{argv:?}");
            }
        }
    }

    #[test]
    fn paths_keep_their_bytes() {
        use std::os::unix::ffi::OsStringExt;
        let argv = [
            b"agent".to_vec(),
            b"check".to_vec(),
            b"--config=/\xff=".to_vec(),
        ];
        let argv: Vec<OsString> = argv.into_iter().map(OsString::from_vec).collect();
        let expected = PathBuf::from(OsString::from_vec(b"/\xff=".to_vec()));
        assert_eq!(
            parse(&argv, 2),
            Ok(Command::Check {
                config: Some(expected)
            })
        );
    }
}
