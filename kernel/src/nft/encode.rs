//! Transactions as netlink messages, with a note of what each message was about.

pub(super) mod expression;

use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};

use super::wire::{BATCH_BEGIN, BATCH_END, Head, SUBSYSTEM, Writer, msg};
use super::{
    Base, Comment, DataType, Elements, Expr, Key, KeyType, Object, Rule, SetSpec, Step, TableKey,
    Transaction, Value, Verdict,
};

/// Elements of one message stand in one attribute, which has at most 64 KiB. One element needs less
/// than 1 KiB (key and end of 64 bytes each, a chain's name of 256).
const ELEMENTS_MAX: usize = 60_000;

/// A transaction ready to be sent.
pub(super) struct Encoded {
    pub(super) bytes: Vec<u8>,
    /// What the message with sequence number `first + index` was about; the batch's begin is 0.
    pub(super) objects: Vec<Object>,
}

/// Writes a batch whose messages are numbered from `first` on; the last but the end is to be
/// acknowledged. The error is the step that has something longer than a length field can say.
pub(super) fn batch(transaction: &Transaction, first: u32) -> Result<Encoded, Object> {
    let mut batch = Batch { writer: Writer::default(), objects: Vec::new(), first, sets: 0 };
    batch.bare(BATCH_BEGIN);
    let last = transaction.steps.len().saturating_sub(1);
    for (index, step) in transaction.steps.iter().enumerate() {
        batch.step(step, index == last);
        if batch.writer.is_too_long() {
            return Err(batch.objects.pop().unwrap_or(Object::Batch));
        }
    }
    batch.bare(BATCH_END);
    Ok(Encoded { bytes: batch.writer.finish().ok_or(Object::Batch)?, objects: batch.objects })
}

struct Batch {
    writer: Writer,
    objects: Vec<Object>,
    first: u32,
    sets: u32,
}

impl Batch {
    fn bare(&mut self, kind: u16) {
        let head = Head { kind, flags: 0, seq: self.next(Object::Batch), family: 0, resource: SUBSYSTEM };
        self.writer.message(head, |_| {});
    }

    fn next(&mut self, object: Object) -> u32 {
        let index = u32::try_from(self.objects.len()).expect("a batch has fewer than 2^32 messages");
        self.objects.push(object);
        self.first.wrapping_add(index)
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        table: &TableKey,
        object: Object,
        body: impl FnOnce(&mut Writer),
    ) {
        let seq = self.next(object);
        let head = Head { kind: SUBSYSTEM << 8 | kind, flags, seq, family: table.family.raw(), resource: 0 };
        self.writer.message(head, |w| {
            // The first attribute of every kind of object is its table's name.
            w.string(1, table.name.as_str());
            body(w);
        });
    }

    fn step(&mut self, step: &Step, last: bool) {
        let ack = if last { NLM_F_ACK } else { 0 };
        match step {
            Step::AddTable { table, comment, dormant } => {
                let object = Object::Table(table.clone());
                self.message(msg::NEWTABLE, NLM_F_CREATE | ack, table, object, |w| {
                    // Without flags, a table that is there keeps those it has.
                    if *dormant {
                        w.be32(2, TABLE_DORMANT);
                    }
                    user_comment(w, 6, 0, comment.as_ref());
                });
            }
            Step::DeleteTable(table) => {
                let object = Object::Table(table.clone());
                self.message(msg::DELTABLE, ack, table, object, |_| {});
            }
            Step::AddChain { table, chain, base, comment } => {
                let object = Object::Chain(table.clone(), chain.clone());
                self.message(msg::NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL | ack, table, object, |w| {
                    w.string(3, chain.as_str());
                    if let Some(base) = base {
                        base_chain(w, base);
                    }
                    user_comment(w, 12, 0, comment.as_ref());
                });
            }
            Step::FlushChain(table, chain) => {
                let object = Object::Chain(table.clone(), chain.clone());
                self.message(msg::DELRULE, ack, table, object, |w| w.string(2, chain.as_str()));
            }
            Step::DeleteChain(table, chain) => {
                let object = Object::Chain(table.clone(), chain.clone());
                self.message(msg::DELCHAIN, ack, table, object, |w| w.string(3, chain.as_str()));
            }
            Step::DeleteSet(table, set) => {
                let object = Object::Set(table.clone(), set.clone());
                self.message(msg::DELSET, ack, table, object, |w| w.string(2, set.as_str()));
            }
            Step::AddRule { table, chain, rule } => {
                let earlier =
                    |object: &&Object| matches!(object, Object::Rule(t, c, ..) if t == table && c == chain);
                // Rules of one chain follow one another, so the last message tells the number.
                let index = match self.objects.last().as_ref().filter(|object| earlier(object)) {
                    Some(Object::Rule(_, _, index, _)) => index + 1,
                    _ => 0,
                };
                let object = Object::Rule(table.clone(), chain.clone(), index, rule.comment.clone());
                self.message(msg::NEWRULE, NLM_F_CREATE | NLM_F_APPEND | ack, table, object, |w| {
                    w.string(2, chain.as_str());
                    rule_body(w, rule);
                });
            }
            Step::AddSet { table, set, spec } => {
                self.sets += 1;
                let id = self.sets;
                let object = Object::Set(table.clone(), set.clone());
                self.message(msg::NEWSET, NLM_F_CREATE | NLM_F_EXCL | ack, table, object, |w| {
                    w.string(2, set.as_str());
                    set_body(w, spec, id);
                });
            }
            Step::AddElements { table, set, spec, elements } => {
                let object = Object::Elements(table.clone(), set.clone(), None);
                self.elements(
                    (msg::NEWSETELEM, NLM_F_CREATE, ack),
                    table,
                    object,
                    set.as_str(),
                    spec,
                    elements,
                );
            }
            Step::DeleteElements { table, set, spec, elements } => {
                let object = Object::Elements(table.clone(), set.clone(), None);
                self.elements((msg::DELSETELEM, 0, ack), table, object, set.as_str(), spec, elements);
            }
        }
    }

