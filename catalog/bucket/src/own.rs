//! Requests to S3 that the library does not make: versions of objects, and what locks one.
//!
//! Each is signed as a URL that is valid for some minutes, so credentials, region and the form of URLs are the library's. Such a URL
//! is a secret while it is valid, and is in no error.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use object_store::aws::AmazonS3;
use object_store::client::{HttpClient, HttpConnector, HttpRequest, HttpRequestBody};
use object_store::path::Path as Key;
use object_store::signer::{SignedUrlOptions, Signer};
use object_store::{ClientOptions, Error, HeaderMap, Result};
use reqwest::{Method, StatusCode};

use crate::guard::Guarded;

/// A request is sent at once. Clocks may differ a little.
const VALID: Duration = Duration::from_secs(5 * 60);

/// A page of a thousand versions has a megabyte.
const ANSWER_MAX_BYTES: usize = 16 * 1024 * 1024;

/// Part of a refusal that is kept: its code and its message are in it.
const REFUSAL_MAX_CHARS: usize = 4096;

/// A client for such requests.
#[derive(Debug, Clone)]
pub(crate) struct OwnRequests {
    s3: Arc<AmazonS3>,
    http: HttpClient,
}

impl OwnRequests {
    pub(crate) fn new(s3: Arc<AmazonS3>, options: &ClientOptions) -> Result<Self> {
        let http = Guarded::default().connect(options)?;
        Ok(Self { s3, http })
    }

    pub(crate) async fn get(&self, key: &Key, query: &[(&str, String)]) -> Result<Vec<u8>> {
        let request = HttpRequest::new(HttpRequestBody::empty());
        Ok(self.send(Method::GET, key, query, request).await?.1)
    }

    pub(crate) async fn head(&self, key: &Key) -> Result<HeaderMap> {
        let request = HttpRequest::new(HttpRequestBody::empty());
        Ok(self.send(Method::HEAD, key, &[], request).await?.0)
    }

    /// Sends a request whose method and URL are set here; the headers that it has are signed, too.
    pub(crate) async fn send(
        &self,
        method: Method,
        key: &Key,
        query: &[(&str, String)],
        mut request: HttpRequest,
    ) -> Result<(HeaderMap, Vec<u8>)> {
        let query = query.iter().map(|(name, value)| (*name, value.as_str()));
        let mut options = SignedUrlOptions::new().with_query(query);
        options.signed_headers.clone_from(request.headers());
        let url = self
            .s3
            .signed_url_opts(method.clone(), key, VALID, &options)
            .await?;
        *request.method_mut() = method;
        *request.uri_mut() = url
            .as_str()
            .parse()
            .map_err(|_| failed("the endpoint and the key make no URL"))?;
        let response = self.http.execute(request).await.map_err(failed)?;
        let (parts, body) = response.into_parts();
        let mut bytes = Vec::new();
        let mut stream = body.bytes_stream();
        while let Some(part) = stream.try_next().await.map_err(failed)? {
            if bytes.len() + part.len() > ANSWER_MAX_BYTES {
                return Err(failed("the answer does not end"));
            }
            bytes.extend_from_slice(&part);
        }
        if parts.status.is_success() {
            return Ok((parts.headers, bytes));
        }
        let said = String::from_utf8_lossy(&bytes);
        let said: String = said.chars().take(REFUSAL_MAX_CHARS).collect();
        let source = format!("Server returned non-2xx status code: {}: {said}", parts.status).into();
        Err(match parts.status {
            StatusCode::NOT_FOUND => Error::NotFound {
                path: key.to_string(),
                source,
            },
            _ => failed(source),
        })
    }
}

fn failed(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic {
        store: "S3",
        source: source.into(),
    }
}
