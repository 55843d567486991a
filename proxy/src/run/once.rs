//! Reading everything once, without a daemon: for `--dry-run` and for questions on a host that runs none.

use weft_kernel::net::Rtnetlink;

use super::engine::Engine;
use super::options::Options;
use super::world::World;
use super::{Declared, RunError};
use crate::around::addresses;
use crate::host::{Host, Observed};
use crate::source::{News, Source, SourceProblem};

/// All that there is at one moment.
#[derive(Clone, Debug)]
pub struct Once {
    /// What is declared, for the host.
    pub world: World,
    /// What is wrong with it.
    pub problems: Vec<SourceProblem>,
}

/// Reads what a daemon with these options would work for. Changes nothing and needs no rights.
///
/// If the host's Node says its addresses, and they are not all this machine's, they count: the question
/// is then about another machine.
///
/// # Errors
/// When the source or this machine's addresses cannot be read.
pub async fn read_once(options: &Options) -> Result<Once, RunError> {
    let observed = addresses::observed(&Rtnetlink::open()?.observe_blocking()?);
    let mut source = Declared::open(options).await?;
    let mut world = Engine::empty(&options.node, &options.settings, observed.clone());
    let problems = collect(&mut source, &mut world).await?;
    let observed = elsewhere(&world, &observed).unwrap_or(observed);
    world.host = Host::on(&world.model, options.node.clone(), observed, options.settings.clone());
    Ok(Once { world, problems })
}

async fn collect(source: &mut impl Source, world: &mut World) -> Result<Vec<SourceProblem>, RunError> {
    let mut problems = Vec::new();
    loop {
        match source.next().await {
            News::Update(update) => {
                for change in update.changes {
                    let touched = world.model.apply(change);
                    world.claims.absorb(&world.model, &touched.services);
                }
                problems.extend(update.problems);
                if update.complete {
                    return Ok(problems);
                }
                // Half of it would be an answer about another cluster; who asks can ask again.
                if let Some(why) = update.away {
                    return Err(RunError::Away(why));
                }
            }
            News::Away(why) => return Err(RunError::Away(why)),
        }
    }
}

/// The Node's addresses, if this machine lacks one of them.
fn elsewhere(world: &World, here: &Observed) -> Option<Observed> {
    let addresses = &world.model.node(&world.host.node)?.addresses;
    let all_here = addresses.iter().all(|address| here.addresses.contains(address));
    (!all_here)
        .then(|| Observed { addresses: addresses.iter().copied().collect(), primary: addresses.clone() })
}
