//! The safeguards of archived WAL. A test switches each off and expects a counterexample.

use crate::rules::rules;

rules! {
    /// The store creates a WAL name only if it is absent.
    CreateIfAbsent,
    /// A 412 makes an archiver read what is there and compare it.
    CompareOn412,
    /// After its PUT an archiver looks whether the name is at or below the watermark, and then asks the index.
    CheckWatermark,
    /// The manifest for this is read after the PUT, not before.
    CheckAfterPut,
    /// The check is also made after a 412 with equal bytes.
    CheckAfter412,
    /// Who reads a WAL file by its name looks at the watermark after that, and then asks the index.
    ReadChecksWatermark,
    /// Who reads a WAL file by the index compares the pack's id with that of the index.
    ReadComparesId,
    /// What the index has of a name stays, whatever appears under that name later.
    IndexedStays,
    /// A merged file is deleted after a manifest has its new place.
    IndexBeforeDelete,
    /// A sweep creates a manifest only if it is absent.
    ManifestIfAbsent,
    /// A reader that does not find what its index says reads the newest manifest again.
    ReadAgain,
}
