//! Running programs: bounded in time, output captured without pipes, and never the wrong pid killed.
//!
//! Output goes to unnamed temporary files, so a background child that keeps its stdout open cannot
//! hang the caller. A process is remembered by pid *and* start time; a recycled pid is another process.

use std::fmt;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::LabError;
use crate::wait::wait_for;

/// How long a killed process may take to be gone: the kernel may have much memory to give back.
const DEATH: Duration = Duration::from_secs(20);

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It was killed after this time.
    TimedOut(Duration),
    /// It could not be started; why.
    NotStarted(String),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with {code}"),
            Self::Signal(signal) => write!(f, "was killed by signal {signal}"),
            Self::TimedOut(limit) => write!(f, "was still running after {limit:?}"),
            Self::NotStarted(why) => write!(f, "could not be started ({why})"),
        }
    }
}

/// What a command printed and how it ended.
#[derive(Clone, Debug)]
#[must_use = "a command that failed unseen makes the next step a riddle"]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
    /// How it ended.
    pub exit: Exit,
}

impl Output {
    pub(crate) fn not_started(command: String, why: &LabError) -> Self {
        let exit = Exit::NotStarted(why.chain());
        Self { command, stdout: String::new(), stderr: String::new(), exit }
    }

    /// It exited with 0.
    pub fn success(&self) -> bool {
        self.exit == Exit::Code(0)
    }

    /// Its stdout if it exited with 0, else an error that quotes what it said.
    pub fn ok(self) -> Result<String, LabError> {
        if self.success() {
            return Ok(self.stdout);
        }
        let said = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        Err(LabError::Command { command: self.command, exit: self.exit, said: said.trim().to_owned() })
    }

    /// Its stdout as JSON.
    pub fn json(self) -> Result<serde_json::Value, LabError> {
        let command = self.command.clone();
        let answer = self.ok()?;
        serde_json::from_str(&answer).map_err(|source| LabError::Answer { command, answer, source })
    }
}

/// A command that runs in the background; killed when dropped.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Child,
    stdout: File,
    stderr: File,
    ended: mpsc::Receiver<()>,
}

impl Running {
    /// Starts it, in a process group of its own so that its children end with it.
    pub(crate) fn start(mut command: Command, shown: String, stdin: &[u8]) -> Result<Self, LabError> {
        use std::os::unix::process::CommandExt;
        let what = format!("start `{shown}`");
        let io = |source| LabError::Io { what: what.clone(), source };
        let input = if stdin.is_empty() {
            Stdio::null()
        } else {
            let mut file = tempfile::tempfile().map_err(io)?;
            file.write_all(stdin).map_err(io)?;
            file.rewind().map_err(io)?;
            file.into()
        };
        let (stdout, stderr) = (tempfile::tempfile().map_err(io)?, tempfile::tempfile().map_err(io)?);
        command
            .stdin(input)
            .stdout(stdout.try_clone().map_err(io)?)
            .stderr(stderr.try_clone().map_err(io)?)
            .process_group(0);
        let child = command.spawn().map_err(io)?;
        let ended = notice_end(&child);
        Ok(Self { command: shown, child, stdout, stderr, ended })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn stdout_so_far(&self) -> String {
        read_all(&self.stdout)
    }

    /// What it has complained about so far.
    pub fn stderr_so_far(&self) -> String {
        read_all(&self.stderr)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        // The child is not reaped before `finish`, so the pid is still its own.
        let _ = kill(pid_of(&self.child), signal);
    }

    /// Waits for its end, and kills it if that takes longer than `limit`.
    pub fn wait(mut self, limit: Duration) -> Output {
        let in_time = self.ended.recv_timeout(limit).is_ok();
        self.finish((!in_time).then_some(limit))
    }

    /// Asks it to end (SIGINT, as a person would), and kills it after ten seconds.
    pub fn stop(mut self) -> Output {
        self.signal(Signal::SIGINT);
        let in_time = self.ended.recv_timeout(Duration::from_secs(10)).is_ok();
        self.finish((!in_time).then_some(Duration::from_secs(10)))
    }

    fn finish(&mut self, timed_out: Option<Duration>) -> Output {
        use std::os::unix::process::ExitStatusExt;
        self.kill_group();
        let exit = match (timed_out, self.child.wait()) {
            (Some(limit), _) => Exit::TimedOut(limit),
            (None, Err(error)) => Exit::NotStarted(error.to_string()),
            (None, Ok(status)) => match (status.code(), status.signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, signal) => Exit::Signal(signal.unwrap_or_default()),
            },
        };
        Output {
            command: self.command.clone(),
            stdout: read_all(&self.stdout),
            stderr: read_all(&self.stderr),
            exit,
        }
    }

    /// The group's id is the child's pid, which stays taken until the child is reaped.
    fn kill_group(&self) {
        let _ = kill(Pid::from_raw(-pid_of(&self.child).as_raw()), Signal::SIGKILL);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After `finish` the child is reaped, `try_wait` says so, and the pid is no longer touched.
        if let Ok(None) = self.child.try_wait() {
            self.kill_group();
            let _ = self.child.wait();
        }
    }
}

/// Runs a command to its end, or kills it after `limit`.
pub(crate) fn run(command: Command, shown: String, stdin: &[u8], limit: Duration) -> Output {
    match Running::start(command, shown.clone(), stdin) {
        Ok(running) => running.wait(limit),
        Err(error) => Output::not_started(shown, &error),
    }
}

/// A process that is told apart from a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its pid.
    pub pid: i32,
    /// When it started, in clock ticks since boot: field 22 of `/proc/<pid>/stat` (proc(5)).
    pub started: u64,
}

impl ProcessId {
    /// This process.
    pub fn own() -> Option<Self> {
        Self::of(Pid::this().as_raw())
    }

    /// The process that has this pid now.
    pub fn of(pid: i32) -> Option<Self> {
        let (state, started) = state_and_start(pid)?;
        (state != 'Z').then_some(Self { pid, started })
    }

    /// It still runs; a zombie does not.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal if it still runs.
    pub(crate) fn signal(self, signal: Signal) {
        if self.is_alive() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Ends it: `signal`, then after `patience` SIGKILL. True if it was gone in time.
    pub(crate) fn end(self, signal: Signal, patience: Duration) -> bool {
        self.signal(signal);
        // A frozen process only dies of a signal other than SIGKILL once it runs again.
        self.signal(Signal::SIGCONT);
        if wait_for(patience, || !self.is_alive()).is_ok() {
            return true;
        }
        self.signal(Signal::SIGKILL);
        wait_for(DEATH, || !self.is_alive()).is_ok() && signal == Signal::SIGKILL
    }
}

/// Tells when the child has ended, and leaves it to be reaped by the one who asks for its status.
fn notice_end(child: &Child) -> mpsc::Receiver<()> {
    let (pid, (tell, ended)) = (pid_of(child), mpsc::channel());
    std::thread::spawn(move || {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(pid), flags) == Err(nix::errno::Errno::EINTR) {}
        let _ = tell.send(());
    });
    ended
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("Linux pids fit 22 bits"))
}

/// Reads by position: the child shares the open file, and its offset must stay where it writes.
fn read_all(file: &File) -> String {
    let mut bytes = vec![0; file.metadata().map_or(0, |meta| meta.len() as usize)];
    let read = file.read_at(&mut bytes, 0).unwrap_or(0);
    bytes.truncate(read);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Fields 3 and 22 of `/proc/<pid>/stat`. The second field, the name, may hold spaces and brackets.
fn state_and_start(pid: i32) -> Option<(char, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}
