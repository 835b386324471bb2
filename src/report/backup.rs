//! `backup --json`, `list-backups --json`, `show-backup --json`.

use barmanfs_catalog::retention::{JudgedBackup, RetentionRules};
use barmanfs_catalog::{Backup, BootTest, Gap, Repository, ServerName, json};
use barmanfs_pg::wal_name::SegmentName;
use serde_json::{Value, json};

use super::Surroundings;
use crate::error::Error;
use crate::moment;

/// All of a backup except the listing of its root, which means nothing outside the repository.
pub(crate) fn backup(backup: &Backup) -> Result<Value, Error> {
    json::backup(backup).map_err(|error| Error::failed(error.to_string()))
}

/// A backup with its reliability, as far as it is known.
#[derive(Debug)]
pub(crate) struct ListedBackup {
    pub(crate) backup: Backup,
    /// Its newest boot test.
    pub(crate) boot_test: Option<BootTest>,
    /// Whether it needs data that a verification found damaged.
    pub(crate) damaged: bool,
    /// What the retention policy says.
    pub(crate) retention: Option<JudgedBackup>,
}

impl ListedBackup {
    /// All backups of a server, oldest first, with their newest boot tests, known damage, and what the policy says.
    pub(crate) fn all(
        repository: &Repository,
        server: &ServerName,
        rules: &RetentionRules,
    ) -> Result<Vec<Self>, Error> {
        Self::of(repository, repository.backups(server)?, rules)
    }

    /// The same, of backups that are all of a server, oldest first.
    pub(crate) fn of(
        repository: &Repository,
        backups: Vec<Backup>,
        rules: &RetentionRules,
    ) -> Result<Vec<Self>, Error> {
        let mut known = repository.reliability(&backups)?;
        let judged = repository.retention_states(&backups, &known, rules, moment::now())?;
        let listed = |(backup, judged): (Backup, JudgedBackup)| Self {
            boot_test: known.boot_tests.remove(&backup.id),
            damaged: known.damaged.contains(&backup.id),
            retention: Some(judged),
            backup,
        };
        // The newest is judged first.
        let judged = judged.into_iter().rev();
        Ok(backups.into_iter().zip(judged).map(listed).collect())
    }

    /// The backup with the gaps before the next one. The history after a gap cannot be recovered from it.
    pub(crate) fn with_gaps(&self, gaps: &[(ServerName, Gap)]) -> Result<Value, Error> {
        let backup = &self.backup;
        let after: Vec<&Gap> = gaps
            .iter()
            .filter(|(server, gap)| *server == backup.server && gap.backup_before == Some(backup.id))
            .map(|(_, gap)| gap)
            .collect();
        self.with("gaps", json!(after))
    }

    /// The backup with the segments that it needs and that are not archived, and with what lies around it.
    pub(crate) fn with_missing_wal(
        &self,
        missing: &[SegmentName],
        around: &Surroundings,
    ) -> Result<Value, Error> {
        let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
        let mut value = self.with("missing_wal", json!(names))?;
        if let Some(fields) = value.as_object_mut() {
            fields.insert("previous_backup".to_owned(), json!(around.previous_backup));
            fields.insert("next_backup".to_owned(), json!(around.next_backup));
            fields.insert("wal_until_next".to_owned(), json!(around.wal));
            fields.insert(
                "configuration_files".to_owned(),
                json!(around.configuration_files),
            );
        }
        Ok(value)
    }

    fn with(&self, key: &str, more: Value) -> Result<Value, Error> {
        let mut value = backup(&self.backup)?;
        if let Some(fields) = value.as_object_mut() {
            fields.insert("boot_test".to_owned(), json!(self.boot_test));
            fields.insert("damaged".to_owned(), json!(self.damaged));
            let judged = self.retention.as_ref();
            fields.insert("retention".to_owned(), json!(judged.map(|judged| judged.state)));
            fields.insert(
                "retention_reason".to_owned(),
                json!(judged.map(|judged| &judged.why)),
            );
            fields.insert("keep".to_owned(), json!(judged.map(|judged| &judged.keep)));
            fields.insert(key.to_owned(), more);
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{backup, boot_test};
    use barmanfs_catalog::BackupStatus;

    #[test]
    fn json_leaves_out_internal_fields() {
        let listed = ListedBackup {
            backup: backup(BackupStatus::Done),
            boot_test: Some(boot_test()),
            damaged: true,
            retention: None,
        };
        let value = listed.with_gaps(&[]).unwrap();
        assert_eq!(value["boot_test"]["outcome"], "failed");
        assert_eq!(value["damaged"], true);
        assert_eq!(value["status"], "DONE");
        assert_eq!(value["start_lsn"], "0/5000028");
        assert!(value.get("root").is_none());
    }
}
