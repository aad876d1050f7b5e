//! Rules of entry: which requests are admitted, and where they are routed.
//!
//! Pure functions over a [`Snapshot`], the bindings of all processes and the rules of entry: immutable, cheap to clone,
//! replaced as a whole when a process binds or unbinds a path. [`enter`] decides on one request head; the shard carries
//! the decision out. The rules come from the node contract (sections 3 to 7 and 9), RFC 6454 (origins), RFC 6265
//! (cookies) and RFC 7519 (tokens).
//!
//! Invariants: whatever is not explicitly allowed is refused; a refusal states its reason and no secret; no secret is
//! printable; signatures are compared in constant time.
//!
//! It must not know connections, channels, frames, shards or clocks (the time is an argument), nor how a password is
//! checked.

mod auth;
mod contract_request;
mod entry;
mod grant;
mod head_check;
mod login;
mod origin;
mod owner;
mod pattern;
mod proxy;
pub mod proxy_protocol;
mod redirect;
mod register;
mod routes;
mod settings;
mod snapshot;
mod subdomain;

pub use auth::{Claims, Jws, Secret, SecretError, TokenError, mint};
pub use contract_request::ContractRequest;
pub use entry::{BoundUpgrade, Dynamic, Entry, enter};
pub use grant::{Grant, HubAccess, PublicKeys, TokenAuthority, TopicPattern, patterns};
pub use head_check::HeadCheck;
pub use login::{LOGIN_BYTES_MAX, LoginCredentials, LoginRequest};
pub use origin::{OriginError, may_be_dev_origin};
pub use owner::OwnerId;
pub use pattern::{PatternError, TooMuchWork};
pub use proxy::{IpPrefix, ParseIpPrefixError, RequestSource, client_ip};
pub use register::{REGISTRATION_BYTES_MAX, Registration, RegistrationError, register};
pub use routes::{Owned, Params, RouteMatch, Routes, UNBOUND_MAX, shape};
pub use settings::{HostPolicy, RESPONSE_TIMEOUT_MAX_S, RulesOverlay, Settings, SubdomainTokens};
pub use snapshot::{
    BindError, BoundAt, Challenges, HttpBinding, HttpRule, Snapshot, WebSocketBinding, WebSocketRule, route_bytes,
    unbound_bytes,
};
pub use subdomain::secure_subdomain;
