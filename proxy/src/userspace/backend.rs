//! The userspace mode's hand: the nftables mode leads connections over TCP to us, and all others where
//! they belong.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::led::{closed, led};
use super::relay::{Doors, Relay};
use super::services::Outline;
use crate::backend::{Applied, Backend, BackendError, Doubt, Plans};
use crate::explain::packet::Object;
use crate::host::Host;
use crate::model::{Family, PortName, ServiceName, family_of};
use crate::nftables::Nftables;
use crate::plan::{Frontend, ServicePlan};

/// The userspace mode in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Userspace {
    kernel: Nftables,
    relay: Relay,
    /// Where we listen, at most one address in each family.
    addresses: Vec<IpAddr>,
    doors: Vec<Doors>,
    /// What goes from our services once the kernel has gone along.
    owed: Vec<(ServiceName, Outline)>,
}

impl Userspace {
    /// Opens nftables.
    ///
    /// # Errors
    /// When the kernel has none, or this is not root.
    pub fn open(relay: Relay) -> Result<Self, BackendError> {
        let kernel = Nftables::open()?;
        Ok(Self { kernel, relay, addresses: Vec::new(), doors: Vec::new(), owed: Vec::new() })
    }

    /// The kernel holds what it should.
    fn settled(&mut self) {
        for (name, outline) in self.owed.drain(..) {
            self.relay.shared.services.sweep(&name, &outline);
        }
    }

    fn listen(&mut self, host: &Host) -> Result<(), BackendError> {
        let addresses = listened_at(host);
        if addresses != self.addresses {
            let listen = |source: io::Error| BackendError::Listen { addresses: addresses.clone(), source };
            self.doors = self.relay.listen(&addresses).map_err(listen)?;
            self.addresses = addresses;
        }
        Ok(())
    }
}

impl Backend for Userspace {
    fn mode(&self) -> &'static str {
        "userspace"
    }

    fn load(&mut self, host: &Host, plans: &mut Plans<'_>) -> Result<Applied, BackendError> {
        self.listen(host)?;
        let (services, doors) = (&self.relay.shared.services, &self.doors);
        let mut outlines: BTreeMap<ServiceName, Outline> =
            services.names().into_iter().map(|name| (name, Outline::default())).collect();
        let mut led = plans
            .map(|(name, plan)| {
                services.put(&name, &plan);
                outlines.insert(name.clone(), Outline::of(&plan));
                (name, led(plan, doors))
            })
            .chain([closed(doors)]);
        let result = self.kernel.load(host, &mut led);
        drop(led);
        self.owed.extend(outlines);
        let applied = result?;
        self.settled();
        self.relay.only_last();
        Ok(applied)
    }

    fn change(&mut self, plans: &[(ServiceName, ServicePlan)]) -> Result<Applied, BackendError> {
        let for_kernel: Vec<(ServiceName, ServicePlan)> = plans
            .iter()
            .map(|(name, plan)| {
                self.relay.shared.services.put(name, plan);
                (name.clone(), led(plan.clone(), &self.doors))
            })
            .collect();
        self.owed.extend(plans.iter().map(|(name, plan)| (name.clone(), Outline::of(plan))));
        let applied = self.kernel.change(&for_kernel)?;
        self.settled();
        Ok(applied)
    }

    fn fits(&self, host: &Host) -> bool {
        self.kernel.fits(host) && listened_at(host) == self.addresses
    }

    fn look(&mut self) -> Result<Applied, BackendError> {
        let applied = self.kernel.look()?;
        self.settled();
        Ok(applied)
    }

    fn differences(&mut self) -> Result<Vec<String>, BackendError> {
        self.kernel.differences()
    }

    fn objects(&mut self, service: &ServiceName, at: &Frontend) -> Result<Vec<Object>, BackendError> {
        self.kernel.objects(service, at)
    }

    fn kept(&mut self, port: &PortName, client: IpAddr) -> Result<Option<SocketAddr>, BackendError> {
        match self.relay.shared.services.kept(port, client) {
            None => self.kernel.kept(port, client),
            kept => Ok(kept),
        }
    }

    fn has_unused(&self) -> bool {
        self.kernel.has_unused()
    }

    fn collect(&mut self) -> Result<Applied, BackendError> {
        self.kernel.collect()
    }

    fn watch(&mut self, doubt: Doubt) -> Result<(), BackendError> {
        self.kernel.watch(doubt)
    }

    /// The kernel leads new connections to the endpoints by itself, as the nftables mode has it, so that
    /// nobody is refused while there is no proxy. Node ports at loopback addresses are not to be had that
    /// way.
    fn leave(&mut self, host: &Host, plans: &mut Plans<'_>) -> Result<Applied, BackendError> {
        let mut host = host.clone();
        host.settings.userspace = false;
        host.settings.node_ports = host.settings.node_ports.without_localhost();
        self.kernel.load(&host, plans)
    }
}

/// The addresses of its own that others know a host by, or else any that others may use.
fn listened_at(host: &Host) -> Vec<IpAddr> {
    let of = |family| {
        let known = host.primary(family).filter(|address| host.addresses.contains(address));
        let any = || {
            let mut own = host.addresses.iter().copied().filter(|it| family_of(*it) == family);
            own.find(|it| !is_link_local(*it))
        };
        known.or_else(any)
    };
    Family::ALL.into_iter().filter_map(of).collect()
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
