//! How many connections a source has, and whether it may have one more.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Counts the connections of each source. A cheap handle.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    most: Option<u32>,
    counts: Arc<Mutex<HashMap<IpAddr, u32>>>,
}

/// A connection that counts for as long as this lives.
#[derive(Debug)]
pub(super) struct Place {
    of: Option<(Sources, IpAddr)>,
}

impl Sources {
    /// Each may have so many at once; `None`: any number, and nobody counts.
    pub(super) fn at_most(most: Option<u32>) -> Self {
        Self { most, counts: Arc::default() }
    }

    /// A place for a connection from there, if there is one left.
    pub(super) fn take(&self, client: IpAddr) -> Option<Place> {
        let Some(most) = self.most else { return Some(Place { of: None }) };
        let source = source(client);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(source).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place { of: Some((self.clone(), source)) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((sources, source)) = &self.of else { return };
        let mut counts = sources.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = counts.entry(*source) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// Over IPv6 a source is a network of 64 bits: that is what a single host is usually given.
fn source(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_source_has_its_places_and_gets_them_back() {
        let sources = Sources::at_most(Some(2));
        let first = sources.take(ip("192.0.2.1")).unwrap();
        let second = sources.take(ip("192.0.2.1")).unwrap();
        assert!(sources.take(ip("192.0.2.1")).is_none());
        let other = sources.take(ip("192.0.2.2")).unwrap();
        drop(first);
        let again = sources.take(ip("192.0.2.1")).unwrap();
        assert!(sources.take(ip("192.0.2.1")).is_none());
        drop((second, other, again));
        assert!(sources.counts.lock().unwrap().is_empty(), "nothing is kept of who has gone");
    }

    #[test]
    fn an_ipv6_network_is_one_source() {
        let sources = Sources::at_most(Some(1));
        let _one = sources.take(ip("2001:db8::1")).unwrap();
        assert!(sources.take(ip("2001:db8::2")).is_none());
        assert!(sources.take(ip("2001:db8:0:1::1")).is_some());
    }

    #[test]
    fn without_a_limit_nobody_counts() {
        let sources = Sources::at_most(None);
        let places: Vec<_> = (0..100).map(|_| sources.take(ip("192.0.2.1"))).collect();
        assert!(places.iter().all(Option::is_some) && sources.counts.lock().unwrap().is_empty());
    }
}
