//! What should be in the kernel, kept service by service, and what one change takes. Pure.

mod concerned;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use weft_kernel::nft::{Chain, Elements, Key, Set, Step, Table, Transaction, Value, Verdict};

use super::frame::Frame;
use super::layout::{FIRST_WAY, Map, NOWHERE, Place, number, table};
use super::leaf::{Pick, Way};
use super::memory::Memory;
use super::packed::Packed;
use super::parts::{Element, Numbers, Parts, Seats, pick, wished_id};
use super::slots::{self, free_number};
use crate::host::Host;
use crate::model::{Family, PortName, ServiceName};
use crate::plan::{PortPlan, ServicePlan};

pub(super) use concerned::Concerned;

/// Everything that the table should hold.
///
/// A change of one service costs what that service has, however many others there are. What was asked
/// for is taken as done: if the kernel refuses a transaction, or somebody else changed the table,
/// compare [`Program::table`] with what is there.
#[derive(Clone, Debug)]
pub struct Program {
    frame: Frame,
    services: BTreeMap<ServiceName, Held>,
    /// Ids in use, so that no two service ports of a family have the same.
    ids: BTreeSet<(Family, u32)>,
    /// How many services need an element of a map that they share.
    shared: HashMap<(Place, Key), usize>,
    /// The chains there are. One that nobody needs stays until [`Program::collect`]: packets on their
    /// way may still read an element that leads to it.
    ways: Ways,
}

/// The chains there are, with their numbers.
#[derive(Clone, Debug, Default)]
struct Ways {
    /// How many services need a chain.
    users: BTreeMap<Way, usize>,
    /// By which number frontends name it; none for a chain that only others lead to.
    numbers: BTreeMap<Way, u32>,
    taken: BTreeSet<(Family, u32)>,
}

/// Gives out numbers; those that an earlier run gave out again.
struct Numbering<'a> {
    ways: &'a mut Ways,
    memory: &'a Memory<'a>,
    new: Vec<Way>,
}

impl Numbers for Numbering<'_> {
    fn number(&mut self, way: &Way) -> u32 {
        if let Some(number) = self.ways.numbers.get(way) {
            return *number;
        }
        let family = way.family();
        let taken = |number: u32| number < FIRST_WAY || self.ways.taken.contains(&(family, number));
        let remembered = self.memory.way(way).filter(|number| !taken(*number));
        let number =
            remembered.unwrap_or_else(|| free_number(slots::hash(way.name().as_str().as_bytes()), taken));
        self.ways.taken.insert((family, number));
        self.ways.numbers.insert(way.clone(), number);
        self.new.push(way.clone());
        number
    }
}

/// What one service has.
#[derive(Clone, Debug, Default, PartialEq)]
struct Held {
    elements: Packed,
    /// The chains, in order, each once.
    ways: Box<[Way]>,
    ports: Box<[HeldPort]>,
}

/// What must not change without need.
#[derive(Clone, Debug, PartialEq)]
struct HeldPort {
    name: PortName,
    family: Family,
    seats: Seats,
    /// Only where endpoints are picked by it.
    id: Option<u32>,
}

impl Held {
    fn port(&self, port: &PortPlan) -> Option<&HeldPort> {
        self.ports.iter().find(|held| held.family == port.family && held.name == port.name)
    }
}

/// What goes and what comes, over all services of a change.
#[derive(Debug, Default)]
struct Pending {
    delete: BTreeMap<Place, Elements>,
    add: BTreeMap<Place, Elements>,
    new_ways: Vec<Way>,
}

impl Program {
    /// For a host without services.
    pub fn new(host: &Host) -> Self {
        Self {
            frame: Frame::of(host),
            services: BTreeMap::new(),
            ids: BTreeSet::new(),
            shared: HashMap::new(),
            ways: Ways::default(),
        }
    }

    /// For a host with these services. Slots, ids and chains are those of the observed table where it
    /// has them, so that a proxy that starts anew changes nothing that was right. A table of another
    /// layout is not understood.
    pub fn load(
        host: &Host,
        plans: impl IntoIterator<Item = (ServiceName, ServicePlan)>,
        observed: Option<&Table>,
    ) -> Self {
        let mut program = Self::new(host);
        let memory = observed.and_then(Memory::of).unwrap_or_default();
        // Packets on their way may still be led to chains that nobody needs any more.
        for way in memory.ways() {
            if let Some(number) = memory.way(&way) {
                program.ways.taken.insert((way.family(), number));
                program.ways.numbers.insert(way.clone(), number);
            }
            program.ways.users.insert(way, 0);
        }
        // What changes is found by a comparison with the kernel, so nobody asks for it here.
        for (name, plan) in plans {
            program.absorb(&name, &plan, &memory, &mut None);
        }
        program
    }

