//! Processor time: whose it is, from /proc.
//!
//! Work in softirq context is charged to the process it interrupted, which on a pinned sender is the
//! sender itself, or to ksoftirqd. What other programs use is not counted as the path's, but told.

use std::fs;

/// Ticks per second of the times in /proc (USER_HZ, 100 on every architecture that weft runs on).
const USER_HZ: f64 = 100.0;

/// Processor time that a process has used so far, its threads included, in seconds; 0 once it is gone.
pub fn of_process(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    ticks(&stat).map_or(0.0, seconds)
}

/// The processes whose time on a path is counted beside the traffic source's own.
#[derive(Clone, Debug)]
pub struct Watched {
    pids: Vec<i32>,
}

impl Watched {
    /// The daemons of a path, and the kernel's own threads for softirqs.
    pub fn new(daemons: impl IntoIterator<Item = i32>) -> Self {
        Self { pids: ksoftirqds().into_iter().chain(daemons).collect() }
    }

    /// Processor time that they have used so far, in seconds.
    pub fn used(&self) -> f64 {
        self.pids.iter().map(|pid| of_process(*pid)).sum()
    }
}

/// Processor time that the whole machine has used so far, in seconds: everything but idle and waiting.
pub fn of_machine() -> f64 {
    busy_ticks(&fs::read_to_string("/proc/stat").unwrap_or_default()).map_or(0.0, seconds)
}

/// Resident memory of a process in MiB; 0 once it is gone.
pub fn resident_mb(pid: i32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    resident_kb(&status).map_or(0.0, |kb| seconds_free(kb) / 1024.0)
}

fn ksoftirqds() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let named = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    pids.filter(|pid| named(pid).starts_with("ksoftirqd/")).collect()
}

/// utime and stime: fields 14 and 15 (proc(5)). The second field, the name, may hold spaces and brackets.
fn ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    Some(user + fields.next()?.parse::<u64>().ok()?)
}

/// The line `cpu`: user nice system idle iowait irq softirq steal (proc(5)). Steal is no work of ours.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let busy = [0, 1, 2, 5, 6].map(|index| fields.get(index).copied());
    busy.into_iter().sum()
}

fn resident_kb(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

fn seconds(ticks: u64) -> f64 {
    seconds_free(ticks) / USER_HZ
}

/// Counts of a running machine are far below 2^53.
#[expect(clippy::cast_precision_loss)]
fn seconds_free(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_past_any_name() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194304 100 0 0 0 150 50 7 9 20 0 3 0 1234 0 0";
        assert_eq!(ticks(stat), Some(200));
        assert_eq!(ticks("42 (gone"), None);
    }

    #[test]
    fn a_busy_machine_is_told_from_an_idle_one() {
        let stat = "cpu  10 20 30 1000 500 4 6 77 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy_ticks(stat), Some(70));
        assert_eq!(busy_ticks("cpu  1 2"), None);
    }

    #[test]
    fn memory_is_read_from_status() {
        assert_eq!(resident_kb("Name:\tweft\nVmRSS:\t   20480 kB\n"), Some(20480));
        assert_eq!(resident_kb("Name:\tkthread\n"), None);
    }

    #[test]
    fn this_process_uses_time_and_memory() {
        let own = i32::try_from(std::process::id()).unwrap();
        let before = of_process(own);
        while of_process(own) <= before {
            std::hint::black_box((0..100_000u64).sum::<u64>());
        }
        assert!(resident_mb(own) > 0.0);
        assert!(of_machine() > 0.0);
    }
}
