//! What Prometheus expects of every process, read from `/proc/self` when it is scraped.

use std::fs;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

use super::{Metrics, Seconds};

/// Registers `process_*` under the names that the official client libraries use.
pub(super) fn register(metrics: &Metrics) {
    let memory = metrics.gauge("process_resident_memory_bytes", "Resident memory size in bytes.");
    let open = metrics.gauge("process_open_fds", "Number of open file descriptors.");
    let threads = metrics.gauge("process_threads", "Number of threads.");
    let start = metrics.gauge("process_start_time_seconds", "Start time of the process, in Unix seconds.");
    let cpu: Seconds =
        metrics.family("process_cpu_seconds_total", "User and system CPU time in seconds.", [], &[]).with([]);
    metrics.before_scrape(move || {
        // A number that cannot be read keeps its last value; the rest of the scrape matters more.
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            open.set_count(entries.count());
        }
        let Some(stat) = fs::read_to_string("/proc/self/stat").ok().and_then(|text| Stat::parse(&text))
        else {
            return;
        };
        let per_second = sysconf_u64(SysconfVar::CLK_TCK).unwrap_or(100) as f64;
        memory.set((stat.resident_pages * sysconf_u64(SysconfVar::PAGE_SIZE).unwrap_or(4096)) as f64);
        threads.set(stat.threads as f64);
        cpu.mirror(Duration::from_secs_f64(stat.cpu_ticks as f64 / per_second));
        if let Some(boot) = fs::read_to_string("/proc/stat").ok().and_then(|text| boot_time(&text)) {
            start.set(boot as f64 + stat.start_ticks as f64 / per_second);
        }
    });
}

/// The fields of `/proc/<pid>/stat` (proc_pid_stat(5)) that we show.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, and may itself hold any of `) `.
        let fields: Vec<_> = text.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
        // proc(5) counts from 1; what is left begins with field 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let (user, system) = (field(14)?, field(15)?);
        Some(Self {
            cpu_ticks: user + system,
            threads: field(20)?,
            start_ticks: field(22)?,
            resident_pages: field(24)?,
        })
    }
}

fn boot_time(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn sysconf_u64(variable: SysconfVar) -> Option<u64> {
    sysconf(variable).ok()??.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_parentheses_does_not_shift_the_fields() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 70 30 13 14 15 16 4 18 900 20 512 22";
        let expected = Stat { cpu_ticks: 100, threads: 4, start_ticks: 900, resident_pages: 512 };
        assert_eq!(Stat::parse(&format!("7 (weft) {tail}")), Some(expected));
        assert_eq!(Stat::parse(&format!("7 (a) b) {tail}")).unwrap().threads, 4);
        assert_eq!(Stat::parse("7 (weft) S 1 2"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn this_process_has_memory_and_a_start() {
        let text = Metrics::of_process().render();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.split(' ').next() == Some(name));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).split(' ').nth(1).unwrap().parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_start_time_seconds") > 1.5e9);
        assert!(value("process_threads") >= 1.0);
    }
}
