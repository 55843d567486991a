//! What a person reads when it does not work: one line that says what, where and why, and a hint.

use std::error::Error;
use std::fmt::Display;
use std::io::Write as _;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use weft_daemon::log::chain;

use super::flags::Sources;

/// Everything went well.
pub const OK: u8 = 0;
/// What was asked for did not work out.
pub const FAILED: u8 = 1;
/// What was asked for makes no sense: a flag, a value, a combination.
pub const USAGE: u8 = 2;

/// A command that did not end well.
///
/// Made from any error by `?`; it does not implement [`Error`] itself, because nothing comes after it.
#[derive(Debug)]
pub struct CliError {
    line: String,
    hint: Option<String>,
    code: u8,
}

impl<E: Error> From<E> for CliError {
    fn from(error: E) -> Self {
        Self { line: chain(&error), hint: None, code: FAILED }
    }
}

impl CliError {
    /// It did not work, in our own words.
    pub fn failed(line: impl Display) -> Self {
        Self { line: line.to_string(), hint: None, code: FAILED }
    }

    /// The command line, or what stands for it in the environment, makes no sense.
    pub fn usage(line: impl Display) -> Self {
        Self { code: USAGE, ..Self::failed(line) }
    }

    /// What to do about it.
    pub fn hint(self, hint: impl Display) -> Self {
        Self { hint: Some(hint.to_string()), ..self }
    }

    /// How the process ends: 0 well, 1 failed, 2 wrong usage.
    pub fn exit_code(&self) -> ExitCode {
        self.code.into()
    }

    /// `error: A: B: C`, and perhaps `hint: D`.
    pub fn render(&self) -> String {
        let hint = self.hint.as_ref().map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
        format!("error: {}\n{hint}", self.line)
    }

    /// Says it on stderr.
    pub fn print(&self) {
        // If stderr is gone, the exit code is all that is left to say.
        let _ = std::io::stderr().write_all(self.render().as_bytes());
    }

    /// What clap found wrong, in one line in our form. `sources` names the environment variable that a
    /// value came from.
    pub fn of_clap(error: &clap::Error, sources: &Sources) -> Self {
        let context = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.clone()),
            Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
            _ => None,
        };
        // `--public-ip <IP>` or `--ip-masq[=<BOOL>]`: the name alone.
        let argument = context(ContextKind::InvalidArg).unwrap_or_default();
        let name = sources.name(argument.split([' ', '[', '=']).next().unwrap_or_default());
        let value = context(ContextKind::InvalidValue).unwrap_or_default();
        let line = match error.kind() {
            ErrorKind::ValueValidation => match error.source() {
                Some(rule) => format!("{name}: {rule}"),
                None => format!("{name}: `{value}` is not valid"),
            },
            ErrorKind::InvalidValue if value.is_empty() => format!("{name} needs a value"),
            ErrorKind::InvalidValue => match context(ContextKind::ValidValue) {
                Some(valid) => format!("{name}: `{value}` is none of {valid}"),
                None => format!("{name}: `{value}` is not valid"),
            },
            ErrorKind::UnknownArgument => format!("there is no `{argument}` here"),
            ErrorKind::InvalidSubcommand => {
                format!(
                    "there is no command `{}`",
                    context(ContextKind::InvalidSubcommand).unwrap_or_default()
                )
            }
            ErrorKind::MissingRequiredArgument => format!("{argument} is missing"),
            ErrorKind::TooManyValues => format!("{name} takes no value; `{value}` was given"),
            // Rare ones: clap's own first line, without its prefix.
            _ => {
                let text = error.to_string();
                text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
            }
        };
        let near = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue];
        let near = near.into_iter().find_map(context).filter(|near| !near.is_empty());
        let error = Self::usage(line);
        match near {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_stand_in_one_line_and_the_hint_in_the_next() {
        let error = weft_daemon::fs::WriteError {
            path: "/run/flannel/subnet.env".into(),
            source: std::io::Error::other("no space left"),
        };
        let error = CliError::from(error).hint("free some space");
        assert_eq!(
            error.render(),
            "error: cannot write /run/flannel/subnet.env: no space left\nhint: free some space\n"
        );
        assert_eq!(error.exit_code(), ExitCode::from(1));
        assert_eq!(CliError::usage("x").exit_code(), ExitCode::from(2));
    }
}
