//! Static content: bytes with a media type, kept as they were bound and served without a copy.
//!
//! The strong entity tag is made once, when the content is bound, from the bytes and the media type, so it is the same
//! on every shard and after a restart.

use super::head::{Head, list};
use super::response::PreparedResponse;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

/// Bytes to serve under a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    mime: String,
    bytes: Bytes,
    etag: String,
}

impl Content {
    /// Content of media type `mime`; `text/plain` where none is given (node contract, section 3), and
    /// `application/octet-stream` where it is not a header value.
    pub fn new(mime: Option<&str>, bytes: Bytes) -> Self {
        let mime = mime.unwrap_or("text/plain");
        let mime = if mime.bytes().all(super::body::is_text) { mime } else { "application/octet-stream" };
        let mut hash = Sha256::new();
        hash.update((mime.len() as u64).to_le_bytes());
        hash.update(mime.as_bytes());
        hash.update(&bytes);
        let mut etag = String::from("\"");
        for byte in &hash.finalize()[..16] {
            write!(etag, "{byte:02x}").expect("a String takes every write");
        }
        etag.push('"');
        Self { mime: mime.to_owned(), bytes, etag }
    }

    /// The media type.
    pub fn mime(&self) -> &str {
        &self.mime
    }

    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The memory it takes.
    pub fn held_bytes(&self) -> usize {
        size_of::<Self>() + self.mime.capacity() + self.bytes.len() + self.etag.capacity()
    }

    /// The entity tag, with its quotes.
    pub fn etag(&self) -> &str {
        &self.etag
    }

    /// The answer to a GET or HEAD: 200, or 304 when the client has these very bytes (RFC 9110 section 13.1.2).
    /// `private` content must be asked for again each time, and never by shared caches.
    #[doc(hidden)]
    pub fn respond(&self, head: &Head<'_>, private: bool) -> PreparedResponse {
        let response = if self.client_has_it(head) {
            PreparedResponse::new(304)
        } else {
            let mime = PreparedResponse::new(200).header("content-type", self.mime.clone());
            mime.expect("checked when it was bound").with_body(self.bytes.clone())
        };
        let response = response.header("etag", self.etag.clone()).expect("hexadecimal digits in quotes");
        if private { response.with("cache-control", "private, no-cache") } else { response }
    }

    /// If-None-Match compares weakly (RFC 9110 section 13.1.2).
    fn client_has_it(&self, head: &Head<'_>) -> bool {
        head.values("if-none-match")
            .flat_map(list)
            .any(|tag| tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == self.etag.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::HttpLimits;

    fn ask(content: &Content, headers: &str) -> PreparedResponse {
        let text = format!("GET / HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
        let (head, _) = Head::parse(text.as_bytes(), &HttpLimits::default()).unwrap().unwrap();
        content.respond(&head, false)
    }

    #[test]
    fn served_with_its_type_and_tag() {
        let content = Content::new(Some("text/css"), Bytes::from_static(b"body{}"));
        let response = ask(&content, "");
        assert_eq!((response.status(), response.find("content-type")), (200, Some("text/css")));
        assert_eq!((response.find("etag"), response.body()), (Some(content.etag()), content.bytes()));
        assert_eq!(content.etag().len(), 34);
        assert_eq!(Content::new(None, Bytes::new()).mime(), "text/plain");
        assert_eq!(Content::new(Some("a\r\nb: c"), Bytes::new()).mime(), "application/octet-stream");
    }

    #[test]
    fn tags_differ_when_bytes_or_types_do() {
        let tag = |mime, bytes: &'static [u8]| Content::new(Some(mime), Bytes::from_static(bytes)).etag().to_owned();
        assert_eq!(tag("a", b"b"), tag("a", b"b"));
        assert_ne!(tag("a", b"b"), tag("a", b"c"));
        assert_ne!(tag("ab", b"c"), tag("a", b"bc"));
    }

    #[test]
    fn not_modified() {
        let content = Content::new(None, Bytes::from_static(b"x"));
        let tag = content.etag();
        for hit in [tag.to_owned(), format!("W/{tag}"), format!("\"a\", {tag}"), "*".into()] {
            let response = ask(&content, &format!("If-None-Match: {hit}\r\n"));
            assert_eq!((response.status(), response.body().len()), (304, 0), "{hit}");
            assert_eq!(response.find("etag"), Some(tag));
        }
        for miss in ["\"a\"", "", "W/", &tag[1..]] {
            assert_eq!(ask(&content, &format!("If-None-Match: {miss}\r\n")).status(), 200, "{miss}");
        }
    }
}
