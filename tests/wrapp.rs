//! `wrapp` replaced: what it promised, on the real binary and a real redis-server.

mod support;
#[path = "support/wrapp.rs"]
mod wrapp;

use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use support::{Entry, RedisServer, eventually};
use wrapp::{AGENT, Place, expiry, lines, lives, make_executable, start, stream, texts, value};

/// A run marker without its time.
fn marker(message: &str) -> String {
    let rest = message.strip_prefix("{{__").expect("a marker");
    let rest = rest.strip_suffix("}}").expect("a marker");
    let digits = |c: char| c.is_ascii_digit() || c == '-' || c == '_';
    match rest.split_once("_RUN_") {
        Some((what, time)) => format!("{what} {}", time.trim_start_matches(digits)),
        None => rest.to_owned(),
    }
}

#[test]
fn a_run_with_its_streams_values_words_and_exit_code() {
    let server = RedisServer::start(&[]);
    let script = "echo '  one {{count}}'; echo two >&2; echo '{{value:007}}'; exit 3";
    let mut wrapp = start(Some(&server), script);
    assert_eq!(wrapp.code(), Some(3));
    assert_eq!(
        wrapp.stdout(),
        "Connected to Redis.\nExecutable exited with code 3.\n"
    );
    let stderr = wrapp.stderr();
    let last = "Error running executable: executable exited with non-zero code: 3\n";
    assert!(stderr.ends_with(last), "{stderr}");

    let info = stream(&server, "info");
    assert_eq!(marker(&info[0].message()), "NEW ");
    let end = info.last().map(Entry::message).unwrap_or_default();
    assert_eq!(marker(&end), "END exit_3");
    let mut written = lines(&server);
    written.sort();
    assert_eq!(written, ["  one", "two"]);

    let status = texts(&server, "status");
    assert_eq!(status.first(), info.first().map(Entry::message).as_ref());
    assert_eq!(status.last(), Some(&end));
    let between: Vec<&str> = status[1..status.len() - 1]
        .iter()
        .map(|text| text.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.'))
        .collect();
    assert_eq!(
        between,
        ["Started with pid ", "Ready", "Executable exited with code "]
    );
    let error = "Error waiting for command to finish: exit status 3";
    assert_eq!(texts(&server, "error"), [error]);

    assert_eq!(value(&server, "wrapp:app:count").as_deref(), Some("1"));
    assert_eq!(value(&server, "wrapp:app:value").as_deref(), Some("007"));
    assert_eq!(expiry(&server, "wrapp:app:value"), -1);
    for (property, last) in [("running", "0"), ("exit", "3"), ("health", "0")] {
        let key = format!("app:__healthpool__process_{property}");
        assert_eq!(value(&server, &key).as_deref(), Some(last), "{property}");
        assert_eq!(expiry(&server, &key), -1, "{property} stays");
    }
    assert!(
        expiry(&server, "agent:service:app") >= 0,
        "the state hash goes"
    );
}

fn in_order(haystack: &[String], needles: &[&str]) -> bool {
    let mut rest = haystack.iter();
    needles.iter().all(|needle| rest.any(|text| text == needle))
}

// The command line and the configuration.

#[test]
fn anything_but_one_argument_is_a_usage_error() {
    for args in [&[][..], &["a", "b"], &["--help", "x", "y"]] {
        let place = Place::new();
        let status = place.command(args).status().expect("it runs");
        assert_eq!(status.code(), Some(1));
        let read = |name: &str| std::fs::read_to_string(place.folder.join(name));
        assert_eq!(
            read("stderr").expect("a file"),
            "Usage: wrapp <path_to_config.json>\n"
        );
        assert_eq!(read("stdout").expect("a file"), "");
    }
}

#[test]
fn agent_wrapp_is_the_same() {
    let server = RedisServer::start(&[]);
    let place = Place::new();
    let config = place.script(Some(&server), "echo hello; exit 4");
    let path = place.folder.file("c.json", &config.to_string());
    let status = std::process::Command::new(AGENT)
        .arg("wrapp")
        .arg(&path)
        .status();
    assert_eq!(status.expect("it runs").code(), Some(4));
    assert_eq!(lines(&server), ["hello"]);
    let none = std::process::Command::new(AGENT).arg("wrapp").output();
    let none = none.expect("it runs");
    assert_eq!(none.status.code(), Some(1));
    assert!(none.stderr.starts_with(b"Usage: wrapp "));
}

#[test]
fn a_wrong_configuration_is_exit_code_1_and_starts_nothing() {
    let place = Place::new();
    let ran = place.folder.join("ran");
    let program = format!("[\"-c\", \"touch {}\"]", ran.display());
    let app = |more: &str| {
        format!("{{\"app\": {{\"executable\": \"/bin/sh\", \"args\": {program}}}{more}}}")
    };
    for (text, words) in [
        (app("} trailing"), "nothing may follow"),
        (app(", \"redis\": {\"port\": \"x\"}"), "port"),
        ("{}".to_owned(), "there is no `app`"),
        (
            "[app]\nexecutabel = \"/bin/true\"\n".to_owned(),
            "there is no executable",
        ),
        (
            "[service.x]\nexecutable = \"/bin/true\"\n".to_owned(),
            "there is no `app`",
        ),
        (
            app(", \"redis\": {\"secrets_dir\": \"/nowhere/app\"}"),
            "failed to read password file /nowhere/app/password",
        ),
    ] {
        let path = place.folder.file("c", &text);
        let status = place.command(&[&path.to_string_lossy()]).status();
        assert_eq!(status.expect("it runs").code(), Some(1), "{text}");
        let stderr = std::fs::read_to_string(place.folder.join("stderr")).expect("a file");
        assert!(stderr.contains("Error loading configuration: "), "{stderr}");
        assert!(stderr.contains(words), "{stderr}");
        assert!(!ran.exists(), "{text}");
    }
    let absent = place.command(&["/nowhere/c.json"]).status();
    assert_eq!(absent.expect("it runs").code(), Some(1));
    let empty = place.folder.join("vault/app");
    std::fs::create_dir_all(&empty).expect("a folder");
    std::fs::write(empty.join("password"), " \n").expect("a file");
    let path = place.folder.file(
        "c",
        &app(&format!(", \"redis\": {{\"secrets_dir\": {empty:?}}}")),
    );
    let status = place.command(&[&path.to_string_lossy()]).status();
    assert_eq!(status.expect("it runs").code(), Some(1));
    let stderr = std::fs::read_to_string(place.folder.join("stderr")).expect("a file");
    let words = format!("password file {}/password is empty", empty.display());
    assert!(stderr.contains(&words), "{stderr}");
}

#[test]
fn keys_in_any_case_unknown_ones_are_warned_about_and_comments_are_not() {
    let server = RedisServer::start(&[]);
    let place = Place::new();
    let text = format!(
        "{{\"_comment\": \"x\", \"_instructions\": [1], \"REDIS\": {{\"Url\": \"unix://{}\", \"pool\": 3}},\n\
          \"App\": {{\"EXECUTABLE\": \"sh\", \"Args\": [\"-c\", \"echo cased\"], \"user\": \"root\", \"Stream_Name\": \"app\"}},\n\
          \"debug\": {{\"enabled\": false, \"port\": 2345, \"host\": \"127.0.0.1\"}},\n\
          \"agent\": {{\"runtime_dir\": {1:?}, \"state_dir\": {1:?}}}}}",
        server.socket().display(),
        place.folder.path()
    );
    let path = place.folder.file("c.json", &text);
    let status = place.command(&[&path.to_string_lossy()]).status();
    assert_eq!(status.expect("it runs").code(), Some(0));
    assert_eq!(lines(&server), ["cased"]);
    let stderr = std::fs::read_to_string(place.folder.join("stderr")).expect("a file");
    assert!(stderr.contains("unknown key `pool`"), "{stderr}");
    assert!(
        !stderr.contains("_comment") && !stderr.contains("_instr"),
        "{stderr}"
    );
}

#[test]
fn toml_with_a_password_and_the_base_name_as_stream() {
    let server = RedisServer::start(&["--requirepass", "secret"]);
    let place = Place::new();
    let script = place.folder.file("args.sh", "#!/bin/sh\necho \"$@\"\n");
    make_executable(&script);
    let text = format!(
        "[redis]\nhost = \"127.0.0.1\"\nport = {}\npassword = \"secret\"\n\
         [app]\nexecutable = {script:?}\nargs = [\"a\", \"b\"]\nuser = \"root\"\n\
         [agent]\nruntime_dir = {1:?}\nstate_dir = {1:?}\n",
        server.port(),
        place.folder.path()
    );
    let path = place.folder.file("config.toml", &text);
    let status = place.command(&[&path.to_string_lossy()]).status();
    assert_eq!(status.expect("it runs").code(), Some(0));
    let client = &mut server.client_as(1, "", "secret");
    let info = support::messages(client, "logs:app:args.sh:info");
    assert!(info.contains(&"a b".to_owned()), "{info:?}");
}

#[test]
fn the_environment_says_where_redis_is_and_the_application_gets_the_password() {
    let server = RedisServer::start(&["--requirepass", "secret"]);
    let place = Place::new();
    let mut config = place.script(
        None,
        "echo \"$REDIS_ADDR $REDIS_PASSWORD $AGENT_STATE_DIR.\"",
    );
    config["redis"] = serde_json::json!({ "password": "old" });
    let addr = format!("127.0.0.1:{}", server.port());
    let state = place.folder.join("other");
    let mut wrapp = place.start_as(&config, |command| {
        command
            .env("REDIS_ADDR", &addr)
            .env("REDIS_PASSWORD", "secret")
            .env("AGENT_STATE_DIR", &state);
    });
    assert_eq!(wrapp.code(), Some(0));
    let info = support::messages(&mut server.client_as(1, "", "secret"), "logs:app:app:info");
    // What is the wrapper's own stays with it.
    let expected = format!("{addr} secret .");
    assert!(info.contains(&expected), "{info:?}");
}

#[test]
fn secrets_dir_is_user_and_password_and_a_rotated_one_is_read_again() {
    let server = RedisServer::start(&[]);
    let rules = |password: &str| {
        format!(
            "SETUSER robot reset on >{password} +hello +auth +ping +select +xadd +incr +set +client ~logs:app:* ~wrapp:*"
        )
    };
    let acl = |text: &str| {
        let mut command = redis::cmd("ACL");
        for word in text.split(' ') {
            command.arg(word);
        }
        command.query::<String>(&mut server.client(0)).expect("ACL");
    };
    acl(&rules("first"));
    let place = Place::new();
    let secrets = place.folder.join("vault/robot");
    std::fs::create_dir_all(&secrets).expect("a folder");
    std::fs::write(secrets.join("password"), " first\n").expect("a file");
    let script = "i=0; while [ ! -e stop ]; do i=$((i+1)); echo $i {{ticks}}; sleep 0.02; done";
    let mut config = place.script(Some(&server), script);
    config["redis"]["secrets_dir"] = serde_json::json!(secrets);
    let mut wrapp = place.start(&config);
    eventually("lines come", || lines(&server).len() > 5);

    std::fs::write(secrets.join("password"), "second").expect("a file");
    acl(&rules("second"));
    let killed: i64 = redis::cmd("CLIENT")
        .arg("KILL")
        .arg("USER")
        .arg("robot")
        .query(&mut server.client(0))
        .expect("CLIENT KILL");
    assert!(killed >= 1);
    let before = lines(&server).len();
    eventually("lines come again", || lines(&server).len() > before + 5);
    wrapp.place.folder.file("stop", "");
    assert_eq!(wrapp.code(), Some(0));

    // The small access makes a line possible twice, never missing.
    let mut numbers: Vec<u32> = lines(&server)
        .iter()
        .map(|line| line.trim().parse().expect("a number"))
        .collect();
    numbers.dedup();
    let wanted: Vec<u32> = (1..=numbers.len() as u32).collect();
    assert_eq!(numbers, wanted);
    assert!(value(&server, "wrapp:app:ticks").is_some());
    let status = texts(&server, "status");
    assert!(
        marker(status.last().expect("status")) == "END exit_0",
        "{status:?}"
    );
    // What this user may not do is told, each once, also after a new connection.
    let stderr = wrapp.stderr();
    assert_eq!(
        stderr.matches("health and state are not published").count(),
        1,
        "{stderr}"
    );
}

// What wrapp lost or broke. Each of these failed with it.

#[test]
fn q1_a_line_of_any_length_is_read_and_the_application_goes_on() {
    let server = RedisServer::start(&[]);
    let script = "head -c 1000000 /dev/zero | tr '\\0' x; echo; i=0; \
                  while [ $i -lt 3000 ]; do i=$((i+1)); echo 0123456789012345678901234567890123456789 $i; done";
    let place = Place::new();
    let mut config = place.script(Some(&server), script);
    config["redis"]["max_len"] = serde_json::json!(0);
    let mut wrapp = place.start(&config);
    assert_eq!(wrapp.code(), Some(0));
    let info = stream(&server, "info");
    let pieces: Vec<&Entry> = info
        .iter()
        .filter(|e| e.message().starts_with('x'))
        .collect();
    let length: usize = pieces.iter().map(|e| e.message().len()).sum();
    assert_eq!(length, 1_000_000);
    let partial = |e: &&Entry| e.field("partial").is_some();
    let (last, before) = pieces.split_last().expect("pieces");
    assert!(before.iter().all(partial) && !partial(last));
    assert_eq!(lines(&server).len(), pieces.len() + 3000);
}

#[test]
fn q3_arguments_arrive_exactly_as_they_stand() {
    let server = RedisServer::start(&[]);
    let place = Place::new();
    let args = [
        "-c",
        "for a; do printf '[%s]' \"$a\"; done; echo",
        "sh",
        "--config",
        "/etc/x y",
        "",
        "$HOME",
        "it's \"quoted\"",
        "-l",
        "ü{{n:5}}*",
    ];
    let mut config = place.program(Some(&server), "/bin/sh", &args);
    if wrapp::is_root() {
        config["app"]["user"] = serde_json::json!("nobody");
    }
    let mut wrapp = place.start(&config);
    assert_eq!(wrapp.code(), Some(0));
    assert_eq!(
        lines(&server),
        ["[--config][/etc/x y][][$HOME][it's \"quoted\"][-l][ü*]"]
    );
}

#[test]
fn q4_blocks_of_stdout_and_stderr_do_not_mix() {
    let server = RedisServer::start(&[]);
    let script =
        "echo '>>|block start'; sleep 0.1; echo intruder >&2; sleep 0.1; echo '  block end|<<'";
    let mut wrapp = start(Some(&server), script);
    assert_eq!(wrapp.code(), Some(0));
    let mut written = lines(&server);
    written.sort();
    assert_eq!(written, ["block start\n  block end", "intruder"]);
}

#[test]
fn q8_a_background_process_that_holds_the_output_delays_nothing() {
    let server = RedisServer::start(&[]);
    let start_at = Instant::now();
    let mut wrapp = start(Some(&server), "sleep 30 & echo $! > pid; echo done; exit 5");
    assert_eq!(wrapp.code(), Some(5));
    assert!(start_at.elapsed() < Duration::from_secs(10));
    let texts = texts(&server, "info");
    assert_eq!(texts.len(), 3);
    assert_eq!(
        (texts[1].as_str(), marker(&texts[2]).as_str()),
        ("done", "END exit_5")
    );
    let pid: i32 = wrapp.read("pid").trim().parse().expect("a pid");
    eventually("what it started has ended too", || !lives(pid));
}

#[test]
fn q11_old_evidence_is_left_where_it_is() {
    let server = RedisServer::start(&[]);
    let place = Place::new();
    let script = place.folder.file("evidence.sh", "#!/bin/sh\nexit 0\n");
    make_executable(&script);
    let name = script.to_string_lossy().replace('/', "!");
    let core = std::env::temp_dir().join(format!("core-{name}-1700000000-4711-11"));
    let core = Evidence(core);
    std::fs::write(&core.0, "a core").expect("writable");
    let config = place.program(Some(&server), &script.to_string_lossy(), &[]);
    let mut wrapp = place.start(&config);
    assert_eq!(wrapp.code(), Some(0));
    assert!(core.0.exists());
    let status = texts(&server, "status").join("\n");
    assert!(!status.contains("Removed"), "{status}");
}

struct Evidence(std::path::PathBuf);
impl Drop for Evidence {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn q13_without_core_files_nothing_is_an_error() {
    let server = RedisServer::start(&[]);
    let place = Place::new();
    let config = place.script(Some(&server), "echo fine");
    let mut wrapp = place.start_as(&config, |command| {
        // SAFETY: setrlimit is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                let none = libc::rlimit {
                    rlim_cur: 0,
                    rlim_max: 0,
                };
                libc::setrlimit(libc::RLIMIT_CORE, &none);
                Ok(())
            });
        }
    });
    assert_eq!(wrapp.code(), Some(0));
    assert_eq!(lines(&server), ["fine"]);
    assert_eq!(texts(&server, "error"), [""; 0]);
}

