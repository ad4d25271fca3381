//! Files of a machine → configurations: what is found, what is included, what cannot be had.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use jettison_agent::config::diagnose::Diagnostics;
use jettison_agent::config::load::{
    Environment, Form, Loaded, from_command, load, load_redis, survey,
};
use jettison_agent::config::{Endpoint, OnFailed, Restart, Secret};

/// A folder of its own, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("agent-config-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn load(&self, name: &str) -> Result<Loaded, Diagnostics> {
        load(Some(&self.path(name)), &Environment::default())
    }

    /// Messages without the folder's own name.
    fn briefs(&self, found: &Diagnostics) -> Vec<String> {
        let own = format!("{}/", self.0.display());
        found
            .0
            .iter()
            .map(|d| d.brief().replace(&own, ""))
            .collect()
    }

    fn refused(&self, name: &str) -> Vec<String> {
        self.briefs(&self.load(name).expect_err(name))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn names(loaded: &Loaded) -> Vec<&str> {
    let services = loaded.config.services.iter();
    services.map(|service| service.name.as_str()).collect()
}

#[test]
fn what_cannot_be_read_is_one_clear_error() {
    let folder = Folder::new();
    assert_eq!(
        folder.refused("absent.toml"),
        ["absent.toml: this file does not exist"]
    );
    fs::create_dir(folder.path("dir.toml")).unwrap();
    assert_eq!(
        folder.refused("dir.toml"),
        ["dir.toml: this is a folder, not a file"]
    );
    folder.write("big.toml", vec![b'#'; (1 << 20) + 1]);
    assert_eq!(
        folder.refused("big.toml"),
        ["big.toml: the file is larger than 1 MiB"]
    );
    folder.write("elf.toml", b"\x7fELF\x02\x01\0\0\0");
    assert_eq!(
        folder.refused("elf.toml"),
        ["elf.toml: the file is not text: it contains NUL bytes"]
    );
    folder.write("latin.toml", b"[agent]\nboard = \"B\xe4r\"\n");
    assert_eq!(
        folder.refused("latin.toml"),
        ["latin.toml:2:11: this is not UTF-8"]
    );
    folder.write("empty.json", "");
    assert_eq!(
        folder.refused("empty.json"),
        ["empty.json:1:1: this is not JSON: the file is empty"]
    );
    let pipe = folder.path("pipe.toml");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert_eq!(
        folder.refused("pipe.toml"),
        ["pipe.toml: this is not a regular file"]
    );
    folder.write("empty.toml", "");
    assert!(
        folder
            .load("empty.toml")
            .unwrap()
            .config
            .services
            .is_empty()
    );
    std::os::unix::fs::symlink(folder.path("empty.toml"), folder.path("link.toml")).unwrap();
    assert!(folder.load("link.toml").is_ok());
}

#[test]
fn included_files_join_in_lexical_order() {
    let folder = Folder::new();
    folder.write(
        "agent.toml",
        "[service.main]\nexecutable = '/m'\nafter = ['a']\n",
    );
    folder.write("services.d/20-b.toml", "[service.b]\nexecutable = '/b'\n");
    folder.write(
        "services.d/10-a.toml",
        "[service.a]\nexecutable = '/a'\n[redis]\nport = 9\n",
    );
    folder.write("services.d/.hidden.toml", "broken");
    folder.write("services.d/c.toml.bak", "broken");
    let loaded = folder.load("agent.toml").unwrap();
    assert_eq!(names(&loaded), ["main", "a", "b"]);
    assert_eq!(loaded.config.redis.endpoint.to_string(), "localhost:9");
    let files = ["agent.toml", "services.d/10-a.toml", "services.d/20-b.toml"];
    assert_eq!(loaded.files, files.map(|name| folder.path(name)));
    assert_eq!(loaded.warnings, []);
}

#[test]
fn an_error_names_the_included_file_it_is_in() {
    let folder = Folder::new();
    folder.write(
        "agent.toml",
        "[redis]\nport = 1\n[service.a]\nexecutable = '/a'\n",
    );
    folder.write(
        "services.d/b.toml",
        "\n[service.b]\nexecutible = '/b'\nrequires = ['c']\n",
    );
    assert_eq!(
        folder.refused("agent.toml"),
        [
            "services.d/b.toml:3:1: unknown key `executible` in [service.b]",
            "services.d/b.toml:4:13: there is no service `c`",
        ]
    );
    folder.write(
        "services.d/b.toml",
        "[redis]\nport = 2\n[service.a]\nexecutable = '/b'\n",
    );
    folder.write("services.d/c.toml", "[service.c\n");
    let found = folder.load("agent.toml").unwrap_err();
    assert_eq!(
        folder.briefs(&found),
        [
            "services.d/b.toml:2:1: `redis.port` stands twice",
            "services.d/b.toml:3:10: `service.a` stands twice",
            "services.d/c.toml:1:11: the `[` of this line is not closed",
        ]
    );
    let first = format!("first at {}:2:1", folder.path("agent.toml").display());
    assert_eq!(found.0[0].remedy, Some(first));
    folder.write("services.d/c.toml", "");
    folder.write("services.d/b.toml", "[agent]\ninclude = 'more/*.toml'\n");
    assert_eq!(
        folder.refused("agent.toml"),
        ["services.d/b.toml:2:11: an included file includes no others"]
    );
}

#[test]
fn where_to_include_from_is_configured() {
    let folder = Folder::new();
    folder.write("parts/x-1.conf", "[service.x]\nexecutable = '/x'\n");
    folder.write("parts/y-1.conf", "[service.y]\nexecutable = '/y'\n");
    folder.write("a.toml", "[agent]\ninclude = 'parts/x*.conf'\n");
    assert_eq!(names(&folder.load("a.toml").unwrap()), ["x"]);
    let all = folder.path("parts/*");
    folder.write(
        "a.toml",
        format!("[agent]\ninclude = '{}'\n", all.display()),
    );
    assert_eq!(names(&folder.load("a.toml").unwrap()), ["x", "y"]);
    folder.write("a.toml", "[agent]\ninclude = ''\n");
    assert!(names(&folder.load("a.toml").unwrap()).is_empty());
    folder.write("a.toml", "[agent]\ninclude = 'nowhere/*.toml'\n");
    let loaded = folder.load("a.toml").unwrap();
    assert!(loaded.warnings[0].message.contains("nowhere"));
    folder.write("a.toml", "[agent]\ninclude = 'parts/x.conf'\n");
    let loaded = folder.load("a.toml").unwrap();
    assert!(
        loaded.warnings[0]
            .message
            .contains("names a file that is not there")
    );
    folder.write("a.toml", "[agent]\ninclude = '*/x.toml'\n");
    assert_eq!(
        folder.refused("a.toml"),
        ["a.toml:2:11: only the file name of `include` may hold `*`"]
    );
    // One application takes nothing in that lies beside it by chance.
    folder.write("services.d/z.toml", "broken");
    folder.write("app.toml", "[app]\nexecutable = '/x'\n");
    assert_eq!(names(&folder.load("app.toml").unwrap()), ["x"]);
}

#[test]
fn passwords_that_cannot_be_had() {
    let folder = Folder::new();
    let dir = folder.path("redis/bob");
    let text = format!(
        "{{\"redis\": {{\"secrets_dir\": \"{}\"}},\n \"app\": {{\"executable\": \"x\"}}}}",
        dir.display()
    );
    folder.write("app.json", text);
    let missing = folder.load("app.json").unwrap_err();
    assert!(missing.only_credentials());
    let expected = format!("failed to read password file {}/password", dir.display());
    assert_eq!(missing.0[0].message, expected);
    assert_eq!(missing.0[0].position(), Some((1, 27)));
    folder.write("redis/bob/password", " \n");
    let empty = folder.load("app.json").unwrap_err();
    let expected = format!("password file {}/password is empty", dir.display());
    assert_eq!(empty.0[0].message, expected);
    folder.write("redis/bob/password", "geheim\n");
    let redis = folder.load("app.json").unwrap().config.redis;
    assert_eq!(redis.username, "bob");
    assert_eq!(redis.password, Some(Secret::File(dir.join("password"))));
    // What the environment says needs no file.
    fs::remove_file(dir.join("password")).unwrap();
    let environment = Environment {
        redis_password: Some("env".into()),
        ..Environment::default()
    };
    let loaded = load(Some(&folder.path("app.json")), &environment).unwrap();
    assert_eq!(
        loaded.config.redis.password,
        Some(Secret::Inline("env".into()))
    );
}

#[test]
fn only_redis() {
    let folder = Folder::new();
    let environment = Environment {
        redis_addr: Some("env:1".into()),
        redis_password: Some("env".into()),
        ..Environment::default()
    };
    let none = Environment::default();
    let redis = load_redis(None, &none).unwrap();
    assert_eq!(redis.endpoint.to_string(), "localhost:6379");
    let redis = load_redis(None, &environment).unwrap();
    assert_eq!(redis.endpoint.to_string(), "env:1");
    assert_eq!(redis.password, Some(Secret::Inline("env".into())));
    // The file wins; what it does not say comes from the environment.
    let file = folder.write("f.json", r#"{"redis": {"host": "file"}, "x": 1}"#);
    let redis = load_redis(Some(&file), &environment).unwrap();
    assert_eq!(redis.endpoint.to_string(), "file:6379");
    assert_eq!(redis.password, Some(Secret::Inline("env".into())));
    let file = folder.write(
        "f.toml",
        "[redis]\npassword = 'file'\n[service.x]\nbroken = 1\n",
    );
    let redis = load_redis(Some(&file), &environment).unwrap();
    assert_eq!(redis.endpoint.to_string(), "env:1");
    assert_eq!(redis.password, Some(Secret::Inline("file".into())));
    let file = folder.write("g.json", r#"{"redis": {"port": "x"}}"#);
    let found = load_redis(Some(&file), &none).unwrap_err();
    assert!(!found.only_credentials());
    let file = folder.write("h.json", r#"{"redis": {"secrets_dir": "/nowhere/bob"}}"#);
    let found = load_redis(Some(&file), &none).unwrap_err();
    assert!(found.only_credentials());
    assert_eq!(
        found.0[0].message,
        "failed to read password file /nowhere/bob/password"
    );
}

fn command(argv: &[&str], url: Option<&str>, name: Option<&str>) -> Result<Loaded, Diagnostics> {
    let argv: Vec<String> = argv.iter().map(|arg| (*arg).to_owned()).collect();
    let environment = Environment {
        redis_addr: Some("env:1".into()),
        redis_password: Some("env".into()),
        ..Environment::default()
    };
    from_command(&argv, url, name, None, &environment)
}

#[test]
fn a_command_without_a_file() {
    let loaded = command(&["/usr/bin/my app", "-x", ""], None, None).unwrap();
    let service = &loaded.config.services[0];
    assert_eq!(service.name.as_str(), "my_app");
    assert_eq!(service.stream_name, "my_app");
    assert_eq!(service.executable, "/usr/bin/my app");
    assert_eq!(service.args, ["-x", ""]);
    assert_eq!(service.restart, Restart::OnFailure);
    assert_eq!(service.on_failed, OnFailed::Exit);
    assert_eq!(loaded.config.agent.main, Some(service.name.clone()));
    assert_eq!(loaded.config.redis.endpoint.to_string(), "env:1");
    assert!(loaded.files.is_empty());

    let loaded = command(&["./app"], Some("redis://cli:2/3"), Some("nav")).unwrap();
    let service = &loaded.config.services[0];
    assert_eq!(service.name.as_str(), "nav");
    assert!(Path::new(&service.executable).is_absolute());
    let redis = &loaded.config.redis;
    assert_eq!(redis.endpoint.to_string(), "cli:2");
    assert_eq!((redis.log_db, redis.value_db), (3, 3));
    assert_eq!(redis.password, Some(Secret::Inline("env".into())));

    let unix = command(&["app"], Some("unix:///run/r.sock"), None).unwrap();
    assert_eq!(
        unix.config.redis.endpoint,
        Endpoint::Unix("/run/r.sock".into())
    );
    assert_eq!(unix.config.services[0].executable, "app");
}

#[test]
fn a_command_that_is_none() {
    let found = command(&[], Some("rdis://h"), Some("a b")).unwrap_err();
    assert_eq!(found.exit_code(), 2);
    assert_eq!(
        found.to_string(),
        "--redis: `rdis://` is not a kind of Redis URL\n      | did you mean `redis://`?\n\n\
         agent run: there is no command to run\n      | agent run [--redis URL] [--name NAME] -- COMMAND [ARG…]\n\n\
         --name: a service name may not contain ' ' (allowed: letters, digits, '_', '.', '-')\n      | such as --name lidar"
    );
}

#[test]
fn the_file_may_be_named_by_the_environment() {
    let folder = Folder::new();
    let path = folder.write("x.toml", "[service.x]\nexecutable = '/x'\n");
    let environment = Environment {
        config: Some(path.into()),
        ..Environment::default()
    };
    assert_eq!(names(&load(None, &environment).unwrap()), ["x"]);
    let other = folder.write("y.toml", "[service.y]\nexecutable = '/y'\n");
    assert_eq!(names(&load(Some(&other), &environment).unwrap()), ["y"]);
    let gone = Environment {
        config: Some(folder.path("gone.toml").into()),
        maintenance: Some("1".into()),
        ..Environment::default()
    };
    assert!(
        load(None, &gone).is_err(),
        "a file that was named must be there"
    );
}

#[test]
fn what_the_machine_lacks() {
    let folder = Folder::new();
    let script = folder.write("script", "#!/nowhere/python3 -u\n");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let plain = folder.write("plain", "text");
    let text = format!(
        "[service.a]\nexecutable = '/nowhere/a'\nuser = 'rooot'\nworking_directory = '/nowhere'\n\
         [service.b]\nexecutable = '{}'\nenvironment_file = '/nowhere/env'\n\
         [service.c]\nexecutable = '{}'\ncpu_affinity = '1023'\n\
         [service.d]\nexecutable = 'no-such-program'\nenvironment = {{ PATH = '/bin' }}\n\
         [service.e]\nexecutable = 'sh'\nuser = 0\n\
         [service.f]\nexecutable = '/bin/sh -x'\n\
         [redis]\ntls = {{ ca_file = '/nowhere/ca.pem' }}\n",
        plain.display(),
        script.display(),
    );
    folder.write("agent.toml", text);
    let loaded = folder.load("agent.toml").unwrap();
    assert_eq!(loaded.form, Form::Native);
    let found = folder.briefs(&Diagnostics(survey(&loaded)));
    let expected = [
        "agent.toml:20:19: warning: /nowhere/ca.pem cannot be read: No such file or directory (os error 2)",
        "agent.toml:2:14: warning: /nowhere/a does not exist here",
        "agent.toml:3:8: warning: there is no user `rooot` here",
        "agent.toml:4:21: warning: /nowhere is not a folder here",
        "agent.toml:6:14: warning: plain is not executable (chmod +x)",
        "agent.toml:7:20: warning: /nowhere/env cannot be read: No such file or directory (os error 2)",
        "agent.toml:9:14: warning: the interpreter of script, /nowhere/python3, does not exist here",
        "agent.toml:10:16: warning: this machine has none of these CPUs",
        "agent.toml:12:14: warning: there is no `no-such-program` on PATH (/bin)",
        "agent.toml:18:14: warning: /bin/sh -x does not exist here",
    ];
    let traced = |brief: &&String| brief.contains("services are traced");
    assert_eq!(found.iter().filter(traced).count(), 1);
    let other = |brief: &&String| !brief.contains("only root") && !traced(brief);
    assert_eq!(found.iter().filter(other).collect::<Vec<_>>(), expected);
}
