//! `cargo xtask watch` as a browser sees it, while a real run trains.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// A program of this workspace, which `cargo test --workspace` has built beside xtask.
pub(crate) fn program(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_xtask")).with_file_name(name);
    if !path.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--package", name])
            .status();
        assert!(
            built.unwrap().success() && path.exists(),
            "{}",
            path.display()
        );
    }
    path
}

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Trains a small model on the sample of this repository.
fn training(runs: &Path, name: &str, settings: &[&str]) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(program("sae-train"));
    command.current_dir(&root).arg("configs/quickstart.toml");
    command.args(["--plain", "--threads", "1"]);
    let run = [
        format!("run={name:?}"),
        format!("runs_dir={:?}", runs.display()),
    ];
    let small = [
        "model.n_latents=64",
        "training.batch_size=64",
        "training.on_collapse=go_on",
    ];
    let run = run.iter().map(String::as_str);
    for setting in run.chain(small).chain(settings.iter().copied()) {
        command.args(["--set", setting]);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// `cargo xtask watch` of a run.
struct Watch {
    process: Process,
    port: u16,
}

impl Watch {
    fn start(run: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command
            .arg("watch")
            .arg(run)
            .arg("--program")
            .arg(program("sae-eval"));
        command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
        let mut process = Process(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        let output = process.0.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        let (_, rest) = line.split_once("http://127.0.0.1:").expect(&line);
        let port = rest.split('/').next().unwrap().parse().unwrap();
        Self { process, port }
    }

    /// The whole answer to a request.
    fn ask(&self, method: &str, host: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    }

    fn get(&self, path: &str) -> String {
        self.ask("GET", &format!("127.0.0.1:{}", self.port), path)
    }

    /// The body of what is there.
    fn body(&self, path: &str) -> String {
        let answer = self.get(path);
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n"),
            "{path}: {answer}"
        );
        answer.split_once("\r\n\r\n").unwrap().1.into()
    }

    fn state(&self) -> Value {
        serde_json::from_str(&self.body("/state")).unwrap()
    }

    /// Waits for a state.
    fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let state = self.state();
            if holds(&state) {
                return state;
            }
            assert!(started.elapsed() < PATIENCE, "not {what}: {state}");
            assert_eq!(state["failure"], Value::Null);
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Ends it as Ctrl-C does.
    fn interrupt(mut self) {
        let pid = self.process.0.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-INT", &pid])
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(self.process.0.wait().unwrap().code(), Some(0));
        assert!(TcpStream::connect(("127.0.0.1", self.port)).is_err());
    }
}

/// Waits until a file is there.
fn wait_for(path: &Path) {
    let started = Instant::now();
    while !path.exists() {
        assert!(
            started.elapsed() < PATIENCE,
            "{} does not come",
            path.display()
        );
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_run_in_progress_is_shown_as_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("long");
    let settings = ["training.steps=1000000", "training.validate_every=500"];
    let mut trainer = Process(training(dir.path(), "long", &settings).spawn().unwrap());
    wait_for(&run.join("config.toml"));
    let watch = Watch::start(&run);

    let first = watch.until("begun", |state| state["step"].as_u64() > Some(0));
    assert_eq!(
        (&first["run"], &first["steps"]),
        (&"long".into(), &1_000_000.into())
    );
    watch.until("going on", |state| {
        state["step"].as_u64() > first["step"].as_u64()
    });
    for picture in ["/fvu.svg", "/l0.svg?12", "/dead.svg"] {
        assert!(watch.body(picture).contains("<polyline"), "{picture}");
    }
    let one = watch.until("evaluated", |state| state["shown"].is_string());
    let step = one["checkpoint"].as_u64().unwrap();
    assert_eq!(step % 500, 0);
    assert!(watch.body("/report.html").contains(&format!("step {step}")));
    let words = one["about"].as_str().unwrap();
    assert!(
        words.starts_with(&format!("Report of the checkpoint of step {step}.")),
        "{words}"
    );
    watch.until("evaluated again", |state| {
        state["checkpoint"].as_u64() > Some(step)
    });
    assert_eq!(watch.state()["ended"], false);

    assert_eq!(
        trainer.0.try_wait().unwrap(),
        None,
        "the run is still in progress"
    );
    drop(trainer);
    assert!(
        !run.join("reports").exists(),
        "nothing is written into the run"
    );
    watch.interrupt();
}

#[test]
fn a_run_that_has_ended_shows_its_trained_model() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ["training.steps=20", "training.validate_every=10"];
    assert!(
        training(dir.path(), "short", &settings)
            .status()
            .unwrap()
            .success()
    );
    let watch = Watch::start(&dir.path().join("short"));
    let state = watch.until("evaluated", |state| state["shown"].is_string());
    assert_eq!(
        (&state["ended"], &state["step"]),
        (&true.into(), &20.into())
    );
    assert_eq!(state["words"], "The run has ended.");
    assert_eq!(
        (&state["about"], &state["checkpoint"]),
        (&"Report of the trained model.".into(), &Value::Null)
    );
    only_what_is_known_is_answered(&watch);
    watch.interrupt();
}

/// To requests for an address of its own, and for no file by its name.
fn only_what_is_known_is_answered(watch: &Watch) {
    let page = watch.get("/");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    for header in [
        "content-security-policy: default-src 'none'; script-src 'self';",
        "x-content-type-options: nosniff",
        "cache-control: no-store",
    ] {
        assert!(
            page.to_ascii_lowercase().contains(header),
            "{header}: {page}"
        );
    }
    let ours = format!("localhost:{}", watch.port);
    assert!(
        watch
            .ask("HEAD", &ours, "/report.html")
            .starts_with("HTTP/1.1 200 OK\r\n")
    );
    let port = watch.port;
    for host in [
        "example.org".into(),
        format!("example.org:{port}"),
        "127.0.0.1".into(),
        format!("127.0.0.1.example.org:{port}"),
    ] {
        let answer = watch.ask("GET", &host, "/state");
        assert!(answer.starts_with("HTTP/1.1 403 "), "{host}: {answer}");
        assert!(!answer.contains("short"), "{answer}");
    }
    let twice = format!("{ours}\r\nHost: example.org");
    assert!(
        !watch
            .ask("GET", &twice, "/state")
            .starts_with("HTTP/1.1 200 ")
    );
    for path in [
        "/config.toml",
        "/reports/report.html",
        "/../short/config.toml",
        "/%2e%2e/config.toml",
        "/state/",
    ] {
        let answer = watch.get(path);
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
    assert!(watch.ask("POST", &ours, "/").starts_with("HTTP/1.1 405 "));
}

/// `xtask watch` with these arguments, which cannot begin.
fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    let Output { status, stderr, .. } = command.arg("watch").args(arguments).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn what_is_no_run_is_refused_with_one_message() {
    let (code, message) = refused(&["runs/there-is-none"]);
    assert_eq!((code, message.lines().count()), (Some(2), 1), "{message}");
    assert!(
        message.contains("runs/there-is-none: there is no such run directory"),
        "{message}"
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display().to_string();
    let (code, message) = refused(&[&path]);
    assert_eq!((code, message.lines().count()), (Some(2), 1), "{message}");
    assert!(message.contains("not a run directory"), "{message}");
    std::fs::write(dir.path().join("config.toml"), "").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, message) = refused(&[&path, "--port", &port]);
    assert_eq!((code, message.lines().count()), (Some(2), 1), "{message}");
    assert!(message.contains(&format!("--port {port}")), "{message}");
}
