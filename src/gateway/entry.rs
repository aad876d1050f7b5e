//! The checks of one request head: the binding it leads to, and whether it may go there.
//!
//! The order of the checks is part of the contract: host, TLS, path, subdomain, token, origin, place, and what the
//! process itself says of the head. A refusal is returned as a response ready to send; an admitted request comes with
//! all that its owner is told.

use super::auth::TokenError;
use super::contract_request::ContractRequest;
use super::grant::{self, Carrier, Grant};
use super::login::{self, LoginRequest};
use super::origin::{check_origin, is_dev_origin, is_host_allowed, is_own_host, listed_origin};
use super::owner::OwnerId;
use super::pattern::TooMuchWork;
use super::proxy::{RequestSource, forwarded_for, is_behind_proxy, is_https};
use super::redirect;
use super::routes::{Params, without_trailing_slash};
use super::settings::{RESPONSE_TIMEOUT_MAX_S, SubdomainTokens};
use super::snapshot::{HttpBinding, Snapshot, WebSocketBinding};
use super::subdomain::secure_subdomain;
use crate::{
    http::{Head, PreparedResponse, cookies, query},
    process_id::ProcessId,
    proto::upgrade,
    resume, sse,
    words::close_reason,
};
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry as Place},
    sync::Arc,
};

/// Cookies of one name whose tokens are checked: more than a page can plant for one path.
const COOKIES_LOOKED_AT_MAX: usize = 32;

/// The decision on a request.
#[derive(Debug)]
pub enum Entry<'s> {
    /// A WebSocket on a bound path: do the handshake, then tell the owner.
    Upgrade(BoundUpgrade<'s>),
    /// A WebSocket on `/`, where nothing is bound: do the handshake, then wait for the registration.
    Register {
        /// The client's address according to proxies; see [`BoundUpgrade::forwarded_for`].
        forwarded_for: Option<String>,
    },
    /// A WebSocket of a page, which would see no status: do the handshake, then say why in a close frame.
    Refuse {
        /// The close code.
        code: u16,
        /// Its reason.
        why: TokenError,
    },
    /// A channel that only receives, on a bound path: answer with an event stream, then tell the owner.
    Stream(Box<BoundUpgrade<'s>>),
    /// A message from the client of such a channel.
    Say(Box<BoundUpgrade<'s>>),
    /// Ask the owner.
    Dynamic(Box<Dynamic<'s>>),
    /// A password to check. The body is at most 16 KiB, which [`LoginRequest::credentials`] sees to.
    Login(LoginRequest),
    /// A call of the RPC path; the body is for the process that answers it.
    Rpc {
        /// Seconds that the process has to answer.
        timeout_s: u32,
    },
    /// Send this: content, a redirect, the login page, a refusal.
    Answer(PreparedResponse),
}

/// A WebSocket that may be opened on a bound path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundUpgrade<'s> {
    /// The channel's owner.
    pub owner: OwnerId,
    /// Its name.
    pub process: &'s ProcessId,
    /// The path as bound, without the process id; empty for the process' own.
    pub bound_path: &'s str,
    /// The path asked for, without the process id, one trailing `/` and the query; `/` if empty.
    pub path: String,
    /// Whether messages are wrapped for an extension.
    pub extension: bool,
    /// Whether the path offers compression.
    pub deflate: bool,
    /// Whether channels of the path may outlive their connections.
    pub resume: bool,
    /// Whether the owner is told of that.
    pub resume_events: bool,
    /// The client's rights, if the hub's token decides.
    pub grant: Option<Arc<Grant>>,
    /// The logged-in user, on paths that require a login; only the same user may take the channel up again.
    pub user: Option<&'s str>,
    /// The listed origin of the page that asks, which may read an event stream.
    pub origin: Option<String>,
    /// The first `X-Forwarded-For` entry, else `X-Real-IP`, else `Cf-Connecting-Ip`: a claim, not checked.
    pub forwarded_for: Option<String>,
}

/// An HTTP request for a process.
#[derive(Debug, Clone)]
pub struct Dynamic<'s> {
    /// The process that answers.
    pub owner: OwnerId,
    /// Its name.
    pub process: &'s ProcessId,
    /// Seconds it has.
    pub timeout_s: u32,
    /// Whether the client has shown a token.
    pub is_logged_in: bool,
    /// The fields of the request that it is told, besides the body.
    pub request: ContractRequest,
}

/// Checks a request by its head. `peer` is the other end of the connection.
pub fn enter<'s>(
    snapshot: &'s Snapshot,
    head: &Head<'_>,
    peer: impl Into<RequestSource>,
    now_unix_s: u64,
) -> Entry<'s> {
    RequestCheck { snapshot, head, peer: peer.into(), now_unix_s, path: without_trailing_slash(head.target.path) }
        .enter()
        .unwrap_or_else(Entry::Answer)
}

