//! Processor time: whose it is, from /proc.
//!
//! Work in softirq context is charged to the process it interrupted, which on a pinned sender is the
//! sender itself, or to ksoftirqd. On a processor that is idle it is charged to nobody: behind a shaper,
//! whose timer lets packets go, that is much of a path's cost. It is what the machine was busy beyond
//! the time of all processes. /proc is not read in one instant, so on a busy machine that difference is
//! noise; but there no processor is idle either, and more than the time that processors were idle is
//! not believed. What other programs use is not counted as the path's, but told.

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

/// What a measurement cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Processor time of the path, in seconds.
    pub path: f64,
    /// Processor time of programs that have nothing to do with it.
    pub others: f64,
}

/// Counts what a measurement costs, from its making on.
#[derive(Debug)]
pub struct Meter<'a> {
    watched: &'a Watched,
    before: [f64; 4],
}

impl<'a> Meter<'a> {
    /// Starts to count.
    pub fn start(watched: &'a Watched) -> Self {
        Self { watched, before: Self::now(watched) }
    }

    /// What it came to; `traffic` is the processor time that the traffic source says it used.
    pub fn stop(self, traffic: f64) -> Cost {
        let now = Self::now(self.watched);
        let [busy, idle, all, watched] = [0, 1, 2, 3].map(|which| now[which] - self.before[which]);
        let on_idle = (busy - all).clamp(0.0, idle.max(0.0));
        Cost { path: traffic + watched + on_idle, others: (all - watched - traffic).max(0.0) }
    }

    /// The machine's busy and idle time, that of all processes, that of those watched.
    fn now(watched: &Watched) -> [f64; 4] {
        let [busy, idle] = of_machine();
        [busy, idle, of_all_processes(), watched.used()]
    }
}

/// Processor time of all processes there ever were: those that ended are in their parents' `cutime`
/// and `cstime`, and what they had inherited themselves, too.
fn of_all_processes() -> f64 {
    let of = |pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|stat| fields(&stat));
    seconds(processes().filter_map(of).map(|fields| fields.iter().sum::<u64>()).sum())
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Seconds that the processors were busy so far, and that they were idle or waiting for a disk.
fn of_machine() -> [f64; 2] {
    machine_ticks(&fs::read_to_string("/proc/stat").unwrap_or_default()).unwrap_or_default().map(seconds)
}

/// Resident memory of a process in MiB; 0 once it is gone.
pub fn resident_mb(pid: i32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    resident_kb(&status).map_or(0.0, |kb| seconds_free(kb) / 1024.0)
}

fn ksoftirqds() -> Vec<i32> {
    let named = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    processes().filter(|pid| named(pid).starts_with("ksoftirqd/")).collect()
}

/// utime and stime.
fn ticks(stat: &str) -> Option<u64> {
    let [user, system, ..] = fields(stat)?;
    Some(user + system)
}

/// utime, stime, cutime, cstime: fields 14 to 17 (proc(5)). The second field, the name, may hold spaces
/// and brackets.
fn fields(stat: &str) -> Option<[u64; 4]> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11).map(|field| field.parse().ok());
    Some([fields.next()??, fields.next()??, fields.next()??, fields.next()??])
}

/// The line `cpu`: user nice system idle iowait irq softirq steal (proc(5)). Steal is neither.
fn machine_ticks(stat: &str) -> Option<[u64; 2]> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let [user, nice, system, idle, waiting, irq, softirq, ..] = fields[..] else { return None };
    Some([user + nice + system + irq + softirq, idle + waiting])
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
        assert_eq!(fields(stat), Some([150, 50, 7, 9]));
        assert_eq!(ticks("42 (gone"), None);
    }

    #[test]
    fn a_busy_machine_is_told_from_an_idle_one() {
        let stat = "cpu  10 20 30 1000 500 4 6 77 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(machine_ticks(stat), Some([70, 1500]));
        assert_eq!(machine_ticks("cpu  1 2"), None);
    }

    /// What a child used is in the sum while it lives and once it is gone.
    #[test]
    fn a_meter_counts_others_and_what_is_watched() {
        let own = Watched { pids: vec![i32::try_from(std::process::id()).unwrap()] };
        let nobody = Watched { pids: vec![] };
        let (theirs, ours) = (Meter::start(&nobody), Meter::start(&own)); // one within the other
        let loop_for_a_while = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
        let status = std::process::Command::new("sh").args(["-c", loop_for_a_while]).status().unwrap();
        assert!(status.success());
        let (ours, theirs) = (ours.stop(0.0), theirs.stop(0.0));
        assert!(ours.others > 0.0 && theirs.others >= ours.others, "{ours:?} {theirs:?}");
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
        assert!(of_machine()[0] > 0.0);
        assert!(of_all_processes() > before);
    }
}