#[test]
fn q15_nothing_around_or_in_a_block_is_lost() {
    let server = RedisServer::start(&[]);
    let script = "printf 'before>>|one\\ntwo|<<after\\n'; printf 'a|<<b>>|c\\n'; echo open; exit 0";
    let mut wrapp = start(Some(&server), script);
    assert_eq!(wrapp.code(), Some(0));
    assert_eq!(
        lines(&server),
        ["before", "one\ntwo", "after", "a", "b", "c\nopen"]
    );
}

#[test]
fn q16_a_stalled_redis_stops_nothing_and_loses_nothing() {
    let server = RedisServer::start(&[]);
    let script = "echo first; touch up; while [ ! -e go ]; do sleep 0.02; done; \
                  i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo line $i {{n}}; echo; done; echo x > written; exit 7";
    let mut wrapp = start(Some(&server), script);
    eventually("the first line is there", || lines(&server) == ["first"]);
    server.signal(libc::SIGSTOP);
    wrapp.place.folder.file("go", "");
    let asked = Instant::now();
    wrapp.wait_for_file("written");
    assert!(asked.elapsed() < Duration::from_secs(5), "it was held up");
    std::thread::sleep(Duration::from_secs(4));
    assert!(!wrapp.has_ended(), "it waits for delivery");
    server.signal(libc::SIGCONT);
    assert_eq!(wrapp.code(), Some(7));
    let written = lines(&server);
    assert_eq!(written.len(), 501);
    assert_eq!(written[500], "line 500");
    assert_eq!(value(&server, "wrapp:app:n").as_deref(), Some("500"));
    let status = texts(&server, "status");
    assert!(status.contains(&"Executable exited with code 7.".to_owned()));
    assert_eq!(marker(status.last().expect("status")), "END exit_7");
}

