//! Signals to a real process: this program starts itself once more and is the one or the other.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_daemon::{CancellationToken, signals};

const CHILD: &str = "as-the-child";

fn main() {
    if std::env::args().any(|argument| argument == CHILD) {
        return child();
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        one_signal_stops_gracefully(signal);
        a_second_signal_ends_at_once(signal);
    }
    println!("4 passed, 0 failed");
}

/// Says when it is ready and when it is asked to stop; then ends as soon as its input does.
fn child() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        signals::stop_on_signal(shutdown.clone()).unwrap();
        println!("ready");
        shutdown.cancelled().await;
        println!("stopping");
    });
    std::io::stdin().lines().for_each(drop);
}

/// A child that is ready; killed when this is dropped, should a test fail.
struct Running {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Running {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg(CHILD)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut running = Self { child, said };
        running.says("ready");
        running
    }

    fn says(&mut self, expected: &str) {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), expected);
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    fn ends(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the child still runs");
            std::thread::yield_now();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn one_signal_stops_gracefully(signal: Signal) {
    let mut running = Running::start();
    running.signal(signal);
    running.says("stopping");
    running.child.stdin.take().unwrap().flush().unwrap();
    let status = running.ends();
    assert_eq!((status.code(), status.signal()), (Some(0), None), "{signal}");
}

fn a_second_signal_ends_at_once(signal: Signal) {
    let mut running = Running::start();
    running.signal(signal);
    running.says("stopping");
    running.signal(signal);
    assert_eq!(running.ends().code(), Some(128 + signal as i32), "{signal}");
}
