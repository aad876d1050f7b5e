//! Identities in a node: addresses, packages, and the names of the HTTP server itself.
//!
//! Invariant: a parsed [`Address`] has a non-empty node and a well-formed process id. Does not depend on messages.

use crate::process_id::{ParseProcessIdError, ProcessId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr, sync::LazyLock};

/// The node name that stands for "the node this message is on" (node contract, section 1).
pub const OUR: &str = "our";

static HTTP_SERVER: LazyLock<ProcessId> = LazyLock::new(|| literal("http-server", "distro", "sys"));
static HTTP_SERVER_OLD: LazyLock<ProcessId> = LazyLock::new(|| literal("http_server", "distro", "sys"));

fn literal(process: &str, package: &str, publisher: &str) -> ProcessId {
    ProcessId::new(process, package, publisher).expect("each part is non-empty and holds no colon")
}

/// The server's own id, `http-server:distro:sys`.
pub fn http_server_process() -> ProcessId {
    HTTP_SERVER.clone()
}

/// Returns whether `process` means the HTTP server: `http-server:distro:sys`, or the older `http_server:distro:sys`.
pub fn is_http_server(process: &ProcessId) -> bool {
    ServerName::of(process).is_some()
}

/// The name by which a node knows its HTTP server. A node has one of them, and delivers nothing to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServerName {
    /// `http-server:distro:sys`, since Kinode 0.10.
    #[default]
    Current,
    /// `http_server:distro:sys`, before. Ids of processes that bind paths may hold an underscore there.
    Old,
}

impl ServerName {
    /// The name that `process` is; none if it is not the HTTP server.
    pub fn of(process: &ProcessId) -> Option<Self> {
        match process {
            process if *process == *HTTP_SERVER => Some(Self::Current),
            process if *process == *HTTP_SERVER_OLD => Some(Self::Old),
            _ => None,
        }
    }

    /// The server's id under this name.
    pub fn process(self) -> ProcessId {
        match self {
            Self::Current => HTTP_SERVER.clone(),
            Self::Old => HTTP_SERVER_OLD.clone(),
        }
    }

    /// Returns whether a process of this id may bind paths where the server has this name (node contract, section 1).
    pub(crate) fn lets_bind(self, process: &ProcessId) -> bool {
        match self {
            Self::Current => process.may_bind(),
            Self::Old => process.may_bind_in_old_nodes(),
        }
    }
}

/// Process ids that this thread has met lately.
mod recent {
    use super::ProcessId;
    use rustc_hash::FxHasher;
    use std::cell::RefCell;
    use std::hash::Hasher;

    /// A node has some tens of processes that talk at the same time. Two that fall into one place only cost each other.
    const PLACES: usize = 256;

    /// Longer ids are not remembered: peers choose them.
    const ID_BYTES_MAX: usize = 256;

    thread_local! {
        static MET: RefCell<Vec<Option<ProcessId>>> = RefCell::new(vec![None; PLACES]);
    }

    /// The id of these parts, made if it was not met.
    pub(super) fn process_id(process: &str, package: &str, publisher: &str) -> Option<ProcessId> {
        let mut hasher = FxHasher::default();
        for part in [process, package, publisher] {
            hasher.write(part.as_bytes());
        }
        // The upper bits are the better ones.
        let place = (hasher.finish() >> 32) as usize % PLACES;
        MET.with_borrow_mut(|met| {
            if let Some(id) = &met[place]
                && id.is_of(process, package, publisher)
            {
                return Some(id.clone());
            }
            let id = ProcessId::new(process, package, publisher).ok()?;
            if id.as_str().len() <= ID_BYTES_MAX {
                met[place] = Some(id.clone());
            }
            Some(id)
        })
    }
}

/// A process on a node: `node@process:package:publisher`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Address {
    /// The node's name, such as `alice.os`; [`OUR`] stands for the node itself.
    pub node: String,
    /// The process on that node.
    pub process: ProcessId,
}

impl Address {
    /// The address of `process` on `node`.
    pub fn new(node: impl Into<String>, process: impl Into<ProcessId>) -> Self {
        Self { node: node.into(), process: process.into() }
    }

