//! The lab's etcd is a real one: it keeps, loses and withholds what it was told to.

use std::time::Duration;

use weft_lab::{Lab, LabError, within};

/// Long enough for a starved machine with a slow disk.
const SOON: Duration = Duration::from_secs(60);

fn cluster_id(lab: &Lab) -> Result<serde_json::Value, LabError> {
    let status = lab.etcd().ctl(&["endpoint", "status", "-w", "json"])?.json()?;
    Ok(status[0]["Status"]["header"]["cluster_id"].clone())
}

#[test]
fn keys_are_written_read_listed_and_deleted() -> Result<(), LabError> {
    let lab = Lab::new("keys").network(r#"{"Network":"10.1.0.0/16"}"#).up()?;
    let etcd = lab.etcd();
    assert_eq!(etcd.get("/coreos.com/network/config")?.as_deref(), Some(r#"{"Network":"10.1.0.0/16"}"#));
    for (key, value) in [("/a/1", "one"), ("/a/2", "--dashes"), ("/b", "two\nlines"), ("/c", "")] {
        etcd.put(key, value)?;
        assert_eq!(etcd.get(key)?.as_deref(), Some(value), "{key}");
    }
    assert_eq!(etcd.keys("/a/")?, ["/a/1", "/a/2"]);
    assert!(etcd.delete("/a/1")? && !etcd.delete("/a/1")?);
    assert_eq!(etcd.get("/a/1")?, None);
    let before = etcd.revision()?;
    etcd.delete_prefix("/")?;
    assert_eq!(etcd.keys("/")?, Vec::<String>::new());
    assert!(etcd.revision()? > before);
    etcd.compact()?;
    let old = etcd.ctl(&["get", "/a/2", "--rev", &before.to_string()])?;
    assert!(!old.success() && old.stderr.contains("compacted"), "{}{}", old.stdout, old.stderr);
    lab.down()
}

#[test]
fn a_restart_keeps_what_a_wipe_loses() -> Result<(), LabError> {
    let lab = Lab::new("wipe").up()?;
    let (etcd, id) = (lab.etcd(), cluster_id(&lab)?);
    etcd.put("/kept", "yes")?;
    etcd.stop()?;
    assert!(etcd.ctl(&["get", "/kept", "--command-timeout=1s"])?.ok().is_err(), "it is stopped");
    etcd.start()?;
    assert_eq!(etcd.get("/kept")?.as_deref(), Some("yes"));
    etcd.kill()?;
    etcd.start()?;
    assert_eq!(etcd.get("/kept")?.as_deref(), Some("yes"));
    let revision = etcd.revision()?;
    etcd.wipe_keeping_id()?;
    assert_eq!((etcd.get("/kept")?, cluster_id(&lab)?), (None, id.clone()));
    assert!(etcd.revision()? < revision);
    etcd.wipe()?;
    assert_ne!(cluster_id(&lab)?, id);
    lab.down()
}

#[test]
fn a_frozen_etcd_answers_nobody_until_it_thaws() -> Result<(), LabError> {
    let lab = Lab::new("freeze").up()?;
    let etcd = lab.etcd();
    etcd.freeze()?;
    assert!(!etcd.ctl(&["get", "/x", "--command-timeout=1s"])?.success());
    etcd.thaw()?;
    within(SOON, || etcd.get("/x").map(drop));
    // A frozen one goes down with its lab all the same.
    etcd.freeze()?;
    lab.down()
}

#[test]
fn three_members_survive_the_loss_of_their_leader() -> Result<(), LabError> {
    let lab = Lab::new("three").etcd_members(3).up()?;
    let etcd = lab.etcd();
    etcd.put("/kept", "yes")?;
    let leader = within(SOON, || etcd.leader().ok().flatten());
    etcd.kill_member(&leader)?;
    let endpoints: Vec<String> = etcd.endpoints().split(',').map(str::to_owned).collect();
    let others = etcd.members().into_iter().filter(|member| member.name() != leader);
    let others: Vec<&String> = others
        .filter_map(|member| endpoints.iter().find(|url| url.contains(&member.v4().to_string())))
        .collect();
    assert_eq!(others.len(), 2, "{endpoints:?}");
    for url in others {
        within(SOON, || etcd.ctl_at(url, &["get", "/kept"]).and_then(weft_lab::Output::ok));
    }
    etcd.launch(&leader)?;
    within(SOON, || etcd.ctl(&["endpoint", "health"]).and_then(weft_lab::Output::ok));
    lab.down()
}
