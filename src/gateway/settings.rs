//! The rules of entry that an operator chooses, with their defaults.

use super::auth::{Secret, TokenError};
use super::grant::HubAccess;
use super::proxy::IpPrefix;
use bytes::Bytes;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Which token opens a secure subdomain of a host. On `localhost`, whose subdomains share no cookie with it, always
/// that of the subdomain's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SubdomainTokens {
    /// That of its process alone: there is a login for each subdomain.
    #[default]
    Own,
    /// The user's too: its cookie is sent to all subdomains of the host.
    Shared,
}

/// For which hosts requests are answered. A page of another site can make its name resolve to our address (DNS
/// rebinding), but it cannot change the Host field.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostPolicy {
    /// As the listener asks for: [`Self::Listed`] with these names, but [`Self::Any`] where there are none and the
    /// address is not loopback.
    ByListener(Vec<String>),
    /// Any: for listeners on public addresses.
    Any,
    /// The names listed, IP literals, `localhost` and names below it. `.example.com` stands for every name below
    /// `example.com`. No foreign page can have an address or `localhost` for its name, and it is by these that probes,
    /// metrics and the machine itself ask.
    Listed(Vec<String>),
}

impl HostPolicy {
    /// Its value for a listener on `address`.
    #[must_use]
    pub fn for_listener(self, address: IpAddr) -> Self {
        match self {
            Self::ByListener(names) if names.is_empty() && !address.to_canonical().is_loopback() => Self::Any,
            Self::ByListener(names) => Self::Listed(names),
            chosen => chosen,
        }
    }
}

/// The rules of entry.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The `username` that tokens must name. Default: `local`; a node's is its name.
    pub user: String,
    /// The name of the cookie that the user's token travels in; that of a process' token is this, `@` and the process.
    /// Default: `pushring-auth`.
    pub cookie: String,
    /// Which token opens a secure subdomain. Default: its own.
    pub subdomain_tokens: SubdomainTokens,
    /// The request header, in lower case, by which a client chooses the seconds that a process has to answer. Default:
    /// none.
    pub timeout_header: Option<&'static str>,
    /// Whether clients may open `/`, where nothing is bound, and say in their first message which process they want to
    /// talk to. Default: no, it is a path like any other.
    pub registration: bool,
    /// The key of the tokens. Without it, whatever needs a token is refused.
    pub secret: Option<Secret>,
    /// A key by which tokens are accepted too: the one before, or the next, while keys are changed. Default: none.
    pub second_secret: Option<Secret>,
    /// For which hosts requests are answered. Default: [`HostPolicy::ByListener`] without names.
    pub hosts: HostPolicy,
    /// Whether `Origin` is checked where a cookie, or being local, authenticates. Default: yes.
    pub check_origin: bool,
    /// Origins that may use our cookies besides the host itself, such as `https://app.example.com`. Default: none.
    pub origins: Vec<String>,
    /// Origins of pages under development, such as `http://localhost:3000`: what their development server passes on,
    /// from this machine to an address or to `localhost`, counts as sent by a page of ours. Any page on that port can
    /// use the owner's session then. Never a name below `localhost`, nor a secure subdomain. Default: none.
    pub dev_origins: Vec<String>,
    /// Proxies whose `X-Forwarded-For` is believed when clients are counted. Default: none.
    pub trusted_proxies: Vec<IpPrefix>,
    /// Balancers that put a PROXY header, of version 1 or 2, before the bytes of each client: from these it is
    /// required, from others it is not read, and it tells the client's address. Default: none.
    pub proxy_protocol_from: Vec<IpPrefix>,
    /// Whether `local_only` paths, extensions and the RPC path are open to loopback clients. Default: no.
    pub expose_local: bool,
    /// Whether passwords are checked: serves `/login`, and the login page where a token is missing. Default: no.
    pub login: bool,
    /// The page that `/login` serves, UTF-8 HTML in which `${node}` is replaced; `None` is our own. A login page must
    /// POST `{"password_hash":"0x…","subdomain":""}` to `/login`.
    pub login_page: Option<Bytes>,
    /// Whether our page, where a password is wrong, sends its SHA-256 too: the key of keyfiles from before Kinode 0.10.
    /// Default: no.
    pub sha256_passwords: bool,
    /// The path at which clients on this machine call processes, POST, where the process of the system answers that.
    /// Default: none.
    pub rpc_path: Option<&'static str>,
    /// Whether scripts are kept from reading the login cookie. Default: yes. Scripts that register channels with its
    /// token need to read it.
    pub cookie_http_only: bool,
    /// Whether clients reach us over TLS, so that the cookie must not travel without it, and a page loaded without it
    /// is a page of another site, whatever `X-Forwarded-Proto` says. Default: no; then requests whose
    /// `X-Forwarded-Proto` begins with `https` count as such for cookies and redirects.
    pub behind_tls: bool,
    /// Where requests that come without TLS are sent: to this port of the host that they name. Default: nowhere, they
    /// are answered.
    pub redirect_to_tls: Option<u16>,
    /// Whether there is no login: authenticated paths and registrations are open to all clients, on every host. Paths
    /// for this machine alone stay so. Default: no.
    pub public_mode: bool,
    /// Whether this serves a simulation, which any password opens; its login page is told so. Default: no.
    pub simulation_mode: bool,
    /// Seconds that a process has to answer an HTTP request, where the request does not say. Default: 15.
    pub response_timeout_s: u32,
    /// The hub's rules of entry. Default: no client is let in.
    pub hub: Option<Arc<HubAccess>>,
}