/// Why a client is not let in at the hub.
enum HubRefusal {
    Token(TokenError),
    Answer(PreparedResponse),
}

impl HubRefusal {
    fn response(self) -> PreparedResponse {
        match self {
            Self::Token(error @ TokenError::KeysPending) => {
                PreparedResponse::text(503, error.to_string()).with("retry-after", "1")
            }
            Self::Token(error) => PreparedResponse::text(401, error.to_string()).with("www-authenticate", "Bearer"),
            Self::Answer(answer) => answer,
        }
    }
}

/// A request that is checked.
struct RequestCheck<'s, 'h, 'p> {
    snapshot: &'s Snapshot,
    head: &'h Head<'p>,
    peer: RequestSource,
    now_unix_s: u64,
    /// The path without one trailing `/`: `` for the root.
    path: &'p str,
}

/// An early end is the response to send.
type EntryResult<T> = Result<T, PreparedResponse>;

impl<'s> RequestCheck<'s, '_, '_> {
    fn enter(&self) -> EntryResult<Entry<'s>> {
        if let Some(answer) = redirect::challenge(self.snapshot, self.head) {
            return Err(answer);
        }
        if !is_host_allowed(self.head.authority.as_ref(), &self.snapshot.settings.hosts) {
            return Err(PreparedResponse::text(421, "this server does not answer for that host").closing());
        }
        if let Some(elsewhere) = redirect::to_tls(self.snapshot, self.head) {
            return Err(elsewhere);
        }
        match self.head.method {
            "TRACE" => return Err(not_allowed("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")),
            "OPTIONS" if self.path == "*" => return Err(PreparedResponse::new(204)),
            _ => {}
        }
        if self.head.wants_websocket {
            let found = self.snapshot.websocket.find(self.path).map_err(too_long)?;
            match found.and_then(|found| found.binding) {
                Some(binding) => return self.upgrade(binding),
                None if self.path.is_empty() && self.snapshot.settings.registration => {
                    return Ok(Entry::Register { forwarded_for: forwarded_for(self.head) });
                }
                // A path not bound for WebSocket may still be bound for HTTP (node contract, section 3).
                None => {}
            }
        }
        if let Some(ask) = sse::asked(self.head) {
            let found = self.snapshot.websocket.find(self.path).map_err(too_long)?;
            if let Some(binding) = found.and_then(|found| found.binding)
                && binding.rule.sse
                && !binding.rule.extension
            {
                return self.stream(ask, binding);
            }
        }
        match self.path {
            "/login" if self.snapshot.settings.login => self.login(),
            path if self.snapshot.settings.rpc_path == Some(path) => self.rpc(),
            _ => self.http(),
        }
    }

    fn upgrade(&self, binding: &'s WebSocketBinding) -> EntryResult<Entry<'s>> {
        let rule = binding.rule;
        let is_public = self.snapshot.settings.public_mode;
        if rule.secure_subdomain && !is_public && !self.is_on_subdomain(&secure_subdomain(&binding.process)) {
            return Err(PreparedResponse::text(403, "this path is open on its package's secure subdomain only"));
        }
        if rule.authenticated && !is_public {
            self.check_token(rule.secure_subdomain.then_some(&binding.process)).map_err(unauthorized)?;
        }
        if rule.extension && !self.is_local() {
            return Err(PreparedResponse::text(403, "this path is open to extensions on the node's own machine only"));
        }
        if rule.authenticated || rule.extension {
            self.check_origin()?;
        }
        let grant = match rule.hub.then(|| self.hub_grant()).transpose() {
            Err(HubRefusal::Token(error)) if error != TokenError::KeysPending && self.is_page_of_hub() => {
                let code = match error {
                    TokenError::Audience | TokenError::Issuer => close_reason::code::FORBIDDEN,
                    _ => close_reason::code::UNAUTHORIZED,
                };
                return Ok(Entry::Refuse { code, why: error });
            }
            grant => grant.map_err(HubRefusal::response)?,
        };
        Ok(Entry::Upgrade(BoundUpgrade {
            grant,
            owner: binding.owner,
            process: &binding.process,
            bound_path: &binding.path[binding.prefix_bytes..],
            path: self.path_within(binding.prefix_bytes),
            extension: rule.extension,
            deflate: rule.deflate,
            resume: rule.resume,
            resume_events: rule.resume_events,
            user: (rule.authenticated && !is_public).then_some(&*self.snapshot.settings.user),
            origin: None,
            forwarded_for: forwarded_for(self.head),
        }))
    }

    /// Checks a request for an event stream as an upgrade is checked.
    fn stream(&self, ask: sse::SseAsk, binding: &'s WebSocketBinding) -> EntryResult<Entry<'s>> {
        let origin = listed_origin(self.head, &self.snapshot.settings);
        if ask == sse::SseAsk::Preflight {
            let refused = || PreparedResponse::text(403, "the page's Origin is not in the list (origins)");
            return Err(origin.map_or_else(refused, sse::preflight));
        }
        let entry = self.upgrade(binding).map_err(|refusal| sse::shared_with(refusal, origin))?;
        let Entry::Upgrade(mut upgrade) = entry else { return Ok(entry) };
        upgrade.origin = origin.map(Into::into);
        if ask == sse::SseAsk::Say {
            return Ok(Entry::Say(Box::new(upgrade)));
        }
        if let Some(grant) = upgrade.grant.take() {
            // The client cannot ask for topics later.
            let query = self.head.target.query;
            let named = grant.for_stream(query::all(query, "topic"), query::param(query, "envelope").is_some());
            let refused = |why| sse::shared_with(PreparedResponse::text(403, why), origin);
            let grant = named.map_err(refused)?;
            upgrade.grant = Some(Arc::new(grant));
        }
        Ok(Entry::Stream(Box::new(upgrade)))
    }

    /// The rights at the hub that a client's token grants, or that clients without one have.
    fn hub_grant(&self) -> Result<Arc<Grant>, HubRefusal> {
        let access = self.snapshot.settings.hub.as_ref().ok_or_else(|| HubRefusal::Answer(not_bound()))?;
        match grant::token_of(self.head).map_err(HubRefusal::Token)? {
            None => access.open.clone().ok_or(HubRefusal::Token(TokenError::Missing)),
            Some((token, carrier)) => {
                let grant = access.open(token, self.now_unix_s).map_err(HubRefusal::Token)?;
                if carrier == Carrier::Cookie {
                    self.check_origin().map_err(HubRefusal::Answer)?;
                }
                Ok(Arc::new(grant))
            }
        }
    }

    /// Returns whether a page asks for a WebSocket of the hub. Its browser tells it that it was not let in, but not
    /// why, so it would come again for ever.
    fn is_page_of_hub(&self) -> bool {
        let mut protocols = upgrade::protocols(self.head.headers());
        self.head.wants_websocket
            && self.head.values("origin").next().is_some()
            && protocols.any(|name| name == resume::SUBPROTOCOL.as_bytes())
    }

    fn login(&self) -> EntryResult<Entry<'s>> {
        match self.head.method {
            "GET" | "HEAD" if self.head.wants_json() => Err(self.login_state()),
            "GET" | "HEAD" => Err(login::page_response(self.snapshot, self.head)),
            "POST" => {
                // Otherwise a page of another origin could log its visitor in as another user, or guess passwords from
                // afar.
                self.check_origin()?;
                Ok(Entry::Login(LoginRequest::new(self.head, self.peer.address, &self.snapshot.settings)?))
            }
            _ => Err(not_allowed("GET, HEAD, POST")),
        }
    }

    /// Whether the visitor is logged in: to the node, or to the secure subdomain of `?subdomain=PROCESS`. A page of
    /// another site cannot read it.
    fn login_state(&self) -> PreparedResponse {
        let asked = query::param(self.head.target.query, "subdomain").filter(|process| !process.is_empty());
        let is_logged_in = match asked.map(|process| process.parse::<ProcessId>()) {
            None => self.check_token(None).is_ok(),
            Some(Ok(process)) => {
                self.is_on_subdomain(&secure_subdomain(&process)) && self.check_token(Some(&process)).is_ok()
            }
            Some(Err(_)) => false,
        };
        login::state(is_logged_in)
    }

    fn rpc(&self) -> EntryResult<Entry<'s>> {
        if !self.is_local() {
            return Err(not_local());
        }
        if self.head.method != "POST" {
            return Err(not_allowed("POST"));
        }
        self.check_origin()?;
        Ok(Entry::Rpc { timeout_s: self.timeout_s() })
    }

    fn http(&self) -> EntryResult<Entry<'s>> {
        let routes = &self.snapshot.http;
        let base = || self.path.split('/').nth(1).unwrap_or_default();
        let found = match routes.find(self.path).map_err(too_long)? {
            Some(found) => found,
            None => routes.find(base()).map_err(too_long)?.ok_or_else(|| self.not_for_requests())?,
        };
        let binding = found.binding.ok_or_else(|| self.not_for_requests())?;
        let rule = &binding.rule;
        if rule.authenticated && !self.snapshot.settings.public_mode {
            self.check_http_token(binding)?;
        }
        if rule.local_only && !self.is_local() {
            return Err(not_local());
        }
        if (rule.authenticated || rule.local_only) && !self.head.is_safe() {
            self.check_origin()?;
        }
        match &rule.content {
            Some(content) if matches!(self.head.method, "GET" | "HEAD") => {
                Err(content.respond(self.head, rule.authenticated))
            }
            _ => {
                let dynamic = self.dynamic(binding, &found.params);
                binding.check.as_ref().map_or(Ok(()), |check| check.check(&dynamic.request))?;
                Ok(Entry::Dynamic(Box::new(dynamic)))
            }
        }
    }

    /// No request is served at this path, but a WebSocket may be.
    fn not_for_requests(&self) -> PreparedResponse {
        let bound = self.snapshot.websocket.find(self.path).ok().flatten().and_then(|found| found.binding);
        match bound.map(|binding| binding.rule.sse) {
            None => not_bound(),
            Some(false) => PreparedResponse::text(404, "only WebSockets are served at this path: use ws:// or wss://"),
            Some(true) => PreparedResponse::text(
                404,
                "only WebSockets (ws:// or wss://) and event streams (Accept: text/event-stream; POST with SSE-Channel) \
                 are served at this path",
            ),
        }
    }

    /// The rules of authenticated HTTP paths (node contract, section 5).
    fn check_http_token(&self, binding: &HttpBinding) -> EntryResult<()> {
        let label = secure_subdomain(&binding.process);
        let scope = if binding.rule.secure_subdomain {
            if !self.is_on_subdomain(&label) {
                return Err(self.redirect_to(&label));
            }
            Some(&binding.process)
        } else {
            let others = |other: &str| self.snapshot.subdomains.contains_key(&*other.to_ascii_lowercase());
            if !self.is_on_subdomain(&label) && self.subdomain().is_some_and(others) {
                return Err(PreparedResponse::text(403, "secure subdomain can only serve its associated package"));
            }
            None
        };
        self.check_token(scope).map_err(|error| match self.snapshot.settings.login {
            true => login::page_response(self.snapshot, self.head),
            false => unauthorized(error),
        })
    }

    /// 307 to the same path on the package's own subdomain. An address has no subdomains; this machine's has a name
    /// that does.
    fn redirect_to(&self, label: &str) -> PreparedResponse {
        let scheme = if is_https(self.head, self.snapshot.settings.behind_tls) { "https" } else { "http" };
        let port = self.head.authority.and_then(|host| host.port);
        let host = match self.head.authority {
            Some(host) if !host.is_ip() => host.text.to_owned(),
            Some(_) if !self.peer.is_on_this_machine() => {
                return PreparedResponse::text(
                    403,
                    "this path is open on a secure subdomain only, and an address has none",
                );
            }
            _ => port.map_or("localhost".into(), |port| format!("localhost:{port}")),
        };
        let query = self.head.target.query.map(|query| format!("?{query}")).unwrap_or_default();
        let location = format!("{scheme}://{label}.{host}{}{query}", self.path);
        PreparedResponse::new(307)
            .header("location", location)
            .unwrap_or_else(|_| PreparedResponse::text(400, "the host cannot be part of a location"))
    }

    /// Whether the cookies hold a token: for a process' secure subdomain, or for the user.
    ///
    /// Of a secure subdomain: see [`SubdomainTokens`].
    fn check_token(&self, process: Option<&ProcessId>) -> Result<(), TokenError> {
        let Some(process) = process else { return self.check_cookie(None, |subdomain| subdomain.is_none()) };
        let settings = &self.snapshot.settings;
        let strict = settings.subdomain_tokens == SubdomainTokens::Own
            || self.head.authority.is_none_or(|host| host.is_localhost());
        let own = self.check_cookie(Some(process), |subdomain| match subdomain {
            Some(subdomain) => subdomain == process.as_str(),
            None => !strict,
        });
        match own {
            Err(error) if !strict => {
                let users = self.check_cookie(None, |subdomain| subdomain.is_none());
                users.map_err(|users| if error == TokenError::Missing { users } else { error })
            }
            own => own,
        }
    }

    /// Whether one of the cookies of a name holds a token that opens this. There may be more than one: a node sets one
    /// for the host as it boots, and its login page one for the host's domain; all that hold are the same user's.
    fn check_cookie(
        &self,
        process: Option<&ProcessId>,
        subdomain: impl Fn(Option<&str>) -> bool,
    ) -> Result<(), TokenError> {
        let settings = &self.snapshot.settings;
        // Where there is no key, what is wrong is said so, whatever else is.
        settings.secret.as_ref().ok_or(TokenError::NoSecret)?;
        let own = process.map(|process| format!("{}@{process}", self.snapshot.cookie));
        let name = own.as_deref().unwrap_or(&self.snapshot.cookie);
        let mut refused = None;
        let tokens = cookies::all(self.head, name).filter(|token| !token.is_empty());
        for token in tokens.take(COOKIES_LOOKED_AT_MAX) {
            match settings.verify(token, self.now_unix_s, &subdomain) {
                Ok(()) => return Ok(()),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.unwrap_or(TokenError::Missing))
    }

    fn check_origin(&self) -> EntryResult<()> {
        let settings = &self.snapshot.settings;
        check_origin(self.head, settings)
            .or_else(|error| if self.is_dev_page() { Ok(()) } else { Err(error) })
            .map_err(|error| PreparedResponse::text(403, error.to_string()))
    }

    /// Returns whether a development server on this machine asks for its own page. Behind a proxy any client could be
    /// asking.
    fn is_dev_page(&self) -> bool {
        let is_subdomain = |label: &str| self.snapshot.subdomains.contains_key(label);
        self.peer.is_on_this_machine()
            && !is_behind_proxy(self.head)
            && is_dev_origin(self.head, &self.snapshot.settings, is_subdomain)
    }

    /// Returns whether the client is on this machine, as far as that can be known, and such clients have privileges
    /// here.
    fn is_local(&self) -> bool {
        self.snapshot.settings.expose_local
            && self.peer.is_on_this_machine()
            && !is_behind_proxy(self.head)
            && is_own_host(self.head.authority.as_ref(), &self.snapshot.settings.hosts)
    }

    /// The first label of the host, which may be a secure subdomain. Addresses have none.
    fn subdomain(&self) -> Option<&str> {
        self.head.authority.filter(|host| !host.is_ip()).map(|host| host.first_label())
    }

    /// Hosts have no case (RFC 9110 4.2.3).
    fn is_on_subdomain(&self, label: &str) -> bool {
        self.subdomain().is_some_and(|have| have.eq_ignore_ascii_case(label))
    }

    fn timeout_s(&self) -> u32 {
        let settings = &self.snapshot.settings;
        let asked = settings.timeout_header.and_then(|name| self.head.text(name));
        let asked = asked.and_then(|text| text.parse::<u64>().ok());
        let asked = asked.map(|seconds| u32::try_from(seconds).unwrap_or(u32::MAX));
        asked.unwrap_or(settings.response_timeout_s).clamp(1, RESPONSE_TIMEOUT_MAX_S)
    }

    /// The path as the process sees it: without its own id, which every path that leads to the binding begins with.
    fn path_within(&self, prefix_bytes: usize) -> String {
        let within = self.path.get(prefix_bytes..).unwrap_or_default();
        format!("/{}", within.trim_start_matches('/'))
    }

    fn dynamic(&self, binding: &'s HttpBinding, params: &Params<'_, '_>) -> Dynamic<'s> {
        let host = self.head.authority.map_or("localhost", |host| host.host);
        let fields = self.head.headers().iter().map(|header| {
            let value = std::str::from_utf8(header.value).unwrap_or_default();
            let name = header.name.to_ascii_lowercase();
            // Tokens with which a client resumes a channel or logs in are kept from processes.
            let is_offer = name == "sec-websocket-protocol";
            let value = if is_offer { resume::element::without_secrets(value) } else { value.to_owned() };
            (name, value)
        });
        let mut repeated = BTreeSet::new();
        let mut headers = last_of_each(fields, &mut repeated);
        if let Some(authority) = self.head.target.authority {
            // RFC 9112 section 3.2.2: the Host field beside an absolute target is ignored, by the process too.
            headers.insert("host".into(), authority.text.to_owned());
        }
        let request = ContractRequest {
            source: self.peer.address,
            method: self.head.method.to_owned(),
            url: format!("http://{host}{}", self.path),
            bound_path: binding.path.clone(),
            headers,
            url_params: params.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
            query_params: last_of_each(query::pairs(self.head.target.query), &mut repeated),
            repeated,
        };
        // Looked at where it matters: a large body, on a path that is open to all.
        let is_open = !binding.rule.authenticated || self.snapshot.settings.public_mode;
        let is_logged_in = !is_open || (self.head.has_body() && self.check_token(None).is_ok());
        let (owner, timeout_s) = (binding.owner, self.timeout_s());
        Dynamic { owner, process: &binding.process, timeout_s, is_logged_in, request }
    }
}

/// The last of equal names; the others' names are added to `repeated`.
fn last_of_each(
    pairs: impl Iterator<Item = (String, String)>,
    repeated: &mut BTreeSet<String>,
) -> BTreeMap<String, String> {
    let mut last = BTreeMap::new();
    for (name, value) in pairs {
        match last.entry(name) {
            Place::Vacant(place) => drop(place.insert(value)),
            Place::Occupied(mut place) => {
                if !repeated.contains(place.key()) {
                    repeated.insert(place.key().clone());
                }
                place.insert(value);
            }
        }
    }
    last
}

fn not_bound() -> PreparedResponse {
    PreparedResponse::text(404, "nothing is bound to this path")
}

/// RFC 9110 section 15.5.15: longer than we are willing to interpret.
fn too_long(error: TooMuchWork) -> PreparedResponse {
    PreparedResponse::text(414, error.to_string())
}

fn not_local() -> PreparedResponse {
    PreparedResponse::text(403, "this path is open to clients on this machine only")
}

fn not_allowed(methods: &'static str) -> PreparedResponse {
    PreparedResponse::text(405, "the method is not allowed here").with("allow", methods)
}

/// RFC 9110 section 11.6.1: a 401 names a scheme. Ours is a cookie, which has no registered one.
fn unauthorized(error: TokenError) -> PreparedResponse {
    PreparedResponse::text(401, error.to_string()).with("www-authenticate", "Cookie")
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;
