//! A set of chunk ids that need not fit in memory: the chunks that a mark, a verification or a count has met so
//! far.
//!
//! It is a private SQLite database without a name: kept in its page cache, and in an unlinked temporary file beyond
//! that.

use barmanfs_store::ChunkId;
use barmanfs_store::tree::ChunkRole;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, params};

use crate::error::{Error, Result};

/// Page cache in KiB: some 600,000 ids (80 GB of data) before anything goes to disk.
const CACHE_KIB: i64 = 32 * 1024;

/// The role in which a chunk is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Part of a tree or file.
    Tree(ChunkRole),
    /// The base of a delta.
    Base,
}

/// Whether a chunk had been met before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Met {
    /// Never.
    First,
    /// Only in other roles: what it refers to in this role must still be visited.
    InThisRoleFirst {
        /// The only other role is that of a base.
        as_base_only: bool,
    },
    /// In this role.
    Before,
}

/// The chunks met so far, with their roles.
#[derive(Debug)]
pub(crate) struct ChunkSet {
    /// The table `met`, and the tables its owner adds.
    pub(crate) db: Connection,
}

impl Role {
    fn bit(self) -> u8 {
        match self {
            Self::Tree(ChunkRole::Listing) => 1,
            Self::Tree(ChunkRole::Piece) => 2,
            Self::Tree(ChunkRole::Window) => 4,
            Self::Base => 8,
        }
    }
}

impl ChunkSet {
    /// An empty set.
    pub(crate) fn new() -> Result<Self> {
        let db = Connection::open("").map_err(unusable)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)
            .map_err(unusable)?;
        // One transaction that is never committed: the contents are temporary.
        let prepare = format!(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{CACHE_KIB};
             CREATE TABLE met (id BLOB NOT NULL PRIMARY KEY, roles INTEGER NOT NULL) WITHOUT ROWID;
             BEGIN;"
        );
        db.execute_batch(&prepare).map_err(unusable)?;
        Ok(Self { db })
    }

    /// Adds a chunk in a role.
    pub(crate) fn meet(&self, id: &ChunkId, role: Role) -> Result<Met> {
        let add = || {
            let mut add = self.db.prepare_cached(
                "INSERT INTO met (id, roles) VALUES (?1, ?2)
                 ON CONFLICT (id) DO UPDATE SET roles = roles | ?2 WHERE roles & ?2 = 0 RETURNING roles",
            )?;
            let bit = role.bit();
            let roles: Option<u8> = add
                .query_row(params![id.as_bytes(), bit], |row| row.get(0))
                .optional()?;
            Ok(match roles {
                None => Met::Before,
                Some(roles) if roles == bit => Met::First,
                Some(roles) => Met::InThisRoleFirst {
                    as_base_only: roles == bit | Role::Base.bit(),
                },
            })
        };
        add().map_err(unusable)
    }
}

/// Errors of the private database are not the catalog's.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(crate) fn unusable(error: rusqlite::Error) -> Error {
    Error::Invalid(format!(
        "Cannot keep a list of chunks in the directory for temporary files: {error}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_of_a_chunk_is_met_once() {
        let set = ChunkSet::new().unwrap();
        let again = |as_base_only| Met::InThisRoleFirst { as_base_only };
        let id = ChunkId([7; 32]);
        assert_eq!(set.meet(&id, Role::Tree(ChunkRole::Window)).unwrap(), Met::First);
        assert_eq!(set.meet(&id, Role::Tree(ChunkRole::Window)).unwrap(), Met::Before);
        assert_eq!(
            set.meet(&id, Role::Tree(ChunkRole::Listing)).unwrap(),
            again(false)
        );
        assert_eq!(
            set.meet(&id, Role::Tree(ChunkRole::Listing)).unwrap(),
            Met::Before
        );
        assert_eq!(set.meet(&id, Role::Base).unwrap(), again(false));
        let base = ChunkId([3; 32]);
        assert_eq!(set.meet(&base, Role::Base).unwrap(), Met::First);
        assert_eq!(
            set.meet(&base, Role::Tree(ChunkRole::Window)).unwrap(),
            again(true)
        );
    }
}
