//! The overlay's nftables table as it should be, kept so.

use std::sync::Arc;

use weft_kernel::nft::{self, BadName, CommitError, DumpError, Nft, Table};

use crate::firewall::{self, Surroundings};
use crate::model::Model;

/// One network's table in the kernel.
#[derive(Debug)]
pub(super) struct Filter {
    nft: Nft,
    /// What we committed last.
    committed: Option<Table>,
    /// What that was planned from.
    planned_from: Option<(Arc<Model>, Surroundings)>,
    /// Somebody else may have changed it since.
    doubted: bool,
}

/// What [`Filter::keep`] had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    /// Nothing.
    Same,
    /// What is wanted had changed.
    Changed,
    /// What is wanted had not, so somebody else had a hand in it.
    Healed,
}

/// The table is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilterError {
    /// It cannot be planned.
    #[error(transparent)]
    Name(#[from] BadName),
    /// It could not be read.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// It could not be written; the former one is still in force.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl Filter {
    pub(super) fn open() -> std::io::Result<Self> {
        Ok(Self { nft: Nft::open()?, committed: None, planned_from: None, doubted: true })
    }

    /// The port by which our own changes are told from others' in events.
    pub(super) fn port(&self) -> u32 {
        self.nft.port()
    }

    /// Somebody else changed our table: look at it before believing anything.
    pub(super) fn doubt(&mut self) {
        self.doubted = true;
    }

    /// Makes the table what it should be. It is planned anew only if what it is planned from changed, and
    /// only what differs is written: a peer more is a few elements.
    pub(super) fn keep(&mut self, model: &Arc<Model>, around: Surroundings) -> Result<Applied, FilterError> {
        let same =
            |(before, surroundings): &(Arc<Model>, Surroundings)| before == model && *surroundings == around;
        if !self.doubted && self.planned_from.as_ref().is_some_and(same) {
            return Ok(Applied::Same);
        }
        let applied = self.apply(firewall::plan(model, &around)?)?;
        self.planned_from = Some((Arc::clone(model), around));
        Ok(applied)
    }

    fn apply(&mut self, desired: Table) -> Result<Applied, FilterError> {
        let applied = if self.doubted {
            let observed = self.nft.table(&desired.key)?;
            let difference = nft::diff(&desired, observed.as_ref());
            match (difference.is_same(), self.committed.as_ref() == Some(&desired)) {
                (true, _) => Applied::Same,
                (false, unchanged) => {
                    self.nft.commit(&difference.transaction(&desired))?;
                    if unchanged { Applied::Healed } else { Applied::Changed }
                }
            }
        } else {
            let difference = nft::diff(&desired, self.committed.as_ref());
            if difference.is_same() {
                Applied::Same
            } else {
                // If it fails, it is not known what the kernel holds.
                self.doubted = true;
                self.nft.commit(&difference.transaction(&desired))?;
                Applied::Changed
            }
        };
        self.committed = Some(desired);
        self.doubted = false;
        Ok(applied)
    }
}
