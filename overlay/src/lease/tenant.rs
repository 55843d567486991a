//! One host's side of the protocol as a state machine without I/O: what it believes to hold, and how
//! what happened to its writes changes that.
//!
//! The driver and the simulation both run exactly this. It believes in a subnet only after it has seen
//! lease *and* record in a registry that is at least as new as its own last write; a write whose
//! answer was lost changes no belief, the next look at the store tells.

use std::collections::VecDeque;

use weft_store::{Revision, TxnOutcome};

use super::allocate::mix;
use super::decide::{Ages, Decision, Loss, Waiting, Wish, decide};
use super::{Claim, Tenure};
use crate::config::NetworkConfig;
use crate::model::Subnet;
use crate::registry::Registry;

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing; the subnet is ours by the store.
    Hold(Tenure),
    /// Nothing can be done now.
    Wait(Waiting),
    /// Wait for a registry that has our last write in it, or list the store.
    Behind,
    /// Find out how long these leases of etcd's still have, and step again.
    NeedAges(Vec<weft_store::LeaseId>),
    /// Grant what is needed and commit; then [`Tenant::committed`].
    Claim(Box<Claim>),
    /// Commit; then [`Tenant::committed`].
    GiveUp(Subnet, weft_store::Txn),
}

/// One host's beliefs.
#[derive(Clone, Debug)]
pub struct Tenant {
    held: Option<Subnet>,
    confirmed: bool,
    /// A registry older than this does not know what we wrote.
    barrier: Revision,
    seed: u64,
    losses: VecDeque<Loss>,
}

impl Tenant {
    /// A host that starts. `held` is what its cache says that it held, pods included; `seed` is any
    /// number that differs from host to host.
    pub fn new(held: Option<Subnet>, seed: u64) -> Self {
        Self { held, confirmed: false, barrier: Revision(0), seed, losses: VecDeque::new() }
    }

    /// The subnet that is ours as far as we know.
    pub fn held(&self) -> Option<Subnet> {
        self.held
    }

    /// Has the store agreed since we started, and since it was wiped?
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// What was lost and not yet told, oldest first.
    pub fn take_loss(&mut self) -> Option<Loss> {
        self.losses.pop_front()
    }

    /// What to do, by this registry.
    pub fn step(&mut self, registry: &Registry, config: &NetworkConfig, wish: &Wish, ages: &Ages) -> Step {
        if registry.revision() < self.barrier {
            return Step::Behind;
        }
        loop {
            return match decide(registry, config, wish, self.held, ages, self.seed) {
                Decision::Lost(loss) => {
                    // What is lost is not held, so that the next decision cannot lose it again.
                    self.held = None;
                    self.confirmed = false;
                    self.losses.push_back(loss);
                    continue;
                }
                Decision::Hold(tenure) => {
                    self.held = Some(tenure.subnet);
                    self.confirmed = true;
                    Step::Hold(tenure)
                }
                Decision::Claim(claim) => Step::Claim(claim),
                Decision::GiveUp(subnet, txn) => Step::GiveUp(subnet, txn),
                Decision::NeedAges(leases) => Step::NeedAges(leases),
                Decision::Wait(waiting) => Step::Wait(waiting),
            };
        }
    }

    /// A commit was answered. (If the answer was lost, there is nothing to call: look at the store.)
    pub fn committed(&mut self, outcome: TxnOutcome) {
        match outcome {
            TxnOutcome::Committed(revision) => self.barrier = revision,
            // Somebody was faster; the next pick must not run into the same crowd.
            TxnOutcome::Conflict => self.seed = mix(self.seed),
        }
    }

    /// The store is a new one: its revisions start over, and it has yet to agree.
    pub fn wiped(&mut self) {
        self.barrier = Revision(0);
        self.confirmed = false;
    }
}
