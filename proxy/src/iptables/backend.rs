//! The iptables mode's hand: runs iptables' own programs, to look and to write. What should be there is
//! [`Program`]'s to say.
//!
//! A host may have two sets of programs, which write to two places in the kernel. The mode uses one, and
//! sees to it that nothing of it stays in the other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use weft_daemon::metrics::Metrics;
use weft_kernel::iptables::{Backend as Programs, Iptables as Rules, Legacy, Shape, programs};
use weft_kernel::nft::{self, Event, Events, Nft, TableKey, Transaction};

use super::able::{Able, Need};
use super::counts::Counts;
use super::program::Program;
use super::rule::{PREFIX, Table};
use super::saved;
use crate::backend::{Applied, Backend, BackendError, Doubt, Plans};
use crate::host::Host;
use crate::listen;
use crate::model::{Balance, Family, ServiceName};
use crate::nftables;
use crate::plan::ServicePlan;

/// What the legacy programs do the kernel tells nobody. So it is asked this often how many rules there are,
/// which costs it some microseconds.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// And this often for the rules, of which one may have been replaced by another.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// So many of our own transactions are told from others'; their events come at once.
const OWN_MAX: usize = 32;

/// How many clients a list of `-m recent` holds.
const RECENT_MAX: &str = "/sys/module/xt_recent/parameters/ip_list_tot";

/// What is known to be ours, so that what others do is told from it. Held while a program of ours runs.
#[derive(Clone, Debug, Default)]
struct Own(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// The netlink ports of the programs that we ran.
    ports: VecDeque<u32>,
    /// The shapes of the legacy tables as we left them.
    shapes: BTreeMap<Family, Shapes>,
}

/// The tables of one family, as in [`Table::ALL`].
type Shapes = [Shape; 2];

impl Own {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// None if the kernel cannot tell: then the slower look finds what is wrong.
    fn left(&mut self, family: Family, shapes: Option<Shapes>) {
        match shapes {
            Some(shapes) => self.shapes.insert(family, shapes),
            None => self.shapes.remove(&family),
        };
    }

    /// Whether somebody else had a hand in tables that we left in some shape.
    fn differs(&self, family: Family, tables: &Legacy) -> bool {
        let left = self.shapes.get(&family);
        left.is_some_and(|left| shapes(tables).is_some_and(|now| now != *left))
    }
}

/// The iptables mode in the network namespace of the threads that call it.
#[derive(Debug)]
pub struct Iptables {
    programs: Programs,
    /// None until something was loaded.
    program: Option<Program>,
    own: Own,
    /// What this mode does otherwise, as far as it was said.
    said: BTreeSet<Limit>,
    able: Able,
    counts: Counts,
}

/// What this mode does otherwise than the nftables mode, and only some services notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Limit {
    Affinity,
    ClientHash,
}

impl Iptables {
    /// Finds out which of iptables' programs this host uses.
    ///
    /// # Errors
    /// When it has neither.
    pub fn open() -> Result<Self, BackendError> {
        Ok(Self::with(detect()?))
    }

    /// With these programs.
    pub fn with(programs: Programs) -> Self {
        let counts = Counts::new(&Metrics::default());
        Self {
            programs,
            program: None,
            own: Own::default(),
            said: BTreeSet::new(),
            able: Able::default(),
            counts,
        }
    }

    /// What it does is counted there.
    pub fn counted(self, metrics: &Metrics) -> Self {
        Self { counts: Counts::new(metrics), ..self }
    }

    fn rules(&self, family: Family) -> Rules {
        Rules { backend: self.programs, ipv6: family == Family::V6 }
    }

    /// Looks, compares, writes what differs; takes away what another mode left.
    fn bring(&mut self) -> Result<Applied, BackendError> {
        let mut changes = 0;
        for family in families() {
            let rules = self.rules(family);
            let Some(program) = &self.program else { return Ok(Applied::default()) };
            // Before the look, so that what is done after it is noticed.
            let shapes = shapes_of(rules);
            let steps = program.repair(family, &save(rules)?);
            self.own.lock().left(family, shapes);
            self.write(family, &steps.text, false)?;
            if steps.changes > 0 {
                changes += steps.changes;
                let printed = save(rules)?;
                if let Some(program) = &mut self.program {
                    program.learn(family, &printed);
                }
            }
        }
        // Only now, so that at each moment there is one mode at least that has rules for a packet.
        changes += remove_where(|rules| rules.backend != self.programs)? + remove_nftables()?;
        Ok(Applied { changes })
    }

    /// Leaves out of plans what this host's iptables cannot do.
    fn fit(&mut self, plans: &mut [(ServiceName, ServicePlan)]) {
        let programs = self.programs;
        let has = |need: Need, family: Family| {
            let rules = Rules { backend: programs, ipv6: family == Family::V6 };
            let takes = |condition| {
                let rule =
                    format!("*filter\n:WEFT-ABLE - [0:0]\n-A WEFT-ABLE {condition} -j RETURN\nCOMMIT\n");
                programs::test_text(rules, &rule).is_ok()
            };
            // Who takes nothing at all has not answered.
            takes(need.condition()) || !takes("")
        };
        self.able.fit(plans, has);
    }