#[test]
fn q17_lines_travel_in_batches() {
    let server = RedisServer::start(&[]);
    let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo $i; done";
    let reads = || -> u64 {
        let info: String = redis::cmd("INFO")
            .arg("stats")
            .query(&mut server.client(0))
            .expect("INFO");
        let line = info
            .lines()
            .find_map(|l| l.strip_prefix("total_reads_processed:"));
        line.expect("Redis 6 or later")
            .trim()
            .parse()
            .expect("a number")
    };
    let before = reads();
    let mut wrapp = start(Some(&server), script);
    assert_eq!(wrapp.code(), Some(0));
    let used = reads() - before;
    assert!(used < 4_000, "{used} round trips for 20000 lines");
    assert_eq!(lines(&server).last().map(String::as_str), Some("20000"));
    let length = stream(&server, "info").len();
    assert!(
        (900..1_300).contains(&length),
        "trimmed to about 1000: {length}"
    );
}

#[test]
fn q18_what_cannot_be_started_is_told_in_redis_and_closed() {
    let server = RedisServer::start(&[]);
    let place = Place::new();
    let plain = place.folder.file("plain", "no program");
    for (program, code) in [
        ("/nowhere/program", 127),
        ("no-such-program", 127),
        (plain.to_str().expect("UTF-8"), 126),
    ] {
        let _: String = redis::cmd("FLUSHALL")
            .query(&mut server.client(0))
            .expect("FLUSHALL");
        let place = Place::new();
        let config = place.program(Some(&server), program, &[]);
        let mut wrapp = place.start(&config);
        assert_eq!(wrapp.code(), Some(code), "{program}");
        let error = texts(&server, "error").join("\n");
        assert!(error.starts_with("Error starting command: "), "{error}");
        assert!(error.contains(program), "{error}");
        for kind in ["info", "status"] {
            let texts = texts(&server, kind);
            assert_eq!(marker(&texts[0]), "NEW ");
            let end = marker(texts.last().expect("an end"));
            assert_eq!(end, format!("END exit_{code}"), "{kind}");
        }
        assert!(wrapp.stderr().contains("Error starting command: "));
    }
}

