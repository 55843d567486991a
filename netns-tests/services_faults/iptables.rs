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
    // Which programs the host uses is told by the tables it has.
    ash.run(deed(&["-t nat -nL"])).ok()?;
    proxy.launch_with(&["--mode=iptables"])?;
    proxy.wait_until_ready(SOON)?;
    within(SOON, || proxy.as_planned());
    let saved = || ash.run(format!("iptables-{programs}-save | grep -c :WEFT-")).stdout;
    assert_ne!(saved().trim(), "0", "the rules are {programs}'s");
    for deeds in [
        &["-t nat -F"][..],
        &["-t nat -F WEFT-SERVICES"],
        &["-t nat -D PREROUTING 1", "-t nat -D OUTPUT 1"],
        &["-t nat -F", "-t nat -X", "-t filter -F", "-t filter -X"],
    ] {
        let talks: Result<Vec<Probe>, LabError> =
            stage.paths().iter().map(|(from, to)| Ok(from.converse_with(*to, BEAT)?.1)).collect();
        let talks = talks?;
        ash.run(deed(deeds)).ok()?;
        stage.served_again(&format!("{programs}: {deeds:?}"));
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
