//! What somebody does to the rules of iptables mode, with either set of its programs. The kernel tells of
//! changes by the one, and nobody of changes by the other; both are put right in time.

use super::*;

fn story(programs: &str) -> Result<(), LabError> {
    let stage = Stage::new(&format!("ipt-{programs}"))?;
    let (ash, proxy) = (stage.ash(), stage.ash().proxy());
    assert!(proxy.stop()?, "it leaves when it is asked to");
    let deed = |all: &[&str]| {
        let one = |words: &&str| format!("iptables-{programs} -w {words}; ip6tables-{programs} -w {words}");
        format!("set -e; {}", all.iter().map(one).collect::<Vec<_>>().join("; "))
    };
    // In one step for each table: of several the second would meet what was put right after the first.
    let emptied = ["iptables", "ip6tables"].map(|family| {
        format!("printf '*nat\\nCOMMIT\\n*filter\\nCOMMIT\\n' | {family}-{programs}-restore -w")
    });
    // Which programs the host uses is told by the tables it has.
    ash.run(deed(&["-t nat -nL"])).ok()?;
    proxy.launch_with(&["--mode=iptables"])?;
    proxy.wait_until_ready(SOON)?;
    within(SOON, || proxy.as_planned());
    let saved = || ash.run(format!("iptables-{programs}-save | grep -c :WEFT-")).stdout;
    assert_ne!(saved().trim(), "0", "the rules are {programs}'s");
    for (harm, by) in [
        ("nat flushed", deed(&["-t nat -F"])),
        ("a chain flushed", deed(&["-t nat -F WEFT-SERVICES"])),
        ("jumps deleted", deed(&["-t nat -D PREROUTING 1", "-t nat -D OUTPUT 1"])),
        ("nat and filter emptied", format!("set -e; {}", emptied.join("; "))),
    ] {
        let talks: Result<Vec<Probe>, LabError> =
            stage.paths().iter().map(|(from, to)| Ok(from.converse_with(*to, BEAT)?.1)).collect();
        let talks = talks?;
        ash.run(by).ok()?;
        stage.served_again(&format!("{programs}: {harm}"));
        within(SOON, || proxy.as_planned());
        talks.into_iter().try_for_each(|talk| talk.stop_without_loss().map(drop))?;
    }
    stage.lab.down()
}

#[test]
fn deleted_rules_of_iptables_are_back_within_a_second() -> Result<(), LabError> {
    story("nft")
}

#[test]
fn deleted_rules_of_legacy_iptables_are_back_within_a_second() -> Result<(), LabError> {
    story("legacy")
}
