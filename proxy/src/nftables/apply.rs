//! The nftables mode's hand: looks at the kernel's table, compares, writes what differs. What should be
//! there is [`Program`]'s to say.

use std::collections::BTreeMap;
use std::future::ready;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weft_daemon::log::chain;
use weft_kernel::nft::{
    self, CommitError, Diff, DumpError, Event, Events, Membership, Nft, Step, Table, Transaction,
};

use super::program::Program;
use super::{connections, table_key, words};
use crate::backend::{Applied, Backend, BackendError, Doubt, Plans};
use crate::explain::packet::Object;
use crate::host::Host;
use crate::iptables;
use crate::listen;
use crate::model::{PortName, ServiceName};
use crate::plan::{Frontend, ServicePlan};

/// The nftables mode in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Nftables {
    nft: Nft,
    /// None until something was loaded.
    program: Option<Program>,
    /// The generation of the kernel's rules up to which nobody but us had a hand in them.
    ours: Option<u32>,
    /// Who listens to what others do.
    watch: Option<Watch>,
    ends: Option<connections::Ends>,
}

#[derive(Debug)]
struct Watch {
    /// Of the socket that is listened to now.
    membership: Arc<Mutex<Membership>>,
    doubt: Doubt,
}

/// From so many changes on a transaction is sent while this daemon does not listen: the kernel's messages
/// of fewer are not worth a second thought.
const BIG: usize = 5_000;

/// So many elements are added at once while no packet meets the table: others may listen, too, and
/// messages of two pages for each are 64 MiB.
const TURN: usize = 8_192;

impl Nftables {
    /// Opens nftables.
    ///
    /// # Errors
    /// When the kernel has none, or this is not root.
    pub fn open() -> Result<Self, BackendError> {
        let nft = Nft::open().map_err(BackendError::Nftables)?;
        Ok(Self { nft, program: None, ours: None, watch: None, ends: None })
    }

    /// Who watches also tells what elements had counted when they were deleted.
    pub fn telling(self, ends: connections::Ends) -> Self {
        Self { ends: Some(ends), ..self }
    }

    /// The kernel's table, and the generation of the rules it was read in.
    fn observe(&mut self) -> Result<(Option<Table>, Option<u32>), DumpError> {
        let before = self.nft.generation()?;
        let table = self.nft.table(&table_key())?;
        let same = self.nft.generation()? == before;
        Ok((table, same.then_some(before)))
    }

    fn bring(&mut self, observed: Option<&Table>) -> Result<Applied, BackendError> {
        let Some(program) = &self.program else { return Ok(Applied::default()) };
        let desired = program.table();
        let transaction = match (nft::diff(&desired, observed), observed) {
            (_, None) => return self.create(desired),
            (Diff::Rebuild, Some(_)) => Transaction::new().replace_by(remembering(desired, observed)),
            (difference, Some(_)) => difference.transaction(&desired),
        };
        Ok(self.commit(&transaction)?)
    }

    /// Makes the table where there is none.
    fn create(&mut self, desired: Table) -> Result<Applied, BackendError> {
        let mut applied = Applied::default();
        for turn in Transaction::create_in_turns(desired, TURN) {
            applied.changes += self.commit(&turn)?.changes;
        }
        Ok(applied)
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<Applied, CommitError> {
        if transaction.is_empty() {
            return Ok(Applied::default());
        }
        let changes = transaction.steps().iter().map(weight).sum();
        // Each transaction of anybody's is one generation more. If it fails, who knows.
        let ours = self.ours.take();
        let is_unheard = changes >= BIG && self.watch.as_ref().is_some_and(Watch::leave);
        let result = self.nft.commit(transaction);
        if result.is_ok() {
            self.ours = ours.map(|generation| generation.wrapping_add(1));
        }
        if is_unheard {
            self.listen_again(result.is_ok());
        }
        result.map(|()| Applied { changes })
    }

    /// Others may have had a hand in it while nobody listened. (After a failure everything is compared
    /// anyway.)
    fn listen_again(&mut self, went_well: bool) {
        let Some(watch) = &self.watch else { return };
        watch.join();
        let is_known = self.ours.is_some() && self.nft.generation().ok() == self.ours;
        if went_well && !is_known {
            watch.doubt.raise();
        }
    }
}

impl Watch {
    fn membership(&self) -> MutexGuard<'_, Membership> {
        self.membership.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing is heard from now on.
    fn leave(&self) -> bool {
        self.membership().leave().is_ok()
    }

    fn join(&self) {
        if let Err(error) = self.membership().join() {
            tracing::error!(%error, "cannot listen to nftables again; changes by others are found by the slow timer only");
        }
    }
}

impl Backend for Nftables {
    fn mode(&self) -> &'static str {
        "nftables"
    }