#[test]
fn q22_lines_say_where_they_come_from_and_keep_their_order_and_indentation() {
    let server = RedisServer::start(&[]);
    let script =
        "echo '    deep'; sleep 0.1; printf '\\ttab\\tend \\t\\r\\n' >&2; sleep 0.1; echo last";
    let mut wrapp = start(Some(&server), script);
    assert_eq!(wrapp.code(), Some(0));
    let written: Vec<(String, String)> = stream(&server, "info")
        .iter()
        .filter_map(|entry| Some((entry.message(), entry.field("source")?)))
        .collect();
    let expected = [
        ("    deep", "stdout"),
        ("\ttab\tend", "stderr"),
        ("last", "stdout"),
    ];
    let expected = expected.map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(written, expected);
    for entry in stream(&server, "info") {
        assert_eq!(entry.fields[0].0, "message");
    }
}

// Redis, away or unwilling.

#[test]
fn redis_away_for_ever_costs_ten_seconds_and_the_next_start_delivers() {
    let mut server = RedisServer::start(&[]);
    server.kill();
    let mut wrapp = start(Some(&server), "echo one; echo two; echo x > ran; exit 6");
    let started = Instant::now();
    wrapp.wait_for_file("ran");
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "it runs at once: {took:?}");
    assert_eq!(wrapp.code(), Some(6));
    let took = started.elapsed();
    assert!(
        took > Duration::from_secs(9) && took < Duration::from_secs(18),
        "{took:?}"
    );
    assert_eq!(
        wrapp.stdout(),
        "Initial Redis connection failed, will wait for Redis to become available...\n\
         Waiting for Redis to become available...\n\
         Executable exited with code 6.\n"
    );
    let stderr = wrapp.stderr();
    assert!(
        stderr.contains("wait in the journal for the next start"),
        "{stderr}"
    );
    assert!(!stderr.contains("lost"), "{stderr}");

    // The same stream again, with Redis: first what was left, then what is new.
    server.up();
    let place = Place::new();
    let mut config = place.script(Some(&server), "echo three");
    config["agent"]["state_dir"] = serde_json::json!(wrapp.path("state"));
    assert_eq!(place.start(&config).code(), Some(0));
    assert_eq!(lines(&server), ["one", "two", "three"]);
    let ends: Vec<String> = texts(&server, "status")
        .iter()
        .filter(|text| text.starts_with("{{__END"))
        .map(|text| marker(text))
        .collect();
    assert_eq!(ends, ["END exit_6", "END exit_0"]);
}

