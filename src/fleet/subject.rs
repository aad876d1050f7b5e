//! Subjects: `pushring.v1.FLEET.SOURCE.KIND.TOPIC`.
//!
//! Names that users choose (topics, paths, processes) are hashed: they may contain characters with a meaning in NATS,
//! and a topic named `>` must match nothing but itself. The receiver compares the names in the header with the subject.

use super::names::Name;
use crate::process_id::ProcessId;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// The prefix of all subjects of this version.
pub(super) const PREFIX: &str = "pushring.v1";

/// The kind of a message; each has its word in the subject and its number in the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// To the subscribers of a topic of a process.
    Topic,
    /// To the channels of a process on a path.
    Path,
    /// To all channels of a process.
    Process,
    /// To some channels of a process on one node.
    Channels,
    /// About the node that says it.
    Node,
    /// The numbers that a node has come to.
    Tails,
    /// Whether a node listens to an audience of which the outcome is asked.
    Ask,
    /// To one node: what became of its push.
    Answer,
    /// To some channels on one node, of whatever processes have let the sender in. Subject and numbers are those of
    /// [`Channels`](Self::Channels).
    Guest,
    /// How many subscribers a node has of a topic.
    Count,
    /// To one node: to tell of a channel of its own. Its subject is that of [`Channels`](Self::Channels).
    Look,
    /// To one node: to close a channel of its own, as its operator does. The same subject.
    Close,
    /// To one node: the channel that it has asked for. Its subject is that of [`Answer`](Self::Answer).
    Shown,
    /// How far each node has counted for audiences that the asking one has begun to listen to. Its subject is that of
    /// [`Ask`](Self::Ask).
    Where,
    /// To one node: how far this one has counted. Its subject is that of [`Answer`](Self::Answer).
    Stood,
}

impl Kind {
    /// All of them; each stands at its number.
    pub(super) const ALL: [Self; 15] = [
        Self::Topic,
        Self::Path,
        Self::Process,
        Self::Channels,
        Self::Node,
        Self::Tails,
        Self::Ask,
        Self::Answer,
        Self::Guest,
        Self::Count,
        Self::Look,
        Self::Close,
        Self::Shown,
        Self::Where,
        Self::Stood,
    ];

    /// Its number in a header.
    pub(super) fn number(self) -> u8 {
        self as u8
    }

    /// The reverse.
    pub(super) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its word in a subject.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::Path => "path",
            Self::Process => "process",
            Self::Channels | Self::Guest | Self::Look | Self::Close => "channels",
            Self::Node => "node",
            Self::Tails => "tails",
            Self::Ask | Self::Where => "ask",
            Self::Count => "count",
            Self::Answer | Self::Shown | Self::Stood => "answer",
        }
    }

    /// Returns whether a message of this kind has a list of channels in the place of a name.
    pub(super) fn has_channels(self) -> bool {
        matches!(self, Self::Channels | Self::Guest | Self::Look | Self::Close)
    }
}

/// An audience as numbers are kept for it: the last two parts of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct AudienceKey {
    /// The kind of audience.
    pub kind: Kind,
    /// The hash of its names.
    pub hash: [u8; 16],
}

impl AudienceKey {
    /// Of names that belong together; no other names have the same.
    fn of(kind: Kind, process: &str, name: &str) -> Self {
        let mut hasher = Sha256::new();
        // A process' id has no zero byte, and is thus told from what follows.
        for part in [kind.word().as_bytes(), b"\0", process.as_bytes(), b"\0", name.as_bytes()] {
            hasher.update(part);
        }
        let mut hash = [0; 16];
        hash.copy_from_slice(&hasher.finalize()[..16]);
        Self { kind, hash }
    }

    /// The audience of one node's channels.
    pub(super) fn to_node(node: &Name) -> Self {
        Self::of(Kind::Channels, "", node.as_str())
    }

    /// The last part of its subject.
    fn token(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.hash)
    }
}

/// An audience that may have members on every node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Target {
    /// Whose channels.
    pub process: ProcessId,
    /// Which of them.
    pub to: NamedAudience,
}

/// Which channels of a process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum NamedAudience {
    /// The subscribers of this topic.
    Topic(Arc<str>),
    /// Those on this path.
    Path(Arc<str>),
    /// All.
    Process,
}

impl Target {
    /// Its kind.
    pub(super) fn kind(&self) -> Kind {
        match self.to {
            NamedAudience::Topic(_) => Kind::Topic,
            NamedAudience::Path(_) => Kind::Path,
            NamedAudience::Process => Kind::Process,
        }
    }

    /// The name within its process; empty for all of it.
    pub(super) fn name(&self) -> &str {
        match &self.to {
            NamedAudience::Topic(name) | NamedAudience::Path(name) => name,
            NamedAudience::Process => "",
        }
    }

    /// Under which its numbers are kept.
    pub(super) fn line(&self) -> AudienceKey {
        AudienceKey::of(self.kind(), self.process.as_str(), self.name())
    }
}

