//! Go's way of writing flags, and flags from the environment, turned into what clap reads. Pure.
//!
//! flannel's unit files say `-iface eth0`, `-ip-masq` or `--etcd-endpoints=...`, or set `FLANNELD_IFACE`.
//! Go's rules: one dash or two, a value after `=` or as the next argument, a boolean only after `=`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};

use clap::{ArgAction, Command};
use weft_daemon::Env;

/// The long flags of a command, and how each is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags {
    /// By name without dashes: must a value follow? (A boolean may stand alone.)
    takes_value: BTreeMap<String, bool>,
    /// Those whose value may also come from a variable with this prefix, the first wins.
    prefixes: BTreeMap<String, &'static [&'static str]>,
}

/// Which flags got their value from the environment, and from which variable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources(BTreeMap<String, String>);

impl Sources {
    /// What a person wrote: the variable if the value is from there, else the flag with its dashes.
    pub fn name(&self, flag: &str) -> String {
        let name = flag.trim_start_matches('-');
        self.0.get(name).cloned().unwrap_or_else(|| format!("--{name}"))
    }
}

impl Flags {
    /// The flags of `command`. Each that `prefixes` gives something for reads `<PREFIX><NAME>`, the first
    /// that is set.
    pub fn of(command: &Command, prefixes: impl Fn(&str) -> &'static [&'static str]) -> Self {
        let mut flags = Self { takes_value: BTreeMap::new(), prefixes: BTreeMap::new() };
        for argument in command.get_arguments() {
            let Some(name) = argument.get_long() else { continue };
            let asks = matches!(
                argument.get_action(),
                ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
            );
            let must = argument.get_action().takes_values() && !argument.is_require_equals_set();
            let aliases = argument.get_all_aliases().unwrap_or_default();
            flags.takes_value.extend(aliases.into_iter().chain([name]).map(|name| (name.to_owned(), must)));
            if !asks {
                flags.prefixes.insert(name.to_owned(), prefixes(name));
            }
        }
        flags
    }

    /// The same arguments with every flag as `--name`, `--name=value`, in clap's way. An empty value is
    /// as if the flag were not there: unit files write `-public-ip=${PUBLIC_IP}`.
    pub fn normalised(&self, args: &[OsString]) -> Vec<OsString> {
        let mut out = Vec::with_capacity(args.len());
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let text = arg.to_string_lossy();
            if text == "--" {
                out.push(arg.clone());
                out.extend(args.cloned());
                break;
            }
            let Some((name, value)) = split(arg) else {
                out.push(arg.clone());
                continue;
            };
            match (self.takes_value.get(&name), value) {
                (Some(true), Some(value)) if value.is_empty() => {}
                (Some(_), Some(value)) => out.push(joined(&name, &value)),
                (Some(true), None) => match args.next() {
                    Some(value) if value.is_empty() => {}
                    Some(value) => out.push(joined(&name, value)),
                    None => out.push(format!("--{name}").into()),
                },
                (Some(false), None) => out.push(format!("--{name}").into()),
                // Not ours: with two dashes clap says so and names the near ones. One letter may be `-h`.
                (None, _) if text.starts_with("--") || name.chars().count() == 1 => out.push(arg.clone()),
                (None, Some(value)) => out.push(joined(&name, &value)),
                (None, None) => out.push(format!("--{name}").into()),
            }
        }
        out
    }

    /// What the environment adds to normalised arguments, as further arguments, and from where. A flag
    /// that is given beats the environment; an empty variable is unset.
    pub fn from_env(&self, args: &[OsString], env: &Env) -> (Vec<OsString>, Sources) {
        let given: BTreeSet<String> =
            args.iter().take_while(|arg| *arg != "--").filter_map(|arg| Some(split(arg)?.0)).collect();
        let (mut added, mut sources) = (Vec::new(), Sources::default());
        for (name, prefixes) in &self.prefixes {
            if given.contains(name) {
                continue;
            }
            let suffix = name.to_uppercase().replace('-', "_");
            let variables = prefixes.iter().map(|prefix| format!("{prefix}{suffix}"));
            let found = variables.filter_map(|variable| Some((env.get(&variable)?, variable))).next();
            if let Some((value, variable)) = found {
                added.push(joined(name, &value));
                sources.0.insert(name.clone(), variable);
            }
        }
        (added, sources)
    }
}

/// A flag's name and, after `=`, its value; `None` for what is no flag. Flags are UTF-8, values need not be.
fn split(arg: &OsStr) -> Option<(String, Option<OsString>)> {
    use std::os::unix::ffi::OsStrExt as _;
    let bytes = arg.as_bytes().strip_prefix(b"-")?;
    let bytes = bytes.strip_prefix(b"-").unwrap_or(bytes);
    let (name, value) = match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) => (&bytes[..at], Some(OsStr::from_bytes(&bytes[at + 1..]).to_owned())),
        None => (bytes, None),
    };
    let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty())?;
    Some((name.to_owned(), value))
}

fn joined(name: &str, value: &OsStr) -> OsString {
    let mut flag = OsString::from(format!("--{name}="));
    flag.push(value);
    flag
}

