//! HTTP requests of the daemon's own, one at a time, on the thread that makes them.
//!
//! Invariants: a request ends in time, whatever the server does; a body is read only up to the given limit; redirects
//! are not followed, so data goes only to the configured host; errors hold nothing of a URL but its host.

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::http::response::Parts;
use hyper::{Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use pushring::internals::driver::background::BackgroundRuntime;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long one request may take, from the name's look-up to the last byte of the answer.
const REQUEST_MAX: Duration = Duration::from_secs(10);

/// How much of a body that is ignored is read, and for how long.
const IGNORED_BYTES_MAX: usize = 64 << 10;
const IGNORED_WITHIN: Duration = Duration::from_millis(50);

/// How often it is looked whether a request is to end earlier.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Whether a URL leads somewhere, and what it is. Without TLS it has to stay on this machine, unless `may_be_plain`.
///
/// # Errors
/// By the key of its setting.
pub(super) fn check_url(key: &str, url: &str, may_be_plain: bool) -> anyhow::Result<Uri> {
    let uri: Uri = url.parse().with_context(|| format!("{key}: it is no URL"))?;
    let authority = uri.authority().with_context(|| format!("{key}: a URL begins with https:// and a host"))?;
    ensure!(!authority.as_str().contains('@'), "{key}: a URL is shown: put no user or password into it");
    let is_here = matches!(authority.host(), "localhost" | "[::1]")
        || authority.host().parse().is_ok_and(|ip: std::net::Ipv4Addr| ip.is_loopback());
    match uri.scheme_str() {
        Some("https") => Ok(uri),
        Some("http") if is_here || may_be_plain => Ok(uri),
        Some("http") => bail!("{key}: without TLS an answer could be changed on the way: https://"),
        _ => bail!("{key}: a URL begins with https://"),
    }
}

/// See the module.
pub(super) struct HttpClient {
    runtime: BackgroundRuntime,
    pool: Pool<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl HttpClient {
    /// For requests to `uri`. `ca`: the certificate by which its server is known, PEM, where the system does not know
    /// it; empty for none.
    ///
    /// # Errors
    /// The certificate cannot be read, or the system knows none.
    pub(super) fn new(uri: &Uri, ca: &Path) -> anyhow::Result<Self> {
        let runtime = BackgroundRuntime::new().context("no runtime")?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let connector = HttpsConnectorBuilder::new();
        let connector = match ca.as_os_str().is_empty() {
            true if uri.scheme_str() == Some("https") => connector
                .with_provider_and_native_roots(provider)
                .context("this system has no certificates of authorities (install ca-certificates)")?,
            _ => {
                let mut roots = RootCertStore::empty();
                if !ca.as_os_str().is_empty() {
                    let certificates = CertificateDer::pem_file_iter(ca).context("it cannot be read")?;
                    for certificate in certificates {
                        // The error has in it what stands there, which may be a key by mistake.
                        roots.add(certificate.map_err(|_| anyhow!("it is no certificate in PEM"))?)?;
                    }
                    ensure!(!roots.is_empty(), "there is no certificate in it");
                }
                let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
                connector.with_tls_config(tls.with_root_certificates(roots).with_no_client_auth())
            }
        };
        let pool = Pool::builder(TokioExecutor::new()).build(connector.https_or_http().enable_http1().build());
        Ok(Self { runtime, pool })
    }

    /// Sends a request and waits for its answer, whose body is `body_bytes_max` at most: as long as a request may take,
    /// and no longer than `until`, which may come to be said meanwhile.
    ///
    /// # Errors
    /// There is no answer, or not in time, or too large a one.
    pub(super) fn send(
        &self,
        request: Request<Full<Bytes>>,
        body_bytes_max: usize,
        until: impl Fn() -> Option<Instant>,
    ) -> anyhow::Result<Response<Bytes>> {
        self.in_time(until, async {
            let (head, body) = self.begin(request).await?.into_parts();
            let body = Limited::new(body, body_bytes_max).collect().await;
            let body = body.map_err(|_| anyhow::anyhow!("its answer broke off, or is over {body_bytes_max} bytes"))?;
            Ok(Response::from_parts(head, body.to_bytes()))
        })
    }

    /// As [`send`](Self::send), for the head of the answer alone: what else comes is read for a moment, so that the
    /// connection can be used again, and changes nothing.
    ///
    /// # Errors
    /// There is no answer, or not in time.
    pub(super) fn send_for_status(
        &self,
        request: Request<Full<Bytes>>,
        until: impl Fn() -> Option<Instant>,
    ) -> anyhow::Result<Parts> {
        self.in_time(until, async {
            let (head, body) = self.begin(request).await?.into_parts();
            let rest = Limited::new(body, IGNORED_BYTES_MAX).collect();
            let _ = tokio::time::timeout(IGNORED_WITHIN, rest).await;
            Ok(head)
        })
    }

    async fn begin(&self, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Incoming>> {
        self.pool.request(request).await.map_err(|error| anyhow::anyhow!("{}", causes(&error)))
    }

    fn in_time<T>(
        &self,
        until: impl Fn() -> Option<Instant>,
        answer: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let latest = Instant::now() + REQUEST_MAX;
        self.runtime.get().block_on(async {
            let mut answer = pin!(answer);
            loop {
                let end = until().map_or(latest, |until| until.min(latest));
                let rest = end.saturating_duration_since(Instant::now());
                match tokio::time::timeout(rest.min(LOOK_INTERVAL), &mut answer).await {
                    Ok(answer) => return answer,
                    Err(_) if rest <= LOOK_INTERVAL => bail!("it does not answer in time"),
                    Err(_) => {}
                }
            }
        })
    }
}

/// An error and what it came of: the outermost alone says that "the client failed".
fn causes(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_leads_to_one_host_and_over_tls() {
        for good in ["https://a.example/keys?x=1", "http://127.0.0.1:9/", "http://localhost/x", "http://[::1]:7/x"] {
            assert!(check_url("k", good, false).is_ok(), "{good}");
        }
        for bad in ["", "a.example/keys", "/keys", "ftp://a.example/", "http://a.example/", "http://127.0.0.1.example/"]
        {
            assert!(check_url("k", bad, false).unwrap_err().to_string().starts_with("k: "), "{bad}");
        }
        assert!(check_url("k", "http://backend.internal/", true).is_ok());
        let error = check_url("k", "https://ann:swordfish@a.example/", true).unwrap_err();
        assert!(!format!("{error:#}").contains("swordfish"));
    }
}
