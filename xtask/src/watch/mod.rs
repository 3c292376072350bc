//! `cargo xtask watch`: a run in progress in a browser. A server on the loopback address shows the curves of training as
//! they are, and the report of the newest checkpoint, which `sae-eval` makes in the background whenever there is a newer
//! one; when the run has ended, that of the trained model. Nothing is written into the run directory.

mod curves;
mod progress;
mod records;
mod reports;
mod server;
mod view;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sae_run::RunDir;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::programs;
use progress::Progress;
use reports::{Maker, Reports};
use view::View;

/// Time between two looks at the run directory.
const LOOK: Duration = Duration::from_secs(1);
/// Time within which Ctrl-C is noticed.
const PAUSE: Duration = Duration::from_millis(100);

/// The options of `cargo xtask watch`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The run directory, for example runs/quickstart.
    run: PathBuf,
    /// Port of the address 127.0.0.1. Default: 8737, or any free one if that is taken.
    #[arg(long)]
    port: Option<u16>,
    /// Threads that make a report; more of them take more from the training.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    threads: u32,
    /// Cargo features to build sae-eval with, needed for devices other than cpu.
    #[arg(long, conflicts_with = "program")]
    features: Option<String>,
    /// This sae-eval, instead of building one.
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Passed on to sae-eval; see `cargo run -p sae-eval -- --help`.
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    match begin(arguments) {
        Ok((port, maker)) => watch(port, maker),
        Err(error) => {
            eprintln!("error: {error:#}");
            Ok(ExitCode::from(2))
        }
    }
}

/// Checks what was asked for, before anything is built.
fn begin(arguments: &Arguments) -> Result<(u16, Maker)> {
    let run = RunDir::new(&arguments.run);
    if !run.path().is_dir() {
        bail!("{}: there is no such run directory", run.path().display());
    }
    run.read_config().with_context(|| {
        format!(
            "{}: not a run directory, or the run has not begun yet",
            run.path().display()
        )
    })?;
    let port = server::port(arguments.port)?;
    let program = match &arguments.program {
        Some(program) => program.clone(),
        None => programs::build_with("sae-eval", arguments.features.as_deref())?,
    };
    let (threads, arguments) = (arguments.threads, arguments.arguments.clone());
    Ok((
        port,
        Maker {
            program,
            run,
            threads,
            arguments,
        },
    ))
}

/// Shows the run until Ctrl-C.
fn watch(port: u16, maker: Maker) -> Result<ExitCode> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).context("waiting for Ctrl-C")?;
    }
    let run = maker.run.clone();
    let path = run.path().canonicalize();
    let path = path.unwrap_or_else(|_| run.path().into());
    let mut reports = Reports::new(maker)?;
    let view = Arc::new(Mutex::new(View {
        run: path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        progress: Progress::of(&run),
        report: None,
        making: None,
        failure: None,
    }));
    server::serve(port, Arc::clone(&view))?;
    println!(
        "{}: http://127.0.0.1:{port}/ (Ctrl-C ends it)",
        run.path().display()
    );
    std::io::stdout().flush()?;
    let mut progress = Progress::of(&run);
    while !ended.load(Ordering::Relaxed) {
        progress.update(&run);
        let ready = reports.go_on(progress.newest());
        let mut view = view.lock().unwrap_or_else(PoisonError::into_inner);
        view.progress.clone_from(&progress);
        view.making = reports.making();
        match ready {
            Some(Ok(report)) => (view.report, view.failure) = (Some(report), None),
            Some(Err(error)) => view.failure = Some(format!("{error:#}")),
            None => {}
        }
        drop(view);
        let looked = Instant::now();
        while looked.elapsed() < LOOK && !ended.load(Ordering::Relaxed) {
            thread::sleep(PAUSE);
        }
    }
    Ok(ExitCode::SUCCESS)
}
