//! The bindings of a node's processes, kept at the node's end of a link: a broker that starts anew has none of them.
//!
//! Invariants: the last word about a path is kept, and no other, however the path is spelt; what was bound is replayed
//! in the order in which it was, and behind it what was unbound, since a broker does not remember that of a process
//! that has bound nothing; of that, as much is kept as a broker remembers of others; content is shared, never copied.
//! What is kept is bounded, and one process may hold at most as much as remains free: a path beyond that is not kept,
//! which is reported.

use super::frame::LinkFrame;
use super::wire::{FromPeer, KernelBody, KernelHead};
use crate::gateway::{UNBOUND_MAX, shape};
use crate::node::{ActionRequest, CheckedAction};
use crate::process_id::ProcessId;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem::{Discriminant, discriminant};
use std::sync::Arc;

/// Many times what nodes bind.
const KEPT_MAX: usize = 64 * 1024;

/// Content of paths, in bytes: that of a node's UIs is some tens of MiB.
const KEPT_BYTES_MAX: usize = 256 << 20;

/// The subject of one word.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum BindingKey {
    Http(ProcessId, Arc<str>),
    WebSocket(ProcessId, Arc<str>),
    /// A process of another node that may push to all channels of this one.
    Guest(ProcessId, String),
}

struct KeptBinding {
    about: BindingKey,
    head: KernelHead,
    blob: Bytes,
    /// It takes a path back, or a guest's right.
    is_unbind: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Bindings {
    kept: BTreeMap<u64, KeptBinding>,
    places: HashMap<BindingKey, u64>,
    bytes: usize,
    /// How many words are kept of each process, and their bytes.
    of_process: HashMap<ProcessId, (usize, usize)>,
    /// The places of those that took something back, by process and what that was.
    unbound: HashMap<(ProcessId, Discriminant<BindingKey>), BTreeSet<u64>>,
    said: u64,
}

impl BindingKey {
    fn process(&self) -> &ProcessId {
        match self {
            Self::Http(process, _) | Self::WebSocket(process, _) | Self::Guest(process, _) => process,
        }
    }

    fn kind(&self) -> (ProcessId, Discriminant<Self>) {
        (self.process().clone(), discriminant(self))
    }
}

/// There is no room for one more: it lasts as long as the broker does.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

impl Bindings {
    /// Keeps a request that was found well-formed, if it is about paths or guests of a process: the head and blob that
    /// it was sent as. Gives the place under which it is replayed.
    ///
    /// # Errors
    /// There is no room.
    pub(super) fn keep(
        &mut self,
        request: &ActionRequest,
        head: &KernelHead,
        blob: &Bytes,
    ) -> Result<Option<u64>, NoRoom> {
        let Some(about) = about(request) else { return Ok(None) };
        let process = request.requester().process.clone();
        if let Some(&place) = self.places.get(&about) {
            self.forget(place);
        }
        let is_unbind = matches!(
            request.action,
            CheckedAction::UnbindHttp { .. }
                | CheckedAction::UnbindWebSocket { .. }
                | CheckedAction::Grant { is_granted: false, .. }
        );
        let kept = KeptBinding { about: about.clone(), head: unasked(head), blob: blob.clone(), is_unbind };
        // A process that keeps much leaves as much room for others, so that one that comes late finds some.
        let (count, bytes) = self.of_process.get(&process).copied().unwrap_or_default();
        let free = (KEPT_MAX - self.kept.len(), KEPT_BYTES_MAX - self.bytes);
        if count >= free.0 || bytes + kept.bytes() > free.1 {
            return Err(NoRoom);
        }
        self.said += 1;
        self.count(&process, |count| count + 1, |bytes| bytes + kept.bytes());
        if is_unbind {
            let unbound = self.unbound.entry(about.kind()).or_default();
            unbound.insert(self.said);
            if unbound.len() > UNBOUND_MAX
                && let Some(&oldest) = unbound.first()
            {
                self.forget(oldest);
            }
        }
        self.places.insert(about, self.said);
        self.kept.insert(self.said, kept);
        Ok(Some(self.said))
    }

    /// The word at a place is replaced, or is no broker's any more.
    fn forget(&mut self, place: u64) {
        let Some(kept) = self.kept.remove(&place) else { return };
        self.places.remove(&kept.about);
        self.count(kept.about.process(), |count| count - 1, |bytes| bytes - kept.bytes());
        let kind = kept.about.kind();
        if let Some(unbound) = self.unbound.get_mut(&kind) {
            unbound.remove(&place);
            if unbound.is_empty() {
                self.unbound.remove(&kind);
            }
        }
    }

