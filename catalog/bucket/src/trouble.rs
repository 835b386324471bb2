//! What goes wrong with a request: whether to try again, and in words that say what to do.
//!
//! An answer of a store is quoted by its code and its message only. The rest of an error may have a signature or a token in it.

use std::error::Error as _;

use object_store::Error as StoreError;

/// Longest quotation of a store.
const QUOTED_CHARS: usize = 300;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// There is no such key.
    Missing,
    /// The key is taken. It may be by an earlier attempt of this very request.
    Taken,
    /// It may succeed when it is tried again; the text says why it failed.
    Passing(String),
    /// It will fail again.
    Lasting(String),
    /// The credentials are good, and lack a right; the text is what the store said.
    Denied(String),
}

/// Codes of stores for a right that the credentials lack.
const DENIALS: &[&str] = &[
    "AccessDenied",
    "AuthorizationPermissionMismatch",
    "AuthorizationFailure",
];

/// What a store says with a 404 that is its own.
const MISSING: &[&str] = &["NoSuchKey", "NoSuchVersion", "BlobNotFound", "ResourceNotFound"];

/// Codes of stores, and what to do about them.
const ADVICE: &[(&[&str], &str)] = &[
    (
        &["RequestTimeTooSkewed", "RequestExpired"],
        "the clock of this host is wrong: requests are refused when it is more than 15 minutes from the store's; set it, with NTP",
    ),
    (
        &[
            "NoSuchBucket",
            "ContainerNotFound",
            "The specified bucket does not exist",
        ],
        "there is no such bucket: create it, or correct its name; barmanfs makes none",
    ),
    (
        &[
            "AuthorizationHeaderMalformed",
            "PermanentRedirect",
            "IllegalLocationConstraintException",
            "Received redirect without LOCATION",
        ],
        "the bucket is in another region: set bucket_region to its own",
    ),
    (
        &["SignatureDoesNotMatch"],
        "the secret key does not belong to the access key, or bucket_region is not that of the bucket",
    ),
    (
        &["InvalidAccessKeyId"],
        "the store does not know this access key: see where the credentials come from (docs/object-stores.md)",
    ),
    (
        &["ExpiredToken", "TokenRefreshRequired"],
        "the credentials have expired: get new ones",
    ),
    (
        &[
            "BlobImmutableDueToPolicy",
            "RetentionPolicyNotMet",
            "ObjectUnderActiveHold",
        ],
        "the store locks this object: it can be deleted when its retention has ended",
    ),
    (
        &["InvalidStorageClass"],
        "the store has no such storage class: correct bucket_storage_class",
    ),
    (
        &[
            "169.254.169.254",
            "169.254.170.2",
            "metadata.google",
            "Instance credential",
        ],
        "there are no credentials, neither in the environment, nor in ~/.aws, nor from a service of this machine: \
         docs/object-stores.md says where they can be",
    ),
    (
        &["UnknownIssuer", "invalid peer certificate"],
        "the certificate of the store is not trusted: name the file of its authority with bucket_ca_file",
    ),
];

impl Trouble {
    /// Judges an error of a store.
    pub(crate) fn of(error: &StoreError) -> Self {
        let whole = whole(error);
        let advice = advice(&whole);
        let is_about_bucket = whole.contains("NoSuchBucket") || whole.contains("ContainerNotFound");
        let is_denied = DENIALS.iter().any(|sign| whole.contains(sign));
        let said = said(error, &whole);
        match error {
            // A proxy on the way says 404, too, and that must not count as an object that is not there.
            StoreError::NotFound { .. } if is_of_another(&whole) && !is_about_bucket => Self::Passing(
                format!("{said}, and not in the words of an object store: is bucket_endpoint one?"),
            ),
            StoreError::NotFound { .. } if !is_about_bucket => Self::Missing,
            StoreError::AlreadyExists { .. } | StoreError::Precondition { .. } => Self::Taken,
            _ if advice.is_some() => Self::Lasting(with(said, advice)),
            _ if is_denied => Self::Denied(said),
            _ => match status(&whole) {
                Some(501) => Self::Lasting(with(
                    said,
                    Some("the store does not know a part of this request, such as 'only if the key is new'"),
                )),
                Some(403) => Self::Denied(said),
                Some(401) => Self::Lasting(with(said, Some("the store refuses the credentials"))),
                Some(408 | 429) | None if !is_final(error) => Self::Passing(said),
                Some(500..) => Self::Passing(said),
                _ => Self::Lasting(said),
            },
        }
    }
}

/// Kinds of errors that no repetition changes.
fn is_final(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::InvalidPath { .. }
            | StoreError::NotSupported { .. }
            | StoreError::NotImplemented { .. }
            | StoreError::UnknownConfigurationKey { .. }
            | StoreError::PermissionDenied { .. }
            | StoreError::Unauthenticated { .. }
    )
}

/// The error and all its causes.
fn whole(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push('\n');
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Whether a text of the library quotes an answer with 404 that has content, and none that an object store gives.
fn is_of_another(whole: &str) -> bool {
    let Some((_, answer)) = whole.rsplit_once("status code: 404") else {
        return false;
    };
    let body = answer.split_once(": ").map_or("", |(_, body)| body.trim());
    !body.is_empty() && !MISSING.iter().any(|code| body.contains(code))
}

fn advice(whole: &str) -> Option<&'static str> {
    let is_in = |signs: &[&str]| signs.iter().any(|sign| whole.contains(sign));
    ADVICE
        .iter()
        .find_map(|(signs, advice)| is_in(signs).then_some(*advice))
}

