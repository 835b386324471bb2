//! Refuses answers that are no object store's, before the library reads them.
//!
//! A proxy, a login page or a wrong port answers with success and a page. The library would take such a page for an object, or for a
//! listing without any object, and a listing proves what is not there.

use async_trait::async_trait;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use object_store::{ClientOptions, Result};

/// Makes clients that refuse pages.
#[derive(Debug, Default)]
pub(crate) struct Guarded(ReqwestConnector);

#[derive(Debug)]
struct Guard(HttpClient);

impl HttpConnector for Guarded {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        Ok(HttpClient::new(Guard(self.0.connect(options)?)))
    }
}

#[async_trait]
impl HttpService for Guard {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let query = request.uri().query().unwrap_or_default();
        let is_listing = ["list-type=2", "comp=list", "versions="]
            .iter()
            .any(|sign| query.contains(sign));
        let answer = self.0.execute(request).await?;
        let kind = answer.headers().get("content-type");
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let is_xml = kind.starts_with("application/xml") || kind.starts_with("text/xml");
        let is_page = kind.starts_with("text/html") || (is_listing && !is_xml);
        if answer.status().is_success() && is_page {
            let text = "what answers is no object store, as it sends a page: is bucket_endpoint right, and is there a \
                 proxy that wants a login?";
            return Err(HttpError::new(
                HttpErrorKind::Unknown,
                std::io::Error::other(text),
            ));
        }
        Ok(answer)
    }
}
