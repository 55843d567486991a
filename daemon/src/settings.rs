//! Kernel settings that a daemon changes, and what they were: `weft cleanup` puts every one back.
//!
//! What a setting was is on disk before it is changed, so that a crash in between loses nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use weft_kernel::sysctl::{BadSysctl, Sysctl, SysctlError};

use crate::fs::{WriteError, write_atomic};

/// A setting under `/proc/sys`, as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    /// Its path below `/proc/sys`, with `/` between the parts: link names contain dots.
    pub path: String,
    /// The value to write.
    pub value: String,
    /// Over which other values.
    pub over: Over,
}

/// Which values of a setting are changed; the others were somebody's decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Over {
    /// Every one.
    Any,
    /// This one.
    Only(&'static str),
    /// Smaller numbers.
    Smaller,
}

impl Setting {
    /// Has to have this value, whatever it is.
    pub fn new(path: impl Into<String>, value: impl Into<String>) -> Self {
        Self { path: path.into(), value: value.into(), over: Over::Any }
    }

    /// The same, written over these values only.
    pub fn over(self, over: Over) -> Self {
        Self { over, ..self }
    }

    /// Whether this value is to be changed.
    fn replaces(&self, now: &str) -> bool {
        now != self.value
            && match self.over {
                Over::Any => true,
                Over::Only(value) => now == value,
                Over::Smaller => {
                    matches!((now.parse::<u64>(), self.value.parse::<u64>()), (Ok(now), Ok(then)) if now < then)
                }
            }
    }
}

/// The settings of one daemon, in the network namespace of the calling thread.
#[derive(Debug)]
pub struct Settings {
    path: PathBuf,
    /// What each changed setting was before weft's first change, by its path below /proc/sys.
    before: BTreeMap<String, String>,
}

