//! Opening iptables for forwarded pod packets, where it would drop them.
//!
//! A packet must pass every table there is, so an accept in our own cannot help against a drop in
//! iptables'. Docker sets the policy of FORWARD to DROP and leaves DOCKER-USER for others' rules, so
//! ours go there; where the policy is DROP without Docker, they go into FORWARD itself. Where
//! forwarding is not closed by default nothing is done: a rule that drops pods' packets by itself is
//! somebody's wish.
//!
//! Our rules stand behind those of the user, before the rule that ends the chain. They carry the
//! comment `weft:<network>`, by which they are found again, in whatever chain.

use ipnetwork::IpNetwork;
use weft_kernel::iptables::{Iptables, Restore, SavedChain, SavedTable, saved_table, unconditional};

/// The kernel's chain that forwarded packets pass.
const FORWARD: &str = "FORWARD";
/// Docker's chain for others' rules.
const DOCKER_USER: &str = "DOCKER-USER";

/// What makes forwarded packets from and to the pod network pass: nothing if they do already.
///
/// `saved` is what [`Iptables::save_program`] printed; `pods` is the pod network in that family,
/// `None` if there is none (rules of ours are then removed).
pub fn open(saved: &str, network: &str, pods: Option<IpNetwork>) -> Restore {
    let filter = saved_table(saved, "filter");
    let place = pods.and_then(|pods| Some((place(&filter)?, accept_rules(network, pods))));
    let mut restore = Restore::default();
    let Some((chain, rules)) = place else { return close(saved, network) };
    let there = filter.get(chain).map(|saved| saved.rules.as_slice()).unwrap_or_default();
    let mut wanted: Vec<&Vec<String>> = there.iter().filter(|rule| !is_ours(rule, network)).collect();
    let index = wanted.iter().position(|rule| unconditional(rule).is_some_and(ends)).unwrap_or(wanted.len());
    let others = wanted.len();
    wanted.splice(index..index, &rules);
    let elsewhere = ours(&filter, network).any(|(name, _)| name != chain);
    if !elsewhere && wanted.iter().copied().eq(there) {
        return restore;
    }
    for (name, rule) in ours(&filter, network) {
        restore.delete("filter", name, rule);
    }
    for (number, rule) in rules.into_iter().enumerate() {
        // A rule's number counts from 1. At the end only "append" is understood by all versions.
        let place = if index == others {
            vec!["-A".to_owned(), chain.to_owned()]
        } else {
            vec!["-I".to_owned(), chain.to_owned(), (index + number + 1).to_string()]
        };
        restore.step("filter", place.into_iter().chain(rule));
    }
    restore
}

/// What takes all rules of ours away.
pub fn close(saved: &str, network: &str) -> Restore {
    let filter = saved_table(saved, "filter");
    let mut restore = Restore::default();
    for (name, rule) in ours(&filter, network) {
        restore.delete("filter", name, rule);
    }
    restore
}

/// What [`open`] cannot help: FORWARD is open by default, but a rule at its end drops or rejects the
/// rest. In words, with the commands that would help.
pub fn obstacle(saved: &str, pods: IpNetwork) -> Option<(String, Vec<String>)> {
    let filter = saved_table(saved, "filter");
    let forward = filter.get(FORWARD)?;
    if forward.policy == "DROP" {
        return None;
    }
    let names_pods = |rule: &Vec<String>| {
        rule.contains(&pods.to_string()) && rule.ends_with(&["-j".to_owned(), "ACCEPT".to_owned()])
    };
    let end = forward.rules.iter().position(|rule| unconditional(rule).is_some_and(refuses))?;
    let verdict = unconditional(forward.rules.get(end)?)?;
    if forward.rules.iter().take(end).filter(|rule| names_pods(rule)).count() >= 2 {
        return None;
    }
    let program = Iptables::program(pods.is_ipv6());
    let say = format!("{program}'s chain FORWARD ends with {verdict}, so pods' packets are not forwarded");
    let run = ["-s", "-d"].map(|side| format!("{program} -I FORWARD {side} {pods} -j ACCEPT"));
    Some((say, run.into()))
}

