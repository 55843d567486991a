//! Programs for `-m bpf`, as text: the classic Berkeley Packet Filter, for what iptables has no match.
//! At most 64 instructions each (`XT_BPF_MAX_NUM_INSTR`). A packet begins with its IP header.

use std::net::SocketAddr;

use crate::model::{Balance, Family};
use crate::plan::slots;

/// An instruction: code, where to go if so, where if not, a number (linux/filter.h).
type Instruction = (u16, u8, u8, u32);

const LD_WORD: u16 = 0x20;
const LD_CONST: u16 = 0x00;
const LD_MEM: u16 = 0x60;
const LDX_MEM: u16 = 0x61;
const ST: u16 = 0x02;
const TAX: u16 = 0x07;
const XOR_X: u16 = 0xac;
const MUL: u16 = 0x24;
const RSH: u16 = 0x74;
const RSH_X: u16 = 0x7c;
const AND: u16 = 0x54;
const JEQ: u16 = 0x15;
const JEQ_X: u16 = 0x1d;
const JA: u16 = 0x05;
const RET: u16 = 0x06;
const RET_A: u16 = 0x16;

/// Where the source's and the destination's words are.
fn words(family: Family) -> (std::ops::Range<u32>, u32) {
    match family {
        Family::V4 => (3..4, 1),
        Family::V6 => (2..6, 4),
    }
}

/// Passes packets whose source is their destination.
pub(super) fn to_itself(family: Family) -> String {
    let (source, distance) = words(family);
    let mut program = Vec::new();
    let mut left = 4 * distance as u8 - 4;
    for word in source {
        program.push((LD_WORD, 0, 0, 4 * word));
        program.push((TAX, 0, 0, 0));
        program.push((LD_WORD, 0, 0, 4 * (word + distance)));
        // If not, to the end, where nothing passes.
        program.push((JEQ_X, 0, left + 1, 0));
        left = left.saturating_sub(4);
    }
    program.extend([(RET, 0, 0, 1), (RET, 0, 0, 0)]);
    text(&program)
}

/// For each endpoint the programs that together pass exactly the clients whose slots it has; in order,
/// so that the last of all may be left out.
///
/// One program looks at a quarter of the slots: so many bits it has room for.
pub(super) fn by_slot(family: Family, endpoints: &[SocketAddr]) -> Vec<(SocketAddr, String)> {
    let mut owned = vec![[[0u32; WORDS]; QUARTERS]; endpoints.len()];
    for (slot, owner) in slots(endpoints).into_iter().enumerate() {
        let (quarter, word, bit) = (slot / BITS / WORDS, slot / BITS % WORDS, slot % BITS);
        if let Some(word) = owned.get_mut(owner).and_then(|it| it.get_mut(quarter)?.get_mut(word)) {
            *word |= 1 << bit;
        }
    }
    let mut programs = Vec::new();
    for (endpoint, quarters) in endpoints.iter().zip(owned) {
        for (quarter, words) in (0..).zip(quarters) {
            if words.iter().any(|word| *word != 0) {
                programs.push((*endpoint, text(&has_slot(family, quarter, words))));
            }
        }
    }
    programs
}

const QUARTERS: usize = 4;
const WORDS: usize = 8;
const BITS: usize = 32;
const _: () = assert!(QUARTERS * WORDS * BITS == Balance::SLOTS as usize);

/// Passes clients whose slot is in that quarter of all slots and has its bit set.
fn has_slot(family: Family, quarter: u32, words: [u32; WORDS]) -> Vec<Instruction> {
    let mut program = hash(family);
    // The slot is the hash's first ten bits: two of the quarter, three of the word, five of the bit.
    program.extend([
        (ST, 0, 0, 0),
        (RSH, 0, 0, 22),
        (AND, 0, 0, 31),
        (ST, 0, 0, 1),
        (LD_MEM, 0, 0, 0),
        (RSH, 0, 0, 27),
    ]);
    // Quarter and word at once.
    let some: Vec<(u32, u32)> = (0..).zip(words).filter(|(_, word)| *word != 0).collect();
    let mut left = 3 * some.len() as u32;
    for (index, word) in some {
        left -= 3;
        program.push((JEQ, 0, 2, quarter * WORDS as u32 + index));
        program.push((LD_CONST, 0, 0, word));
        // Over the other words and the end for who has none.
        program.push((JA, 0, 0, left + 1));
    }
    program.extend([(RET, 0, 0, 0), (LDX_MEM, 0, 0, 1), (RSH_X, 0, 0, 0), (AND, 0, 0, 1), (RET_A, 0, 0, 0)]);
    program
}

/// [`ClientHash::Murmur`](crate::host::ClientHash::Murmur) of the source.
fn hash(family: Family) -> Vec<Instruction> {
    let (source, _) = words(family);
    let mut program = vec![(LD_WORD, 0, 0, 4 * source.start)];
    for word in source.skip(1) {
        program.extend([
            (MUL, 0, 0, 0x9e37_79b1),
            (TAX, 0, 0, 0),
            (LD_WORD, 0, 0, 4 * word),
            (XOR_X, 0, 0, 0),
        ]);
    }
    let shifted = |by| [(TAX, 0, 0, 0), (RSH, 0, 0, by), (XOR_X, 0, 0, 0)];
    program.extend(shifted(16));
    program.push((MUL, 0, 0, 0x85eb_ca6b));
    program.extend(shifted(13));
    program.push((MUL, 0, 0, 0xc2b2_ae35));
    program.extend(shifted(16));
    program
}

fn text(program: &[Instruction]) -> String {
    let mut text = program.len().to_string();
    for (code, yes, no, number) in program {
        text.push_str(&format!(",{code} {yes} {no} {number}"));
    }
    text
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_longest_program_is_short_enough() {
        for family in Family::ALL {
            assert!(has_slot(family, 3, [u32::MAX; WORDS]).len() <= 64);
        }
        assert_eq!(to_itself(Family::V4), "6,32 0 0 12,7 0 0 0,32 0 0 16,29 0 1 0,6 0 0 1,6 0 0 0");
    }
}
