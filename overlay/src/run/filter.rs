//! The overlay's nftables table as it should be, kept so.

use weft_kernel::nft::{self, CommitError, DumpError, Nft, Table};

/// One network's table in the kernel.
#[derive(Debug)]
pub(super) struct Filter {
    nft: Nft,
    /// What we committed last.
    committed: Option<Table>,
    /// Somebody else may have changed it since.
    doubted: bool,
}

/// What [`Filter::apply`] had to do.
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
    /// It could not be read.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// It could not be written; the former one is still in force.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl Filter {
    pub(super) fn open() -> std::io::Result<Self> {
        Ok(Self { nft: Nft::open()?, committed: None, doubted: true })
    }

    /// The port by which our own changes are told from others' in events.
    pub(super) fn port(&self) -> u32 {
        self.nft.port()
    }

    /// Somebody else changed our table: look at it before believing anything.
    pub(super) fn doubt(&mut self) {
        self.doubted = true;
    }

    /// Makes the table what it should be. Only what differs is written: a peer more is a few elements.
    pub(super) fn apply(&mut self, desired: &Table) -> Result<Applied, FilterError> {
        let unchanged = self.committed.as_ref() == Some(desired);
        if unchanged && !self.doubted {
            return Ok(Applied::Same);
        }
        let observed = match &self.committed {
            Some(committed) if !self.doubted => Some(committed.clone()),
            _ => self.nft.table(&desired.key)?,
        };
        let difference = nft::diff(desired, observed.as_ref());
        if !difference.is_same() {
            // If it fails, it is not known what the kernel holds.
            self.doubted = true;
            self.nft.commit(&difference.transaction(desired))?;
        }
        self.committed = Some(desired.clone());
        self.doubted = false;
        Ok(match (difference.is_same(), unchanged) {
            (true, _) => Applied::Same,
            (false, false) => Applied::Changed,
            (false, true) => Applied::Healed,
        })
    }
}
