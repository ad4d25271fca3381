//! What may be typed: one table for parsing, help and suggestions.

/// Every verb of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    Run,
    Wrapp,
    Check,
    Probe,
    Health,
    Status,
    Start,
    Stop,
    Restart,
    Signal,
    Reload,
    Detach,
    Shutdown,
    Graph,
    Init,
    Stacks,
    Crashes,
    Logs,
    Symbolize,
    Events,
    Wait,
    Top,
    Demo,
}

/// Under which heading the help lists a verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Supervise,
    Look,
    Change,
    Other,
}

impl Group {
    pub const ALL: [Group; 4] = [Group::Supervise, Group::Look, Group::Change, Group::Other];

    pub fn title(self) -> &'static str {
        match self {
            Group::Supervise => "Supervise",
            Group::Look => "Look",
            Group::Change => "Change",
            Group::Other => "Other",
        }
    }
}

#[derive(Debug)]
pub struct Verb {
    pub name: Name,
    pub word: &'static str,
    pub group: Group,
    /// What follows the word, one line for each form.
    pub usage: &'static [&'static str],
    pub summary: &'static str,
    pub flags: &'static [Flag],
    pub words: Words,
    /// Below the flags in the verb's own help.
    pub more: &'static str,
}

#[derive(Debug)]
pub struct Flag {
    pub long: &'static str,
    /// What its value is called; `None` for a flag without one.
    pub value: Option<&'static str>,
    pub help: &'static str,
}

/// What may stand beside the flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    None,
    /// A command after `--`.
    Command,
    /// A path, at most.
    Path,
    /// Programs.
    Programs,
    /// Services: none means all, or the agent as a whole.
    Services,
    /// At least one service.
    SomeServices,
    /// A signal, then at least one service.
    SignalAndServices,
    /// The verb reads them itself, flags and all.
    Own,
}

const CONFIG: Flag = Flag {
    long: "--config",
    value: Some("PATH"),
    help: "configuration (default: $AGENT_CONFIG, else /etc/agent/agent.toml)",
};
const CONFIG_OF: Flag = Flag {
    long: "--config",
    value: Some("PATH"),
    help: "ask the agent that runs with this configuration",
};
const NO_WAIT: Flag = Flag {
    long: "--no-wait",
    value: None,
    help: "return at once, not when it has happened",
};
const TIMEOUT: Flag = Flag {
    long: "--timeout",
    value: Some("TIME"),
    help: "wait no longer than this for the agent's answer (\"500ms\", \"10s\")",
};

