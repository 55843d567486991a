//! Which part of the table leads connections to one frontend, for explanations. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use weft_kernel::nft::{Chain, ChainName, Elements, Key, Part, Value};

use super::super::layout::{Map, Place, frontend, number, read_number};
use super::super::leaf::Way;
use super::{Program, numbering};
use crate::model::{PortName, ServiceName, family_of};
use crate::plan::Frontend;

/// Elements and chains.
#[derive(Debug, Default, PartialEq)]
pub(in crate::nftables) struct Concerned {
    pub(in crate::nftables) elements: BTreeMap<Place, Elements>,
    pub(in crate::nftables) chains: BTreeMap<ChainName, Chain>,
}

/// Where it is kept to which endpoint a client sticks.
#[derive(Debug)]
pub(in crate::nftables) struct Kept<'a> {
    pub(in crate::nftables) place: Place,
    pub(in crate::nftables) key: Key,
    /// What stands for each endpoint.
    pub(in crate::nftables) numbers: &'a BTreeMap<SocketAddr, u32>,
}

impl Program {
    /// What leads connections to a frontend of a service, and to the endpoints behind it.
    pub(in crate::nftables) fn concerned(&self, service: &ServiceName, at: &Frontend) -> Concerned {
        let mut concerned = Concerned::default();
        let Some(held) = self.services.get(service) else { return concerned };
        let (exact, family) = (frontend(at), at.family());
        let all = || held.elements.elements().filter(|element| element.place.family == family);
        let at_frontend = |map: Map| all().find(|it| it.place.map == map && it.key == exact);
        let of_shape = |address, port| match at {
            Frontend::Address(..) => address,
            Frontend::NodePort(..) => port,
        };
        let value = |map| read_number(&at_frontend(map)?.into_pair().1);
        let id = value(of_shape(Map::AddressIds, Map::PortIds)).map(number).map(Part::into_bytes);
        let way = value(of_shape(Map::Addresses, Map::Ports));
        for element in all() {
            let key = element.key.first();
            let is_concerned = match element.place.map {
                Map::Addresses | Map::AddressIds | Map::RefusedAddresses | Map::Guarded => {
                    matches!(at, Frontend::Address(..)) && element.key == exact
                }
                Map::Ports | Map::PortIds | Map::RefusedPorts => {
                    matches!(at, Frontend::NodePort(..)) && element.key == exact
                }
                Map::AddressEndpoints => {
                    matches!(at, Frontend::Address(..)) && key.starts_with(exact.first())
                }
                Map::PortEndpoints => matches!(at, Frontend::NodePort(..)) && key.starts_with(exact.first()),
                Map::Allowed => matches!(at, Frontend::Address(..)) && key.ends_with(exact.first()),
                Map::Slots | Map::LiveCluster | Map::LiveLocal => {
                    id.as_ref().is_some_and(|id| key.starts_with(id))
                }
                _ => false,
            };
            if is_concerned {
                concerned.elements.entry(element.place).or_default().extend([element.into_pair()]);
            }
        }
        let way = way.and_then(|number| {
            let of_family = |way: &&Way| way.family() == family;
            let mut numbers = self.ways.numbers.iter().filter(|(way, _)| of_family(way));
            numbers.find(|(_, known)| **known == number)
        });
        if let Some((way, number)) = way {
            let (place, key, verdict) = numbering(way, *number);
            concerned.elements.entry(place).or_default().insert(key, verdict);
            for way in way.needs().into_iter().map(Way::Leaf).chain([way.clone()]) {
                concerned.chains.insert(way.name(), way.chain(&self.frame.pods));
            }
        }
        concerned
    }

    /// Where to look for the endpoint that a client sticks to.
    pub(in crate::nftables) fn kept(&self, port: &PortName, client: IpAddr) -> Option<Kept<'_>> {
        let family = family_of(client);
        let held = self.services.get(&port.service)?;
        let of_port = held.ports.iter().find(|held| held.name == *port && held.family == family)?;
        let places: BTreeSet<Place> = held.ways.iter().filter_map(Way::sticky).collect();
        let place = places.into_iter().find(|place| place.family == family)?;
        let key = Key::concat([number(of_port.id?), Part::from(client)]);
        Some(Kept { place, key, numbers: &of_port.seats.numbers })
    }
}

impl Kept<'_> {
    /// The endpoint that the number found there stands for.
    pub(in crate::nftables) fn endpoint(&self, found: &Value) -> Option<SocketAddr> {
        let wanted = read_number(found)?;
        self.numbers.iter().find(|(_, number)| **number == wanted).map(|(endpoint, _)| *endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generators::{Scenario, scenarios};
    use crate::model::{Family, Protocol};
    use crate::plan::{self, Claims};
    use proptest::prelude::*;

    proptest! {
        /// Whatever is said to be concerned is in the table, and every frontend has something there.
        #[test]
        fn what_is_concerned_is_in_the_table(scenario in scenarios()) {
            let Scenario { model, host, .. } = scenario;
            let plans = plan::everything(&model, &Claims::of(&model), &host);
            let program = Program::load(&host, plans.clone(), None);
            let table = program.table();
            for (name, plan) in &plans {
                for port in &plan.ports {
                    for at in port.frontends.keys() {
                        let Concerned { elements, chains } = program.concerned(name, at);
                        prop_assert!(!elements.is_empty(), "{name} {at:?}");
                        for (place, elements) in elements {
                            let there = &table.sets[&place.name()].elements;
                            for (key, value) in elements {
                                prop_assert_eq!(there.get(&key), Some(&value));
                            }
                        }
                        for (name, chain) in chains {
                            prop_assert_eq!(table.chains.get(&name), Some(&chain));
                        }
                    }
                }
            }
            let nobody = ServiceName::new("no", "body");
            let at = Frontend::NodePort(Family::V4, 1.try_into().unwrap(), Protocol::Tcp);
            prop_assert_eq!(program.concerned(&nobody, &at), Concerned::default());
        }
    }
}
