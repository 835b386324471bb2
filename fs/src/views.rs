//! The directories that a mount shows. Each kind is a [`Directory`](crate::entry::Directory). It reads its entries from
//! the catalog when asked, and does not cache what another layer caches.
//!
//! | path | module |
//! |---|---|
//! | `/`, `.barmanfs/` | `root`, `control_directory` |
//! | `<server>/`, `raw/` | `server`; `latest`, `oldest` and `by-name/` lead where `aliases` says |
//! | `<server>/<id>/`, `latest/`, `oldest/`, `raw/<id>/` | `tree`, with the differences of `changes` |
//! | `<server>/pitr/`, `pitr/<target>/` | `pitr`; the same `tree`, with the configuration of a `copy_recovery` |
//! | `<server>/wal/` | `wal`; what is not archived yet from `receiving` |
//! | `.barmanfs/replay/<server>/` | `replay`: the same WAL, as a copy may replay it |
//! | `<server>/info/` | `info` |
//! | `<server>/live/` | `live`; a clone answers for its own content |

use crate::entry::Body;
use crate::error::{NOT_FOUND, Result};

mod aliases;
mod by_name;
mod changes;
mod configuration;
pub mod confinement;
mod context;
mod control_directory;
mod copy_recovery;
mod generated;
mod info;
mod live;
mod pitr;
mod receiving;
mod replay;
mod restore;
mod root;
mod server;
mod snapshot;
mod tree;
mod view_manifest;
mod wal;

pub use configuration::{
    BEGIN as BLOCK_BEGIN, END as BLOCK_END, TARGETS as RECOVERY_TARGETS, append_recovery,
};
pub use context::{
    BarmanLayout, CloneLimits, Context, CopyOptions, PlainOptions, Space, StandbyOptions, ViewOptions,
};
pub use restore::restore_command;
pub use root::root;

pub(crate) use aliases::moved_aliases;
pub(crate) use context::ServesClones;
pub(crate) use live::{CloneAdditions, CloneSource};
pub(crate) use snapshot::{ServerState, Snapshot};

/// The file of a directory that has none.
fn no_files() -> Result<Body> {
    Err(NOT_FOUND)
}
