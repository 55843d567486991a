//! What the daemon knows, and the word that it is in the kernel.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::broadcast;

use crate::host::Host;
use crate::model::{Model, ServiceName};
use crate::plan::{self, Claims, ServicePlan};

/// Everything declared, who holds which frontend, and the host it is for. Plans are not kept: they are
/// made of this when somebody asks.
#[derive(Clone, Debug)]
pub struct World {
    /// What was declared.
    pub model: Model,
    /// Which service holds which frontend.
    pub claims: Claims,
    /// This host.
    pub host: Host,
}

impl World {
    /// What a service needs here.
    pub fn plan(&self, name: &ServiceName) -> ServicePlan {
        plan::service(&self.model, &self.claims, &self.host, name)
    }

    /// What every service needs, one by one.
    pub fn plans(&self) -> impl Iterator<Item = (ServiceName, ServicePlan)> {
        self.model.declared().map(|(name, _)| (name.clone(), self.plan(name)))
    }
}

/// The daemon's world, for whoever wants to look at it. It may be a change ahead of the kernel. A cheap
/// handle; who looks keeps changes waiting, so not for long.
#[derive(Clone, Debug)]
pub struct Shared(Arc<RwLock<World>>);

impl Shared {
    /// Of this world.
    pub fn new(world: World) -> Self {
        Self(Arc::new(RwLock::new(world)))
    }

    /// To look at.
    pub fn read(&self) -> RwLockReadGuard<'_, World> {
        // Whoever panicked while it changed the world has ended the daemon.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Only the loop changes it.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The kernel has acknowledged a change.
#[derive(Clone, Debug)]
pub enum Committed {
    /// These services have these plans now, and no others changed; the plan of one that is gone is
    /// empty.
    Some(Arc<[(ServiceName, ServicePlan)]>),
    /// Any service may have another plan: [`World::plans`] tells.
    All,
}

/// Who wants to hear of each acknowledgement subscribes here. Who falls behind by more than a thousand
/// is told so by `RecvError::Lagged`, and treats it as [`Committed::All`].
#[derive(Clone, Debug)]
pub struct Commits(broadcast::Sender<Committed>);

impl Default for Commits {
    fn default() -> Self {
        Self(broadcast::Sender::new(1024))
    }
}

impl Commits {
    /// From the next acknowledgement on.
    pub fn subscribe(&self) -> broadcast::Receiver<Committed> {
        self.0.subscribe()
    }

    /// Tells all who listen.
    pub fn tell(&self, committed: Committed) {
        // Nobody may be listening.
        let _ = self.0.send(committed);
    }
}
