//! The overlay's nftables table as it should be, kept so.

use weft_kernel::nft::{self, CommitError, DumpError, Nft, Table};

/// One network's table in the kernel.
#[derive(Debug)]
pub(super) struct Filter {
    nft: Nft,
    /// What the kernel holds as far as we know: what we committed last, while nobody else changed it.
    believed: Option<Table>,
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
        Ok(Self { nft: Nft::open()?, believed: None })
    }

    /// The port by which our own changes are told from others' in events.
    pub(super) fn port(&self) -> u32 {
        self.nft.port()
    }

    /// Somebody else changed our table: look at it before believing anything.
    pub(super) fn doubt(&mut self) {
        self.believed = None;
    }

    /// Makes the table what it should be; says whether anything had to be changed. Only what
    /// differs is written: a peer more is a few elements.
    pub(super) fn apply(&mut self, desired: &Table) -> Result<bool, FilterError> {
        if self.believed.as_ref() == Some(desired) {
            return Ok(false);
        }
        let observed = match self.believed.take() {
            Some(believed) => Some(believed),
            None => self.nft.table(&desired.key)?,
        };
        let difference = nft::diff(desired, observed.as_ref());
        if difference.is_same() {
            self.believed = Some(desired.clone());
            return Ok(false);
        }
        self.nft.commit(&difference.transaction(desired))?;
        self.believed = Some(desired.clone());
        Ok(true)
    }
}
