//! The state that requests are checked against: bindings and settings, immutable while it is used.
//!
//! To change it, clone it (cheap: the clone shares everything, and goes on sharing all but what it changes), bind or
//! unbind on the clone, and hand the clone to every shard.

use super::head_check::HeadCheck;
use super::owner::OwnerId;
use super::pattern::PatternError;
use super::routes::{Owned, Routes, without_trailing_slash};
use super::settings::{self, RulesOverlay, Settings};
use super::subdomain::secure_subdomain;
use crate::admission::Charge;
use crate::{http::Content, process_id::ProcessId};
use bytes::Bytes;
use rpds::{HashTrieMapSync, HashTrieSetSync};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Challenges that are outstanding: tokens, and what their answers are.
pub type Challenges = BTreeMap<String, String>;

/// See the module.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The rules in force.
    pub(super) settings: Arc<Settings>,
    /// Those that were chosen, of which `overlay` makes them.
    chosen: Arc<Settings>,
    overlay: Option<RulesOverlay>,
    pub(super) http: Routes<HttpBinding>,
    pub(super) websocket: Routes<WebSocketBinding>,
    /// The first labels of hosts that belong to a package, and the owners that have bound paths there.
    pub(super) subdomains: HashTrieMapSync<Box<str>, HashTrieSetSync<OwnerId>>,
    /// Which of them an owner has something bound for.
    subdomain_of: HashTrieMapSync<OwnerId, Box<str>>,
    /// The name of the login cookie.
    pub(super) cookie: Arc<str>,
    pub(super) login_page: Bytes,
    /// The tokens to answer certificate authorities with.
    pub(super) challenges: Arc<Challenges>,
}

/// A path bound for HTTP.
#[derive(Debug, Clone)]
pub struct HttpBinding {
    /// The process that answers.
    pub owner: OwnerId,
    /// Its name.
    pub process: ProcessId,
    /// The path as bound, process id included.
    pub path: Arc<str>,
    /// How it may be entered, and what it serves.
    pub rule: HttpRule,
    /// What its process says of requests by their heads.
    pub(super) check: Option<Arc<dyn HeadCheck>>,
    /// Its share of the memory budget.
    #[expect(dead_code, reason = "let go of together with the binding")]
    pub(crate) charge: Option<Arc<Charge>>,
}

/// How a path bound for HTTP may be entered.
#[derive(Debug, Clone, Default)]
pub struct HttpRule {
    /// Only with a token.
    pub authenticated: bool,
    /// Only from this machine.
    pub local_only: bool,
    /// Only from the package's own subdomain; implies `authenticated`.
    pub secure_subdomain: bool,
    /// The content with which GET and HEAD are answered, without asking the process.
    pub content: Option<Arc<Content>>,
}

/// A path bound for WebSocket.
#[derive(Debug, Clone)]
pub struct WebSocketBinding {
    /// The channels' owner.
    pub owner: OwnerId,
    /// Its name.
    pub process: ProcessId,
    /// The path as bound, process id included.
    pub path: Arc<str>,
    /// How many bytes of the path are not told to the process: its id and what stands before it.
    pub prefix_bytes: usize,
    /// How it may be entered.
    pub rule: WebSocketRule,
    /// Its share of the memory budget.
    #[expect(dead_code, reason = "let go of together with the binding")]
    pub(crate) charge: Option<Arc<Charge>>,
}

/// How a path bound for WebSocket may be entered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WebSocketRule {
    /// Only with a token.
    pub authenticated: bool,
    /// Only from the package's own subdomain; implies `authenticated`.
    pub secure_subdomain: bool,
    /// Messages are wrapped for an extension, and only clients of this machine are let in.
    pub extension: bool,
    /// Whether clients may agree on compression (permessage-deflate) where it is not offered on every path.
    pub deflate: bool,
    /// Whether a channel outlives its connection, where its client asks for that (subprotocol `pushring.1`): it waits
    /// for the client to come back, with what was pushed meanwhile (`docs/PROTOCOL.md`).
    pub resume: bool,
    /// Whether the hub's token decides on entry and rights ([`Settings::hub`](super::Settings::hub)); clients must then
    /// speak `pushring.1`.
    pub hub: bool,
    /// Whether the process is told when such a client is gone for now, and when it has come back
    /// ([`Event::Detached`](crate::Event::Detached), [`Event::Resumed`](crate::Event::Resumed)).
    pub resume_events: bool,
    /// Whether a client may open a channel that only receives, as an event stream (`GET` with `Accept:
    /// text/event-stream`).
    pub sse: bool,
}