/// Why a setting is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The kernel refused.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The plan or the memory names no setting.
    #[error(transparent)]
    Name(#[from] BadSysctl),
    /// What it was could not be kept, so it was not changed.
    #[error("what settings were cannot be kept")]
    Remember(#[from] WriteError),
}

impl Settings {
    /// What an earlier run remembered in this state directory. A damaged memory is set aside, with a
    /// word in the log: the settings of now are then taken for those of before.
    pub fn new(state_dir: &Path) -> Self {
        let path = state_dir.join("settings.json");
        let before = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "what settings were before weft is not known");
                BTreeMap::new()
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "what settings were before weft is not known");
                }
                BTreeMap::new()
            }
        };
        Self { path, before }
    }

    /// Makes the settings as wanted and says how many had to be changed. A setting that this kernel
    /// does not have (IPv6 built out, a module not loaded yet), or that this network namespace only
    /// shows (the size of the table of connections belongs to the first one), needs nothing.
    ///
    /// # Errors
    /// The first failure; the rest is still tried.
    pub fn apply(&mut self, wanted: &[Setting]) -> Result<usize, SettingsError> {
        let (mut changed, mut first_error) = (0, None);
        for setting in wanted {
            match self.make(setting) {
                Ok(made) => changed += usize::from(made),
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(changed), Err)
    }

    fn make(&mut self, wanted: &Setting) -> Result<bool, SettingsError> {
        let sysctl: Sysctl = wanted.path.parse()?;
        let now = match sysctl.read() {
            Ok(now) => now,
            Err(error) if error.is_absent() => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if !wanted.replaces(&now) || is_only_shown(&sysctl) {
            return Ok(false);
        }
        let mut before = self.before.clone();
        for name in [vec![wanted.path.clone()], follows(&wanted.path)].concat() {
            if let Ok(value) = name.parse::<Sysctl>()?.read() {
                before.entry(name).or_insert(value);
            }
        }
        if before != self.before {
            let text = serde_json::to_vec_pretty(&before)
                .map_err(|error| WriteError { path: self.path.clone(), source: error.into() })?;
            write_atomic(&self.path, &text, 0o600)?;
            self.before = before;
        }
        tracing::info!(setting = %sysctl, from = now, to = %wanted.value, "kernel setting changed");
        sysctl.set(&wanted.value)?;
        Ok(true)
    }

    /// Puts every setting back to what it was before weft, and forgets. A setting that is gone went
    /// with its link.
    ///
    /// # Errors
    /// The first failure, after all were tried; the memory is kept then.
    pub fn restore(&mut self) -> Result<usize, SettingsError> {
        let (mut restored, mut first_error) = (0, None);
        // The switches that drag others along come first, then those others.
        let (first, then): (Vec<_>, Vec<_>) =
            self.before.iter().partition(|(name, _)| !follows(name).is_empty());
        for (name, value) in first.into_iter().chain(then) {
            match name
                .parse::<Sysctl>()
                .map_err(SettingsError::from)
                .and_then(|sysctl| Ok(sysctl.set(value)?))
            {
                Ok(former) => restored += usize::from(former != *value),
                Err(SettingsError::Sysctl(error)) if error.is_absent() => {}
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        if let Some(error) = first_error {
            return Err(error);
        }
        self.before.clear();
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(WriteError { path: self.path.clone(), source }.into())
            }
            _ => Ok(restored),
        }
    }
}

/// Nobody may write it, root included: so the kernel marks what belongs to the first namespace.
fn is_only_shown(sysctl: &Sysctl) -> bool {
    fs::metadata(sysctl.path()).is_ok_and(|found| found.permissions().readonly())
}

/// The settings that the kernel changes along with this one: forwarding as a whole writes every
/// link's, and IPv4's turns `accept_redirects` over (net/ipv4/devinet.c, `inet_forward_change`;
/// net/ipv6/addrconf.c, `addrconf_forward_change`).
fn follows(path: &str) -> Vec<String> {
    let (family, more) = match path {
        "net/ipv4/ip_forward" => ("ipv4", Some("net/ipv4/conf/all/accept_redirects".to_owned())),
        "net/ipv6/conf/all/forwarding" => ("ipv6", None),
        _ => return Vec::new(),
    };
    let conf = format!("net/{family}/conf");
    let links = fs::read_dir(Path::new("/proc/sys").join(&conf)).into_iter().flatten().flatten();
    let names = links.filter_map(|link| link.file_name().into_string().ok()).filter(|name| name != "all");
    names.map(|name| format!("{conf}/{name}/forwarding")).chain(more).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use weft_kernel::netns::{NetNs, run_in};

    fn all_settings() -> Vec<String> {
        let output =
            Command::new("sysctl").args(["-a", "--pattern", r"^net\.ipv[46]\.(conf|ip_forward)"]).output();
        String::from_utf8(output.unwrap().stdout).unwrap().lines().map(str::to_owned).collect()
    }

    const FORWARD: [(&str, &str); 2] = [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")];

    fn forward() -> Vec<Setting> {
        FORWARD.iter().map(|(path, value)| Setting::new(*path, *value)).collect()
    }

    #[test]
    fn everything_is_as_before_after_a_restart_and_a_restore() {
        let ns = NetNs::anonymous().unwrap();
        let dir = tempfile::tempdir().unwrap();
        run_in(&ns, || {
            let set = |name: &str, value: &str| name.parse::<Sysctl>().unwrap().set(value).unwrap();
            set("net/ipv4/conf/all/accept_redirects", "0");
            set("net/ipv4/conf/lo/forwarding", "1");
            set("net/ipv6/conf/lo/forwarding", "1");
            let before = all_settings();
            assert!(before.len() > 50, "{before:?}");
            assert_eq!(Settings::new(dir.path()).apply(&forward()).unwrap(), 2);
            assert_eq!(Settings::new(dir.path()).apply(&forward()).unwrap(), 0, "nothing is left to do");
            assert_ne!(all_settings(), before);
            Settings::new(dir.path()).restore().unwrap();
            assert_eq!(all_settings(), before);
            assert!(!dir.path().join("settings.json").exists());
        })
        .unwrap();
    }

    #[test]
    fn somebodys_decision_is_respected_and_absent_settings_need_nothing() {
        let ns = NetNs::anonymous().unwrap();
        let dir = tempfile::tempdir().unwrap();
        run_in(&ns, || {
            let accept_ra: Sysctl = "net/ipv6/conf/lo/accept_ra".parse().unwrap();
            accept_ra.set("0").unwrap();
            let over_one = Setting::new("net/ipv6/conf/lo/accept_ra", "2").over(Over::Only("1"));
            let absent = Setting::new("net/ipv4/conf/none/forwarding", "1");
            let mut settings = Settings::new(dir.path());
            assert_eq!(settings.apply(&[over_one.clone(), absent]).unwrap(), 0);
            accept_ra.set("1").unwrap();
            assert_eq!(settings.apply(&[over_one]).unwrap(), 1);
            assert_eq!(accept_ra.read().unwrap(), "2");
        })
        .unwrap();
    }

    #[test]
    fn a_larger_number_stays_and_so_does_what_is_only_shown() {
        let ns = NetNs::anonymous().unwrap();
        let dir = tempfile::tempdir().unwrap();
        run_in(&ns, || {
            let queue: Sysctl = "net/unix/max_dgram_qlen".parse().unwrap();
            let wanted = [Setting::new("net/unix/max_dgram_qlen", "100").over(Over::Smaller)];
            let mut settings = Settings::new(dir.path());
            queue.set("200").unwrap();
            assert_eq!(settings.apply(&wanted).unwrap(), 0);
            queue.set("20").unwrap();
            assert_eq!(settings.apply(&wanted).unwrap(), 1);
            assert_eq!(queue.read().unwrap(), "100");
            // Since Linux 5.1 this namespace may read how large the tables of the first one are.
            let shown = "net/netfilter/nf_conntrack_max";
            assert!(is_only_shown(&shown.parse().unwrap()), "not the first namespace's to set?");
            assert_eq!(settings.apply(&[Setting::new(shown, "1")]).unwrap(), 0);
        })
        .unwrap();
    }
}