    /// Whether there are chains that no service needs.
    pub fn has_unused(&self) -> bool {
        self.ways.users.values().any(|users| *users == 0)
    }

    /// Whether this program is one for that host: if not, it takes another one, loaded anew.
    pub fn fits(&self, host: &Host) -> bool {
        self.frame == Frame::of(host)
    }

    /// Takes in what some services need from now on, and says what that changes in the kernel.
    pub fn update<'a>(
        &mut self,
        plans: impl IntoIterator<Item = (&'a ServiceName, &'a ServicePlan)>,
    ) -> Transaction {
        let mut pending = Some(Pending::default());
        for (name, plan) in plans {
            self.absorb(name, plan, &Memory::default(), &mut pending);
        }
        pending.unwrap_or_default().transaction(&self.frame, &self.ways.users)
    }

    /// The chains, and maps of clients that stick, that no service needs any more.
    pub fn collect(&mut self) -> Transaction {
        let users = &mut self.ways.users;
        let unused: Vec<Way> =
            users.iter().filter(|(_, users)| **users == 0).map(|(way, _)| way.clone()).collect();
        users.retain(|_, users| *users > 0);
        let used: BTreeSet<Place> = users.keys().filter_map(Way::sticky).collect();
        let key = table();
        let mut numbered: BTreeMap<Place, Elements> = BTreeMap::new();
        for way in &unused {
            if let Some(number) = self.ways.numbers.remove(way) {
                self.ways.taken.remove(&(way.family(), number));
                let (place, key, value) = numbering(way, number);
                numbered.entry(place).or_default().insert(key, value);
            }
        }
        let mut tx = Transaction::new();
        for (place, elements) in numbered {
            tx = tx.delete_elements(&key, &place.name(), &place.spec(), elements);
        }
        // Emptied first, because one may lead to another.
        let flush = unused.iter().map(|way| Step::FlushChain(key.clone(), way.name()));
        let delete = unused.iter().map(|way| Step::DeleteChain(key.clone(), way.name()));
        let sticky: BTreeSet<Place> = unused.iter().filter_map(Way::sticky).collect();
        let forget = sticky.difference(&used).map(|place| Step::DeleteSet(key.clone(), place.name()));
        flush.chain(delete).chain(forget).fold(tx, Transaction::then)
    }

    /// The whole table.
    pub fn table(&self) -> Table {
        let mut table = self.frame.table();
        for (way, number) in &self.ways.numbers {
            let (place, key, value) = numbering(way, *number);
            let set = table.sets.entry(place.name()).or_insert_with(|| place.spec().with([]));
            set.elements.insert(key, value);
        }
        for (way, chain) in self.ways.users.keys().map(|way| (way, way.chain(&self.frame.pods))) {
            table.chains.insert(way.name(), chain);
            if let Some(place) = way.sticky() {
                table.sets.entry(place.name()).or_insert_with(|| place.spec().with([]));
            }
        }
        // Lists first: to sort hundreds of thousands once takes less than to insert them one by one.
        let mut elements: BTreeMap<Place, Vec<(Key, Value)>> = BTreeMap::new();
        for held in self.services.values() {
            for element in held.elements.elements() {
                elements.entry(element.place).or_default().push(element.into_pair());
            }
        }
        for (place, all) in elements {
            let set = table.sets.entry(place.name());
            let Set { elements: fixed, .. } = set.or_insert_with(|| place.spec().with([]));
            fixed.append(&mut all.into_iter().collect());
        }
        table
    }

    /// Takes in what a service needs from now on; notes what that changes, if somebody asks for it.
    fn absorb(
        &mut self,
        name: &ServiceName,
        plan: &ServicePlan,
        memory: &Memory,
        pending: &mut Option<Pending>,
    ) {
        let before = self.services.remove(name).unwrap_or_default();
        for held in &before.ports {
            if let Some(id) = held.id {
                self.ids.remove(&(held.family, id));
            }
        }
        let ports = plan.ports.iter().map(|port| {
            let held = before.port(port);
            let seats = match held {
                Some(held) => held.seats.next(port),
                None => memory.seats(port).next(port),
            };
            let id = (pick(port) != Pick::Any).then(|| {
                let wish = held.and_then(|held| held.id).or_else(|| memory.id(port));
                let wish = wish.unwrap_or_else(|| wished_id(&port.name));
                let id = free_number(wish, |id| self.ids.contains(&(port.family, id)));
                self.ids.insert((port.family, id));
                id
            });
            HeldPort { name: port.name.clone(), family: port.family, seats, id }
        });
        let mut after = Held { ports: ports.collect(), ..Held::default() };
        let none = Seats::default();
        let mut ways = Numbering { ways: &mut self.ways, memory, new: Vec::new() };
        let parts = Parts::of(plan, &mut ways, |port: &PortPlan| {
            let held = after.port(port);
            (held.map_or(&none, |held| &held.seats), held.and_then(|held| held.id).unwrap_or(0))
        });
        for way in ways.new {
            let number = self.ways.numbers.get(&way).copied().unwrap_or(NOWHERE);
            let (place, key, value) = numbering(&way, number);
            if let Some(pending) = pending {
                pending.add.entry(place).or_default().insert(key, value);
            }
        }
        let held = Parts { elements: before.elements.elements().collect(), ways: before.ways };
        self.change(held, &parts, pending);
        (after.elements, after.ways) = (Packed::of(&parts.elements), parts.ways);
        if after != Held::default() {
            self.services.insert(name.clone(), after);
        }
    }

    fn change(&mut self, before: Parts, after: &Parts, pending: &mut Option<Pending>) {
        for way in after.ways.iter().filter(|way| before.ways.binary_search(way).is_err()) {
            let users = self.ways.users.entry(way.clone()).or_insert_with(|| {
                if let Some(pending) = pending {
                    pending.new_ways.push(way.clone());
                }
                0
            });
            *users += 1;
        }
        for way in before.ways.iter().filter(|way| after.ways.binary_search(way).is_err()) {
            if let Some(users) = self.ways.users.get_mut(way) {
                *users = users.saturating_sub(1);
            }
        }
        let has = |parts: &Parts, element: &Element| {
            let found = parts.elements.binary_search_by(|held| held.at().cmp(&element.at()));
            found.ok().and_then(|at| parts.elements.get(at)).is_some_and(|held| held.value == element.value)
        };
        for element in after.elements.iter().filter(|element| !has(&before, element)) {
            if self.is_first(element.place, &element.key)
                && let Some(pending) = pending
            {
                pending.add.entry(element.place).or_default().extend([element.clone().into_pair()]);
            }
        }
        let has_still: Vec<bool> = before.elements.iter().map(|element| has(after, element)).collect();
        for (element, _) in before.elements.into_iter().zip(has_still).filter(|(_, stays)| !stays) {
            if self.is_last(element.place, &element.key)
                && let Some(pending) = pending
            {
                pending.delete.entry(element.place).or_default().extend([element.into_pair()]);
            }
        }
    }

    /// One more service needs it; whether it is the first one.
    fn is_first(&mut self, place: Place, key: &Key) -> bool {
        if !place.map.is_shared() {
            return true;
        }
        let users = self.shared.entry((place, key.clone())).or_default();
        *users += 1;
        *users == 1
    }

    /// One service needs it no more; whether it was the last one.
    fn is_last(&mut self, place: Place, key: &Key) -> bool {
        if !place.map.is_shared() {
            return true;
        }
        let key = (place, key.clone());
        match self.shared.get_mut(&key) {
            Some(users) if *users > 1 => {
                *users -= 1;
                false
            }
            _ => {
                self.shared.remove(&key);
                true
            }
        }
    }
}

