//! What the mount shows. Each kind of directory is a [`Directory`]; it makes its entries from the catalog when it is
//! asked, and keeps nothing that another cache has already.
//!
//! | path | module |
//! |---|---|
//! | `/`, `.barmanfs/` | `root`, `control` |
//! | `<server>/`, `raw/` | `server` |
//! | `<server>/<id>/`, `latest/`, `oldest/`, `raw/<id>/` | `tree`, with the differences of `changes` |
//! | `<server>/pitr/`, `pitr/<target>/` | `pitr`; the same `tree`, with the configuration of a `recovery` |
//! | `<server>/wal/` | `wal`; what is not archived yet from `receiving` |
//! | `.barmanfs/replay/<server>/` | `replay`: the same WAL, as a copy may replay it |
//! | `<server>/info/` | `info` |
//! | `<server>/live/` | `live`; what is in a clone is the clone's own |

use crate::entry::Body;
use crate::error::{NOT_FOUND, Result};

mod changes;
mod configuration;
pub mod confinement;
mod context;
mod control;
mod generated;
mod info;
mod live;
mod manifest;
mod pitr;
mod receiving;
mod recovery;
mod replay;
mod restore;
mod root;
mod server;
mod snapshot;
mod tree;
mod wal;

pub use context::{CloneLimits, Context, Space, ViewOptions};
pub use restore::restore_command;
pub use root::root;

pub(crate) use context::ServesClones;
pub(crate) use live::{CloneAdditions, CloneSource};
pub(crate) use server::aliases;
pub(crate) use snapshot::Snapshot;

/// For directories that have no files of their own.
fn no_files() -> Result<Body> {
    Err(NOT_FOUND)
}