    /// Changes the counts of words and bytes kept for a process.
    fn count(&mut self, process: &ProcessId, words: impl Fn(usize) -> usize, bytes: impl Fn(usize) -> usize) {
        let of_process = self.of_process.entry(process.clone()).or_default();
        *of_process = (words(of_process.0), bytes(of_process.1));
        if of_process.0 == 0 {
            self.of_process.remove(process);
        }
        self.bytes = bytes(self.bytes);
    }

    /// The places of all that is kept, in the order of replay.
    pub(super) fn places(&self) -> impl Iterator<Item = u64> {
        let of_kind = |is_unbind| self.kept.iter().filter(move |(_, kept)| kept.is_unbind == is_unbind);
        of_kind(false).chain(of_kind(true)).map(|(place, _)| *place)
    }

    /// The word kept at a place, as a message with this id, and its process. None: a later word has replaced it.
    pub(super) fn frame(&self, place: u64, id: u64) -> Option<(LinkFrame, &ProcessId)> {
        let kept = self.kept.get(&place)?;
        let head = KernelHead { id, ..kept.head.clone() };
        Some((LinkFrame::bare(&FromPeer::Kernel(head)).with(kept.blob.clone()), &kept.head.source.process))
    }
}

impl KeptBinding {
    fn bytes(&self) -> usize {
        let body = match &self.head.message {
            KernelBody::Request { body, .. } | KernelBody::Response { body, .. } => body.capacity(),
        };
        // The table's own, and names.
        size_of::<Self>() + 256 + body + self.blob.len()
    }
}

fn about(request: &ActionRequest) -> Option<BindingKey> {
    let process = request.requester().process.clone();
    // What cannot be bound is refused by every broker, under whatever name it is kept.
    let shape = |path: &str| shape(path).unwrap_or_else(|_| path.into());
    match &request.action {
        CheckedAction::BindHttp { path, .. } | CheckedAction::UnbindHttp { path } => {
            Some(BindingKey::Http(process, shape(path)))
        }
        CheckedAction::BindWebSocket { path, .. } | CheckedAction::UnbindWebSocket { path } => {
            Some(BindingKey::WebSocket(process, shape(path)))
        }
        CheckedAction::Grant { channel: None, guest, .. } => Some(BindingKey::Guest(process, guest.to_string())),
        CheckedAction::Grant { .. }
        | CheckedAction::Push { .. }
        | CheckedAction::PushMany { .. }
        | CheckedAction::Subscribe { .. }
        | CheckedAction::Close { .. } => None,
    }
}

/// The same, without a request for an answer.
fn unasked(head: &KernelHead) -> KernelHead {
    let message = match &head.message {
        KernelBody::Request { body, .. } => KernelBody::Request {
            inherit: false,
            expects_response: None,
            body: body.clone(),
            metadata: None,
            capabilities: Vec::new(),
        },
        response @ KernelBody::Response { .. } => response.clone(),
    };
    KernelHead { rsvp: None, message, ..head.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::convert;
    use crate::node::{Address, Dialect, Inbound, KernelMessage, LazyLoadBlob, Message, dispatch, http_server_process};

    fn say(bindings: &mut Bindings, process: &str, body: &str, blob: &str) -> Option<u64> {
        let message = KernelMessage {
            id: 7,
            source: Address::new("our", process.parse::<ProcessId>().unwrap()),
            target: Address::new("our", http_server_process()),
            rsvp: None,
            message: Message::request(false, Some(5), body.into(), None),
            lazy_load_blob: Some(LazyLoadBlob { mime: None, bytes: blob.into() }),
        };
        let Inbound::Action(request) = dispatch(message.clone(), "alice.os", Dialect::Kinode) else {
            panic!("{body} is refused")
        };
        let (head, blob) = convert::take_apart(message);
        bindings.keep(&request, &head, &blob).unwrap()
    }

    fn bind(path: &str, authenticated: bool) -> String {
        format!(r#"{{"Bind":{{"path":"{path}","authenticated":{authenticated},"local_only":false,"cache":true}}}}"#)
    }

    #[test]
    fn the_last_word_for_a_path_is_kept_in_its_order() {
        let mut bindings = Bindings::default();
        let first = say(&mut bindings, "a:a:sys", &bind("/x/", false), "old").unwrap();
        let other = say(&mut bindings, "b:b:sys", &bind("x", false), "its own").unwrap();
        let websocket = r#"{"WebSocketBind":{"path":"/x","authenticated":false,"extension":false}}"#;
        let socket = say(&mut bindings, "a:a:sys", websocket, "").unwrap();
        let again = say(&mut bindings, "a:a:sys", &bind("x", true), "new").unwrap();
        assert_eq!(bindings.places().collect::<Vec<_>>(), [other, socket, again]);
        assert!(bindings.frame(first, 1).is_none());
        let unbound = say(&mut bindings, "a:a:sys", r#"{"Unbind":{"path":"/x"}}"#, "").unwrap();
        assert_eq!(bindings.places().collect::<Vec<_>>(), [other, socket, unbound]);
        // A pattern by its shape, and what was unbound behind all that was bound.
        say(&mut bindings, "a:a:sys", &bind("/:room/a", false), "").unwrap();
        let room = say(&mut bindings, "a:a:sys", &bind("/:name/a", false), "").unwrap();
        assert_eq!(bindings.places().collect::<Vec<_>>(), [other, socket, room, unbound]);
        assert_eq!(say(&mut bindings, "a:a:sys", r#"{"WebSocketClose":7}"#, ""), None);
        assert_eq!(bindings.frame(other, 1).unwrap().1.as_str(), "b:b:sys");
    }

    #[test]
    fn as_much_of_what_was_unbound_is_kept_as_a_broker_remembers() {
        let mut bindings = Bindings::default();
        let page = say(&mut bindings, "a:a:sys", &bind("/page", false), "").unwrap();
        for number in 0..3 * UNBOUND_MAX {
            say(&mut bindings, "a:a:sys", &bind(&format!("/call/{number}"), false), "content").unwrap();
            say(&mut bindings, "a:a:sys", &format!(r#"{{"Unbind":{{"path":"/call/{number}"}}}}"#), "").unwrap();
            say(&mut bindings, "b:b:sys", &format!(r#"{{"WebSocketUnbind":{{"path":"/{number}"}}}}"#), "").unwrap();
            let guest = format!("bob{number}.os@c:c:sys");
            for word in ["WebSocketGrant", "WebSocketRevoke"] {
                say(&mut bindings, "c:c:sys", &format!(r#"{{"{word}":{{"address":"{guest}"}}}}"#), "").unwrap();
            }
        }
        assert_eq!(bindings.places().next(), Some(page));
        assert_eq!((bindings.kept.len(), bindings.places.len()), (3 * UNBOUND_MAX + 1, 3 * UNBOUND_MAX + 1));
        let last = format!("/call/{}", 3 * UNBOUND_MAX - 1);
        let again = say(&mut bindings, "a:a:sys", &bind(&last, false), "").unwrap();
        assert_eq!(bindings.places().nth(1), Some(again));
        assert_eq!(bindings.unbound.values().map(BTreeSet::len).sum::<usize>(), 3 * UNBOUND_MAX - 1);
    }

    #[test]
    fn the_page_for_nodes_has_the_numbers_that_are_in_force() {
        let page: Vec<&str> = include_str!("../../docs/NODE.md").split_whitespace().collect();
        let page = page.join(" ");
        let window = crate::link::config::WINDOW;
        for said in [
            format!("{} Ki paths and {} MiB of their content are kept", KEPT_MAX >> 10, KEPT_BYTES_MAX >> 20),
            format!(
                "window ({},{:03} messages, {} MiB)",
                window.frames / 1000,
                window.frames % 1000,
                window.bytes >> 20
            ),
        ] {
            assert!(page.contains(&said), "docs/NODE.md does not say: {said}");
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_replaced_is_let_go() {
        let mut bindings = Bindings::default();
        let content = "x".repeat(1 << 20);
        for round in 0..600 {
            assert!(say(&mut bindings, "a:a:sys", &bind("/x", round % 2 == 0), &content).is_some());
        }
        assert!(bindings.bytes < 2 << 20, "{} bytes", bindings.bytes);
        bindings.bytes = KEPT_BYTES_MAX / 2;
        bindings.of_process.insert("b:b:sys".parse().unwrap(), (1, KEPT_BYTES_MAX / 2));
        let some = "x".repeat(64 << 20);
        assert!(say(&mut bindings, "a:a:sys", &bind("/some", false), &some).is_some(), "half of what is free");
        assert!(say(&mut bindings, "c:c:sys", &bind("/late", false), &some[..60 << 20]).is_some());
        bindings.bytes = KEPT_BYTES_MAX;
        let request = |action| ActionRequest {
            action,
            reply: crate::node::Reply::unasked(1, "our@a:a:sys".parse().unwrap(), Default::default()),
        };
        let message = convert::take_apart(crate::node::unreadable_response(1, "our@a:a:sys".parse().unwrap()));
        let more = request(CheckedAction::UnbindHttp { path: "/y".into() });
        assert_eq!(bindings.keep(&more, &message.0, &message.1), Err(NoRoom));
    }
}
