//! The program from its arguments to its words, without a process.

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
    let mut weft = Cli::command();
    weft.build();
    let shown = |command: &clap::Command| -> Vec<clap::Command> {
        command.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect()
    };
    for command in shown(&weft).into_iter().flat_map(|command| [shown(&command), vec![command]].concat()) {
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
        (
            &["up", "--network-config", r#"{"Network":"10.42.0.0/16","SubnetLen":31}"#],
            "error: --network-config: SubnetLen = 31: must be at most 30, so that a subnet has room for the host's own addresses\n",
        ),
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

/// What the command would be given, with this environment.
fn told(args: &[&str], env: &[(&str, &str)]) -> String {
    let args = ["weft"].iter().chain(args).map(OsString::from).collect();
    let (args, _) = prepared(args, &Env::of(env.iter().copied()));
    args.join(&OsString::from(" ")).into_string().unwrap()
}

#[test]
fn every_command_finds_etcd_where_the_daemon_does() {
    let flannels = [("FLANNELD_ETCD_ENDPOINTS", "http://a:1")];
    let ours = [("FLANNELD_ETCD_PREFIX", "/a"), ("WEFT_ETCD_PREFIX", "/b"), ("WEFT_OUTPUT", "json")];
    for (args, env, expected) in [
        (&["lease", "ls"][..], &flannels[..], "weft lease ls --etcd-endpoints=http://a:1"),
        (
            &["lease", "release", "10.42.7.0/24"],
            &flannels,
            "weft lease release --etcd-endpoints=http://a:1 10.42.7.0/24",
        ),
        (&["doctor"], &ours, "weft doctor --etcd-prefix=/b"),
        (&["lease", "ls", "--etcd-prefix", "/c"], &ours, "weft lease ls --etcd-prefix /c"),
        (&["lease", "ls", "--etcd-prefix=/c"], &ours, "weft lease ls --etcd-prefix=/c"),
        // flannel has no such flag.
        (&["doctor"], &[("FLANNELD_ETCD_PASSWORD_FILE", "/x")], "weft doctor"),
        (&["doctor"], &[("WEFT_ETCD_PASSWORD_FILE", "/x")], "weft doctor --etcd-password-file=/x"),
        // A word that is no command, and commands that do not ask etcd.
        (&["lease"], &flannels, "weft lease"),
        (&["lease", "lss"], &flannels, "weft lease lss"),
        (&["peers"], &flannels, "weft peers"),
        (&[], &flannels, "weft"),
    ] {
        assert_eq!(told(args, env), expected);
    }
}

/// A command that takes etcd's flags takes etcd's variables, and its help says so.
#[test]
fn no_command_that_asks_etcd_is_forgotten() {
    fn visit(command: &clap::Command, path: &[&str], found: &mut Vec<String>) {
        for next in command.get_subcommands() {
            let path = [path, &[next.get_name()]].concat();
            visit(next, &path, found);
            if next.get_arguments().any(|argument| argument.get_long() == Some("etcd-endpoints")) {
                let told = told(&path, &[("FLANNELD_ETCD_ENDPOINTS", "http://a:1")]);
                assert!(told.ends_with(" --etcd-endpoints=http://a:1"), "{told}");
                let help = next.clone().render_long_help().to_string();
                assert!(help.contains("FLANNELD_"), "{path:?}");
                found.push(path.join(" "));
            }
        }
    }
    let mut found = Vec::new();
    visit(&Cli::command(), &[], &mut found);
    assert_eq!(found, ["overlay", "lease ls", "lease reserve", "lease release", "lease drain", "doctor"]);
}

#[test]
fn a_bad_variable_is_blamed_by_any_command() {
    let args = ["weft", "lease", "ls"].map(OsString::from).to_vec();
    let env = Env::of([("FLANNELD_ETCD_ENDPOINTS", "ftp://a:1")]);
    let error = run(args, &env).unwrap_err().render();
    assert!(error.contains("ftp://a:1"), "{error}");
}
