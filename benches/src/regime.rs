//! How the wires of the underlay are set while the paths are compared.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use weft_lab::{Lab, LabError, Offloads};

use crate::BenchError;
use crate::traffic::Ends;

/// What `shaped` lets through, in Mbit/s: a link that the paths fill, so that they differ only in
/// what they cost.
pub const SHAPED_MBIT: u32 = 5000;

/// How the wires are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Regime {
    /// As veths come: packets of 64 KiB cross in one piece, which no network card gives.
    Default,
    /// Every link passes packets of at most 1500 bytes, and nobody joins them.
    NoOffload,
    /// As `NoOffload`, but the receiver joins packets (GRO), as network cards' drivers do.
    NoTso,
    /// As veths come, and no faster than [`SHAPED_MBIT`].
    Shaped,
}

/// A regime's name that is none.
#[derive(Debug, thiserror::Error)]
#[error("no regime `{given}`; there are {}", Regime::ALL.map(Regime::name).join(", "))]
pub struct UnknownRegime {
    given: String,
}

impl Regime {
    /// All, in the order of tables.
    pub const ALL: [Self; 4] = [Self::Default, Self::NoOffload, Self::NoTso, Self::Shaped];

    /// Those that are measured if nobody says: all, or those that give an impression.
    pub const fn usual(quick: bool) -> &'static [Self] {
        if quick { &[Self::Default, Self::NoOffload, Self::Shaped] } else { &Self::ALL }
    }

    /// Its name in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::NoOffload => "no-offload",
            Self::NoTso => "no-tso",
            Self::Shaped => "shaped",
        }
    }

    /// When it is measured: the regimes that cannot be taken back to the last bit come last.
    pub(crate) const fn turn(self) -> u8 {
        match self {
            Self::Default => 0,
            Self::Shaped => 1,
            Self::NoTso => 2,
            Self::NoOffload => 3,
        }
    }

    /// Sets the wires so, and says in words what was set.
    pub(crate) fn begin(self, lab: &Lab, ends: &[&Ends]) -> Result<String, BenchError> {
        let offloads = match self {
            Self::Default => return Ok("as veths come, MTU 1500".into()),
            Self::Shaped => {
                lab.shape(SHAPED_MBIT)?;
                return Ok(format!("tbf {SHAPED_MBIT} Mbit/s on both ends of every host's link, MTU 1500"));
            }
            Self::NoOffload => Offloads::Off,
            Self::NoTso => Offloads::NoTso,
        };
        let set = lab.set_offloads(offloads)?;
        ends.iter().try_for_each(|ends| verify(ends, offloads))?;
        Ok(format!("{}; MTU 1500", summary(&set)))
    }

    /// Leaves the wires as they were before.
    pub(crate) fn end(self, lab: &Lab) -> Result<(), BenchError> {
        match self {
            Self::Default => Ok(()),
            Self::Shaped => Ok(lab.unshape()?),
            Self::NoOffload | Self::NoTso => Ok(lab.set_offloads(Offloads::On).map(drop)?),
        }
    }
}

impl fmt::Display for Regime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Regime {
    type Err = UnknownRegime;

    fn from_str(given: &str) -> Result<Self, UnknownRegime> {
        let found = Self::ALL.into_iter().find(|regime| regime.name() == given);
        found.ok_or_else(|| UnknownRegime { given: given.to_owned() })
    }
}

/// The kernel may answer "done" and have done less: what the pods' own links say counts.
fn verify(ends: &Ends, offloads: Offloads) -> Result<(), BenchError> {
    for place in [&ends.client, &ends.server] {
        let features = place.run_args(&["ethtool", "-k", "eth0"]).ok()?;
        let gro = ("generic-receive-offload", offloads == Offloads::NoTso);
        let wanted = [("tcp-segmentation-offload", false), ("generic-segmentation-offload", false), gro];
        for (feature, on) in wanted {
            if is_on(&features, feature) != Some(on) {
                let what = format!("{feature} of eth0 in {} is not {on}", place.name());
                return Err(LabError::Traffic { what }.into());
            }
        }
    }
    Ok(())
}

/// A feature in the words of `ethtool -k`: `name: on`, `name: off [fixed]`.
fn is_on(features: &str, name: &str) -> Option<bool> {
    let state = features.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "))?;
    Some(state.starts_with("on"))
}

/// `NAMESPACE/LINK: SETTINGS` by settings: how many links have them.
fn summary(set: &[String]) -> String {
    let mut links: BTreeMap<&str, usize> = BTreeMap::new();
    for settings in set.iter().filter_map(|line| line.split_once(": ")) {
        *links.entry(settings.1).or_default() += 1;
    }
    let words = links.iter().map(|(settings, count)| format!("{settings} on {count} veth ends"));
    words.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for regime in Regime::ALL {
            assert_eq!(regime.name().parse::<Regime>().unwrap(), regime);
        }
        assert!("fast".parse::<Regime>().is_err());
    }

    #[test]
    fn what_was_set_is_said_in_short() {
        let set = ["a/eth0: tso off gro off", "b/eth0: tso off gro off"].map(str::to_owned);
        assert_eq!(summary(&set), "tso off gro off on 2 veth ends");
    }

    #[test]
    fn features_are_read() {
        let features = "Features for eth0:\ntcp-segmentation-offload: off\n\ttx-tcp-segmentation: on\n\
                        generic-receive-offload: on [fixed]\n";
        assert_eq!(is_on(features, "tcp-segmentation-offload"), Some(false));
        assert_eq!(is_on(features, "generic-receive-offload"), Some(true));
        assert_eq!(is_on(features, "rx-gro-hw"), None);
    }
}