/// The chain that our rules belong to, if they are needed.
fn place(filter: &SavedTable) -> Option<&'static str> {
    let forward = filter.get(FORWARD).filter(|forward| forward.policy == "DROP")?;
    let visits_docker_user = filter.contains_key(DOCKER_USER) && reaches(forward, DOCKER_USER);
    Some(if visits_docker_user { DOCKER_USER } else { FORWARD })
}

/// Whether every packet of a chain visits another one before something else ends its way.
fn reaches(chain: &SavedChain, wanted: &str) -> bool {
    let targets = chain.rules.iter().filter_map(|rule| unconditional(rule));
    targets.take_while(|target| !ends(target)).any(|target| target == wanted)
}

/// A target behind which a chain's rules are never reached.
fn ends(target: &str) -> bool {
    refuses(target) || target == "ACCEPT" || target == "RETURN"
}

fn refuses(target: &str) -> bool {
    target == "DROP" || target == "REJECT"
}

/// As `iptables-save` prints them, so that they can be compared.
fn accept_rules(network: &str, pods: IpNetwork) -> [Vec<String>; 2] {
    let comment = comment(network);
    let pods = pods.to_string();
    ["-s", "-d"].map(|side| {
        [side, &pods, "-m", "comment", "--comment", &comment, "-j", "ACCEPT"].map(str::to_owned).into()
    })
}

fn comment(network: &str) -> String {
    format!("weft:{network}")
}

fn is_ours(rule: &[String], network: &str) -> bool {
    let comment = comment(network);
    rule.windows(2).any(|pair| matches!(pair, [flag, text] if flag == "--comment" && *text == comment))
}

