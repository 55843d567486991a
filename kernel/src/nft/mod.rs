//! nftables over netlink: tables as plain data, atomic transactions, dumps, and change events.
//!
//! - [`Table`] with its [`Chain`]s, [`Set`]s and [`Rule`]s is what should be, or is: ordered and
//!   comparable. A [`Rule`] is a list of [`Expr`]s, built with [`Rule::is`] and its kin.
//! - [`diff`] says what leads from an observed table to a desired one: nothing, a few set elements,
//!   chains and sets, or a new table; [`Transaction`] is that as one all-or-nothing batch.
//! - [`Nft`] commits transactions and reads tables back; [`Events`] tells who changed what.
//!
//! Why an encoder of our own: the two crates there are either lack half of the expressions that
//! this project needs (`netlink-packet-netfilter`) or are a second netlink stack beside the one of
//! rtnetlink (`nlink`). What is used here of nftables is small, and the kernel's
//! `include/uapi/linux/netfilter/nf_tables.h`, from which all numbers come, never changes them.
//!
//! A socket belongs to the network namespace of the thread that opened it.

pub(crate) mod answer;
mod connection;
mod decode;
mod diff;
mod encode;
mod events;
mod expr;
mod names;
mod rule;
mod set;
mod table;
mod transaction;
pub(crate) mod wire;

pub use connection::{CommitError, CounterReading, DumpError, ElementReading, Nft, Refusal};
pub use diff::{Diff, ElementDiff, Parts, diff};
pub use events::{Event, Events, Membership};
pub use expr::{
    BadReg, CmpOp, CtKey, DynsetOp, Expr, FibFlags, FibResult, MetaKey, NatEnd, NumgenKind, PayloadBase, Reg,
    Reject, Verdict,
};
pub use names::{BadName, ChainName, Comment, SetName, TableName};
pub use rule::{KeyField, Rule, Selector};
pub use set::{DataType, Elements, Key, KeyType, Part, Set, SetSpec, Value, merge_networks};
pub use table::{Base, Chain, ChainKind, Family, Hook, Policy, Table, TableKey};
pub use transaction::{Object, Step, Transaction};
pub use wire::Malformed;