impl Owned for HttpBinding {
    fn owner(&self) -> OwnerId {
        self.owner
    }
}

impl Owned for WebSocketBinding {
    fn owner(&self) -> OwnerId {
        self.owner
    }
}

/// Why a path cannot be bound: the fault of the process that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// `InvalidSourceProcess` of the node contract, section 1.
    #[error("only processes whose id is of lower case letters, digits, `-`, and `.` in the publisher may bind paths")]
    Process,
    /// A plain name has no package, and so no subdomain.
    #[error("only processes with an id of three parts, process:package:publisher, have a secure subdomain")]
    NoSubdomain,
    /// The path is no pattern.
    #[error(transparent)]
    Pattern(#[from] PatternError),
}

/// The process that binds without its id in front: its paths are the node's own.
const HOMEPAGE: &str = "homepage:homepage:sys";

/// A path that a process binds.
#[derive(Debug, Clone, Copy)]
pub enum BoundAt<'a> {
    /// Below `/PROCESS_ID`, which the process is not told of.
    Own(&'a str),
    /// From the root on.
    Whole(&'a str),
}

impl<'a> From<&'a str> for BoundAt<'a> {
    fn from(path: &'a str) -> Self {
        Self::Own(path)
    }
}

impl BoundAt<'_> {
    /// The path from the root on, and how many bytes of it are not told to the process.
    fn of(self, process: &ProcessId) -> (String, usize) {
        match self {
            Self::Own(path) if process.as_str() == HOMEPAGE => (prefixed(process, path), 0),
            Self::Own(path) => (prefixed(process, path), "/".len() + process.as_str().len()),
            Self::Whole(path) => {
                let path = without_trailing_slash(path);
                (if path.is_empty() || path.starts_with('/') { path.to_owned() } else { format!("/{path}") }, 0)
            }
        }
    }
}

/// The approximate memory of a route: its path is stored in the binding, too.
pub fn route_bytes(process: &ProcessId, path: &str) -> usize {
    size_of::<HttpBinding>() + path.len() + process.as_str().len() + unbound_bytes(process, path)
}

/// The approximate memory of a path that was unbound: a pattern is stored beside its shape.
pub fn unbound_bytes(process: &ProcessId, path: &str) -> usize {
    let copies = if path.contains([':', '*']) { 2 } else { 1 };
    ROUTE_BYTES + copies * (path.len() + process.as_str().len())
}

/// The memory of a route in the table beside its path.
const ROUTE_BYTES: usize = 256;

/// The path that `process` binds when it asks for `path` (node contract, section 3).
pub(super) fn prefixed(process: &ProcessId, path: &str) -> String {
    let path = without_trailing_slash(path);
    let slash = if path.is_empty() || path.starts_with('/') { "" } else { "/" };
    if process.as_str() == HOMEPAGE { format!("{slash}{path}") } else { format!("/{process}{slash}{path}") }
}

/// Returns whether `process` may unbind a path that begins with so many bytes of its own, and that is bound for this
/// process or for none.
fn may_unbind(bound_for: Option<&ProcessId>, process: &ProcessId, own_bytes: usize) -> bool {
    bound_for.map_or(own_bytes > 0, |bound_for| bound_for == process)
}

impl Snapshot {
    /// Nothing is bound.
    pub fn new(settings: Settings) -> Self {
        let settings = Arc::new(settings);
        Self {
            cookie: settings.cookie.as_str().into(),
            login_page: settings::login_page(&settings),
            chosen: settings.clone(),
            overlay: None,
            settings,
            http: Routes::default(),
            websocket: Routes::default(),
            subdomains: HashTrieMapSync::default(),
            subdomain_of: HashTrieMapSync::default(),
            challenges: Arc::default(),
        }
    }