#[test]
fn without_a_disk_what_is_lost_is_told() {
    let place = Place::new();
    let mut config = place.script(None, "echo one; exit 6");
    config["spool"] = serde_json::json!({ "disk": 0 });
    let mut wrapp = place.start(&config);
    assert_eq!(wrapp.code(), Some(6));
    let stderr = wrapp.stderr();
    assert!(
        stderr.contains("could not be delivered and are lost"),
        "{stderr}"
    );
}

#[test]
fn redis_that_comes_at_last_gets_everything() {
    let mut server = RedisServer::start(&[]);
    server.kill();
    let mut wrapp = start(Some(&server), "echo one; echo x > ran; exit 0");
    wrapp.wait_for_file("ran");
    eventually("it waits", || wrapp.stdout().contains("Waiting for Redis"));
    server.up();
    assert_eq!(wrapp.code(), Some(0));
    assert_eq!(lines(&server), ["one"]);
    let said: Vec<String> = wrapp.stdout().lines().map(str::to_owned).collect();
    assert!(
        in_order(
            &said,
            &[
                "Waiting for Redis to become available...",
                "Redis is available."
            ]
        ),
        "{said:?}"
    );
}

#[test]
fn a_wrong_password_is_told_at_once_and_apart() {
    let server = RedisServer::start(&["--requirepass", "right"]);
    let place = Place::new();
    let mut config = place.script(Some(&server), "sleep 1000");
    config["redis"]["password"] = serde_json::json!("wrong");
    let started = Instant::now();
    let mut wrapp = place.start(&config);
    eventually("it is told", || wrapp.stderr().contains("WRONGPASS"));
    assert!(started.elapsed() < Duration::from_secs(5));
    wrapp.signal(libc::SIGTERM);
    assert_eq!(wrapp.code(), Some(143));
}

