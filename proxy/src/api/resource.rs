//! The three resources that a proxy reads, and what an object of one means. Pure.

use std::fmt;
use std::time::SystemTime;

use k8s_openapi::api::{core, discovery};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::manifests::parse::identity;
use crate::model::read::{self, Reading};
use crate::model::{Change, NodeName, ObjectName, Problem};

/// When the change that a slice tells of happened; set by the slice controller for the benefit of
/// `kubeproxy_network_programming_duration_seconds`.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Which objects are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    /// All of them, those for other proxies included: their cluster addresses are not ours to reject.
    Services,
    /// Those of services that we serve. The slice controller copies these labels from the Service, and
    /// the slices of headless services, which need not even come here, are many in some clusters.
    Slices,
    /// This host's: nobody else's zone or address concerns a proxy.
    Node(NodeName),
}

/// An object as the API wrote it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Written {
    pub(super) name: ObjectName,
    /// Its `metadata.resourceVersion`.
    pub(super) version: String,
    /// None if it makes no sense: what is known of it stays.
    pub(super) change: Option<Change>,
    pub(super) problems: Vec<Problem>,
    /// For a slice: when what it tells of happened.
    pub(super) triggered: Option<SystemTime>,
}

impl Resource {
    /// Where it is, without a query.
    pub(super) fn path(&self) -> &'static str {
        match self {
            Self::Services => "/api/v1/services",
            Self::Slices => "/apis/discovery.k8s.io/v1/endpointslices",
            Self::Node(_) => "/api/v1/nodes",
        }
    }

    /// Which of them are meant, as a part of the query.
    pub(super) fn selector(&self) -> String {
        match self {
            Self::Services => String::new(),
            Self::Slices => {
                "labelSelector=%21service.kubernetes.io%2Fheadless%2C%21service.kubernetes.io%2Fservice-proxy-name"
                    .to_owned()
            }
            Self::Node(name) => format!("fieldSelector=metadata.name%3D{}", escaped(&name.0)),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Services => "Service",
            Self::Slices => "EndpointSlice",
            Self::Node(_) => "Node",
        }
    }

    /// What a list of it calls itself.
    pub(super) fn list_kind(&self) -> &'static str {
        match self {
            Self::Services => "ServiceList",
            Self::Slices => "EndpointSliceList",
            Self::Node(_) => "NodeList",
        }
    }

    /// What an object means. An object that is no good of its kind is a problem as long as it has a
    /// name.
    ///
    /// # Errors
    /// That it has none.
    pub(super) fn read(&self, json: &str) -> Result<Written, Nameless> {
        match self {
            Self::Services => self.typed(json, |it: &core::v1::Service| (&it.metadata, read::service(it))),
            Self::Slices => {
                self.typed(json, |it: &discovery::v1::EndpointSlice| (&it.metadata, read::slice(it)))
            }
            Self::Node(_) => self.typed(json, |it: &core::v1::Node| (&it.metadata, read::node(it))),
        }
    }

    fn typed<T: DeserializeOwned>(
        &self,
        json: &str,
        read: impl Fn(&T) -> (&ObjectMeta, Reading),
    ) -> Result<Written, Nameless> {
        if let Ok(object) = serde_json::from_str::<T>(json) {
            let (meta, Reading { change, problems }) = read(&object);
            let named = change.as_ref().map(|change| match change {
                Change::Put(object) => object.name(),
                Change::Remove(name) => name.clone(),
            });
            if let (Some(name), Some(version)) = (named, &meta.resource_version) {
                let triggered = triggered(meta);
                return Ok(Written { name, version: version.clone(), change, problems, triggered });
            }
        }
        self.spoilt::<T>(json, read)
    }

    /// The long way, for an object with a mistake: its name, and what is wrong.
    fn spoilt<T: DeserializeOwned>(
        &self,
        json: &str,
        read: impl Fn(&T) -> (&ObjectMeta, Reading),
    ) -> Result<Written, Nameless> {
        let value: Value = serde_json::from_str(json).map_err(|_| Nameless)?;
        let (object, name) = identity(self.kind(), &value);
        let name = name.ok_or(Nameless)?;
        let version = value.pointer("/metadata/resourceVersion").and_then(Value::as_str);
        let version = version.unwrap_or_default().to_owned();
        let (change, problems) = match Reading::typed::<T>(&object, value) {
            Ok(object) => {
                let Reading { change, problems } = read(&object).1;
                (change, problems)
            }
            Err(problem) => (None, vec![problem]),
        };
        Ok(Written { name, version, change, problems, triggered: None })
    }

    /// The name and version of an object that is gone; the rest of it does not matter.
    ///
    /// # Errors
    /// That it has no name.
    pub(super) fn name_of(&self, json: &str) -> Result<(ObjectName, String), Nameless> {
        let value: Value = serde_json::from_str(json).map_err(|_| Nameless)?;
        let name = identity(self.kind(), &value).1.ok_or(Nameless)?;
        let version = value.pointer("/metadata/resourceVersion").and_then(Value::as_str);
        Ok((name, version.unwrap_or_default().to_owned()))
    }
}

/// An answer has something in it that nobody could name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nameless;

fn triggered(meta: &ObjectMeta) -> Option<SystemTime> {
    let written = meta.annotations.as_ref()?.get(TRIGGER_TIME)?;
    let time: k8s_openapi::jiff::Timestamp = written.parse().ok()?;
    Some(time.into())
}

/// Percent-encoded for a query: everything but RFC 3986's unreserved characters.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(byte.into()),
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

/// As in `cannot list services`.
impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Services => f.write_str("services"),
            Self::Slices => f.write_str("endpointslices"),
            Self::Node(name) => write!(f, "the node {name}"),
        }
    }
}
