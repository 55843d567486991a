//! `alloc`: a lease and nothing else. Something other than weft moves the packets.

use crate::model::Transports;

/// No transport: other hosts send nothing to an `alloc` host, and it plans nothing.
pub(crate) fn offer() -> Transports {
    Transports::default()
}