    /// As many messages as it takes.
    fn elements(
        &mut self,
        (kind, flags, ack): (u16, u16, u16),
        table: &TableKey,
        object: Object,
        set: &str,
        spec: &SetSpec,
        elements: &Elements,
    ) {
        let mut rest = elements.iter().peekable();
        while rest.peek().is_some() {
            let seq = self.next(object.clone());
            let head =
                Head { kind: SUBSYSTEM << 8 | kind, flags, seq, family: table.family.raw(), resource: 0 };
            let start = self.writer.len();
            self.writer.message(head, |w| {
                w.string(1, table.name.as_str());
                w.string(2, set);
                w.nest(3, |w| {
                    let start = w.len();
                    while w.len() - start < ELEMENTS_MAX {
                        let Some((key, value)) = rest.next() else { break };
                        element(w, spec, key, value);
                    }
                });
            });
            if rest.peek().is_none() {
                self.writer.add_flags(start, ack);
            }
        }
    }
}

/// `NFT_TABLE_F_DORMANT`.
pub(super) const TABLE_DORMANT: u32 = 1;

fn base_chain(w: &mut Writer, base: &Base) {
    w.nest(4, |w| {
        w.be32(1, base.hook as u32);
        w.be32(2, base.priority.cast_unsigned());
    });
    w.be32(5, base.policy as u32);
    w.string(7, base.kind.as_str());
}

fn rule_body(w: &mut Writer, rule: &Rule) {
    w.nest(4, |w| {
        for expr in &rule.exprs {
            w.nest(1, |w| expression::expression(w, expr));
        }
    });
    user_comment(w, 7, 0, rule.comment.as_ref());
}

/// `NFT_SET_*`.
pub(super) mod set_flag {
    pub(crate) const INTERVAL: u32 = 0x4;
    pub(crate) const MAP: u32 = 0x8;
    pub(crate) const TIMEOUT: u32 = 0x10;
    pub(crate) const EVAL: u32 = 0x20;
    pub(crate) const CONCAT: u32 = 0x80;
}

/// `NFT_DATA_VERDICT`.
pub(super) const DATA_VERDICT: u32 = 0xffff_ff00;

