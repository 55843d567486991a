//! The program from its arguments to its words, without a process.

use clap::CommandFactory as _;

use super::*;

fn fails(args: &[&str]) -> String {
    let args = ["weft"].iter().chain(args).map(OsString::from).collect();
    run(args, &Env::default()).unwrap_err().render()
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
    overlay::command().debug_assert();
}

#[test]
fn every_command_says_what_it_does() {
    for command in Cli::command().get_subcommands() {
        assert!(command.get_about().is_some(), "{} has no help", command.get_name());
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            assert!(argument.get_help().is_some(), "{} {argument} has no help", command.get_name());
        }
    }
}

#[test]
fn wrong_usage_is_one_line_and_a_hint() {
    for (args, expected) in [
        (
            &["docker-optz"][..],
            "error: there is no command `docker-optz`\nhint: did you mean `docker-opts`?\n",
        ),
        (
            &["docker-opts", "--combine"],
            "error: there is no `--combine` here\nhint: did you mean `--combined`?\n",
        ),
        (&["docker-opts", "--key"], "error: --key needs a value\n"),
        (&["docker-opts", "stray"], "error: there is no `stray` here\n"),
    ] {
        assert_eq!(fails(args), expected);
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    assert_eq!(
        fails(&["docker-opts", "-f", "/nonexistent/subnet.env"]),
        "error: cannot read /nonexistent/subnet.env: No such file or directory (os error 2)\n\
         hint: `weft overlay` writes it once this host has a subnet\n"
    );
}

#[test]
fn the_version_may_name_a_commit() {
    let (number, commit) = VERSION.split_once(' ').unwrap_or((VERSION, ""));
    assert_eq!(number, env!("CARGO_PKG_VERSION"));
    let commit = commit.trim_matches(['(', ')']);
    assert!(commit.len() <= 12 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()), "{VERSION}");
}

#[test]
fn the_name_of_the_program_makes_it_the_cni_plugin() {
    for (program, expected) in [
        ("/opt/cni/bin/weft-cni", true),
        ("weft-cni", true),
        ("weft", false),
        ("/weft-cni/weft", false),
        ("", false),
    ] {
        assert_eq!(is_cni(&[program.into()]), expected, "{program}");
    }
    assert!(!is_cni(&[]));
}