pub const VERBS: &[Verb] = &[
    Verb {
        name: Name::Run,
        word: "run",
        group: Group::Supervise,
        usage: &[
            "[--config PATH]",
            "[--redis URL] [--name NAME] [--restart WHEN] -- COMMAND [ARG…]",
        ],
        summary: "supervise every service of the configuration, or one command",
        flags: &[
            CONFIG,
            Flag {
                long: "--redis",
                value: Some("URL"),
                help: "Redis for the one command: redis://host:port, unix:///path",
            },
            Flag {
                long: "--name",
                value: Some("NAME"),
                help: "name of the one command (default: its base name)",
            },
            Flag {
                long: "--restart",
                value: Some("WHEN"),
                help: "the one command: always, on-failure (default), never",
            },
        ],
        words: Words::Command,
        more: "Stays in the foreground. TERM or INT stops everything in order, HUP reloads.\n\
               Exit code 0 after an ordered shutdown, 2 when the configuration is wrong.\n\
               \n\
               With neither a file nor a command, an executable /etc/agent/run is the one command.\n\
               One command that succeeds is done. One that fails is started again, but the third\n\
               failure within a minute is its last. Then the agent ends with the command's exit\n\
               code: 128 + signal, 127 where there is no such program.\n",
    },
    Verb {
        name: Name::Wrapp,
        word: "wrapp",
        group: Group::Supervise,
        usage: &["CONFIG"],
        summary: "wrap one application as its configuration file says",
        flags: &[],
        words: Words::Own,
        more: "The drop-in for wrapp; also the behaviour when started under that name.\n\
               Exits with the application's code, 128 + signal where a signal ended it.\n",
    },
    Verb {
        name: Name::Check,
        word: "check",
        group: Group::Supervise,
        usage: &["[--config PATH]"],
        summary: "validate a configuration and start nothing",
        flags: &[CONFIG],
        words: Words::Path,
        more: "Exit code 0 when it is valid, 2 when it is not.\n",
    },
    Verb {
        name: Name::Init,
        word: "init",
        group: Group::Supervise,
        usage: &["PROGRAM…"],
        summary: "print a commented configuration to begin with",
        flags: &[],
        words: Words::Programs,
        more: "PROGRAM is a path, a name on PATH, or a command line in quotes:\n\
               agent init ./server \"redis-server --port 6380\" > agent.toml\n",
    },
    Verb {
        name: Name::Probe,
        word: "--probe",
        group: Group::Look,
        usage: &["[--ready] [SERVICE…]"],
        summary: "healthy? one line, exit 0 or 1, for HEALTHCHECK and scripts",
        flags: &[
            Flag {
                long: "--ready",
                value: None,
                help: "also every service ready or done, and Redis connected",
            },
            Flag {
                long: "--timeout",
                value: Some("TIME"),
                help: "answer within this time (default: 1s)",
            },
            CONFIG_OF,
        ],
        words: Words::Services,
        more: "Without names: every critical service. With names: exactly these.\n",
    },
    Verb {
        name: Name::Status,
        word: "status",
        group: Group::Look,
        usage: &["[--json] [SERVICE…]"],
        summary: "services, their states, processes and health",
        flags: &[
            Flag {
                long: "--json",
                value: None,
                help: "for programs",
            },
            Flag {
                long: "--pss",
                value: None,
                help: "also each process' proportional share of memory",
            },
            TIMEOUT,
            CONFIG_OF,
        ],
        words: Words::Services,
        more: "",
    },
    Verb {
        name: Name::Top,
        word: "top",
        group: Group::Look,
        usage: &["[--sort KEY]"],
        summary: "live full-screen view; q leaves it",
        flags: &[
            Flag {
                long: "--sort",
                value: Some("KEY"),
                help: "name (default), state, cpu, memory, lines or health",
            },
            CONFIG_OF,
        ],
        words: Words::None,
        more: "Keys: q leaves, s n c m l h sort, arrows and Page Up/Down scroll.\n\
               Where stdout is no terminal it prints one view and ends.\n",
    },
    Verb {
        name: Name::Events,
        word: "events",
        group: Group::Look,
        usage: &["[-f] [--json]"],
        summary: "changes of state and health, as they happen",
        flags: &[
            Flag {
                long: "-f",
                value: None,
                help: "go on until the agent ends",
            },
            Flag {
                long: "--follow",
                value: None,
                help: "the same",
            },
            Flag {
                long: "--json",
                value: None,
                help: "one JSON object a line",
            },
            CONFIG_OF,
        ],
        words: Words::None,
        more: "Begins with the last thousand that the agent keeps.\n",
    },
    Verb {
        name: Name::Wait,
        word: "wait",
        group: Group::Look,
        usage: &["SERVICE… --state STATE [--timeout TIME]"],
        summary: "return when all services have reached a state",
        flags: &[
            Flag {
                long: "--state",
                value: Some("STATE"),
                help: "waiting, starting, ready, stopping, stopped, backoff, failed or done",
            },
            Flag {
                long: "--timeout",
                value: Some("TIME"),
                help: "give up after this time (default: 30s)",
            },
            CONFIG_OF,
        ],
        words: Words::SomeServices,
        more: "Each has to be there once. Exit code 0 when all were, 1 when the time is over.\n",
    },
    Verb {
        name: Name::Health,
        word: "health",
        group: Group::Look,
        usage: &["[--config FILE] SERVICE:CATEGORY…"],
        summary: "health pools from Redis, as JSON",
        flags: &[],
        words: Words::Own,
        more: "The drop-in for jettison_health; also the behaviour when started under that name.\n",
    },
    Verb {
        name: Name::Start,
        word: "start",
        group: Group::Change,
        usage: &["SERVICE…"],
        summary: "start services",
        flags: &[NO_WAIT, TIMEOUT, CONFIG_OF],
        words: Words::SomeServices,
        more: "",
    },
    Verb {
        name: Name::Stop,
        word: "stop",
        group: Group::Change,
        usage: &["SERVICE…"],
        summary: "stop services, with everything they started",
        flags: &[NO_WAIT, TIMEOUT, CONFIG_OF],
        words: Words::SomeServices,
        more: "",
    },
    Verb {
        name: Name::Restart,
        word: "restart",
        group: Group::Change,
        usage: &["SERVICE…"],
        summary: "stop services, then start them",
        flags: &[NO_WAIT, TIMEOUT, CONFIG_OF],
        words: Words::SomeServices,
        more: "",
    },
    Verb {
        name: Name::Signal,
        word: "signal",
        group: Group::Change,
        usage: &["SIGNAL SERVICE…"],
        summary: "send a signal to services' main processes",
        flags: &[TIMEOUT, CONFIG_OF],
        words: Words::SignalAndServices,
        more: "SIGNAL is a name or a number: HUP, SIGUSR1, 10.\n",
    },
    Verb {
        name: Name::Reload,
        word: "reload",
        group: Group::Change,
        usage: &["[--dry-run]"],
        summary: "read the configuration again; restart only what changed",
        flags: &[
            Flag {
                long: "--dry-run",
                value: None,
                help: "only say what would change",
            },
            NO_WAIT,
            TIMEOUT,
            CONFIG_OF,
        ],
        words: Words::None,
        more: "",
    },
    Verb {
        name: Name::Detach,
        word: "detach",
        group: Group::Change,
        usage: &["SERVICE"],
        summary: "stop tracing a service, so that gdb or strace may attach",
        flags: &[TIMEOUT, CONFIG_OF],
        words: Words::SomeServices,
        more: "Until its next start a crash of it goes unexplained.\n",
    },
    Verb {
        name: Name::Stacks,
        word: "stacks",
        group: Group::Look,
        usage: &["[--json] SERVICE"],
        summary: "all threads of a running service, now",
        flags: &[
            Flag {
                long: "--json",
                value: None,
                help: "print the whole report",
            },
            TIMEOUT,
            CONFIG_OF,
        ],
        words: Words::SomeServices,
        more: "The service stands still for about a millisecond.\n",
    },
    Verb {
        name: Name::Logs,
        word: "logs",
        group: Group::Look,
        usage: &["[-f] [-n N] [--source stdout|stderr] [--config PATH] [SERVICE…]"],
        summary: "what services wrote: the last lines, and with -f what follows",
        flags: &[
            Flag {
                long: "-f",
                value: None,
                help: "go on with what follows, until Ctrl-C (also --follow)",
            },
            Flag {
                long: "-n",
                value: Some("N"),
                help: "so many lines of the past (default: 100; also --lines)",
            },
            Flag {
                long: "--source",
                value: Some("SOURCE"),
                help: "stdout or stderr only",
            },
            CONFIG,
        ],
        words: Words::Own,
        more: "Reads Redis. Where Redis is away, what waits in the journal is shown, and the exit\n\
               code is 1.\n",
    },
    Verb {
        name: Name::Graph,
        word: "graph",
        group: Group::Look,
        usage: &["[--dot | --json]"],
        summary: "who waits for whom, and what the last start took",
        flags: &[
            Flag {
                long: "--dot",
                value: None,
                help: "a graph for dot(1): agent graph --dot | dot -Tsvg > graph.svg",
            },
            Flag {
                long: "--json",
                value: None,
                help: "for programs",
            },
            TIMEOUT,
            CONFIG_OF,
        ],
        words: Words::None,
        more: "Of each service: from its start to its readiness, and how long it waited before. The last\n\
               line is the critical path: what was ready last, what that had waited for, and so on.\n",
    },
    Verb {
        name: Name::Crashes,
        word: "crashes",
        group: Group::Look,
        usage: &[
            "[list] [--json] [--config PATH]",
            "show ID [--json] [--config PATH]",
            "export ID DIR [--config PATH]",
        ],
        summary: "crash records on this machine: list, show, copy",
        flags: &[],
        words: Words::Own,
        more: "ID may be shortened to its end or its beginning, and `last` is the latest.\nEach record holds a core file that gdb opens.\n\
               The running agent tells where they are; without one, or with --config, the configuration does.\n",
    },
    Verb {
        name: Name::Shutdown,
        word: "shutdown",
        group: Group::Change,
        usage: &[""],
        summary: "stop every service in order, then the agent",
        flags: &[TIMEOUT, CONFIG_OF],
        words: Words::None,
        more: "",
    },
    Verb {
        name: Name::Symbolize,
        word: "symbolize",
        group: Group::Other,
        usage: &["CORE [--executable PATH] [--debug-dir DIR]… [--sysroot DIR] [--json]"],
        summary: "explain a core file: threads, functions, lines",
        flags: &[],
        words: Words::Own,
        more: "",
    },
    Verb {
        name: Name::Demo,
        word: "demo",
        group: Group::Other,
        usage: &[""],
        summary: "a self-contained demonstration on this machine",
        flags: &[],
        words: Words::Own,
        more: "",
    },
];

/// Promised for a later version: named, so that nobody takes them for a slip.
pub const LATER: &[&str] = &["upgrade"];

pub fn find(word: &str) -> Option<&'static Verb> {
    VERBS.iter().find(|verb| verb.word == word)
}
