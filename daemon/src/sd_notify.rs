//! Telling systemd how we are: `READY=1`, `STATUS=...`, `WATCHDOG=1`, `STOPPING=1` (sd_notify(3)).
//!
//! Own code instead of a crate: the protocol is one datagram to a socket named in the environment, and
//! the crates there are read (and some write) the environment of the process themselves.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::Env;
use crate::health::Health;

/// The service manager's socket; or nobody, if it did not name one.
#[derive(Debug)]
pub struct Notify {
    manager: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// Reads `NOTIFY_SOCKET` (a path, or `@` and an abstract name), `WATCHDOG_USEC`, `WATCHDOG_PID`.
    pub fn from_env(env: &Env) -> io::Result<Self> {
        let Some(name) = env.get("NOTIFY_SOCKET") else {
            return Ok(Self { manager: None, watchdog: None });
        };
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name)?,
            None => SocketAddr::from_pathname(&name)?,
        };
        let socket = UnixDatagram::unbound()?;
        // A service manager that does not read must not hold up packets' owners.
        socket.set_nonblocking(true)?;
        let number = |key| env.get(key).and_then(|text| text.to_str()?.parse::<u64>().ok());
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| ours && *usec > 0).map(Duration::from_micros);
        Ok(Self { manager: Some((socket, address)), watchdog })
    }

    /// Sends assignments, one a line, such as `READY=1`. Without a service manager it does nothing.
    pub fn send(&self, assignments: &str) -> io::Result<()> {
        let Some((socket, address)) = &self.manager else { return Ok(()) };
        socket.send_to_addr(assignments.as_bytes(), address).map(drop)
    }

    /// Tells the manager until `shutdown`: ready when `health` first is, every change of status, and
    /// if it watches us, twice in its period that this runtime still runs tasks.
    pub async fn follow(self, health: Health, shutdown: CancellationToken) {
        let tell = |assignments: String| {
            if let Err(error) = self.send(&assignments) {
                tracing::debug!(%error, "the service manager could not be told");
            }
        };
        let (mut told, mut ready) = (None, false);
        let mut watchdog = self.watchdog.map(|period| {
            let mut ticks = tokio::time::interval(period / 2);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            ticks
        });
        loop {
            let tick = async {
                match &mut watchdog {
                    Some(ticks) => drop(ticks.tick().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tick => tell("WATCHDOG=1".into()),
                report = health.wait_until(|report| told.as_ref() != Some(&report.line())) => {
                    let line = report.line();
                    let first = report.ready && !ready;
                    ready |= report.ready;
                    tell(format!("STATUS={line}{}", if first { "\nREADY=1" } else { "" }));
                    told = Some(line);
                }
            }
        }
        tell("STOPPING=1".into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn next(manager: &UnixDatagram) -> String {
        manager.set_read_timeout(Some(SOON)).unwrap();
        let mut buffer = [0; 4096];
        let length = manager.recv(&mut buffer).expect("a notification within the deadline");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn both_kinds_of_socket_are_reached() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("weft-test-{}", std::process::id());
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (manager, value) in [(by_path, path.display().to_string()), (by_name, format!("@{name}"))] {
            let notify = Notify::from_env(&Env::of([("NOTIFY_SOCKET", value)])).unwrap();
            notify.send("READY=1").unwrap();
            assert_eq!(next(&manager), "READY=1");
        }
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        let notify = Notify::from_env(&Env::of([("NOTIFY_SOCKET", "")])).unwrap();
        notify.send("READY=1").unwrap();
        assert!(notify.manager.is_none());
    }

    #[test]
    fn the_watchdog_is_for_the_process_it_names() {
        let me = std::process::id().to_string();
        for (usec, pid, expected) in [
            (Some("3000000"), None, Some(Duration::from_secs(3))),
            (Some("3000000"), Some(me.as_str()), Some(Duration::from_secs(3))),
            (Some("3000000"), Some("1"), None),
            (Some("0"), None, None),
            (Some("soon"), None, None),
            (None, None, None),
        ] {
            let mut env = vec![("NOTIFY_SOCKET", "@x")];
            env.extend(usec.map(|value| ("WATCHDOG_USEC", value)));
            env.extend(pid.map(|value| ("WATCHDOG_PID", value)));
            assert_eq!(Notify::from_env(&Env::of(env)).unwrap().watchdog, expected, "{usec:?} {pid:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_manager_hears_the_whole_life() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notify = Notify::from_env(&Env::of([("NOTIFY_SOCKET", path.display().to_string())])).unwrap();
        let (health, shutdown) = (Health::needing(&["lease"]), CancellationToken::new());
        let following = tokio::spawn(notify.follow(health.clone(), shutdown.clone()));
        assert_eq!(next(&manager), "STATUS=not ready; lease not ready: not known yet");
        health.ok("lease");
        assert_eq!(next(&manager), "STATUS=ready\nREADY=1");
        health.not_ready("lease", "lost");
        assert_eq!(next(&manager), "STATUS=not ready; lease not ready: lost");
        health.ok("lease");
        assert_eq!(next(&manager), "STATUS=ready");
        shutdown.cancel();
        assert_eq!(next(&manager), "STOPPING=1");
        following.await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_watching_manager_is_fed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let env = [("NOTIFY_SOCKET", path.display().to_string()), ("WATCHDOG_USEC", "20000".to_owned())];
        let shutdown = CancellationToken::new();
        let notify = Notify::from_env(&Env::of(env)).unwrap();
        let following = tokio::spawn(notify.follow(Health::needing(&[]), shutdown.clone()));
        let heard: Vec<_> = (0..4).map(|_| next(&manager)).collect();
        assert_eq!(heard.iter().filter(|line| *line == "WATCHDOG=1").count(), 3, "{heard:?}");
        shutdown.cancel();
        following.await.unwrap();
    }
}
