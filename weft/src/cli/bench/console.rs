//! Progress on stderr, if that is a terminal; and Ctrl-C.

use std::cell::Cell;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use weft_benches::Audience;

use crate::cli::error::CliError;

/// What a shell says of a program that SIGINT ended: 128 + 2.
pub(super) const INTERRUPTED: u8 = 130;

/// Signals within this time are one wish: timeout(1) sends it to the process and to its group.
const ONE_WISH: Duration = Duration::from_secs(1);

/// Progress on stderr, if that is a terminal; and Ctrl-C.
pub(super) struct Console {
    terminal: bool,
    shown: Cell<bool>,
    interrupted: Arc<AtomicBool>,
    /// Listens for signals as long as it lives.
    _signals: tokio::runtime::Runtime,
}

impl Console {
    pub(super) fn new() -> Result<Self, CliError> {
        let signals = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = interrupted.clone();
        let mut interrupt = {
            let _inside = signals.enter();
            use tokio::signal::unix::{SignalKind, signal};
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        signals.spawn(async move {
            let mut first: Option<Instant> = None;
            loop {
                tokio::select! {
                    _ = interrupt.0.recv() => {}
                    _ = interrupt.1.recv() => {}
                }
                if first.is_some_and(|first| first.elapsed() < ONE_WISH) {
                    continue;
                }
                if first.replace(Instant::now()).is_some() {
                    // The second one: the next `weft down --all` removes what is left.
                    std::process::exit(INTERRUPTED.into());
                }
                flag.store(true, Ordering::Relaxed);
                eprintln!("\nending and removing everything; once more to leave it as it is");
            }
        });
        let terminal = std::io::stderr().is_terminal();
        Ok(Self { terminal, shown: Cell::new(false), interrupted, _signals: signals })
    }

    pub(super) fn clear(&self) {
        if self.shown.replace(false) {
            eprint!("\r\x1b[K");
        }
    }
}

impl Audience for Console {
    fn step(&self, what: &str) {
        if self.terminal {
            self.shown.set(true);
            eprint!("\r\x1b[K{what}");
        }
    }

    fn note(&self, what: &str) {
        self.clear();
        eprintln!("{what}");
    }

    fn wants_out(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}