#[cfg(test)]
mod tests {
    use clap::Arg;
    use proptest::prelude::*;

    use super::*;

    fn flags() -> Flags {
        let boolean = |name: &'static str| {
            Arg::new(name).long(name).num_args(0..=1).require_equals(true).action(ArgAction::Set)
        };
        let value = |name: &'static str| Arg::new(name).long(name).action(ArgAction::Append);
        let mut command = Command::new("overlay")
            .args([value("iface"), value("v").short('v'), value("etcd-password"), value("node-id")])
            .args([boolean("ip-masq"), boolean("anti-spoofing")]);
        command.build();
        Flags::of(&command, |name| match name {
            "node-id" | "anti-spoofing" => &["WEFT_"],
            _ => &["WEFT_", "FLANNELD_"],
        })
    }

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').filter(|word| !word.is_empty()).map(|word| word.replace('_', "").into()).collect()
    }

    #[test]
    fn flags_as_go_reads_them() {
        // `_` stands for nothing, so that a word can be empty.
        for (written, read) in [
            ("-iface eth0", "--iface=eth0"),
            ("--iface eth0", "--iface=eth0"),
            ("-iface=eth0", "--iface=eth0"),
            ("--iface=eth0 -iface eth1", "--iface=eth0 --iface=eth1"),
            ("-ip-masq", "--ip-masq"),
            ("-ip-masq=false", "--ip-masq=false"),
            ("-ip-masq false", "--ip-masq false"),
            ("--ip-masq -iface eth0", "--ip-masq --iface=eth0"),
            ("-v=4", "--v=4"),
            ("-v 4", "--v=4"),
            ("--v 4", "--v=4"),
            ("-etcd-password -x=y", "--etcd-password=-x=y"),
            ("-etcd-password --", "--etcd-password=--"),
            ("-iface=a=b", "--iface=a=b"),
            ("-iface=", ""),
            ("-iface _ -v 1", "--v=1"),
            ("-iface", "--iface"),
            ("-ip-masq=", "--ip-masq="),
            ("-h", "-h"),
            ("-help", "--help"),
            ("-version", "--version"),
            ("-ifacee eth0", "--ifacee eth0"),
            ("-unknown=1", "--unknown=1"),
            ("--unknown=1", "--unknown=1"),
            ("overlay - -iface eth0", "overlay - --iface=eth0"),
            ("-- -iface eth0", "-- -iface eth0"),
            ("---iface eth0", "---iface eth0"),
            ("-=x", "-=x"),
        ] {
            assert_eq!(flags().normalised(&words(written)), words(read), "{written}");
        }
    }

    #[test]
    fn the_environment_fills_what_the_command_line_leaves_open() {
        for (case, args, env, expected) in [
            ("flannel's own", "", vec![("FLANNELD_IFACE", "eth0")], "--iface=eth0"),
            ("ours", "", vec![("WEFT_IFACE", "eth0")], "--iface=eth0"),
            ("ours wins", "", vec![("FLANNELD_IFACE", "eth0"), ("WEFT_IFACE", "eth1")], "--iface=eth1"),
            (
                "a flag beats both",
                "--iface=eth2",
                vec![("FLANNELD_IFACE", "eth0"), ("WEFT_IFACE", "eth1")],
                "",
            ),
            ("empty is unset", "", vec![("WEFT_IFACE", ""), ("FLANNELD_IFACE", "eth0")], "--iface=eth0"),
            ("a boolean", "", vec![("FLANNELD_IP_MASQ", "true")], "--ip-masq=true"),
            ("a boolean flag is given without a value", "--ip-masq", vec![("FLANNELD_IP_MASQ", "false")], ""),
            ("what flannel does not have", "", vec![("FLANNELD_NODE_ID", "x")], ""),
            ("but we do", "", vec![("WEFT_NODE_ID", "x")], "--node-id=x"),
            ("help is not asked for so", "", vec![("WEFT_HELP", "true")], ""),
            ("a word after -- is no flag", "-- --iface=x", vec![("WEFT_IFACE", "eth0")], "--iface=eth0"),
        ] {
            assert_eq!(flags().from_env(&words(args), &Env::of(env)).0, words(expected), "{case}");
        }
    }

    #[test]
    fn a_value_is_blamed_on_where_it_came_from() {
        let env = Env::of([("FLANNELD_IFACE", "eth0"), ("WEFT_V", "1")]);
        let (_, sources) = flags().from_env(&words("--v=2"), &env);
        assert_eq!(sources.name("--iface"), "FLANNELD_IFACE");
        assert_eq!(sources.name("--v"), "--v");
    }

    proptest! {
        /// What is in clap's form stays as it is.
        #[test]
        fn normalising_is_done_once(
            args in proptest::collection::vec("-{0,3}(iface|v|ip-masq|x)?(=[a-z-]{0,3})?", 0..6)
        ) {
            let args: Vec<OsString> = args.into_iter().map(OsString::from).collect();
            let once = flags().normalised(&args);
            // A flag without its value at the end is clap's to refuse.
            prop_assume!(!once.last().is_some_and(|last| last == "--iface" || last == "--v"));
            prop_assert_eq!(flags().normalised(&once), once);
        }
    }
}
