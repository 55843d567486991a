//! `--take-over-flannel` inside the daemon: when each step of taking over may be done.
//!
//! flannel's MACs are ours from the first pass, so that the lease is rewritten with them at once. Its
//! links and routes wait for the lease: without a subnet the plan has no address for them, and the
//! diff would take theirs away. Its rules go last, when ours are in force.

use tracing::{info, warn};
use weft_daemon::log::chain;
use weft_kernel::iptables::programs;
use weft_kernel::net::{Failure, State};
use weft_kernel::nft::Nft;

use super::assemble;
use super::engine::Engine;
use crate::config::NetworkConfig;
use crate::firewall::leftovers;
use crate::model::{Me, Model};
use crate::plan::Scope;
use crate::takeover;

/// How far it is. Each step is done once after a start: what flannel makes later is not ours to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TakingOver {
    links: bool,
    rules: bool,
}

impl Engine {
    /// Adopts flannel's MACs and, once there is a lease, marks its links and routes as ours.
    pub(super) async fn take_over_links(
        &mut self,
        observed: &State,
        me: &mut Me,
        config: &NetworkConfig,
    ) -> (usize, Vec<Failure>) {
        if self.flannel.links {
            return (0, Vec::new());
        }
        let scope = Scope { network: me.network.clone(), ranges: assemble::networks(config).collect() };
        let found = takeover::take_over(observed, me, config, &scope);
        me.adopted_mac_v4 = found.mac_v4.or(me.adopted_mac_v4);
        me.adopted_mac_v6 = found.mac_v6.or(me.adopted_mac_v6);
        if me.subnet.is_none() {
            return (0, Vec::new());
        }
        self.flannel.links = true;
        if found.changes.is_empty() {
            info!("--take-over-flannel: no link and no route of flannel's is here");
            return (0, Vec::new());
        }
        if let Err(error) = self.files.adopt((me.adopted_mac_v4, me.adopted_mac_v6)) {
            warn!(error = %chain(&error), "flannel's MAC is adopted, but could not be kept for the next start");
        }
        for change in &found.changes {
            info!(%change, "taking over from flannel");
        }
        (found.changes.len(), self.kernel.apply(&found.changes).await)
    }

    /// Removes flannel's rules; ours must be in force. Says how many rule sets held some.
    pub(super) async fn take_over_rules(&mut self, model: &Model) -> Result<usize, String> {
        if self.flannel.rules || model.me.subnet.is_none() {
            return Ok(0);
        }
        // iptables' programs take a while on a busy host.
        let removed = tokio::task::spawn_blocking(remove_rules).await;
        let removed = removed.map_err(|error| format!("removing flannel's rules: {error}"))??;
        self.flannel.rules = true;
        if removed > 0 {
            // flannel's accept rules may have been what let pods' packets pass.
            self.forwarding.doubt();
            self.keep_forwarding(model).await?;
        }
        Ok(removed)
    }
}

fn remove_rules() -> Result<usize, String> {
    let mut nft = Nft::open().map_err(|error| format!("cannot open a netlink socket: {error}"))?;
    let tables = nft.tables().map_err(|error| chain(&error))?;
    let mut removed = 0;
    let flannels = leftovers::nftables(&tables);
    if !flannels.is_empty() {
        nft.commit(&flannels).map_err(|error| chain(&error))?;
        info!("flannel's nftables tables are removed");
        removed += 1;
    }
    for set in programs::in_use(&tables) {
        let saved = programs::save(set).map_err(|error| chain(&error))?;
        let steps = leftovers::iptables(&saved);
        if !steps.is_empty() {
            programs::restore(set, &steps).map_err(|error| chain(&error))?;
            info!(list = set.save_program(), "flannel's rules are removed");
            removed += 1;
        }
    }
    Ok(removed)
}