    /// Serves these tokens, and no others, to certificate authorities from now on.
    pub fn set_challenges(&mut self, challenges: Challenges) {
        self.challenges = Arc::new(challenges);
    }

    /// The rules of entry in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Those that were chosen, whatever becomes of them.
    pub fn chosen_settings(&self) -> &Settings {
        &self.chosen
    }

    /// The same bindings where other rules are chosen.
    #[must_use]
    pub fn with_settings(self, chosen: Settings) -> Self {
        self.under(Arc::new(chosen))
    }

    /// The same bindings where something else becomes of the rules.
    #[must_use]
    pub fn with_overlay(self, overlay: Option<RulesOverlay>) -> Self {
        let chosen = self.chosen.clone();
        Self { overlay, ..self }.under(chosen)
    }

    fn under(self, chosen: Arc<Settings>) -> Self {
        let Self { http, websocket, subdomains, subdomain_of, challenges, overlay, .. } = self;
        let mut in_force = (*chosen).clone();
        if let Some(overlay) = &overlay {
            in_force = overlay.over(in_force);
        }
        let fresh = Self::new(in_force);
        Self { http, websocket, subdomains, subdomain_of, challenges, chosen, overlay, ..fresh }
    }

    /// Binds `path` of `process` for HTTP; the last bind wins.
    ///
    /// # Errors
    /// The id fits no path of any node, or the path is no pattern. The caller must have checked that the process
    /// may bind it ([`ProcessId::may_bind`]).
    pub fn bind_http<'a>(
        &mut self,
        owner: OwnerId,
        process: &ProcessId,
        path: impl Into<BoundAt<'a>>,
        rule: HttpRule,
    ) -> Result<(), BindError> {
        self.bind_http_charged(owner, process, path, (rule, None), None)
    }

    /// As [`bind_http`](Self::bind_http), with what the process says of requests by their heads, and the charge of what
    /// the binding holds of memory ([`route_bytes`]).
    ///
    /// # Errors
    /// As there.
    pub fn bind_http_charged<'a>(
        &mut self,
        owner: OwnerId,
        process: &ProcessId,
        path: impl Into<BoundAt<'a>>,
        (mut rule, check): (HttpRule, Option<Arc<dyn HeadCheck>>),
        charge: Option<Charge>,
    ) -> Result<(), BindError> {
        let charge = charge.map(Arc::new);
        let (path, _) = self.admit(owner, process, path.into(), rule.secure_subdomain)?;
        rule.authenticated |= rule.secure_subdomain;
        let binding = HttpBinding { owner, process: process.clone(), path: path.clone(), rule, check, charge };
        Ok(self.http.bind(&path, binding)?)
    }

    /// Binds `path` of `process` for WebSocket; the last bind wins.
    ///
    /// # Errors
    /// The id fits no path of any node, or the path is no pattern. The caller must have checked that the process
    /// may bind it ([`ProcessId::may_bind`]).
    pub fn bind_websocket<'a>(
        &mut self,
        owner: OwnerId,
        process: &ProcessId,
        path: impl Into<BoundAt<'a>>,
        rule: WebSocketRule,
    ) -> Result<(), BindError> {
        self.bind_websocket_charged(owner, process, path, rule, None)
    }

    /// As [`bind_websocket`](Self::bind_websocket), with the charge of what the binding holds of memory
    /// ([`route_bytes`]).
    ///
    /// # Errors
    /// As there.
    pub fn bind_websocket_charged<'a>(
        &mut self,
        owner: OwnerId,
        process: &ProcessId,
        path: impl Into<BoundAt<'a>>,
        mut rule: WebSocketRule,
        charge: Option<Charge>,
    ) -> Result<(), BindError> {
        let charge = charge.map(Arc::new);
        let (path, prefix_bytes) = self.admit(owner, process, path.into(), rule.secure_subdomain)?;
        rule.authenticated |= rule.secure_subdomain;
        let binding =
            WebSocketBinding { owner, process: process.clone(), path: path.clone(), prefix_bytes, rule, charge };
        Ok(self.websocket.bind(&path, binding)?)
    }

    /// Unbinds `path` of `process` for HTTP. It answers 404 from now on, also where it was never bound and the process
    /// has a pattern or a base path that would take it. What another process has bound is left alone, and so are paths
    /// that are nobody's and not below the id of this process: they may be another's by a pattern.
    ///
    /// # Errors
    /// When the path is no pattern.
    pub fn unbind_http<'a>(
        &mut self,
        owner: OwnerId,
        process: &ProcessId,
        path: impl Into<BoundAt<'a>>,
    ) -> Result<(), BindError> {
        self.unbind_http_charged(owner, process, path, None)
    }

    /// As [`unbind_http`](Self::unbind_http), with the charge of what is remembered of the path ([`unbound_bytes`]).
    ///
    /// # Errors
    /// As there.
    pub fn unbind_http_charged<'a>(
        &mut self,
        owner: OwnerId,
        process: &ProcessId,
        path: impl Into<BoundAt<'a>>,
        charge: Option<Charge>,
    ) -> Result<(), BindError> {
        let (path, own_bytes) = path.into().of(process);
        let may = |bound: Option<&HttpBinding>| may_unbind(bound.map(|bound| &bound.process), process, own_bytes);
        Ok(self.http.unbind(&path, owner, charge, may)?)
    }

    /// The same for WebSocket; open channels stay.
    ///
    /// # Errors
    /// When the path is no pattern.
    pub fn unbind_websocket<'a>(
        &mut self,
        owner: OwnerId,
        process: &ProcessId,
        path: impl Into<BoundAt<'a>>,
    ) -> Result<(), BindError> {
        self.unbind_websocket_charged(owner, process, path, None)
    }

    /// As [`unbind_websocket`](Self::unbind_websocket), with that charge.
    ///
    /// # Errors
    /// As there.
    pub fn unbind_websocket_charged<'a>(
        &mut self,
        owner: OwnerId,
        process: &ProcessId,
        path: impl Into<BoundAt<'a>>,
        charge: Option<Charge>,
    ) -> Result<(), BindError> {
        let (path, own_bytes) = path.into().of(process);
        let may = |bound: Option<&WebSocketBinding>| may_unbind(bound.map(|bound| &bound.process), process, own_bytes);
        Ok(self.websocket.unbind(&path, owner, charge, may)?)
    }

    /// Forgets everything that `owner` has bound.
    pub fn unbind_owner(&mut self, owner: OwnerId) {
        self.http.remove_owner(owner);
        self.websocket.remove_owner(owner);
        if let Some(label) = self.subdomain_of.get(&owner).cloned() {
            self.subdomain_of.remove_mut(&owner);
            if let Some(owners) = self.subdomains.get_mut(&label) {
                owners.remove_mut(&owner);
                if owners.is_empty() {
                    self.subdomains.remove_mut(&label);
                }
            }
        }
    }

    /// Every path that is bound for WebSockets, as its process is told of it, in no order.
    pub fn websocket_paths(&self) -> impl Iterator<Item = (&ProcessId, &str)> {
        self.websocket.iter().map(|binding| (&binding.process, &binding.path[binding.prefix_bytes..]))
    }

    /// Returns whether anything is bound for `owner`.
    pub fn has_bound(&self, owner: OwnerId) -> bool {
        self.http.has_bound(owner) || self.websocket.has_bound(owner)
    }

    fn admit(
        &mut self,
        owner: OwnerId,
        process: &ProcessId,
        path: BoundAt<'_>,
        secure: bool,
    ) -> Result<(Arc<str>, usize), BindError> {
        if !process.may_bind_in_old_nodes() {
            return Err(BindError::Process);
        }
        if secure && process.is_plain() {
            return Err(BindError::NoSubdomain);
        }
        if secure && !self.subdomain_of.contains_key(&owner) {
            let label: Box<str> = secure_subdomain(process).into();
            self.subdomain_of.insert_mut(owner, label.clone());
            match self.subdomains.get_mut(&label) {
                Some(owners) => owners.insert_mut(owner),
                None => self.subdomains.insert_mut(label, HashTrieSetSync::default().insert(owner)),
            }
        }
        let (path, prefix_bytes) = path.of(process);
        Ok((path.into(), prefix_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_get_the_process_in_front() {
        let path = |process: &str, path: &str| prefixed(&process.parse().unwrap(), path);
        assert_eq!(path("p:p:t.os", "/"), "/p:p:t.os");
        assert_eq!(path("p:p:t.os", ""), "/p:p:t.os");
        assert_eq!(path("p:p:t.os", "/x/"), "/p:p:t.os/x");
        assert_eq!(path("p:p:t.os", "x"), "/p:p:t.os/x");
        assert_eq!(path("homepage:homepage:sys", "/our.js"), "/our.js");
        assert_eq!(path("homepage:homepage:sys", "/"), "");
        assert_eq!(path("homepage:homepage:sys", "our.js"), "/our.js");
        assert_eq!(path("homepage:other:sys", "/x"), "/homepage:other:sys/x");
    }

    #[test]
    fn who_may_bind() {
        let mut snapshot = Snapshot::new(Settings::default());
        let mut bind =
            |id: &str| snapshot.bind_websocket(OwnerId(1), &id.parse().unwrap(), "/", WebSocketRule::default());
        assert_eq!(bind("my package:my_package:template.os"), Err(BindError::Process));
        assert_eq!(bind("P:p:t.os"), Err(BindError::Process));
        assert_eq!(bind("p-1:p:t.os"), Ok(()));
    }

    #[test]
    fn a_process_cannot_unbind_anothers_path() {
        let mut snapshot = Snapshot::new(Settings::default());
        let (app, homepage) = ("p:p:o".parse().unwrap(), HOMEPAGE.parse().unwrap());
        snapshot.bind_http(OwnerId(1), &app, "/x", HttpRule::default()).unwrap();
        snapshot.unbind_http(OwnerId(2), &homepage, "/p:p:o/x").unwrap();
        snapshot.unbind_http(OwnerId(2), &homepage, "/p:p:o/y/z").unwrap();
        let bound = |snapshot: &Snapshot, path| snapshot.http.find(path).unwrap().map(|found| found.binding.is_some());
        assert_eq!(bound(&snapshot, "/p:p:o/x"), Some(true));
        assert_eq!(bound(&snapshot, "/p:p:o/y/z"), None, "another may have it by a pattern");
        snapshot.unbind_http(OwnerId(1), &app, "/x").unwrap();
        assert_eq!(bound(&snapshot, "/p:p:o/x"), Some(false));
    }

    #[test]
    fn an_owner_that_leaves_takes_everything_along_and_nothing_else() {
        let mut snapshot = Snapshot::new(Settings::default());
        let app: ProcessId = "p:p:o".parse().unwrap();
        let secure = HttpRule { secure_subdomain: true, ..HttpRule::default() };
        snapshot.bind_http(OwnerId(1), &app, "/old", secure.clone()).unwrap();
        snapshot.bind_http(OwnerId(1), &app, "/both", secure.clone()).unwrap();
        snapshot.bind_http(OwnerId(2), &app, "/both", secure).unwrap();
        snapshot.bind_websocket(OwnerId(1), &app, "/", WebSocketRule::default()).unwrap();
        snapshot.unbind_owner(OwnerId(1));
        assert!(
            snapshot.http.find("/p:p:o/old").unwrap().is_none() && snapshot.websocket.find("/p:p:o").unwrap().is_none()
        );
        assert_eq!(snapshot.http.find("/p:p:o/both").unwrap().unwrap().binding.unwrap().owner, OwnerId(2));
        assert_eq!(snapshot.subdomains.get("p-o").unwrap().iter().collect::<Vec<_>>(), [&OwnerId(2)]);
        snapshot.unbind_owner(OwnerId(2));
        assert!(snapshot.subdomains.is_empty());
    }
}
