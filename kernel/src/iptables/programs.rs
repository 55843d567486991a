//! iptables' own programs, called: what is in their rule sets, and changes to it.

use std::fs;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use super::{Backend, Iptables, Restore};
use crate::nft::TableKey;

/// A program of iptables' could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not there, or cannot be started.
    #[error("cannot run {program}")]
    Start {
        /// Which.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("{program} says: {words}")]
    Failed {
        /// Which.
        program: &'static str,
        /// Its last words.
        words: String,
    },
}

/// The rule sets that this thread's network namespace uses; `nft_tables` are nftables' tables.
pub fn in_use(nft_tables: &[TableKey]) -> impl Iterator<Item = Iptables> {
    let legacy = |tables: &Iptables| fs::read_to_string(tables.legacy_tables_file()).unwrap_or_default();
    Iptables::ALL.into_iter().filter(move |tables| tables.is_in_use(nft_tables, &legacy(tables)))
}

/// Which kernel interface the host's administrator chose for the program `iptables`, as that says itself;
/// `None` if it says nothing.
pub fn chosen() -> Option<Backend> {
    let output = Command::new("iptables").arg("--version").stdin(Stdio::null()).output().ok()?;
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    match (words.contains("(nf_tables)"), words.contains("(legacy)")) {
        (true, _) => Some(Backend::Nft),
        (_, true) => Some(Backend::Legacy),
        _ => None,
    }
}

/// What the rule set holds.
///
/// # Errors
/// When the program is missing or fails.
pub fn save(tables: Iptables) -> Result<String, ProgramError> {
    let program = tables.save_program();
    let output = Command::new(program).stdin(Stdio::null()).output();
    let output = output.map_err(|source| ProgramError::Start { program, source })?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(ProgramError::Failed { program, words: last_words(&output.stderr) })
    }
}

/// Changes the rule set; nothing is called if there is nothing to do.
///
/// # Errors
/// When the program is missing or fails; then nothing was changed in that table.
pub fn restore(tables: Iptables, steps: &Restore) -> Result<(), ProgramError> {
    if steps.is_empty() {
        return Ok(());
    }
    restore_text(tables, &steps.to_string()).map(|_| ())
}

/// Changes the rule set as the text says; the answer is the process that did it, which with
/// [`Backend::Nft`] is the netlink port of the event too.
///
/// # Errors
/// When the program is missing or fails. What stands before the last `COMMIT` that it came to is done.
pub fn restore_text(tables: Iptables, text: &str) -> Result<u32, ProgramError> {
    run(tables, &[], text)
}

/// Says whether the rule set would take that text, as far as the program and its questions to the kernel
/// tell; changes nothing.
///
/// # Errors
/// When the program is missing, or refuses the text.
pub fn test_text(tables: Iptables, text: &str) -> Result<(), ProgramError> {
    run(tables, &["--test"], text).map(|_| ())
}

fn run(tables: Iptables, further: &[&str], text: &str) -> Result<u32, ProgramError> {
    let program = tables.restore_program();
    let start = |source| ProgramError::Start { program, source };
    let mut command = Command::new(program);
    command
        .args(Restore::ARGUMENTS)
        .args(further)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(start)?;
    let process = child.id();
    if let Some(mut stdin) = child.stdin.take() {
        // If the program has gone already, its last words say why.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(start)?;
    if output.status.success() {
        Ok(process)
    } else {
        Err(ProgramError::Failed { program, words: last_words(&output.stderr) })
    }
}

fn last_words(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}
