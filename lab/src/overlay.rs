//! What a host's overlay daemon says of itself: its subnets, its metrics, the drift it sees.

use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::{Host, LabError, Response};

impl Host {
    /// The subnets it has leased, IPv4 first, as its subnet file says.
    pub fn subnets(&self) -> Result<Vec<IpNetwork>, LabError> {
        let env = self.subnet_env()?;
        let first = |variable: &&str| env.get(*variable)?.parse::<IpNetwork>().ok();
        let subnet = |first: IpNetwork| IpNetwork::new(first.network(), first.prefix()).ok();
        Ok(["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"].iter().filter_map(first).filter_map(subnet).collect())
    }

    /// Its IPv4 subnet, or else its IPv6 subnet.
    pub fn subnet(&self) -> Result<IpNetwork, LabError> {
        self.subnets()?
            .first()
            .copied()
            .ok_or_else(|| LabError::Traffic { what: format!("{} has no subnet", self.name()) })
    }

    /// The sum of all samples of `/metrics` that begin so: `name`, or `name{label="value"`.
    pub fn metric(&self, prefix: &str) -> Result<f64, LabError> {
        Ok(sum(&self.api("/metrics")?.body, prefix))
    }

    /// What its kernel lacks or has too much, by the daemon's own fresh look: `weft diff`.
    pub fn drift(&self) -> Result<Vec<String>, LabError> {
        drift(&self.api("/diff")?)
    }

    /// As [`Host::drift`], as an error while there is any.
    pub fn as_planned(&self) -> Result<(), LabError> {
        let drift = self.drift()?;
        if drift.is_empty() { Ok(()) } else { Err(LabError::Traffic { what: drift.join("; ") }) }
    }
}

/// What a daemon's `/diff` answers, line by line.
pub(crate) fn drift(answer: &Response) -> Result<Vec<String>, LabError> {
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let lines = |key: &str| body[key].as_array().cloned().unwrap_or_default();
    if answer.status != 200 {
        return Err(LabError::Traffic { what: format!("{} /diff: {}", answer.status, answer.body.trim()) });
    }
    let both = [lines("changes"), lines("conflicts")].concat();
    Ok(both.iter().filter_map(|line| line.as_str().map(str::to_owned)).collect())
}

pub(crate) fn sum(metrics: &str, prefix: &str) -> f64 {
    let whole = |line: &&str| {
        let rest = line.strip_prefix(prefix);
        // `name` must not match `name_total`.
        rest.is_some_and(|rest| prefix.contains('{') || rest.starts_with(['{', ' ']))
    };
    let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
    metrics.lines().filter(whole).filter_map(value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_their_beginning() {
        let text =
            "# HELP heals x\nheals{kind=\"link\"} 2\nheals{kind=\"route\",a=\"b c\"} 3\nheals_x 9\nup 1\n";
        let table =
            [("heals", 5.0), ("heals{kind=\"route\"", 3.0), ("up", 1.0), ("down", 0.0), ("heals_x", 9.0)];
        for (prefix, expected) in table {
            assert!((sum(text, prefix) - expected).abs() < f64::EPSILON, "{prefix}");
        }
    }
}