#[test]
fn a_stream_of_the_wrong_type_stops_neither_the_application_nor_the_others() {
    let server = RedisServer::start(&[]);
    let _: i64 = redis::cmd("RPUSH")
        .arg("logs:app:app:info")
        .arg("x")
        .query(&mut server.client(1))
        .expect("RPUSH");
    let mut wrapp = start(Some(&server), "echo unwelcome; exit 2");
    assert_eq!(wrapp.code(), Some(2));
    let status = texts(&server, "status");
    assert!(status.contains(&"Executable exited with code 2.".to_owned()));
}

#[test]
fn a_counter_on_a_text_is_told_in_error() {
    let server = RedisServer::start(&[]);
    let _: String = redis::cmd("SET")
        .arg("wrapp:app:word")
        .arg("text")
        .query(&mut server.client(2))
        .expect("SET");
    let mut wrapp = start(Some(&server), "echo '{{word}}'; echo '{{fine}}'; sleep 1");
    assert_eq!(wrapp.code(), Some(0));
    assert_eq!(value(&server, "wrapp:app:word").as_deref(), Some("text"));
    assert_eq!(value(&server, "wrapp:app:fine").as_deref(), Some("1"));
    let error = texts(&server, "error").join("\n");
    assert!(
        error.starts_with("Error incrementing key: wrapp:app:word, error: "),
        "{error}"
    );
}