    /// Says once what this mode does otherwise, if a service notices.
    fn say_limits<'a>(&mut self, plans: impl IntoIterator<Item = &'a ServicePlan>) {
        for port in plans.into_iter().flat_map(|plan| &plan.ports) {
            if port.affinity.is_some() && self.said.insert(Limit::Affinity) {
                let clients = fs::read_to_string(RECENT_MAX).unwrap_or_default();
                let clients = clients.trim().parse().unwrap_or(100u32);
                tracing::info!(
                    clients,
                    "session affinity: iptables remembers so many clients of an endpoint; for more load the \
                     kernel's module xt_recent with ip_list_tot=N"
                );
            }
            if port.balance == Balance::ClientHash && self.said.insert(Limit::ClientHash) {
                tracing::info!(
                    "client-hash: iptables has no hash that nftables has, so clients have other endpoints \
                     than through hosts in nftables mode"
                );
            }
        }
    }

    /// `partial`: it is only what changed.
    fn write(&self, family: Family, text: &str, partial: bool) -> Result<(), BackendError> {
        if !text.is_empty() {
            let rules = self.rules(family);
            let mut own = self.own.lock();
            let written = programs::restore_text(rules, text);
            own.left(family, shapes_of(rules));
            own.ports.push_back(written.inspect_err(|_| self.counts.failed(family, partial))?);
            if own.ports.len() > OWN_MAX {
                own.ports.pop_front();
            }
        }
        let held = |table| self.program.as_ref().map_or(0, |program| program.rules(family, table));
        self.counts.wrote(family, text, held);
        Ok(())
    }
}

impl Backend for Iptables {
    fn mode(&self) -> &'static str {
        "iptables"
    }

    fn load(&mut self, host: &Host, plans: &mut Plans<'_>) -> Result<Applied, BackendError> {
        let mut plans: Vec<(ServiceName, ServicePlan)> = plans.collect();
        self.able.ask_again();
        self.fit(&mut plans);
        self.say_limits(plans.iter().map(|(_, plan)| plan));
        let mut program = Program::new(host);
        program.update(plans.iter().map(|(name, plan)| (name, plan)));
        self.program = Some(program);
        self.bring()
    }

    fn change(&mut self, plans: &[(ServiceName, ServicePlan)]) -> Result<Applied, BackendError> {
        let mut plans = plans.to_vec();
        self.fit(&mut plans);
        self.say_limits(plans.iter().map(|(_, plan)| plan));
        let Some(program) = &mut self.program else { return Ok(Applied::default()) };
        let steps = program.update(plans.iter().map(|(name, plan)| (name, plan)));
        let mut changes = 0;
        for (family, steps) in steps.into_iter().filter(|(family, _)| families().any(|it| it == *family)) {
            self.write(family, &steps.text, true)?;
            changes += steps.changes;
        }
        Ok(Applied { changes })
    }

    fn fits(&self, host: &Host) -> bool {
        self.program.as_ref().is_some_and(|program| program.fits(host))
    }

    fn look(&mut self) -> Result<Applied, BackendError> {
        self.bring()
    }

    fn differences(&mut self) -> Result<Vec<String>, BackendError> {
        let Some(program) = &self.program else { return Ok(Vec::new()) };
        let mut words = Vec::new();
        for family in families() {
            let rules = self.rules(family);
            let name = rules.restore_program().trim_end_matches("-restore");
            let differences = program.differences(family, &save(rules)?);
            words.extend(differences.into_iter().map(|line| format!("{name}: {line}")));
        }
        Ok(words)
    }

    /// What nobody needs goes with the change that left it.
    fn has_unused(&self) -> bool {
        false
    }

    fn collect(&mut self) -> Result<Applied, BackendError> {
        Ok(Applied::default())
    }

    fn watch(&mut self, doubt: Doubt) -> Result<(), BackendError> {
        match self.programs {
            Programs::Nft => {
                let events = Events::open().map_err(BackendError::Nftables)?;
                let own = self.own.clone();
                let concerns = move |event| is_others(event, own.clone());
                tokio::spawn(listen::follow(events, Events::open, concerns, doubt));
            }
            Programs::Legacy => {
                let open = |family| Some((family, Legacy::open(family == Family::V6).ok()?));
                tokio::spawn(ask(families().filter_map(open).collect(), self.own.clone(), doubt));
            }
        }
        Ok(())
    }
}

/// Asks for the shapes of the legacy tables, again and again.
async fn ask(tables: Vec<(Family, Legacy)>, own: Own, doubt: Doubt) {
    let tables = Arc::new(tables);
    let mut looked = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(ASK_EVERY).await;
        let (own, tables) = (own.clone(), tables.clone());
        let differs = tokio::task::spawn_blocking(move || {
            let own = own.lock();
            tables.iter().any(|(family, tables)| own.differs(*family, tables))
        });
        if differs.await.unwrap_or(true) {
            tracing::debug!("somebody else changed iptables' tables");
        } else if looked.elapsed() < LOOK_EVERY {
            continue;
        }
        looked = tokio::time::Instant::now();
        doubt.raise();
    }
}