/// The subjects of one fleet.
#[derive(Debug, Clone)]
pub(super) struct Subjects {
    fleet: Name,
}

/// A subject that was taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SubjectParts<'a> {
    /// The sending node.
    pub source: &'a str,
    /// The kind's word.
    pub kind: &'a str,
    /// The rest.
    pub token: &'a str,
}

impl Subjects {
    /// Of `fleet`.
    pub(super) fn new(fleet: Name) -> Self {
        Self { fleet }
    }

    fn make(&self, source: &str, kind: Kind, token: &str) -> String {
        format!("{PREFIX}.{}.{source}.{}.{token}", self.fleet, kind.word())
    }

    /// The subject of messages from `source` to an audience; `*` is any source.
    pub(super) fn of_line(&self, source: &str, line: &AudienceKey) -> String {
        self.make(source, line.kind, &line.token())
    }

    /// The subject of messages from `source` to `node` alone: to channels of it, or an answer.
    pub(super) fn to_node(&self, source: &str, kind: Kind, node: &str) -> String {
        self.make(source, kind, node)
    }

    /// The subject of messages from `source` to all nodes.
    pub(super) fn of_all(&self, source: &str, kind: Kind) -> String {
        self.make(source, kind, "all")
    }

    /// Where answers to `node` come.
    pub(super) fn inbox(&self, node: &Name) -> String {
        format!("{PREFIX}.{}.{node}.inbox", self.fleet)
    }

    /// A subject of `node`'s without a listener.
    pub(super) fn nowhere(&self, node: &Name) -> String {
        format!("{PREFIX}.{}.{node}.nowhere.x", self.fleet)
    }

    /// Takes a subject apart. None: it is none of this fleet's.
    pub(super) fn parse<'a>(&self, subject: &'a str) -> Option<SubjectParts<'a>> {
        let rest = subject.strip_prefix(PREFIX)?.strip_prefix('.')?;
        let rest = rest.strip_prefix(self.fleet.as_str())?.strip_prefix('.')?;
        let mut parts = rest.split('.');
        let (source, kind, token) = (parts.next()?, parts.next()?, parts.next()?);
        parts.next().is_none().then_some(SubjectParts { source, kind, token })
    }

    /// Returns whether the last part of a subject is that of this line.
    pub(super) fn is_of(token: &str, line: &AudienceKey) -> bool {
        token == line.token()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(process: &str, to: NamedAudience) -> Target {
        Target { process: process.parse().unwrap(), to }
    }

    #[test]
    fn what_means_something_to_nats_means_nothing_in_a_subject() {
        let subjects = Subjects::new(Name::new("main").unwrap());
        for name in [">", "*", "a.b", " ", "", "\0", "room/7", &"x".repeat(255)] {
            let line = target("chat:demo:sys", NamedAudience::Topic(name.into())).line();
            let subject = subjects.of_line("node-1", &line);
            assert_eq!(subject.split('.').count(), 6, "{subject}");
            let parts = subjects.parse(&subject).unwrap();
            assert_eq!((parts.source, parts.kind), ("node-1", "topic"));
            assert!(Subjects::is_of(parts.token, &line) && parts.token.len() == 22);
            assert!(!parts.token.contains(['>', '*', ' ']));
        }
    }

    #[test]
    fn no_two_audiences_share_a_subject() {
        let lines = [
            target("a:b:c", NamedAudience::Process),
            target("a:b:d", NamedAudience::Process),
            target("a:b:c", NamedAudience::Topic("x".into())),
            target("a:b:c", NamedAudience::Path("x".into())),
            target("a:b:c", NamedAudience::Path("".into())),
            target("a:b:d", NamedAudience::Topic("x".into())),
            target("a:b:c", NamedAudience::Topic("y".into())),
        ];
        let mut lines: Vec<_> = lines.iter().map(Target::line).collect();
        lines.push(AudienceKey::to_node(&Name::new("x").unwrap()));
        let all: std::collections::HashSet<_> = lines.iter().collect();
        assert_eq!(all.len(), lines.len());
    }

    #[test]
    fn only_subjects_of_this_fleet_are_taken_apart() {
        let subjects = Subjects::new(Name::new("main").unwrap());
        assert!(subjects.parse("pushring.v1.main.n.topic.x").is_some());
        for other in [
            "",
            "pushring",
            "pushring.v1.mainx.n.topic.x",
            "pushring.v1.other.n.topic.x",
            "pushring.v2.main.n.topic.x",
            "pushring.v1.main.n.topic",
            "pushring.v1.main.n.topic.x.y",
        ] {
            assert_eq!(subjects.parse(other), None, "{other}");
        }
        for kind in Kind::ALL {
            assert_eq!(Kind::from_number(kind.number()), Some(kind));
        }
        assert_eq!(Kind::from_number(Kind::ALL.len() as u8), None);
    }
}