/// What becomes of the rules of entry while somebody has others in force, as a node's kernel has while it is attached:
/// made anew whenever the operator changes his.
#[derive(Clone)]
pub struct RulesOverlay(Arc<dyn Fn(Settings) -> Settings + Send + Sync>);

impl RulesOverlay {
    /// Of the operator's rules, those in force.
    pub fn new(over: impl Fn(Settings) -> Settings + Send + Sync + 'static) -> Self {
        Self(Arc::new(over))
    }

    pub(super) fn over(&self, chosen: Settings) -> Settings {
        (self.0)(chosen)
    }
}

impl fmt::Debug for RulesOverlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RulesOverlay")
    }
}

/// The longest time that a request may ask for, in seconds.
pub const RESPONSE_TIMEOUT_MAX_S: u32 = 600;

impl Default for Settings {
    /// For a broker by itself: clients open the paths that processes have bound, and nothing else; no path is open to
    /// clients for being on this machine. Where there is a secret, tokens are for the user `local` and travel in the
    /// cookie `pushring-auth`. Those of a node are made by `node::settings`.
    fn default() -> Self {
        Self {
            user: "local".to_owned(),
            cookie: "pushring-auth".to_owned(),
            subdomain_tokens: SubdomainTokens::Own,
            timeout_header: None,
            registration: false,
            secret: None,
            second_secret: None,
            hosts: HostPolicy::ByListener(Vec::new()),
            check_origin: true,
            origins: Vec::new(),
            dev_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            proxy_protocol_from: Vec::new(),
            expose_local: false,
            login: false,
            login_page: None,
            sha256_passwords: false,
            rpc_path: None,
            cookie_http_only: true,
            behind_tls: false,
            redirect_to_tls: None,
            public_mode: false,
            simulation_mode: false,
            response_timeout_s: 15,
            hub: None,
        }
    }
}

impl Settings {
    /// Returns whether `ip` is a proxy whose `X-Forwarded-For` is believed.
    pub fn is_trusted_proxy(&self, ip: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|prefix| prefix.contains(ip))
    }

    /// Returns whether connections from `ip` begin with a PROXY header.
    pub fn sends_proxy_header(&self, ip: IpAddr) -> bool {
        self.proxy_protocol_from.iter().any(|prefix| prefix.contains(ip))
    }

    /// Checks a token: that one of the keys signed it, for this user, and that it has not expired. `subdomain` says
    /// whether the process that the token is for, or none, is the right one.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn verify(
        &self,
        token: &str,
        now_unix_s: u64,
        subdomain: impl Fn(Option<&str>) -> bool,
    ) -> Result<(), TokenError> {
        let secret = self.secret.as_ref().ok_or(TokenError::NoSecret)?;
        match (secret.verify(token, &self.user, now_unix_s, &subdomain), &self.second_secret) {
            (Err(TokenError::Signature), Some(second)) => second.verify(token, &self.user, now_unix_s, subdomain),
            (verified, _) => verified,
        }
    }
}

#[cfg(test)]
impl Settings {
    /// Such as a node has, for the tests of the core.
    pub(crate) fn of_a_node(user: &str, subdomain_tokens: SubdomainTokens) -> Self {
        let (system, timeout_header) = match subdomain_tokens {
            SubdomainTokens::Own => ("kinode", None),
            SubdomainTokens::Shared => ("hyperware", Some("x-hyperware-http-server-timeout")),
        };
        Self {
            user: user.to_owned(),
            cookie: format!("{system}-auth_{user}"),
            subdomain_tokens,
            timeout_header,
            sha256_passwords: subdomain_tokens == SubdomainTokens::Own,
            registration: true,
            ..Self::default()
        }
    }
}

/// The login page: one file, no request to anywhere else.
pub(super) const LOGIN_PAGE: &str = include_str!("login.html");

/// The login page that is served, made once.
pub(super) fn login_page(settings: &Settings) -> Bytes {
    let page = settings.login_page.as_deref().unwrap_or(LOGIN_PAGE.as_bytes());
    // A node's name is plain; what is not is kept from ending the string or the element it stands in.
    let node: String = settings.user.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).collect();
    match std::str::from_utf8(page) {
        Ok(text) => {
            let word = |is_so| if is_so { "true" } else { "false" };
            let text = text.replace("${node}", &node).replace("${fake}", word(settings.simulation_mode));
            text.replace("${sha256}", word(settings.sha256_passwords)).into()
        }
        Err(_) => Bytes::copy_from_slice(page),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::{Claims, mint};

    #[test]
    fn while_keys_are_changed_tokens_of_both_are_accepted() {
        let keys = ["one", "two", "three"].map(|key| Secret::new(key.as_bytes()).unwrap());
        let claims = Claims { username: "n".to_owned(), subdomain: None, expiration: 2 };
        let tokens = keys.each_ref().map(|key| mint(key, &claims));
        let mut settings = Settings::of_a_node("n", SubdomainTokens::Own);
        let verify = |settings: &Settings, now_unix_s| {
            tokens.each_ref().map(|token| settings.verify(token, now_unix_s, |subdomain| subdomain.is_none()))
        };
        assert_eq!(verify(&settings, 1), [Err(TokenError::NoSecret); 3]);
        settings.secret = Some(keys[0].clone());
        assert_eq!(verify(&settings, 1), [Ok(()), Err(TokenError::Signature), Err(TokenError::Signature)]);
        settings.second_secret = Some(keys[1].clone());
        assert_eq!(verify(&settings, 1), [Ok(()), Ok(()), Err(TokenError::Signature)]);
        assert_eq!(
            verify(&settings, 2),
            [Err(TokenError::Expired), Err(TokenError::Expired), Err(TokenError::Signature)]
        );
    }
}
