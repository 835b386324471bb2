//! What keeps an object of S3 from being deleted for good: retention, a legal hold, and versions of the bucket.

use jiff::Timestamp;
use object_store::HeaderMap;

/// What holds an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Nobody can delete it before this time, if there is one.
    pub until: Option<Timestamp>,
    /// A person has to release it.
    pub has_legal_hold: bool,
    /// The bucket keeps versions: a deletion hides the object, and frees nothing.
    pub has_versions: bool,
}

impl Held {
    /// Whether it is locked at this time.
    #[must_use]
    pub fn is_locked(&self, now: Timestamp) -> bool {
        self.has_legal_hold || self.until.is_some_and(|until| until > now)
    }

    /// What the headers of an object say. The store shows them to those who may know, so their absence proves nothing; the store
    /// itself protects what is locked.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        Self {
            until: text("x-amz-object-lock-retain-until-date").and_then(|until| until.parse().ok()),
            has_legal_hold: text("x-amz-object-lock-legal-hold") == Some("ON"),
            has_versions: text("x-amz-version-id").is_some_and(|version| version != "null"),
        }
    }
}
