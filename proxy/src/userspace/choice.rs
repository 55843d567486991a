//! Which endpoint a new connection gets: the one with fewer connections of two that chance names. Pure.
//!
//! Of two picked at random the better one is nearly as good as the best of all, and does not make
//! everybody run to the same one (Mitzenmacher, "The Power of Two Choices in Randomized Load
//! Balancing", 2001).

/// What is known of endpoints, by their indices, when a connection is to be sent somewhere.
pub(super) trait Candidates {
    /// How many there are.
    fn count(&self) -> usize;
    /// How many connections it has from here.
    fn active(&self, index: usize) -> usize;
    /// Whether it is good, or may be tried.
    fn admits(&self, index: usize) -> bool;
    /// How it did for this very connection.
    fn tried(&self, index: usize) -> Option<Tried>;
}

/// How an endpoint did for this very connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tried {
    /// It told us that nobody is there: no use to ask again.
    Refused,
    /// It did not answer in time.
    Silent,
}

/// The index of an endpoint; `None` if all have refused, or there is none. Those that were not tried
/// come first, and of these the ones that are good; `random` gives a number below its argument.
pub(super) fn choose(candidates: &impl Candidates, mut random: impl FnMut(usize) -> usize) -> Option<usize> {
    let count = candidates.count();
    let mut better = |count: usize, nth: &dyn Fn(usize) -> usize| {
        let one = random(count);
        // Another one, if there is one.
        let other = if count > 1 { (one + 1 + random(count - 1)) % count } else { one };
        let (one, other) = (nth(one), nth(other));
        if candidates.active(other) < candidates.active(one) { other } else { one }
    };
    if count == 0 {
        return None;
    }
    // Nearly always nothing is wrong with anybody, and nobody has to walk through all of them.
    let index = better(count, &|index| index);
    if candidates.tried(index).is_none() && candidates.admits(index) {
        return Some(index);
    }
    let rank = |index: usize| match candidates.tried(index) {
        None if candidates.admits(index) => Some(0),
        None => Some(1),
        Some(Tried::Silent) => Some(2),
        Some(Tried::Refused) => None,
    };
    let best = (0..count).filter_map(rank).min()?;
    let left: Vec<usize> = (0..count).filter(|index| rank(*index) == Some(best)).collect();
    Some(better(left.len(), &|nth| left[nth]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    struct One {
        active: usize,
        admits: bool,
        tried: Option<Tried>,
    }

    impl Candidates for Vec<One> {
        fn count(&self) -> usize {
            self.len()
        }
        fn active(&self, index: usize) -> usize {
            self[index].active
        }
        fn admits(&self, index: usize) -> bool {
            self[index].admits
        }
        fn tried(&self, index: usize) -> Option<Tried> {
            self[index].tried
        }
    }

    fn good(active: usize, tried: Option<Tried>) -> One {
        One { active, admits: true, tried }
    }

    fn any_one() -> impl Strategy<Value = One> {
        (0usize..9, any::<bool>(), tried()).prop_map(|(active, admits, tried)| One { active, admits, tried })
    }

    fn tried() -> impl Strategy<Value = Option<Tried>> {
        prop_oneof![6 => Just(None), 1 => Just(Some(Tried::Refused)), 1 => Just(Some(Tried::Silent))]
    }

    proptest! {
        /// Nobody is chosen who is worse than somebody left, and nobody who has refused.
        #[test]
        fn the_better_kind_comes_first(
            candidates in prop::collection::vec(any_one(), 0..12),
            seed in prop::collection::vec(any::<prop::sample::Index>(), 4),
        ) {
            let mut chances = seed.into_iter();
            let random = |below: usize| chances.next().expect("at most four").index(below);
            let kind = |index: usize| match (candidates[index].tried, candidates[index].admits) {
                (None, true) => 0,
                (None, false) => 1,
                (Some(Tried::Silent), _) => 2,
                (Some(Tried::Refused), _) => 3,
            };
            let best = (0..candidates.len()).map(kind).min().filter(|kind| *kind < 3);
            prop_assert_eq!(choose(&candidates, random).map(kind), best);
        }
    }

    /// Connections that stay are spread evenly, closer than by chance alone.
    #[test]
    fn connections_spread() {
        let mut state = 7u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let mut candidates = vec![good(0, None); 10];
        for _ in 0..10_000 {
            let chosen = choose(&candidates, &mut random).unwrap();
            candidates[chosen].active += 1;
        }
        let counts = candidates.iter().map(|it| it.active);
        let (least, most) = (counts.clone().min().unwrap(), counts.max().unwrap());
        assert!(most - least <= 10, "{candidates:?}");
    }

    #[test]
    fn of_two_the_one_with_fewer_connections_gets_it() {
        for chance in 0..2 {
            assert_eq!(choose(&vec![good(3, None), good(2, None)], |below| chance % below), Some(1));
        }
    }

    #[test]
    fn with_two_of_which_one_has_refused_it_is_the_other() {
        let refused = Some(Tried::Refused);
        for chance in 0..2 {
            let chosen = choose(&vec![good(0, refused), good(99, None)], |below| chance % below);
            assert_eq!(chosen, Some(1));
        }
        assert_eq!(choose(&vec![good(0, refused)], |_| 0), None);
        assert_eq!(choose(&Vec::new(), |_| 0), None);
    }
}
