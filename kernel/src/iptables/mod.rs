//! iptables: what `iptables-save` prints, as chains of rules, and what `iptables-restore` is told.
//!
//! Its rules are changed by its own programs only: the legacy kernel interface has no notion of
//! anybody else, and what the nft one keeps in nftables only those programs can write.

mod legacy;
pub mod programs;
mod restore;
mod saved;

use crate::nft::{Family, TableKey};

pub use legacy::{Legacy, Shape};
pub use restore::Restore;
pub use saved::{SavedChain, SavedTable, saved_table, split, unconditional};

/// One of the four rule sets that iptables may keep: two families, two back ends in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Iptables {
    /// Which kernel interface holds the rules. Both may be in use at once, and a packet must pass
    /// both.
    pub backend: Backend,
    /// IPv6, not IPv4.
    pub ipv6: bool,
}

/// Which kernel interface holds the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// nftables, in tables named as iptables' are. Changes show as nftables events.
    Nft,
    /// x_tables. Changes show nowhere: ask for their [`Shape`] from time to time.
    Legacy,
}

impl Iptables {
    /// All four.
    pub const ALL: [Self; 4] = [
        Self { backend: Backend::Nft, ipv6: false },
        Self { backend: Backend::Nft, ipv6: true },
        Self { backend: Backend::Legacy, ipv6: false },
        Self { backend: Backend::Legacy, ipv6: true },
    ];

    /// Whether this rule set is in use, so that it is worth a look. `nft_tables` are nftables' (by
    /// `Nft::tables`), `legacy_tables` is the text of [`Iptables::legacy_tables_file`], empty if
    /// there is no such file. Without asking first, a look would load kernel modules.
    pub fn is_in_use(self, nft_tables: &[TableKey], legacy_tables: &str) -> bool {
        let names = ["filter", "nat"];
        match self.backend {
            Backend::Nft => {
                let family = if self.ipv6 { Family::Ip6 } else { Family::Ip };
                nft_tables.iter().any(|key| key.family == family && names.contains(&key.name.as_str()))
            }
            Backend::Legacy => legacy_tables.lines().any(|line| names.contains(&line)),
        }
    }

    /// Where the kernel lists the legacy tables of this family.
    pub fn legacy_tables_file(self) -> &'static str {
        if self.ipv6 {
            "/proc/thread-self/net/ip6_tables_names"
        } else {
            "/proc/thread-self/net/ip_tables_names"
        }
    }

    /// The program that prints the rules. To be called without arguments: with `-t` the legacy one
    /// makes the table that it is to print.
    pub fn save_program(self) -> &'static str {
        match (self.backend, self.ipv6) {
            (Backend::Nft, false) => "iptables-nft-save",
            (Backend::Nft, true) => "ip6tables-nft-save",
            (Backend::Legacy, false) => "iptables-legacy-save",
            (Backend::Legacy, true) => "ip6tables-legacy-save",
        }
    }

    /// The program that takes a [`Restore`] on its standard input, with [`Restore::ARGUMENTS`].
    pub fn restore_program(self) -> &'static str {
        match (self.backend, self.ipv6) {
            (Backend::Nft, false) => "iptables-nft-restore",
            (Backend::Nft, true) => "ip6tables-nft-restore",
            (Backend::Legacy, false) => "iptables-legacy-restore",
            (Backend::Legacy, true) => "ip6tables-legacy-restore",
        }
    }

    /// The program that a person would change rules with.
    pub fn program(ipv6: bool) -> &'static str {
        if ipv6 { "ip6tables" } else { "iptables" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_set_is_used_if_it_has_a_table_of_ours_to_look_at() {
        let key = |family, name: &str| TableKey { family, name: name.parse().unwrap() };
        let [nft4, nft6, legacy4, _] = Iptables::ALL;
        let tables = [key(Family::Ip, "filter"), key(Family::Inet, "filter"), key(Family::Ip6, "mangle")];
        assert!(nft4.is_in_use(&tables, ""));
        assert!(!nft6.is_in_use(&tables, "filter\n"));
        assert!(!legacy4.is_in_use(&tables, ""));
        assert!(legacy4.is_in_use(&[], "mangle\nfilter\n"));
    }
}