/// The element that leads from a way's number to its chain.
fn numbering(way: &Way, its_number: u32) -> (Place, Key, Value) {
    let verdict = Value::Verdict(Verdict::Goto(way.name()));
    (Map::Ways.of(way.family()), number(its_number).into(), verdict)
}

impl Pending {
    fn transaction(mut self, frame: &Frame, ways: &BTreeMap<Way, usize>) -> Transaction {
        let key = table();
        let mut tx = Transaction::new();
        // A shared element that one service gives up and another one takes stays.
        for (place, added) in &mut self.add {
            if let Some(deleted) = self.delete.get_mut(place).filter(|_| place.map.is_shared()) {
                let both: Vec<Key> = added.keys().filter(|key| deleted.contains_key(key)).cloned().collect();
                for key in both {
                    added.remove(&key);
                    deleted.remove(&key);
                }
            }
        }
        let known: BTreeSet<Place> = {
            let old = ways.keys().filter(|way| !self.new_ways.contains(way));
            old.filter_map(Way::sticky).collect()
        };
        let sticky: BTreeSet<Place> = self.new_ways.iter().filter_map(Way::sticky).collect();
        for place in sticky.difference(&known) {
            tx = tx.then(Step::AddSet { table: key.clone(), set: place.name(), spec: place.spec() });
        }
        for way in &self.new_ways {
            tx = tx.then(Step::AddChain { table: key.clone(), chain: way.name(), base: None, comment: None });
        }
        for way in &self.new_ways {
            let Chain { rules, .. } = way.chain(&frame.pods);
            for rule in rules {
                tx = tx.then(Step::AddRule { table: key.clone(), chain: way.name(), rule });
            }
        }
        // Deletions first: a key whose value changed is in both.
        for (place, elements) in self.delete {
            tx = tx.delete_elements(&key, &place.name(), &place.spec(), elements);
        }
        for (place, elements) in self.add {
            tx = tx.add_elements(&key, &place.name(), &place.spec(), elements);
        }
        tx
    }
}