/// The HTTP status in a text of the library.
fn status(whole: &str) -> Option<u16> {
    let digits = whole.split_once("status code: ")?.1.get(..3)?;
    digits.parse().ok()
}

/// What the store said, or else what the connection did.
fn said(error: &StoreError, whole: &str) -> String {
    let element = |name: &str| {
        let (_, rest) = whole.split_once(&format!("<{name}>"))?;
        rest.split_once("</").map(|(text, _)| text.trim())
    };
    let text = match (element("Code"), element("Message"), status(whole)) {
        (Some(code), Some(message), _) if !message.is_empty() => format!("the store says {code}: {message}"),
        (Some(code), ..) => format!("the store says {code}"),
        (None, _, Some(status)) => format!("the store answers with status {status}"),
        (None, _, None) => deepest(error),
    };
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(QUOTED_CHARS).collect()
}

/// The cause of all causes, which names no URL.
fn deepest(error: &StoreError) -> String {
    let mut deepest = error.source();
    while let Some(deeper) = deepest.and_then(std::error::Error::source) {
        deepest = Some(deeper);
    }
    deepest.map_or_else(|| error.to_string(), ToString::to_string)
}

fn with(said: String, advice: Option<&str>) -> String {
    match advice {
        Some(advice) => format!("{said}: {advice}"),
        None => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> StoreError {
        StoreError::Generic {
            store: "S3",
            source: text.to_owned().into(),
        }
    }

    fn answer(status: &str, code: &str) -> StoreError {
        let secret = "<AWSAccessKeyId>AKIASECRET</AWSAccessKeyId><StringToSign>signed</StringToSign>";
        generic(&format!(
            "Error performing PUT https://h/b?sig=SECRET - Server returned non-2xx status code: {status}: \
             <Error><Code>{code}</Code><Message>What it means</Message>{secret}</Error>"
        ))
    }

    /// The kind: each refusal that a site meets says what to do.
    #[test]
    fn refusals_say_what_to_do() {
        for (status, code, advice) in [
            ("403 Forbidden", "RequestTimeTooSkewed", "clock"),
            ("404 Not Found", "NoSuchBucket", "create it"),
            ("400 Bad Request", "AuthorizationHeaderMalformed", "bucket_region"),
            ("301 Moved", "PermanentRedirect", "bucket_region"),
            ("403 Forbidden", "SignatureDoesNotMatch", "secret key"),
            ("403 Forbidden", "InvalidAccessKeyId", "access key"),
            ("409 Conflict", "BlobImmutableDueToPolicy", "retention"),
            ("501 Not Implemented", "NotImplemented", "only if the key is new"),
        ] {
            let Trouble::Lasting(text) = Trouble::of(&answer(status, code)) else {
                panic!("{code} is tried again");
            };
            assert!(text.contains(advice) && text.contains(code), "{text}");
        }
    }

    #[test]
    fn a_right_that_is_missing_is_no_wrong_key() {
        for code in ["AccessDenied", "AuthorizationPermissionMismatch", ""] {
            let trouble = Trouble::of(&answer("403 Forbidden", code));
            assert!(matches!(trouble, Trouble::Denied(_)), "{trouble:?}");
        }
    }

    #[test]
    fn a_proxys_404_is_no_missing_object() {
        let not_found = |body: &str| StoreError::NotFound {
            path: String::new(),
            source: format!("Server returned non-2xx status code: 404 Not Found: {body}").into(),
        };
        let trouble = Trouble::of(&not_found("<html><title>Not here</title></html>"));
        assert!(matches!(trouble, Trouble::Passing(_)), "{trouble:?}");
        for body in ["", "<Code>NoSuchKey</Code>"] {
            assert_eq!(Trouble::of(&not_found(body)), Trouble::Missing, "{body}");
        }
    }

    #[test]
    fn nothing_secret_is_quoted() {
        for code in ["SignatureDoesNotMatch", "SlowDown", "Unheard"] {
            for status in ["403 Forbidden", "503 Slow Down", "400 Bad Request"] {
                let text = format!("{:?}", Trouble::of(&answer(status, code)));
                assert!(!text.contains("SECRET") && !text.contains("signed"), "{text}");
            }
        }
        let bare = generic(
            "Error performing PUT https://h/b?sig=SECRET - Server returned non-2xx status code: 418 x: SECRET",
        );
        assert_eq!(
            Trouble::of(&bare),
            Trouble::Lasting("the store answers with status 418".to_owned())
        );
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        for status in ["500 Internal", "503 Slow Down", "429 Too Many", "408 Timeout"] {
            assert!(
                matches!(Trouble::of(&answer(status, "SlowDown")), Trouble::Passing(_)),
                "{status}"
            );
        }
        assert!(matches!(
            Trouble::of(&generic("connection reset")),
            Trouble::Passing(_)
        ));
        let missing = StoreError::NotFound {
            path: String::new(),
            source: "status code: 404 Not Found: <Code>NoSuchKey</Code>".into(),
        };
        assert_eq!(Trouble::of(&missing), Trouble::Missing);
        let taken = StoreError::AlreadyExists {
            path: String::new(),
            source: "412".into(),
        };
        assert_eq!(Trouble::of(&taken), Trouble::Taken);
    }
}
