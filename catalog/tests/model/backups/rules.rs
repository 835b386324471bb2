//! The safeguards of backups, sweeps, clones and readers. A test switches each off and expects a counterexample.

use crate::rules::rules;

rules! {
    /// A writer PUTs `begin`, then reads the newest manifest.
    BeginBeforeManifest,
    /// A writer uses no copy of a chunk that is in a condemned pack.
    NothingCondemnedIsUsed,
    /// A host forgets the packs that the newest manifest has as removed, however old its own index is.
    RemovedIsForgotten,
    /// A manifest has all that was ever removed, not only what the last step removed.
    RemovedStaysListed,
    /// The newest manifest is found by a LIST: those between the known one and the newest may be deleted.
    NewestIsListed,
    /// All packs of a session are durable before its `end`.
    PacksBeforeEnd,
    /// The store creates an `end` only if it is absent.
    EndIfAbsent,
    /// The store creates a manifest only if it is absent.
    ManifestIfAbsent,
    /// A 412 for its own `end` makes a writer read what is there.
    CompareEnd,
    /// After its `end` a writer reads the newest manifest, and has failed if its session is closed there.
    ConfirmEnd,
    /// An `end` of a session that a manifest has closed does not count, whether a sweep or a writer has put it there.
    ClosedStaysClosed,
    /// A sweep LISTs the sessions after its manifest with the condemned packs is durable.
    ManifestBeforeSessions,
    /// A sweep waits until each session of `after` has an `end`, and makes a void of those that do not come.
    Fence,
    /// A sweep marks again after all sessions of `after` have ended, and rescues what is referenced.
    MarkAgain,
    /// A sweep that has won a manifest looks for a higher one, and gives up if there is one.
    LookForHigher,
    /// A sweep deletes after the manifest that removes is durable.
    RemoveBeforeDelete,
    /// All hosts keep the same one of several copies: the one with the lowest pack name.
    RankByName,
    /// A clone's root is durable before its session ends.
    RootBeforeEnd,
    /// A clone is refused if its backup needs a chunk of which all copies are condemned or removed.
    CloneOfUncondemned,
    /// A reader refreshes as often as the chain has moved since it refreshed, not once.
    RefreshWhileItMoves,
    /// A session never has the id of another.
    SessionIdsAreNew,
    /// A pack never has the name of another, not even of a removed one.
    PackNamesAreNew,
}
