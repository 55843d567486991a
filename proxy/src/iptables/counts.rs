//! What this mode counts under kube-proxy's names (pkg/proxy/metrics/metrics.go).

use weft_daemon::metrics::{Counter, Gauge, Metrics};

use super::rule::Table;
use crate::model::Family;
use crate::run::kube_proxy::ip_family;

/// By family, in the order of [`Family::ALL`].
#[derive(Clone, Debug)]
pub(super) struct Counts([OfFamily; 2]);

#[derive(Clone, Debug)]
struct OfFamily {
    /// By table, in the order of [`Table::ALL`].
    total: [Gauge; 2],
    last: [Gauge; 2],
    failures: Counter,
    partial_failures: Counter,
}

impl Counts {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let labels = ["table", "ip_family"];
        let total = metrics.gauges(
            "kubeproxy_sync_proxy_rules_iptables_total",
            "Rules of ours that there should be.",
            labels,
        );
        let last = metrics.gauges(
            "kubeproxy_sync_proxy_rules_iptables_last",
            "Rules that the last sync wrote.",
            labels,
        );
        let failures = metrics.counters(
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
            "Times that iptables-restore failed.",
            ["ip_family"],
        );
        let partial_failures = metrics.counters(
            "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
            "Those of them in which only what had changed was to be written.",
            ["ip_family"],
        );
        Self(Family::ALL.map(ip_family).map(|family| OfFamily {
            total: Table::ALL.map(|table| total.with([table.name(), family])),
            last: Table::ALL.map(|table| last.with([table.name(), family])),
            failures: failures.with([family]),
            partial_failures: partial_failures.with([family]),
        }))
    }

    /// A sync of that family wrote this text; and so many rules there should be now.
    pub(super) fn wrote(&self, family: Family, text: &str, total: impl Fn(Table) -> usize) {
        let counted = self.of(family);
        for (table, (all, last)) in Table::ALL.into_iter().zip(counted.total.iter().zip(&counted.last)) {
            all.set_count(total(table));
            last.set_count(written(text, table));
        }
    }

    pub(super) fn failed(&self, family: Family, partial: bool) {
        let counted = self.of(family);
        counted.failures.inc();
        if partial {
            counted.partial_failures.inc();
        }
    }

    fn of(&self, family: Family) -> &OfFamily {
        let [v4, v6] = &self.0;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }
}

/// How many rules a text for `iptables-restore` adds to a table.
fn written(text: &str, table: Table) -> usize {
    let mut here = false;
    let added = text.lines().filter(|line| {
        if let Some(name) = line.strip_prefix('*') {
            here = name == table.name();
        }
        here && (line.starts_with("-A ") || line.starts_with("-I "))
    });
    added.count()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn rules_are_counted_by_table() {
        let text = "*filter\n:A - [0:0]\n-A A -j DROP\nCOMMIT\n*nat\n-A B -j C\n-I C -j D\n-D E -j F\nCOMMIT\n\
                    *filter\n-A A -j ACCEPT\nCOMMIT\n";
        assert_eq!(Table::ALL.map(|table| written(text, table)), [2, 2]);
        assert_eq!(written("", Table::Nat), 0);
    }
}
