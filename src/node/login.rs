//! Logins, one after the other on a thread of their own: checking a password takes tens of milliseconds of CPU and
//! megabytes of memory, and must not delay anything else. Requests that can be answered without a password are answered
//! at once; of the others a limited number may wait for each client ([`attempts`]), and the rest are told to come
//! again.

use super::attempts::{self, AttemptSender};
use crate::admission::Prefix;
use crate::broker::{KernelHandle, RequestId};
use crate::gateway::{Claims, LoginCredentials, LoginRequest, Secret, mint};
use crate::http::PreparedResponse;
use crate::process_id::ProcessId;
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;

/// A login that waits for its answer.
pub(crate) struct Attempt {
    id: RequestId,
    login: Box<LoginRequest>,
    credentials: LoginCredentials,
}

/// The cookie and token for a right password.
pub(crate) struct GrantedLogin {
    /// The token for the cookie.
    pub token: String,
    /// The node's encoded keyfile, which nodes send along.
    pub keyfile: Bytes,
}

/// Checks passwords. May take its time.
pub(crate) trait PasswordCheck {
    /// Issues a token for a right password, made out to the node, and to the process if one is given; none for a wrong
    /// one.
    ///
    /// # Errors
    /// The check failed; the text is logged.
    fn login(&self, password_hash: &str, claim: Option<&ProcessId>) -> Result<Option<GrantedLogin>, String>;
}

/// How long a login lasts: half a year, as nodes' own since Kinode 0.10.
const TOKEN_LASTS_S: u64 = 26 * 7 * 24 * 3600;

/// The token of a login that was right.
pub(crate) fn token(secret: &Secret, node: &str, claim: Option<&ProcessId>, now_unix_s: u64) -> String {
    let (username, subdomain) = (node.to_owned(), claim.map(ToString::to_string));
    mint(secret, &Claims { username, subdomain, expiration: now_unix_s + TOKEN_LASTS_S })
}

/// Checks logins on a thread of its own.
pub(crate) struct PasswordWorker<G> {
    pub password: G,
    pub kernel: KernelHandle,
}

/// The way to the thread.
pub(crate) struct LoginQueue(AttemptSender<Prefix, Attempt>);

/// The receiving end of the login queue.
pub(crate) type LoginAttempts = attempts::AttemptReceiver<Prefix, Attempt>;

impl LoginQueue {
    pub(crate) fn new() -> (Self, LoginAttempts) {
        let (entrance, attempts) = attempts::attempts();
        (Self(entrance), attempts)
    }

    /// Queues a login. Returns the one that is refused for it, if any: this one, or one of another client that had many
    /// waiting.
    pub(crate) fn enter(
        &self,
        id: RequestId,
        login: Box<LoginRequest>,
        body: &[u8],
    ) -> Option<(RequestId, PreparedResponse)> {
        let credentials = match login.credentials(body) {
            Ok(credentials) => credentials,
            Err(refusal) => return Some((id, refusal)),
        };
        let client = login.client().into();
        let refused = self.0.enter(client, Attempt { id, login, credentials })?;
        Some((refused.id, PreparedResponse::text(503, "too many logins at once").with("retry-after", "1")))
    }
}

impl<G: PasswordCheck> PasswordWorker<G> {
    /// Answers logins until the login queue is gone.
    pub(crate) fn run(self, attempts: &LoginAttempts) {
        while let Some(Attempt { id, login, credentials }) = attempts.next() {
            let response = self.check(&login, &credentials);
            if answer(&self.kernel, id, response).is_none() {
                return;
            }
        }
    }

    fn check(&self, login: &LoginRequest, credentials: &LoginCredentials) -> PreparedResponse {
        let settings = self.kernel.settings();
        let claim = login.claim(&settings, credentials);
        match self.password.login(&credentials.password_hash, claim) {
            Ok(Some(GrantedLogin { token, keyfile })) => {
                let body = BASE64.encode(keyfile);
                login.accepted(&settings, credentials, &token, &body)
            }
            Ok(None) => login.refused("the password is wrong"),
            Err(why) => {
                tracing::warn!(why, "a login failed");
                PreparedResponse::text(500, "the login could not be checked")
            }
        }
    }
}

/// Answers one of the system's HTTP requests. None: the broker has stopped.
pub(super) fn answer(kernel: &KernelHandle, id: RequestId, response: PreparedResponse) -> Option<()> {
    let (status, headers, body) = response.into_parts();
    kernel.system()?.respond(id, status).headers(headers).body(body).send().ok()
}