/// The shapes of the tables that hold rules of ours, in a namespace that has them.
fn shapes(tables: &Legacy) -> Option<Shapes> {
    let [nat, filter] = Table::ALL.map(|table| tables.shape(table.name()).ok());
    Some([nat?, filter?])
}

/// The same in the namespace of this thread, for legacy programs' rules.
fn shapes_of(rules: Rules) -> Option<Shapes> {
    (rules.backend == Programs::Legacy).then(|| Legacy::open(rules.ipv6).ok())?.as_ref().and_then(shapes)
}

/// Whether somebody else than a program of ours changed a table of iptables'.
async fn is_others(event: Event, own: Own) -> bool {
    let Event::Commit { port, tables, process } = event else { return false };
    if !tables.iter().any(is_iptables) {
        return false;
    }
    // The port of a program of ours is known once it has ended.
    let ours = tokio::task::spawn_blocking(move || own.lock().ports.contains(&port));
    let others = !ours.await.unwrap_or(false);
    if others {
        tracing::debug!(process, "somebody else changed iptables' tables");
    }
    others
}

/// Whether it is a table that the programs write ours to.
fn is_iptables(key: &TableKey) -> bool {
    let names = ["nat", "filter"];
    matches!(key.family, nft::Family::Ip | nft::Family::Ip6) && names.contains(&key.name.as_str())
}

/// The families that the kernel has.
fn families() -> impl Iterator<Item = Family> {
    let has_v6 = Path::new("/proc/thread-self/net/if_inet6").exists();
    Family::ALL.into_iter().filter(move |family| *family == Family::V4 || has_v6)
}

/// What is there. The nft programs cannot print a table that something else wrote what they do not know
/// into, and would make a second set of everything there.
fn save(rules: Rules) -> Result<String, BackendError> {
    let text = programs::save(rules)?;
    let spoiled = ["nat", "filter"].into_iter().find(|table| {
        text.lines().any(|line| line.starts_with(&format!("# Table `{table}' is incompatible")))
    });
    match spoiled {
        Some(table) => Err(BackendError::Spoiled { program: rules.save_program(), table }),
        None => Ok(text),
    }
}

/// Which programs to use: those that have rules of ours already; else those that the host has rules
/// with; else those that the host's administrator chose; else any that work.
fn detect() -> Result<Programs, BackendError> {
    let tables = nft_tables();
    let in_use: Vec<Rules> = programs::in_use(&tables).collect();
    let has_ours = |rules: &&Rules| programs::save(**rules).is_ok_and(|text| names_ours(&text));
    if let Some(rules) = in_use.iter().find(has_ours) {
        return Ok(rules.backend);
    }
    let used = |wanted: Programs| in_use.iter().any(|rules| rules.backend == wanted);
    let works = |wanted: Programs| programs::save(Rules { backend: wanted, ipv6: false }).is_ok();
    let preferred = match (used(Programs::Nft), used(Programs::Legacy), programs::chosen()) {
        (true, false, _) => Programs::Nft,
        (false, true, _) => Programs::Legacy,
        (_, _, chosen) => chosen.unwrap_or(Programs::Nft),
    };
    let other = if preferred == Programs::Nft { Programs::Legacy } else { Programs::Nft };
    [preferred, other].into_iter().find(|it| works(*it)).ok_or(BackendError::NoPrograms)
}

fn names_ours(text: &str) -> bool {
    text.lines().any(|line| line.strip_prefix(':').is_some_and(|line| line.starts_with(PREFIX)))
}

/// The tables there are; none if nftables cannot be asked.
fn nft_tables() -> Vec<TableKey> {
    Nft::open().ok().and_then(|mut nft| nft.tables().ok()).unwrap_or_default()
}

/// Takes every chain and rule of this mode away, with both sets of programs; says how many chains and
/// jumps that were.
///
/// # Errors
/// When a program fails: the rest has been tried.
pub fn remove() -> Result<usize, BackendError> {
    remove_where(|_| true)
}

fn remove_where(wanted: impl Fn(&Rules) -> bool) -> Result<usize, BackendError> {
    let mut removed = 0;
    let mut failed = None;
    for rules in programs::in_use(&nft_tables()).filter(wanted) {
        let done = programs::save(rules).and_then(|text| {
            let steps = saved::remove_all(&text);
            if !steps.is_empty() {
                programs::restore_text(rules, &steps)?;
            }
            Ok(text.lines().filter(|line| line.starts_with(&format!(":{PREFIX}"))).count())
        });
        match done {
            Ok(chains) => removed += chains,
            // A host without iptables has no rules of ours in it.
            Err(programs::ProgramError::Start { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(removed), |error| Err(error.into()))
}

/// Takes the nftables mode's table away.
fn remove_nftables() -> Result<usize, BackendError> {
    let table = nftables::table_key();
    if !nft_tables().contains(&table) {
        return Ok(0);
    }
    let mut nft = Nft::open().map_err(BackendError::Nftables)?;
    nft.commit(&Transaction::new().remove(&table))?;
    Ok(1)
}
