//! What a URL names.

use std::fmt;
use std::path::Path;

/// The kinds of stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    S3,
    Google,
    Azure,
    Directory,
}

/// A prefix in a bucket, or a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub(crate) scheme: Scheme,
    /// The bucket, or Azure's container; empty for a directory.
    pub(crate) bucket: String,
    /// Without slashes at its ends; for a directory its absolute path.
    pub(crate) prefix: String,
}

const SCHEMES: [(&str, Scheme); 4] = [
    ("s3://", Scheme::S3),
    ("gs://", Scheme::Google),
    ("az://", Scheme::Azure),
    ("file://", Scheme::Directory),
];

impl Location {
    /// Whether a text is a URL, and no path.
    #[must_use]
    pub fn is_url(text: &str) -> bool {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        scheme.is_some_and(|scheme| !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric()))
    }

    /// The directory of a URL `file:///DIRECTORY`.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        (self.scheme == Scheme::Directory).then(|| Path::new(&self.prefix))
    }

    /// Reads a URL.
    ///
    /// # Errors
    /// The text says what is wrong with it, and what is allowed.
    pub fn parse(url: &str) -> Result<Self, String> {
        let known = SCHEMES
            .iter()
            .find_map(|(start, scheme)| Some((*scheme, url.strip_prefix(start)?)));
        let Some((scheme, rest)) = known else {
            return Err(
                "must be s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///DIRECTORY"
                    .to_owned(),
            );
        };
        if rest.contains(['?', '#', '@', '%', '\\']) || rest.chars().any(char::is_control) {
            return Err(
                "has a character that no bucket and no prefix here may have: one of ? # @ % \\".to_owned(),
            );
        }
        if scheme == Scheme::Directory {
            return match rest.strip_prefix('/') {
                Some(path) if !path.trim_matches('/').is_empty() => Ok(Self {
                    scheme,
                    bucket: String::new(),
                    prefix: format!("/{}", path.trim_matches('/')),
                }),
                _ => Err("must name a directory by its absolute path: file:///DIRECTORY".to_owned()),
            };
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err("names no bucket".to_owned());
        }
        let prefix = prefix.trim_matches('/');
        if !prefix.is_empty() && prefix.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err("has an empty part, '.' or '..' in its prefix".to_owned());
        }
        Ok(Self {
            scheme,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = SCHEMES.iter().find(|(_, scheme)| *scheme == self.scheme);
        f.write_str(start.map_or("", |(start, _)| start))?;
        f.write_str(&self.bucket)?;
        match self.scheme {
            Scheme::Directory => f.write_str(&self.prefix),
            _ if self.prefix.is_empty() => Ok(()),
            _ => write!(f, "/{}", self.prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_bucket_and_a_prefix() {
        for (url, shown) in [
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
            ("gs://b/x", "gs://b/x"),
            ("az://container/x", "az://container/x"),
            ("file:///srv/copy/", "file:///srv/copy"),
        ] {
            assert_eq!(Location::parse(url).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for url in [
            "s3://",
            "s3:///prefix",
            "http://host/x",
            "s3://b/a//b",
            "s3://b/../c",
            "s3://key:secret@b/x",
            "file://host/x",
            "file:///",
            "s3://b/x?y",
        ] {
            assert!(Location::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn paths_are_no_urls() {
        for path in ["/srv/x", "relative", "./a:b", "a/b://c", "://x"] {
            assert!(!Location::is_url(path), "{path}");
        }
        assert!(Location::is_url("http://x"));
    }
}
