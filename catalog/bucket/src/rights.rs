//! The right that a refused request needs, in the words of its store.

use crate::location::Scheme;

/// What the credentials must be allowed to do.
pub(crate) fn needed(scheme: Scheme, deed: &str) -> &'static str {
    match (scheme, deed) {
        (Scheme::S3, "create") => "put objects (s3:PutObject)",
        // Without the right to list, S3 does not say that a key is missing but refuses to look.
        (Scheme::S3, "read" | "look at") => {
            "get objects (s3:GetObject), or to list the bucket (s3:ListBucket)"
        }
        (Scheme::S3, "read an old version of") => "get versions of objects (s3:GetObjectVersion)",
        (Scheme::S3, "list") => "list the bucket (s3:ListBucket)",
        (Scheme::S3, "list the versions of") => "list versions (s3:ListBucketVersions)",
        (Scheme::S3, "delete") => "delete objects (s3:DeleteObject)",
        (Scheme::Google, "create") => "create objects (storage.objects.create)",
        (Scheme::Google, "list") => "list objects (storage.objects.list)",
        (Scheme::Google, "delete") => "delete objects (storage.objects.delete)",
        (Scheme::Google, _) => "get objects (storage.objects.get)",
        (Scheme::Azure, "create") => "create blobs (…/blobs/write or …/blobs/add/action)",
        (Scheme::Azure, "delete") => "delete blobs (…/blobs/delete)",
        (Scheme::Azure, _) => "read and list blobs (…/blobs/read)",
        _ => "do this",
    }
}
