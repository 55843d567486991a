//! The environment as a value: read once in `main`, made up in tests.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

/// Environment variables. An empty one counts as unset, as it does for flannel and for systemd.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Env(BTreeMap<String, OsString>);

impl Env {
    /// The environment of this process. Names that are not UTF-8 are left out: none of ours is.
    pub fn of_process() -> Self {
        let named = |(key, value): (OsString, OsString)| Some((key.into_string().ok()?, value));
        Self(std::env::vars_os().filter_map(named).collect())
    }

    /// An environment of these variables and no other.
    pub fn of<K: Into<String>, V: Into<OsString>>(variables: impl IntoIterator<Item = (K, V)>) -> Self {
        Self(variables.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }

    /// A variable's value, if it is set and not empty.
    pub fn get(&self, name: &str) -> Option<OsString> {
        self.0.get(name).filter(|value| !value.is_empty()).cloned()
    }
}

/// Names only: values may be secrets.
impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_is_unset() {
        let env = Env::of([("A", "1"), ("B", "")]);
        assert_eq!(env.get("A"), Some("1".into()));
        assert_eq!(env.get("B"), None);
        assert_eq!(env.get("C"), None);
    }

    #[test]
    fn values_stay_out_of_logs() {
        assert_eq!(format!("{:?}", Env::of([("PASSWORD", "hunter2")])), r#"{"PASSWORD"}"#);
    }
}