    /// The address of the process of these three parts on `node`. Recent ids are reused: a node kernel's messages name
    /// the same few again and again. None: a part is empty or holds what stands between the parts of an address, and no
    /// process there could be answered.
    pub fn of_parts(node: String, process: &str, package: &str, publisher: &str) -> Option<Self> {
        let process = recent::process_id(process, package, publisher)?;
        is_node_name(&node).then_some(Self { node, process })
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The first part of the process id.
    pub fn process(&self) -> &str {
        self.process.process()
    }

    /// The second part of the process id.
    pub fn package(&self) -> &str {
        self.process.package()
    }

    /// The third part of the process id.
    pub fn publisher(&self) -> &str {
        self.process.publisher()
    }

    /// The package that the process belongs to.
    pub fn package_id(&self) -> PackageId {
        PackageId { package: self.package().into(), publisher: self.publisher().into() }
    }

    /// Returns whether the process is on the node called `our_node`, under that name or as [`OUR`].
    pub fn is_on(&self, our_node: &str) -> bool {
        self.node == our_node || self.node == OUR
    }
}

/// Returns whether an address can name a node so: it is read back up to its first `@`.
pub(super) fn is_node_name(text: &str) -> bool {
    !text.is_empty() && !text.contains('@')
}

impl FromStr for Address {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (node, process) = text.split_once('@').ok_or(ParseAddressError::MissingNode)?;
        if !is_node_name(node) {
            return Err(ParseAddressError::MissingNode);
        }
        if process.contains('@') {
            return Err(ParseAddressError::TooManyAts);
        }
        Ok(Self { node: node.into(), process: process.parse()? })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.node, self.process)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl From<&Address> for Address {
    fn from(address: &Address) -> Self {
        address.clone()
    }
}

impl<N: Into<String>, P: Into<ProcessId>> From<(N, P)> for Address {
    fn from((node, process): (N, P)) -> Self {
        Self::new(node, process)
    }
}

/// For addresses written in source code, such as `("our", "http-server", "distro", "sys")`.
///
/// # Panics
/// When a part of the process id is empty or holds a colon; parse text that came from outside instead.
impl From<(&str, &str, &str, &str)> for Address {
    fn from((node, process, package, publisher): (&str, &str, &str, &str)) -> Self {
        let process = ProcessId::new(process, package, publisher).expect("a literal process id is well-formed");
        Self::new(node, process)
    }
}

impl From<&ProcessId> for ProcessId {
    fn from(process: &ProcessId) -> Self {
        process.clone()
    }
}

impl PartialEq<str> for ProcessId {
    fn eq(&self, text: &str) -> bool {
        self.as_str() == text
    }
}

impl PartialEq<&str> for ProcessId {
    fn eq(&self, text: &&str) -> bool {
        self.as_str() == *text
    }
}

/// Why a string is not an [`Address`] or a [`PackageId`]. The fault is the sender's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseAddressError {
    /// No `@`, or nothing before it.
    #[error("an address is node@process:package:publisher; the node is missing")]
    MissingNode,
    /// More than one `@`.
    #[error("an address holds one @; this one has more")]
    TooManyAts,
    /// The part behind `@` is not a process id, or a package id has not two non-empty parts.
    #[error(transparent)]
    Process(#[from] ParseProcessIdError),
}

/// A package: `package:publisher`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PackageId {
    #[serde(rename = "package_name")]
    package: String,
    #[serde(rename = "publisher_node")]
    publisher: String,
}

impl PackageId {
    /// The package's name.
    pub fn package(&self) -> &str {
        &self.package
    }

    /// The node that published it.
    pub fn publisher(&self) -> &str {
        &self.publisher
    }
}

impl FromStr for PackageId {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (package, publisher) = text.split_once(':').ok_or(ParseProcessIdError::MissingField)?;
        if package.is_empty() || publisher.is_empty() {
            return Err(ParseProcessIdError::MissingField.into());
        }
        if publisher.contains(':') {
            return Err(ParseProcessIdError::TooManyColons.into());
        }
        Ok(Self { package: package.into(), publisher: publisher.into() })
    }
}

impl fmt::Display for PackageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.package, self.publisher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_node_and_one_process() {
        let address: Address = "alice.os@chess:chess:template.os".parse().unwrap();
        assert_eq!(address.node, "alice.os");
        assert_eq!(address.process, "chess:chess:template.os");
        assert_eq!(address.to_string(), "alice.os@chess:chess:template.os");
        assert_eq!(serde_json::to_string(&address).unwrap(), r#""alice.os@chess:chess:template.os""#);
        assert_eq!(address.package_id().to_string(), "chess:template.os");
        assert_eq!(Address::from(("alice.os", "chess", "chess", "template.os")), address);
    }

    #[test]
    fn an_address_of_parts_is_what_it_is_in_text_however_often() {
        for round in 0..3 {
            for process in 0..600 {
                let process = format!("p{process}");
                let address = Address::of_parts("alice.os".into(), &process, "pack", "t.os").unwrap();
                assert_eq!(address.to_string(), format!("alice.os@{process}:pack:t.os"), "{round}");
            }
        }
        for (process, package, publisher) in
            [("", "b", "c"), ("a:b", "c", "d"), ("a", "b:c", "d"), ("a", "b", ""), ("a", "b", "c@d")]
        {
            assert_eq!(Address::of_parts("n".into(), process, package, publisher), None);
        }
        for node in ["", "n@m", "@"] {
            assert_eq!(Address::of_parts(node.into(), "a", "b", "c"), None, "{node}");
        }
        assert_eq!(Address::of_parts("n".into(), "ab", "c", "d").unwrap().process, "ab:c:d");
        assert_eq!(Address::of_parts("n".into(), "a", "bc", "d").unwrap().process, "a:bc:d");
    }

    #[test]
    fn a_malformed_address_says_what_is_wrong() {
        let parse = str::parse::<Address>;
        assert_eq!(parse("chess:chess:template.os"), Err(ParseAddressError::MissingNode));
        assert_eq!(parse("@a:b:c"), Err(ParseAddressError::MissingNode));
        assert_eq!(parse("a@b@c:d:e"), Err(ParseAddressError::TooManyAts));
        assert_eq!(parse("n@a:b"), Err(ParseProcessIdError::MissingField.into()));
        assert_eq!(parse("n@a:b:c:d"), Err(ParseProcessIdError::TooManyColons.into()));
        assert_eq!("a".parse::<PackageId>(), Err(ParseProcessIdError::MissingField.into()));
        assert_eq!("a:b:c".parse::<PackageId>(), Err(ParseProcessIdError::TooManyColons.into()));
    }

    #[test]
    fn our_stands_for_the_node_and_both_spellings_for_the_server() {
        let at = |node| Address::new(node, http_server_process());
        assert!(at("our").is_on("alice.os") && at("alice.os").is_on("alice.os") && !at("bob.os").is_on("alice.os"));
        assert!(is_http_server(&"http_server:distro:sys".parse().unwrap()));
        assert!(is_http_server(&"http-server:distro:sys".parse().unwrap()));
        assert!(!is_http_server(&"http:distro:sys".parse().unwrap()));
    }
}
