//! What an earlier run left in the table: which endpoint had which slot, which service port which id.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use weft_kernel::nft::{Elements, Key, Table, Value, Verdict};

use super::layout::{
    Map, Place, first_slot, frontend, frontend_slot, layout, live, number, read_endpoint, read_number,
};
use super::leaf::{Pick, Way};
use super::parts::{Seats, pick};
use crate::model::Policy;
use crate::plan::{Frontend, PortPlan};

/// A table to remember from; the default remembers nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memory<'a>(Option<&'a Table>);

impl<'a> Memory<'a> {
    /// Nothing if the table is of another layout.
    pub(super) fn of(table: &'a Table) -> Option<Self> {
        (table.comment == Some(layout())).then_some(Self(Some(table)))
    }

    /// The chains that lead to endpoints, or on to other such chains.
    pub(super) fn ways(&self) -> BTreeSet<Way> {
        let chains = self.0.into_iter().flat_map(|table| table.chains.keys());
        let all: BTreeSet<Way> = chains.filter_map(Way::named).collect();
        let is_there = |leaf| all.contains(&Way::Leaf(leaf));
        let whole = all.iter().filter(|way| way.needs().into_iter().all(is_there));
        whole.cloned().collect()
    }

    fn elements(&self, place: Place) -> Option<&'a Elements> {
        self.0?.sets.get(&place.name()).map(|set| &set.elements)
    }

    /// The id that one of the port's frontends leads to.
    pub(super) fn id(&self, port: &PortPlan) -> Option<u32> {
        port.frontends.keys().find_map(|at| {
            let map = match at {
                Frontend::Address(..) => Map::AddressIds,
                Frontend::NodePort(..) => Map::PortIds,
            };
            read_number(self.elements(map.of(port.family))?.get(&frontend(at))?)
        })
    }

    /// The number of a way.
    pub(super) fn way(&self, way: &Way) -> Option<u32> {
        let goto = Value::Verdict(Verdict::Goto(way.name()));
        let elements = self.elements(Map::Ways.of(way.family()))?;
        let (key, _) = elements.iter().find(|(_, verdict)| **verdict == goto)?;
        read_number(&Value::Bytes(key.first().to_vec()))
    }

    /// Who was where.
    pub(super) fn seats(&self, port: &PortPlan) -> Seats {
        match (pick(port), self.id(port)) {
            (Pick::Any, _) => Seats {
                cluster: self.by_frontend(port, Policy::Cluster),
                local: self.by_frontend(port, Policy::Local),
                numbers: BTreeMap::new(),
            },
            (Pick::ById { .. }, Some(id)) => {
                let cluster = self.by_id(port, Policy::Cluster, id);
                let local = self.by_id(port, Policy::Local, id);
                let seated = |of: &[(SocketAddr, u32)]| of.iter().map(|(endpoint, _)| *endpoint).collect();
                Seats {
                    cluster: seated(&cluster),
                    local: seated(&local),
                    numbers: cluster.into_iter().chain(local).collect(),
                }
            }
            (Pick::ById { .. }, None) => Seats::default(),
        }
    }

    fn by_frontend(&self, port: &PortPlan, set: Policy) -> Vec<SocketAddr> {
        let of = |at: &Frontend| -> Vec<SocketAddr> {
            let map = match at {
                Frontend::Address(..) => Map::AddressEndpoints,
                Frontend::NodePort(..) => Map::PortEndpoints,
            };
            let Some(elements) = self.elements(map.of(port.family)) else { return Vec::new() };
            let slots = (first_slot(set)..).map_while(|slot| elements.get(&frontend_slot(at, slot)));
            slots.map_while(read_endpoint).collect()
        };
        port.frontends.keys().map(of).find(|found| !found.is_empty()).unwrap_or_default()
    }

    fn by_id(&self, port: &PortPlan, set: Policy, id: u32) -> Vec<(SocketAddr, u32)> {
        let (Some(slots), Some(alive)) =
            (self.elements(Map::Slots.of(port.family)), self.elements(live(set).of(port.family)))
        else {
            return Vec::new();
        };
        let at = |slot: u32| -> Option<(SocketAddr, u32)> {
            let stands_for = read_number(slots.get(&Key::concat([number(id), number(slot)]))?)?;
            let key = Key::concat([number(id), number(stands_for)]);
            Some((read_endpoint(alive.get(&key)?)?, stands_for))
        };
        (first_slot(set)..).map_while(at).collect()
    }
}
