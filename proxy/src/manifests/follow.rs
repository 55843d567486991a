//! A folder of manifests as a [`crate::source::Source`]: goes on trying when the folder cannot be read.

use std::path::Path;
use std::time::{Duration, Instant};

use weft_daemon::log::chain;

use super::folder;
use super::source::{Source, SourceError};
use crate::source::{self, News, SourceProblem};

/// How long after a failure the folder is tried again. To look is cheap, and whoever mends it waits.
const RETRY: Duration = Duration::from_secs(1);

/// Follows a folder of manifests.
#[derive(Debug)]
pub struct Follow {
    source: Source,
    /// Read and not told yet.
    first: Option<folder::Update>,
    /// The folder could not be read; it is tried again then.
    retry: Option<Instant>,
}

impl Follow {
    /// Begins to follow a folder.
    ///
    /// # Errors
    /// When it cannot be watched or listed. A file in it that cannot be read is a problem that is told.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let (source, first) = Source::open(path)?;
        Ok(Self { source, first: Some(first), retry: None })
    }
}

impl source::Source for Follow {
    async fn next(&mut self) -> News {
        if let Some(update) = self.first.take() {
            return told(update);
        }
        if let Some(at) = self.retry {
            tokio::time::sleep_until(at.into()).await;
            return match self.source.reopen() {
                Ok(update) => {
                    self.retry = None;
                    told(update)
                }
                Err(error) => self.lost(&error),
            };
        }
        match self.source.next().await {
            Ok(update) => told(update),
            Err(error) => self.lost(&error),
        }
    }
}

impl Follow {
    fn lost(&mut self, error: &SourceError) -> News {
        self.retry = Some(Instant::now() + RETRY);
        News::Away(chain(error))
    }
}

fn told(update: folder::Update) -> News {
    News::Update(source::Update {
        changes: update.changes,
        problems: update.problems.into_iter().map(SourceProblem::File).collect(),
        complete: true,
        ..source::Update::of_nothing(Instant::now())
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::source::Source as _;

    fn update(news: News) -> source::Update {
        match news {
            News::Update(update) => update,
            News::Away(why) => panic!("away: {why}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_folder_that_was_away_is_read_again() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("manifests");
        assert!(Follow::open(&folder).is_err());
        fs::create_dir(&folder).unwrap();
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  clusterIP: 10.96.0.1\n  ports: [{port: 80}]\n";
        fs::write(folder.join("web.yaml"), service).unwrap();
        let mut follow = Follow::open(&folder).unwrap();
        let first = update(follow.next().await);
        assert!(first.complete && first.changes.len() == 1 && first.problems.is_empty(), "{first:?}");
        fs::rename(&folder, home.path().join("elsewhere")).unwrap();
        let News::Away(why) = follow.next().await else { panic!("the folder is gone") };
        assert!(why.contains("manifests"), "{why}");
        assert!(matches!(follow.next().await, News::Away(_)), "it is still gone");
        fs::rename(home.path().join("elsewhere"), &folder).unwrap();
        assert_eq!(update(follow.next().await).changes, [], "nothing is different, but it is back");
        fs::remove_file(folder.join("web.yaml")).unwrap();
        assert_eq!(update(follow.next().await).changes.len(), 1);
    }
}
