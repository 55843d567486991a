//! Our accept rules in iptables' chains, where those would drop pods' forwarded packets; kept so.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnetwork::IpNetwork;
use weft_daemon::log::chain;
use weft_kernel::nft::{Nft, TableKey};

use crate::firewall::forward;
use crate::firewall::iptables::Iptables;
use crate::firewall::programs;
use crate::model::Model;

/// How long iptables' programs may take together; they wait up to five seconds for their lock.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is known of iptables' rule sets.
#[derive(Debug)]
pub(super) struct Forwarding {
    /// Somebody may have changed them since they were looked at.
    doubted: bool,
    /// For whom they were opened last.
    wanted: Option<Wanted>,
    /// What nobody but a person can mend.
    obstacles: Vec<String>,
}

/// What should pass, as far as it shows in the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    network: String,
    v4: Option<IpNetwork>,
    v6: Option<IpNetwork>,
}

/// How a look at iptables went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Opened {
    /// How many rule sets were changed.
    pub(super) changed: usize,
    /// What was changed had been right, so somebody else had a hand in it.
    pub(super) healed: bool,
    /// What stands in the way and is not ours to change.
    pub(super) obstacles: Vec<String>,
}

impl Forwarding {
    pub(super) fn new() -> Self {
        Self { doubted: true, wanted: None, obstacles: vec![] }
    }

    /// Somebody changed a `filter` table, or it is time: legacy iptables tells nobody of changes.
    pub(super) fn doubt(&mut self) {
        self.doubted = true;
    }

    /// Lets pods' packets pass where they would be dropped; looks only when there is a reason.
    pub(super) async fn keep(&mut self, model: &Model) -> Result<Opened, String> {
        let accepted = |network: Option<IpNetwork>| network.filter(|_| model.forward_accept);
        let wanted = Wanted {
            network: model.me.network.clone(),
            v4: accepted(model.config.v4.map(|pool| pool.network.into())),
            v6: accepted(model.config.v6.map(|pool| pool.network.into())),
        };
        let same = self.wanted.as_ref() == Some(&wanted);
        if same && !self.doubted {
            return Ok(Opened { obstacles: self.obstacles.clone(), ..Opened::default() });
        }
        // The programs block, and other tasks must go on.
        let theirs = wanted.clone();
        let looking = tokio::task::spawn_blocking(move || open(&theirs));
        let looked = tokio::time::timeout(PATIENCE, looking).await;
        let mut opened = match looked {
            Ok(Ok(result)) => result?,
            Ok(Err(panicked)) => return Err(panicked.to_string()),
            Err(_) => return Err(format!("iptables did not answer within {PATIENCE:?}")),
        };
        opened.healed = same && opened.changed > 0;
        self.wanted = Some(wanted);
        self.obstacles.clone_from(&opened.obstacles);
        self.doubted = false;
        Ok(opened)
    }
}

/// All rule sets in use, one after the other; one that fails does not keep the others closed.
fn open(wanted: &Wanted) -> Result<Opened, String> {
    let (mut opened, mut failed) = (Opened::default(), BTreeSet::new());
    for set in programs::in_use(&tables()?) {
        let pods = if set.ipv6 { wanted.v6 } else { wanted.v4 };
        let done = programs::save(set).and_then(|saved| {
            opened.obstacles.extend(pods.and_then(|pods| obstacle(&saved, pods)));
            let steps = forward::open(&saved, &wanted.network, pods);
            programs::restore(set, &steps)?;
            Ok(!steps.is_empty())
        });
        match done {
            Ok(changed) => opened.changed += usize::from(changed),
            Err(error) => failed.extend([format!("{}: {}", name(set), chain(&error))]),
        }
    }
    if failed.is_empty() { Ok(opened) } else { Err(failed.into_iter().collect::<Vec<_>>().join("; ")) }
}

fn obstacle(saved: &str, pods: IpNetwork) -> Option<String> {
    let (what, run) = forward::obstacle(saved, pods)?;
    Some(format!("{what}; run: {}", run.join("; ")))
}

fn tables() -> Result<Vec<TableKey>, String> {
    let mut nft = Nft::open().map_err(|error| format!("cannot open a netlink socket: {error}"))?;
    nft.tables().map_err(|error| chain(&error))
}

fn name(set: Iptables) -> &'static str {
    set.save_program().trim_end_matches("-save")
}
