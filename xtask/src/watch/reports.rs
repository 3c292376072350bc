//! Reports of the newest model, made by `sae-eval` in the background, one at a time, so that training is not held up much:
//! few threads, and the lowest priority where the system has the program `nice`.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use sae_run::RunDir;
use serde_json::Value;
use tempfile::TempDir;

use super::progress::Model;

/// How reports are made.
pub(super) struct Maker {
    pub(super) program: PathBuf,
    pub(super) run: RunDir,
    pub(super) threads: u32,
    /// Further arguments of `sae-eval`.
    pub(super) arguments: Vec<String>,
}

/// A report that was made.
#[derive(Clone)]
pub(super) struct Report {
    pub(super) model: Model,
    pub(super) html: Vec<u8>,
}

/// Makes reports; ends the program that makes one when it is dropped.
pub(super) struct Reports {
    maker: Maker,
    /// Where `sae-eval` writes; removed at the end.
    dir: TempDir,
    running: Option<(Model, Child)>,
    /// The last model that was tried.
    tried: Option<Model>,
}

impl Reports {
    pub(super) fn new(maker: Maker) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("sae-watch-").tempdir();
        Ok(Self {
            maker,
            dir: dir.context("making a directory for reports")?,
            running: None,
            tried: None,
        })
    }

    /// The model whose report is being made.
    pub(super) fn making(&self) -> Option<Model> {
        self.running.as_ref().map(|(model, _)| *model)
    }

    /// Begins the report of `newest`, if none was tried; returns one that has become ready, or why it could not be made.
    pub(super) fn go_on(&mut self, newest: Option<Model>) -> Option<Result<Report>> {
        let done = self.finished();
        if self.running.is_none()
            && let Some(model) = newest
            && self.tried != newest
        {
            self.tried = newest;
            match self.start(model) {
                Ok(child) => self.running = Some((model, child)),
                Err(error) => return done.or(Some(Err(error))),
            }
        }
        done
    }

    fn finished(&mut self) -> Option<Result<Report>> {
        let (model, child) = self.running.as_mut()?;
        let (model, status) = (*model, child.try_wait().transpose()?);
        self.running = None;
        let status = status.context("waiting for sae-eval");
        Some(status.and_then(|status| {
            if status.success() {
                let report = self.read(model)?;
                self.tried = Some(report.model); // a newer checkpoint may have come before it began
                return Ok(report);
            }
            let words = fs::read(self.dir.path().join("errors")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).trim().to_string();
            let last = words
                .lines()
                .last()
                .unwrap_or("it says nothing")
                .to_string();
            Err(anyhow::anyhow!("sae-eval ended with {status}: {last}"))
        }))
    }

    fn start(&self, model: Model) -> Result<Child> {
        let errors = File::create(self.dir.path().join("errors"))?;
        let start = |mut command: Command| -> io::Result<Child> {
            command.arg(self.maker.run.path());
            if matches!(model, Model::Checkpoint(_)) {
                command.args(["--checkpoint", "newest", "--no-untrained"]);
            }
            command.args(["--threads", &self.maker.threads.to_string()]);
            command.arg("--output").arg(self.dir.path().join("report"));
            command.args(&self.maker.arguments).stdin(Stdio::null());
            command
                .stdout(Stdio::null())
                .stderr(errors.try_clone()?)
                .spawn()
        };
        let mut nice = Command::new("nice");
        nice.args(["-n", "19"]).arg(&self.maker.program);
        let started = start(nice).or_else(|_| start(Command::new(&self.maker.program)));
        started.with_context(|| format!("starting {}", self.maker.program.display()))
    }

    fn read(&self, model: Model) -> Result<Report> {
        let dir = self.dir.path().join("report");
        let json: Value = serde_json::from_slice(&fs::read(dir.join("report.json"))?)?;
        let step = json["checkpoint_step"].as_u64().map(|step| step as usize);
        Ok(Report {
            model: step.map_or(model, Model::Checkpoint),
            html: fs::read(dir.join("report.html")).context("the report has no page")?,
        })
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        if let Some((_, child)) = &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
