//! What the documents tell a reader to type exists: every `weft` command in them parses, every flag and
//! variable of weft's that they name is one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Command, CommandFactory as _};
use weft::cli::Cli;
use weft_proxy::config::unused::{Effect, UNUSED};

/// Variables that are no flag: the log's filter, the lab's own, and the soak's.
const VARIABLES: [&str; 6] =
    ["WEFT_LOG", "WEFT_LABS_DIR", "WEFT_LAB_KEEP", "WEFT_SOAK_GB", "WEFT_SOAK_MINUTES", "WEFT_SOAK_SEED"];
/// Flags of podman, curl and etcdutl, of which the documents speak.
const OTHERS_FLAGS: [&str; 5] = ["--bump-revision", "--ip", "--mac-address", "--publish", "--unix-socket"];

fn documents() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let listed = |dir: &str| {
        fs::read_dir(root.join(dir)).expect("a directory").map(|entry| entry.expect("a file").path())
    };
    let mut paths: Vec<PathBuf> = ["", "docs", "dist"].into_iter().flat_map(listed).collect();
    paths.retain(|path| path.extension().is_some_and(|ext| ext == "md" || ext == "service"));
    paths.sort();
    assert!(paths.len() >= 6, "{paths:?}");
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).expect("readable"))).collect()
}

/// Whatever stands as code: a line of a block, or what is between backticks.
fn code(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (number, part) in text.split("```").enumerate() {
        if number % 2 == 1 {
            found.extend(part.lines());
        } else {
            found.extend(part.split('`').skip(1).step_by(2));
        }
    }
    found.extend(text.lines().filter_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/")));
    found.into_iter().map(str::trim).collect()
}

/// `weft ...` as a shell splits it; none of the documents quotes an argument of it.
fn command(code: &str) -> Option<Vec<&str>> {
    let words: Vec<&str> = code.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
    (words.first() == Some(&"weft") && words.len() > 1).then_some(words)
}

fn flags(command: &Command, found: &mut BTreeSet<String>) {
    for argument in command.get_arguments() {
        found.extend(argument.get_long().map(str::to_owned));
        found.extend(argument.get_all_aliases().unwrap_or_default().into_iter().map(str::to_owned));
    }
    command.get_subcommands().for_each(|below| flags(below, found));
}

#[test]
fn commands_in_the_documents_are_understood() {
    let mut checked = 0;
    for (path, text) in documents() {
        for words in code(&text).into_iter().filter_map(command) {
            checked += 1;
            let Err(error) = Cli::command().try_get_matches_from(&words) else { continue };
            // What is only named, `weft exec` or `weft overlay --network`, may want more.
            let named = [
                ErrorKind::InvalidValue,
                ErrorKind::MissingRequiredArgument,
                ErrorKind::MissingSubcommand,
                ErrorKind::DisplayHelp,
                ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
            ];
            assert!(named.contains(&error.kind()), "{}: `{}`: {error}", path.display(), words.join(" "));
        }
    }
    assert!(checked >= 20, "only {checked} commands were found");
}

#[test]
fn flags_and_variables_in_the_documents_exist() {
    let mut known = BTreeSet::new();
    flags(&Cli::command(), &mut known);
    let variable = |flag: &String| flag.to_uppercase().replace('-', "_");
    let variables: BTreeSet<String> = known.iter().map(variable).collect();
    for (path, text) in documents() {
        let path = path.display();
        for flag in code(&text).into_iter().filter(|code| code.starts_with("--")) {
            let name = flag.split(['=', ' ', '[']).next().unwrap_or_default();
            let exists = known.contains(name.trim_start_matches("--")) || OTHERS_FLAGS.contains(&name);
            assert!(exists, "{path}: there is no {flag}");
        }
        for word in text.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')) {
            let prefixes = ["WEFT_PROXY_", "WEFT_", "FLANNELD_"];
            let Some(name) = prefixes.iter().find_map(|prefix| word.strip_prefix(prefix)) else { continue };
            // `WEFT_*` and `WEFT_ETCD_*` name several.
            let several = name.is_empty() || name.ends_with('_');
            let flag = |variable: &String| variable == name || several && variable.starts_with(name);
            let exists = variables.iter().any(flag) || VARIABLES.contains(&word);
            assert!(exists, "{path}: there is no {word}");
        }
    }
}

/// The flags of kube-proxy 1.35 that have a meaning here.
const TAKEN: [&str; 24] = [
    "cluster-cidr",
    "config",
    "conntrack-max-per-core",
    "conntrack-min",
    "conntrack-tcp-be-liberal",
    "conntrack-tcp-timeout-close-wait",
    "conntrack-tcp-timeout-established",
    "conntrack-udp-timeout",
    "conntrack-udp-timeout-stream",
    "detect-local-mode",
    "healthz-bind-address",
    "hostname-override",
    "iptables-localhost-nodeports",
    "iptables-masquerade-bit",
    "iptables-sync-period",
    "kubeconfig",
    "logging-format",
    "masquerade-all",
    "metrics-bind-address",
    "nodeport-addresses",
    "oom-score-adj",
    "pod-bridge-interface",
    "pod-interface-name-prefix",
    "proxy-mode",
];

/// What becomes of each flag and field of kube-proxy's stands in the guide, in the row that says so.
#[test]
fn the_guide_from_kube_proxy_has_every_flag_and_field() {
    let documents = documents();
    let guide = documents.iter().find(|(path, _)| path.ends_with("docs/migrating-from-kube-proxy.md"));
    let (_, text) = guide.expect("the guide");
    let (_, text) = text.split_once("## Every flag and every field").expect("its table");
    let row = |name: &str| {
        let written = format!("`{name}`");
        text.lines().find(|line| line.starts_with('|') && line.contains(&written))
    };
    for unused in UNUSED {
        let (field, flag) = (unused.field.trim_end_matches('.').to_owned(), format!("--{}", unused.flag));
        let expected = match unused.effect {
            Effect::None(_) => "| no effect: ",
            Effect::Refused(_) => "| refused: ",
        };
        for name in [field, flag].into_iter().filter(|name| !name.is_empty() && name != "--") {
            let row = row(&name).unwrap_or_else(|| panic!("{name} is in no row"));
            assert!(row.contains(expected), "{name}: {row}");
        }
    }
    for flag in TAKEN {
        let row = row(&format!("--{flag}")).unwrap_or_else(|| panic!("--{flag} is in no row"));
        assert!(row.contains("taken"), "--{flag}: {row}");
    }
}