fn ours<'a>(filter: &'a SavedTable, network: &'a str) -> impl Iterator<Item = (&'a str, &'a [String])> + 'a {
    filter.iter().flat_map(move |(name, chain)| {
        let rules = chain.rules.iter().filter(move |rule| is_ours(rule, network));
        rules.map(move |rule| (name.as_str(), rule.as_slice()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCEPT: &str = r#"-A DOCKER-USER -s 10.42.0.0/16 -m comment --comment "weft:blue" -j ACCEPT
-A DOCKER-USER -d 10.42.0.0/16 -m comment --comment "weft:blue" -j ACCEPT
"#;

    fn docker(rules: &str) -> String {
        format!(
            "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [3:180]\n:DOCKER-USER - [0:0]\n\
             -A FORWARD -j DOCKER-USER\n{rules}-A DOCKER-USER -j RETURN\nCOMMIT\n"
        )
    }

    #[test]
    fn rules_go_where_they_are_needed_and_nowhere_else() {
        let saved_by_user = "-A DOCKER-USER -s 10.42.9.0/24 -j DROP\n";
        let policy = |policy: &str, rules: &str| {
            format!("*filter\n:FORWARD {policy} [0:0]\n{rules}COMMIT\n*nat\n:FORWARD DROP [0:0]\nCOMMIT\n")
        };
        let forward = |rule: &str| format!("-A FORWARD {rule}\n");
        let at_end = "-A FORWARD -s 10.42.0.0/16 -m comment --comment weft:blue -j ACCEPT\n\
                      -A FORWARD -d 10.42.0.0/16 -m comment --comment weft:blue -j ACCEPT\n";
        let into = |chain: &str, number: usize| {
            format!(
                "-I {chain} {number} -s 10.42.0.0/16 -m comment --comment weft:blue -j ACCEPT\n\
                 -I {chain} {} -d 10.42.0.0/16 -m comment --comment weft:blue -j ACCEPT\n",
                number + 1
            )
        };
        let table = [
            ("nothing there", String::new(), String::new()),
            ("open by default", policy("ACCEPT", ""), String::new()),
            ("Docker", docker(""), into("DOCKER-USER", 1)),
            ("Docker, and all is done", docker(ACCEPT), String::new()),
            ("behind the user's rules", docker(saved_by_user), into("DOCKER-USER", 2)),
            ("the user's rule came before", docker(&format!("{saved_by_user}{ACCEPT}")), String::new()),
            ("closed without Docker", policy("DROP", ""), at_end.into()),
            ("closed, with rules", policy("DROP", &forward("-j ufw-before-forward")), at_end.into()),
            (
                "closed twice",
                policy(
                    "DROP",
                    &(forward("-i lo -j ACCEPT") + &forward("-j REJECT --reject-with icmp-port-unreachable")),
                ),
                into("FORWARD", 2),
            ),
            (
                "Docker's chain that nothing leads to",
                policy("DROP", ":DOCKER-USER - [0:0]\n-A DOCKER-USER -j RETURN\n"),
                at_end.into(),
            ),
            (
                "Docker's chain behind a drop",
                policy("DROP", &(forward("-j DROP") + ":DOCKER-USER - [0:0]\n" + &forward("-j DOCKER-USER"))),
                into("FORWARD", 1),
            ),
        ];
        for (why, saved, wanted) in table {
            let wanted = if wanted.is_empty() { wanted } else { format!("*filter\n{wanted}COMMIT\n") };
            let restore = open(&saved, "blue", Some("10.42.0.0/16".parse().unwrap()));
            assert_eq!(restore.to_string(), wanted, "{why}");
        }
    }

    #[test]
    fn rules_of_ours_that_are_wrong_are_replaced() {
        let half = ACCEPT.lines().next().unwrap().to_owned() + "\n";
        let misplaced = docker("")
            + "*filter\n-A FORWARD -s 10.9.0.0/16 -m comment --comment \"weft:blue\" -j ACCEPT\nCOMMIT\n";
        for saved in [docker(&half), docker(&(half.clone() + ACCEPT)), misplaced] {
            let text = open(&saved, "blue", Some("10.42.0.0/16".parse().unwrap())).to_string();
            let (deleted, added): (Vec<_>, Vec<_>) =
                text.lines().filter(|line| line.starts_with('-')).partition(|line| line.starts_with("-D"));
            assert!(!deleted.is_empty() && deleted.len() == saved.matches("weft:blue").count(), "{text}");
            assert_eq!(added.len(), 2, "{text}");
        }
    }

    #[test]
    fn other_networks_rules_are_not_ours() {
        let saved = docker(&ACCEPT.replace("weft:blue", "weft:blue2"));
        assert!(close(&saved, "blue").is_empty());
        assert_eq!(close(&saved, "blue2").to_string().matches("-D DOCKER-USER").count(), 2);
        assert_eq!(open(&saved, "blue2", None), close(&saved, "blue2"));
    }

    #[test]
    fn a_reject_at_the_end_is_told() {
        let reject = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\nCOMMIT\n";
        let pods = "10.42.0.0/16".parse().unwrap();
        let (what, run) = obstacle(reject, pods).unwrap();
        assert_eq!(what, "iptables's chain FORWARD ends with REJECT, so pods' packets are not forwarded");
        assert_eq!(
            run,
            [
                "iptables -I FORWARD -s 10.42.0.0/16 -j ACCEPT",
                "iptables -I FORWARD -d 10.42.0.0/16 -j ACCEPT"
            ]
        );
        let done = reject.replace(
            "-A FORWARD -j",
            "-A FORWARD -s 10.42.0.0/16 -j ACCEPT\n-A FORWARD -d 10.42.0.0/16 -j ACCEPT\n-A FORWARD -j",
        );
        assert_eq!(obstacle(&done, pods), None);
        assert_eq!(obstacle(&docker(""), pods), None);
    }
}