fn set_body(w: &mut Writer, spec: &SetSpec, id: u32) {
    let ranges_of_many = spec.interval && spec.key.0.len() > 1;
    let flags = [
        (spec.interval, set_flag::INTERVAL),
        (spec.value.is_some(), set_flag::MAP),
        (spec.timeout.is_some(), set_flag::TIMEOUT),
        (spec.dynamic, set_flag::EVAL),
        (ranges_of_many, set_flag::CONCAT),
    ];
    let flags = flags.into_iter().filter_map(|(on, flag)| on.then_some(flag)).sum::<u32>();
    w.be32(3, flags | spec.other_flags);
    w.be32(4, spec.key.id());
    w.be32(5, spec.key.len());
    match &spec.value {
        Some(value) if value.is_verdict() => {
            w.be32(6, DATA_VERDICT);
            w.be32(7, 0);
        }
        Some(value) => {
            w.be32(6, value.id());
            w.be32(7, value.len());
        }
        None => {}
    }
    if spec.size.is_some() || ranges_of_many {
        w.nest(9, |w| {
            if let Some(size) = spec.size {
                w.be32(1, size);
            }
            if ranges_of_many {
                w.nest(2, |w| {
                    for field in &spec.key.0 {
                        w.nest(1, |w| w.be32(1, field.len()));
                    }
                });
            }
        });
    }
    w.be32(10, id);
    if let Some(timeout) = spec.timeout {
        w.be64(11, milliseconds(timeout));
    }
    w.bytes(13, &set_userdata(spec));
    if spec.counted {
        // Each new element gets one of its own.
        w.nest(17, |w| expression::expression(w, &Expr::Counter));
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What `nft list` needs to know beside the types (libnftnl's `NFTNL_UDATA_SET_*`): byte orders,
/// in the host's, and the remark.
fn set_userdata(spec: &SetSpec) -> Vec<u8> {
    const KEY_BYTE_ORDER: u8 = 0;
    const DATA_BYTE_ORDER: u8 = 1;
    const COMMENT: u8 = 7;
    let mut data = Vec::new();
    let order = |of: &KeyType| match of.0.as_slice() {
        [DataType::Verdict] => 0,
        [one] => one.byte_order(),
        _ => 0,
    };
    data.extend([KEY_BYTE_ORDER, 4]);
    data.extend(order(&spec.key).to_ne_bytes());
    if let Some(value) = &spec.value {
        data.extend([DATA_BYTE_ORDER, 4]);
        data.extend(order(value).to_ne_bytes());
    }
    if let Some(comment) = &spec.comment {
        comment_userdata(&mut data, COMMENT, comment);
    }
    data
}

fn user_comment(w: &mut Writer, attr: u16, kind: u8, comment: Option<&Comment>) {
    if let Some(comment) = comment {
        let mut data = Vec::new();
        comment_userdata(&mut data, kind, comment);
        w.bytes(attr, &data);
    }
}

/// Kind, length, text with NUL.
fn comment_userdata(data: &mut Vec<u8>, kind: u8, comment: &Comment) {
    let len = u8::try_from(comment.as_str().len() + 1).expect("a comment has at most 127 bytes");
    data.extend([kind, len]);
    data.extend(comment.as_str().as_bytes());
    data.push(0);
}

/// `NFT_SET_ELEM_INTERVAL_END`.
pub(super) const ELEM_INTERVAL_END: u32 = 1;

/// An element's key alone, to ask for it.
pub(super) fn wanted_element(w: &mut Writer, spec: &SetSpec, key: &Key) {
    w.nest(1, |w| element_key(w, spec, key));
}

fn element_key(w: &mut Writer, spec: &SetSpec, key: &Key) {
    w.nest(1, |w| w.bytes(1, key.first()));
    if spec.interval && !spec.is_tree() {
        w.nest(10, |w| w.bytes(1, key.last()));
    }
}

fn element(w: &mut Writer, spec: &SetSpec, key: &Key, value: &Value) {
    w.nest(1, |w| {
        element_key(w, spec, key);
        match value {
            Value::None => {}
            Value::Verdict(verdict) => w.nest(2, |w| verdict_data(w, verdict)),
            Value::Bytes(bytes) => w.nest(2, |w| w.bytes(1, bytes)),
        }
    });
    // In a tree a range ends with an element of its own, the first key behind it; a range to the
    // very last key has no end.
    if let Some(behind) = spec.is_tree().then(|| successor(key.last())).flatten() {
        w.nest(1, |w| {
            w.be32(3, ELEM_INTERVAL_END);
            w.nest(1, |w| w.bytes(1, &behind));
        });
    }
}

/// The next number, big endian; `None` behind the last.
fn successor(key: &[u8]) -> Option<Vec<u8>> {
    let mut next = key.to_vec();
    for byte in next.iter_mut().rev() {
        let (sum, carry) = byte.overflowing_add(1);
        *byte = sum;
        if !carry {
            return Some(next);
        }
    }
    None
}

/// `NF_*` and `NFT_*` verdict codes.
pub(super) mod verdict_code {
    pub(crate) const DROP: i32 = 0;
    pub(crate) const ACCEPT: i32 = 1;
    pub(crate) const CONTINUE: i32 = -1;
    pub(crate) const JUMP: i32 = -3;
    pub(crate) const GOTO: i32 = -4;
    pub(crate) const RETURN: i32 = -5;
}

fn verdict_data(w: &mut Writer, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Drop => (verdict_code::DROP, None),
        Verdict::Accept => (verdict_code::ACCEPT, None),
        Verdict::Continue => (verdict_code::CONTINUE, None),
        Verdict::Return => (verdict_code::RETURN, None),
        Verdict::Jump(chain) => (verdict_code::JUMP, Some(chain)),
        Verdict::Goto(chain) => (verdict_code::GOTO, Some(chain)),
    };
    w.nest(2, |w| {
        w.be32(1, code.cast_unsigned());
        if let Some(chain) = chain {
            w.string(2, chain.as_str());
        }
    });
}
