//! Bulk traffic by iperf3: throughput as the receiver sees it, and the processor time of both ends.

use std::time::Duration;

use serde_json::Value;
use weft_lab::{LabError, Running, wait_for};

use super::{Cores, Ends};
use crate::BenchError;

/// Where the server listens, for control and data.
pub(super) const PORT: u16 = 5201;
/// Fits every path at an underlay MTU of 1500, so that all carry the same datagrams.
const DATAGRAM: &str = "1400";
/// How long starting up, the control connection and the farewell may take beside the traffic.
const OVERHEAD: Duration = Duration::from_secs(20);

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// This many TCP connections.
    Tcp(u8),
    /// One flow of UDP datagrams, as many as go.
    Udp,
}

/// What one run came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bulk {
    /// What arrived, in Gbit/s.
    pub gbps: f64,
    /// What arrived, in GB (10^9 bytes).
    pub gigabytes: f64,
    /// Processor time of both iperf3 processes, in seconds.
    pub cpu_s: f64,
}

/// An iperf3 server that stays; between runs it costs nothing.
#[derive(Debug)]
pub struct IperfServer {
    _process: Running,
}

impl IperfServer {
    /// Starts it, pinned, and waits until it listens.
    pub fn start(ends: &Ends, cores: Cores) -> Result<Self, BenchError> {
        let (core, port) = (cores.server.to_string(), PORT.to_string());
        let process = ends.server.spawn(&["taskset", "-c", &core, "iperf3", "-4", "-s", "-p", &port])?;
        let filter = format!("sport = :{PORT}");
        let listening = || {
            let sockets = ends.server.run_args(&["ss", "-Hltn", &filter]).ok();
            sockets.map_err(|error| error.chain()).and_then(|sockets| {
                let said = || format!("nobody listens; it says: {}", process.stderr_so_far().trim());
                if sockets.trim().is_empty() { Err(said()) } else { Ok(()) }
            })
        };
        wait_for(Duration::from_secs(30), listening).map_err(|timed_out| LabError::Late {
            what: format!("iperf3 in {}", ends.server.name()),
            timed_out,
            log: String::new(),
        })?;
        Ok(Self { _process: process })
    }

    /// Sends for this many whole seconds.
    pub fn run(&self, ends: &Ends, cores: Cores, flow: Flow, seconds: u8) -> Result<Bulk, BenchError> {
        let (core, to, time) = (cores.client.to_string(), ends.to.to_string(), seconds.to_string());
        let streams = match flow {
            Flow::Tcp(streams) => streams.to_string(),
            Flow::Udp => "1".to_owned(),
        };
        let port = PORT.to_string();
        let mut args = vec!["taskset", "-c", &core, "iperf3", "-J", "-c", &to, "-p", &port, "-t", &time];
        match flow {
            Flow::Tcp(_) => args.extend(["-Z", "-P", &streams]),
            Flow::Udp => args.extend(["-u", "-b", "0", "-l", DATAGRAM]),
        }
        let output = ends.client.spawn(&args)?.wait(Duration::from_secs(seconds.into()) + OVERHEAD);
        let answer = serde_json::from_str(&output.stdout)
            .map_err(|_| BenchError::Iperf { said: format!("{} {}", output.exit, output.stderr.trim()) })?;
        parse(&answer)
    }
}

/// The last part of iperf3's JSON. A failed run has an `error` instead of figures.
fn parse(answer: &Value) -> Result<Bulk, BenchError> {
    let figure = |pointer: &str| {
        let missing = || format!("no {pointer} in its answer");
        answer.pointer(pointer).and_then(Value::as_f64).ok_or_else(|| BenchError::Iperf {
            said: answer["error"].as_str().map_or_else(missing, str::to_owned),
        })
    };
    let share = figure("/end/cpu_utilization_percent/host_total")?
        + figure("/end/cpu_utilization_percent/remote_total")?;
    let bytes = figure("/end/sum_received/bytes")?;
    if bytes <= 0.0 {
        return Err(BenchError::Iperf { said: "nothing arrived".into() });
    }
    Ok(Bulk {
        gbps: figure("/end/sum_received/bits_per_second")? / 1e9,
        gigabytes: bytes / 1e9,
        cpu_s: share / 100.0 * figure("/end/sum_sent/seconds")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn figures_are_read_and_failures_are_said() {
        let end = json!({"end": {
            "sum_sent": {"seconds": 2.0, "bytes": 6e9},
            "sum_received": {"seconds": 2.0, "bytes": 5e9, "bits_per_second": 20e9},
            "cpu_utilization_percent": {"host_total": 75.0, "remote_total": 50.0},
        }});
        assert_eq!(parse(&end).unwrap(), Bulk { gbps: 20.0, gigabytes: 5.0, cpu_s: 2.5 });

        let mut silent = end.clone();
        silent["end"]["sum_received"]["bytes"] = json!(0);
        let table = [
            (json!({"error": "the server is busy"}), "iperf3: the server is busy"),
            (json!({"end": {}}), "iperf3: no /end/cpu_utilization_percent/host_total in its answer"),
            (silent, "iperf3: nothing arrived"),
        ];
        for (answer, said) in table {
            assert_eq!(parse(&answer).unwrap_err().to_string(), said);
        }
    }
}