    fn load(&mut self, host: &Host, plans: &mut Plans<'_>) -> Result<Applied, BackendError> {
        let (observed, generation) = self.observe()?;
        self.program = Some(Program::load(host, plans, observed.as_ref()));
        self.ours = generation;
        let applied = self.bring(observed.as_ref())?;
        // What the other mode left goes only now, so that at each moment one has rules for a packet.
        match iptables::remove() {
            Ok(0) => {}
            Ok(chains) => tracing::info!(chains, "took away what the iptables mode had left"),
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot see whether the iptables mode left anything");
            }
        }
        Ok(applied)
    }

    fn change(&mut self, plans: &[(ServiceName, ServicePlan)]) -> Result<Applied, BackendError> {
        let Some(program) = &mut self.program else { return Ok(Applied::default()) };
        let transaction = program.update(plans.iter().map(|(name, plan)| (name, plan)));
        Ok(self.commit(&transaction)?)
    }

    fn fits(&self, host: &Host) -> bool {
        self.program.as_ref().is_some_and(|program| program.fits(host))
    }

    fn look(&mut self) -> Result<Applied, BackendError> {
        // Events that were lost may have been none but ours: a big load has more than fit.
        if self.ours.is_some() && self.ours == Some(self.nft.generation()?) {
            return Ok(Applied::default());
        }
        let (observed, generation) = self.observe()?;
        self.ours = generation;
        self.bring(observed.as_ref())
    }

    fn differences(&mut self) -> Result<Vec<String>, BackendError> {
        let Some(program) = &self.program else { return Ok(Vec::new()) };
        let observed = self.nft.table(&table_key())?;
        let desired = program.table();
        Ok(words::differences(&desired, observed.as_ref()))
    }

    fn objects(&mut self, service: &ServiceName, at: &Frontend) -> Result<Vec<Object>, BackendError> {
        let Some(program) = &self.program else { return Ok(Vec::new()) };
        let (concerned, table) = (program.concerned(service, at), table_key());
        let mut found = BTreeMap::new();
        for (place, elements) in &concerned.elements {
            let there = self.nft.find(&table, &place.name(), &place.spec(), elements.keys())?;
            found.insert(*place, there);
        }
        let chains = self.nft.chains(&table)?;
        Ok(words::objects(&concerned, &found, &chains))
    }

    fn kept(&mut self, port: &PortName, client: IpAddr) -> Result<Option<SocketAddr>, BackendError> {
        let Some(kept) = self.program.as_ref().and_then(|program| program.kept(port, client)) else {
            return Ok(None);
        };
        let (set, spec) = (kept.place.name(), kept.place.spec());
        let found = self.nft.find(&table_key(), &set, &spec, [&kept.key])?;
        Ok(found.get(&kept.key).and_then(|found| kept.endpoint(found)))
    }

    fn has_unused(&self) -> bool {
        self.program.as_ref().is_some_and(Program::has_unused)
    }

    fn collect(&mut self) -> Result<Applied, BackendError> {
        let Some(program) = &mut self.program else { return Ok(Applied::default()) };
        let transaction = program.collect();
        Ok(self.commit(&transaction)?)
    }

    fn watch(&mut self, doubt: Doubt) -> Result<(), BackendError> {
        let heard = Heard::open(self.ends.clone()).map_err(BackendError::Nftables)?;
        let membership = heard.events.membership().map_err(BackendError::Nftables)?;
        let membership = Arc::new(Mutex::new(membership));
        self.watch = Some(Watch { membership: Arc::clone(&membership), doubt: doubt.clone() });
        let ends = self.ends.clone();
        let open = move || {
            let heard = Heard::open(ends.clone())?;
            *membership.lock().unwrap_or_else(PoisonError::into_inner) = heard.events.membership()?;
            Ok(heard)
        };
        let ours = self.nft.port();
        tokio::spawn(listen::follow(heard, open, move |event| ready(is_others(&event, ours)), doubt));
        Ok(())
    }
}

/// What is done to nftables; and, for who wants to know, what elements had counted when they were deleted.
struct Heard {
    events: Events,
    ends: Option<connections::Ends>,
}

impl Heard {
    fn open(ends: Option<connections::Ends>) -> io::Result<Self> {
        let events = Events::open()?;
        let events = if ends.is_some() { events.counting(table_key()) } else { events };
        Ok(Self { events, ends })
    }
}

impl listen::Listener for Heard {
    async fn next(&mut self) -> io::Result<Event> {
        let event = self.events.next().await?;
        if let Some(ends) = &self.ends {
            let ended = connections::ended(&mut self.events);
            if !ended.is_empty() {
                // Who counts may have ended with the daemon.
                let _ = ends.send(ended);
            }
        }
        Ok(event)
    }
}

/// Whether somebody else than the socket `ours` changed our table.
fn is_others(event: &Event, ours: u32) -> bool {
    let table = table_key();
    match event {
        Event::Commit { port, tables, process } if *port != ours && tables.contains(&table) => {
            tracing::info!(%table, process, "somebody else changed our table");
            true
        }
        _ => false,
    }
}

/// Takes our table off this thread's network namespace, with everything in it; says whether there was
/// one.
///
/// # Errors
/// When nftables cannot be asked, or refuses.
pub fn remove() -> Result<bool, BackendError> {
    let mut nft = Nft::open().map_err(BackendError::Nftables)?;
    let is_there = nft.tables()?.contains(&table_key());
    if is_there {
        nft.commit(&Transaction::new().remove(&table_key()))?;
    }
    Ok(is_there)
}

/// The same table with what packets have put into the observed one's dynamic maps: clients keep their
/// endpoints when the table is made anew. They get their whole time again.
fn remembering(mut desired: Table, observed: Option<&Table>) -> Table {
    for (name, set) in desired.sets.iter_mut().filter(|(_, set)| set.spec.dynamic) {
        let before = observed.and_then(|table| table.sets.get(name));
        if let Some(before) = before.filter(|before| before.spec == set.spec) {
            set.elements.clone_from(&before.elements);
        }
    }
    desired
}

/// How many things a step makes, changes or deletes.
fn weight(step: &Step) -> usize {
    match step {
        Step::AddElements { elements, .. } | Step::DeleteElements { elements, .. } => elements.len(),
        _ => 1,
    }
}