// How it ends.

#[test]
fn exit_codes_and_signals_are_the_applications() {
    let server = RedisServer::start(&[]);
    for (script, code, error) in [
        ("exit 0", 0, None),
        ("exit 255", 255, Some("exit status 255")),
        ("kill -SEGV $$", 139, Some("signal: segmentation fault")),
        ("kill -KILL $$", 137, Some("signal: killed")),
    ] {
        let _: String = redis::cmd("FLUSHALL")
            .query(&mut server.client(0))
            .expect("FLUSHALL");
        let mut wrapp = start(Some(&server), script);
        assert_eq!(wrapp.code(), Some(code), "{script}");
        let said = format!("Executable exited with code {code}.");
        assert!(wrapp.stdout().ends_with(&format!("{said}\n")));
        let status = texts(&server, "status");
        assert!(status.contains(&said), "{status:?}");
        for kind in ["info", "status"] {
            let end = texts(&server, kind).pop().expect("an end");
            assert_eq!(marker(&end), format!("END exit_{code}"));
        }
        let expected: Vec<String> = error
            .iter()
            .map(|how| format!("Error waiting for command to finish: {how}"))
            .collect();
        assert_eq!(texts(&server, "error"), expected);
        let exit = value(&server, "app:__healthpool__process_exit");
        assert_eq!(exit, Some(code.to_string()));
    }
}

#[test]
fn what_the_application_writes_is_not_echoed_unless_asked_for() {
    let server = RedisServer::start(&[]);
    let script = "echo quiet; echo aside >&2";
    let mut wrapp = start(Some(&server), script);
    assert_eq!(wrapp.code(), Some(0));
    let both = wrapp.stdout() + &wrapp.stderr();
    assert!(!both.contains("quiet") && !both.contains("aside"), "{both}");

    let place = Place::new();
    let mut config = place.script(Some(&server), script);
    config["agent"]["tee"] = serde_json::json!(true);
    let mut wrapp = place.start(&config);
    assert_eq!(wrapp.code(), Some(0));
    let stdout = wrapp.stdout();
    let said: Vec<&str> = stdout.lines().collect();
    assert!(said.contains(&"quiet"), "{said:?}");
}

