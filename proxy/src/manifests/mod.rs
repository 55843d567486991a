//! A folder of manifests as the source of Services, EndpointSlices and Nodes: YAML, several documents
//! to a file, or JSON; lists too. Objects of other kinds are left alone, so the folder may be the one
//! that everything else is kept in.
//!
//! - [`mod@parse`]: from a file's contents to objects, pure;
//! - [`folder`]: from files that come, change and go to changes of the model, pure;
//! - [`source`]: reads the files and watches the folder;
//! - [`follow`]: the same as any source tells it, going on when the folder is away.
//!
//! Whatever cannot be read takes nothing away: an object with a mistake stays as it was, and so does
//! everything that was known from a file of which a part makes no sense. Only what is no longer
//! written, in a file that can be read, is gone.

pub mod folder;
pub mod follow;
#[cfg(test)]
mod hostile;
pub mod parse;
pub mod source;
#[cfg(test)]
mod tests;

pub use folder::{Folder, Update};
pub use follow::Follow;
pub use parse::{FileProblem, Mistake, Place, parse};
pub use source::{Source, SourceError};
