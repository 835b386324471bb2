//! Errors of the layers below, and the way back into the store's.

use std::path::PathBuf;

use super::Error;

impl From<rusqlite::Error> for Error {
    /// The path stays empty here; [`Error::in_catalog`] fills it in.
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        let path = PathBuf::new();
        let reason = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::CatalogDamaged { path, reason }
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::CatalogBusy { path },
            Some(ErrorCode::DiskFull) => Self::Full { path },
            Some(ErrorCode::ReadOnly) => Self::CatalogReadOnly { path },
            // SQLite reports neither which of its files it could not open nor why.
            Some(ErrorCode::CannotOpen) => Self::Catalog {
                path,
                reason: format!(
                    "{reason}. It and the files beside it, with -wal and -shm at their names' ends, must be regular files of \
                     the repository's owner"
                ),
            },
            _ => Self::Catalog { path, reason },
        }
    }
}

impl From<barmanfs_store::Error> for Error {
    /// An error of this crate that passed through the store as an error of
    /// [`ChunkIndex`](barmanfs_store::ChunkIndex) is unwrapped again.
    fn from(error: barmanfs_store::Error) -> Self {
        match &error {
            barmanfs_store::Error::Index(inner) => match inner.downcast_ref::<Self>() {
                Some(own) => own.clone(),
                None => Self::Store(error),
            },
            _ => Self::Store(error),
        }
    }
}

impl From<Error> for barmanfs_store::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Store(error) => error,
            other => Self::index(other),
        }
    }
}