#[test]
fn pools_by_markers_are_where_readers_of_both_kinds_look() {
    let server = RedisServer::start(&[]);
    let script = "echo '{{__healthpool__api_init:1500}}{{__healthpool__api_cap:1000}}'; \
                  echo '{{__healthpool__api_depletion_rate:100}}{{__healthpool__api_replenish_rate:15}}'; \
                  echo '{{__healthpool__api_beats}}{{__healthpool__api_beats}}'; sleep 1.5; exit 0";
    let mut wrapp = start(Some(&server), script);
    assert_eq!(wrapp.code(), Some(0));
    let get = |key: &str| value(&server, key);
    assert_eq!(
        get("wrapp:app:__healthpool__api_beats").as_deref(),
        Some("2")
    );
    assert_eq!(
        get("wrapp:app:__healthpool__api_init").as_deref(),
        Some("1500")
    );
    for (property, expected) in [
        ("beats", "2"),
        ("cap", "1000"),
        ("depletion_rate", "100"),
        ("init", "1500"),
        ("replenish_rate", "15"),
        ("running", "0"),
        ("exit", "0"),
        ("health", "0"),
    ] {
        let key = format!("app:__healthpool__api_{property}");
        assert_eq!(get(&key).as_deref(), Some(expected), "{property}");
        assert_eq!(expiry(&server, &key), -1, "{property}");
    }
}

// What it makes of lines.

#[test]
fn bytes_are_kept_as_they_are() {
    let server = RedisServer::start(&[]);
    let script =
        r"printf '10%%\r50%%\r100%%\n\033[31mred\033[0m\na\377\376\000b\r\n \t\r\n\nno end'";
    let mut wrapp = start(Some(&server), script);
    assert_eq!(wrapp.code(), Some(0));
    let written: Vec<Vec<u8>> = stream(&server, "info")
        .into_iter()
        .filter(|entry| entry.field("source").is_some())
        .map(|entry| entry.fields[0].1.clone())
        .collect();
    let expected: [&[u8]; 4] = [
        b"10%\r50%\r100%",
        b"\x1b[31mred\x1b[0m",
        b"a\xff\xfe\0b",
        b"no end",
    ];
    assert_eq!(written, expected);
}

#[test]
fn markers_are_what_they_were() {
    let server = RedisServer::start(&[]);
    let script = "echo 'hello {{counter}} mid {{value:42}} end'; echo '{{counter:}}{{counter42}}'; \
                  echo '{{zeros:007}}' >&2; echo '{{long:12345678901234567890}}'; \
                  echo '{{neg:-5}}{{flt:3.14}}{{a b}}{{a:b}}{{:5}}{{__NEW_RUN_2025-01-01_00-00-00}}'";
    let mut wrapp = start(Some(&server), script);
    assert_eq!(wrapp.code(), Some(0));
    assert_eq!(
        lines(&server),
        [
            "hello  mid  end",
            "{{neg:-5}}{{flt:3.14}}{{a b}}{{a:b}}{{:5}}{{__NEW_RUN_2025-01-01_00-00-00}}"
        ]
    );
    for (key, expected) in [
        ("counter", "2"),
        ("counter42", "1"),
        ("value", "42"),
        ("zeros", "007"),
        ("long", "12345678901234567890"),
    ] {
        let key = format!("wrapp:app:{key}");
        assert_eq!(value(&server, &key).as_deref(), Some(expected), "{key}");
        assert_eq!(expiry(&server, &key), -1);
    }
}

#[test]
fn blocks_are_what_they_were() {
    let server = RedisServer::start(&[]);
    let script = r"printf '>>|\n  one\n    two {{m:1}}\n\n|<<\n'; printf '>>|whole|<< rest\n'; \
                  printf 'stray|<<\n'; printf '>>|first\n>>|second\nx|<<\n'";
    let mut wrapp = start(Some(&server), script);
    assert_eq!(wrapp.code(), Some(0));
    assert_eq!(
        lines(&server),
        [
            "one\n    two",
            "whole",
            " rest",
            "stray",
            "first",
            "second\nx"
        ]
    );
    assert_eq!(value(&server, "wrapp:app:m").as_deref(), Some("1"));
}
