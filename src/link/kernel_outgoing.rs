//! From a node's kernel to the broker at the other end of a link, whether or not it is there.
//!
//! Invariants: the kernel is never made to wait for a broker that is gone or hangs. Paths are kept and sent again to
//! every broker that begins anew, before anything else; they are answered at once while there is none. Other messages
//! that cannot be sent are answered as a broker without channels would, since there are none. Each request is answered
//! once: requests that were sent and not answered when their session ended are answered then.

use super::bindings::{Bindings, NoRoom};
use super::convert;
use super::frame::LinkFrame;
use super::frame_queue::QueueEnded;
use super::peer::PeerShared;
use super::wire::{FromPeer, KernelHead};
use crate::node::calls::AddressedName;
use crate::node::outbound::MessageIds;
use crate::node::perform::described;
use crate::node::prints::{SHOWN, TerminalPrinter, VERBOSE};
use crate::node::service::TAKEN_AT_ONCE_MAX;
use crate::node::{
    ActionRequest, CheckedAction, Dialect, Host, HttpServerError, Inbound, KernelMessage, LazyLoadBlob, Message,
    PushCounts, Reply, ServerName, dispatch, unreadable_response,
};
use crate::words::audience::Audience;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How often it is looked whether there is room for what is left to be said again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A broker takes what it is sent at CPU speed: one that makes no room for so long hangs.
const ROOM_WITHIN: Duration = Duration::from_secs(1);

/// The most unanswered questions; those beyond it get no answer when their session ends.
const ASKED_MAX: usize = 64 * 1024;

/// How often those that are not waited for any more are looked for, once there are many.
const LOOK_FOR_LATE_EVERY: Duration = Duration::from_secs(1);

/// A session as the outgoing side needs it.
pub(super) struct KernelSession<T> {
    pub shared: Arc<PeerShared<T>>,
    pub dialect: Dialect,
    pub head_bytes_max: usize,
    pub blob_bytes_max: usize,
}

/// Questions that the broker has not answered.
#[derive(Default)]
pub(super) struct Unanswered(Mutex<UnansweredState>);

#[derive(Default)]
struct UnansweredState {
    /// The answers to give if the broker gives none, by the id of the question, and until when they are waited for.
    asked: HashMap<u64, (KernelMessage, Option<Instant>)>,
    /// When those that are not waited for any more were last looked for.
    looked_at: Option<Instant>,
    /// Paths that were said again, by the id of their message.
    said_again: HashMap<u64, String>,
}

impl Unanswered {
    fn lock(&self) -> MutexGuard<'_, UnansweredState> {
        // Every change is one call on a map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of an answer. It is the kernel's, unless it is a refusal of what was said again: the words of that.
    pub(super) fn answered(&self, id: u64) -> Option<String> {
        let mut waiting = self.lock();
        waiting.asked.remove(&id);
        waiting.said_again.remove(&id)
    }

    /// Takes note of a question whose answer is waited for so long; false, and nothing taken, if there are too many.
    fn ask(&self, id: u64, instead: &mut Option<KernelMessage>, wait_s: Option<u64>, now: Instant) -> bool {
        let mut waiting = self.lock();
        waiting.forget_late(now);
        let has_room = waiting.asked.len() < ASKED_MAX;
        if has_room {
            let until = wait_s.and_then(|seconds| now.checked_add(Duration::from_secs(seconds)));
            waiting.asked.extend(instead.take().map(|answer| (id, (answer, until))));
        }
        has_room
    }

    /// A question was not sent: what is to be answered, unless that was done already.
    fn withdraw(&self, id: u64) -> Option<KernelMessage> {
        self.lock().asked.remove(&id).map(|(answer, _)| answer)
    }

    /// The session is over: what is to be answered now.
    pub(super) fn give_up(&self) -> Vec<KernelMessage> {
        let mut waiting = self.lock();
        waiting.said_again.clear();
        waiting.asked.drain().map(|(_, (answer, _))| answer).collect()
    }
}

impl UnansweredState {
    /// Forgets questions whose process has been told by its kernel that nobody answers. The broker leaves some without
    /// an answer: those that are an extension's to answer, which may not.
    fn forget_late(&mut self, now: Instant) {
        let is_due = self.looked_at.is_none_or(|at| now.duration_since(at) >= LOOK_FOR_LATE_EVERY);
        if self.asked.len() >= ASKED_MAX / 2 && is_due {
            self.asked.retain(|_, (_, until)| until.is_none_or(|until| now < until));
            self.looked_at = Some(now);
        }
    }
}

/// See the module.
pub(super) struct KernelOutgoing<H: Host, T> {
    host: Arc<H>,
    our_node: String,
    prints: TerminalPrinter<H>,
    to_kernel: mpsc::Sender<H::Message>,
    unanswered: Arc<Unanswered>,
    name: Arc<AddressedName>,
    dialect: Dialect,
    bindings: Bindings,
    session: Option<KernelSession<T>>,
    was_attached: bool,
    /// Places of paths that are still to be said again.
    again: VecDeque<u64>,
    ids: MessageIds,
    answers: VecDeque<KernelMessage>,
    /// The last attempt to send found no room in time: the next does not wait.
    hangs: bool,
}

impl<H: Host, T> KernelOutgoing<H, T> {
    pub(super) fn new(
        host: Arc<H>,
        our_node: String,
        prints: TerminalPrinter<H>,
        to_kernel: mpsc::Sender<H::Message>,
        unanswered: Arc<Unanswered>,
        name: Arc<AddressedName>,
    ) -> Self {
        Self {
            host,
            our_node,
            prints,
            to_kernel,
            unanswered,
            name,
            dialect: Dialect::default(),
            bindings: Bindings::default(),
            session: None,
            was_attached: false,
            again: VecDeque::new(),
            ids: MessageIds::new(),
            answers: VecDeque::new(),
            hangs: false,
        }
    }

    /// Serves until the node kernel or the source of sessions goes; without a session it reports that there is no
    /// broker. Blocks its thread for [`ROOM_WITHIN`] at most.
    pub(super) async fn run(
        mut self,
        mut from_kernel: mpsc::Receiver<H::Message>,
        mut sessions: mpsc::Receiver<Option<KernelSession<T>>>,
    ) {
        // A broker that is there executes and answers itself, from the first message on.
        match tokio::time::timeout(ROOM_WITHIN, sessions.recv()).await {
            Ok(Some(Some(session))) => self.begin(session),
            Ok(Some(None)) | Err(_) => {}
            Ok(None) => return,
        }
        let mut messages = Vec::with_capacity(TAKEN_AT_ONCE_MAX);
        let to_kernel = self.to_kernel.clone();
        loop {
            tokio::select! {
                session = sessions.recv() => match session {
                    Some(session) => session.into_iter().for_each(|session| self.begin(session)),
                    None => return,
                },
                () = tokio::time::sleep(LOOK_AGAIN), if !self.again.is_empty() => {}
                taken = from_kernel.recv_many(&mut messages, TAKEN_AT_ONCE_MAX) => if taken == 0 {
                    return; // The kernel has gone.
                },
                room = to_kernel.reserve(), if !self.answers.is_empty() => match (room, self.answers.pop_front()) {
                    (Ok(room), Some(answer)) => room.send(self.host.to_node(answer)),
                    _ => return,
                },
            }
            // A session that has just begun comes before what the kernel says meanwhile.
            if let Ok(Some(session)) = sessions.try_recv() {
                self.begin(session);
            }
            self.say_again();
            for message in messages.drain(..) {
                if let Some(message) = self.host.to_ours(message) {
                    self.take(message);
                }
            }
            while !self.answers.is_empty()
                && let Ok(room) = to_kernel.try_reserve()
                && let Some(answer) = self.answers.pop_front()
            {
                room.send(self.host.to_node(answer));
            }
        }
    }

    /// A broker that may know nothing: everything is said again.
    fn begin(&mut self, session: KernelSession<T>) {
        self.dialect = session.dialect;
        self.session = Some(session);
        self.was_attached = true;
        self.hangs = false;
        self.again = self.bindings.places().collect();
    }

    fn say_again(&mut self) {
        while let Some(&place) = self.again.front() {
            let id = self.ids.next();
            if let Some((frame, process)) = self.bindings.frame(place, id) {
                let words = format!("a path of {process}, or a guest");
                if self.fits(&frame) {
                    self.unanswered.lock().said_again.insert(id, words);
                    match self.offer(frame) {
                        SendResult::Sent => {}
                        SendResult::NoRoom => return drop(self.unanswered.answered(id)),
                        SendResult::NoSession => return,
                    }
                } else {
                    self.prints.say(SHOWN, &format!("{words}: its content is larger than the broker takes"));
                }
            }
            self.again.pop_front();
        }
    }

    /// Sends a message, or answers it here.
    fn take(&mut self, message: KernelMessage) {
        let server = ServerName::of(&message.target.process).unwrap_or_default();
        self.name.set(server);
        let (id, source) = (message.id, message.source.clone());
        let (is_request, is_asked, wait_s) = match &message.message {
            Message::Request(request) => {
                let wait_s = request.expects_response;
                (true, wait_s.is_some() || message.rsvp.is_some(), wait_s)
            }
            Message::Response(_) => (false, false, None),
        };
        let is_refused = is_request && OF_A_CHANNEL.iter().any(|order| message.message.body().starts_with(order));
        let judged = self.judge(&message, is_asked);
        let (head, blob) = convert::take_apart(message);
        let place = match &judged {
            Some(Inbound::Action(request)) => self.keep(request, &head, &blob),
            _ => None,
        };
        let refused = |error| Some(Reply::unasked(id, source.clone(), server).refused(error));
        let mut instead = match judged {
            Some(Inbound::Action(request)) => without_channels(request),
            Some(Inbound::Refused(answer)) => Some(answer),
            Some(Inbound::Response { .. }) => None,
            None if is_refused => refused(HttpServerError::WsChannelNotFound),
            None => None,
        };
        if let Some(place) = place.filter(|_| !self.again.is_empty()) {
            // Behind those that were said before it.
            self.again.push_back(place);
            return self.answers.extend(instead);
        }
        let mut frame = LinkFrame::bare(&FromPeer::Kernel(head)).with(blob);
        if !self.fits(&frame) {
            if is_request {
                return self.answers.extend(refused(HttpServerError::MalformedRequest));
            }
            // A response that does not parse is answered 500.
            frame = convert::kernel_from(unreadable_response(id, source));
        }
        let is_tracked = is_asked && instead.is_some() && self.unanswered.ask(id, &mut instead, wait_s, Instant::now());
        let offered = self.offer(frame);
        if offered == SendResult::Sent {
            return;
        }
        if offered == SendResult::NoRoom {
            self.again.extend(place);
        }
        // Answered already, if the session's end came in between.
        self.answers.extend(if is_tracked { self.unanswered.withdraw(id) } else { instead });
    }

    /// The broker's reading of a request, if needed: it may concern paths, or an answer is expected.
    fn judge(&self, message: &KernelMessage, is_asked: bool) -> Option<Inbound> {
        let Message::Request(request) = &message.message else { return None };
        if !is_asked && OF_A_CHANNEL.iter().chain(&OF_MANY).any(|order| request.body.starts_with(order)) {
            return None;
        }
        // Whether there is a blob decides, not what it holds.
        let small = KernelMessage {
            id: message.id,
            source: message.source.clone(),
            target: message.target.clone(),
            rsvp: message.rsvp.clone(),
            message: Message::request(false, request.expects_response, request.body.clone(), None),
            lazy_load_blob: message.lazy_load_blob.as_ref().map(|_| LazyLoadBlob::default()),
        };
        Some(dispatch(small, &self.our_node, self.dialect))
    }

    fn keep(&mut self, request: &ActionRequest, head: &KernelHead, blob: &Bytes) -> Option<u64> {
        match self.bindings.keep(request, head, blob) {
            Ok(place) => {
                // A node first prints its address.
                if place.is_some() && self.was_attached {
                    self.prints.say(VERBOSE, &described(request));
                }
                place
            }
            Err(NoRoom) => {
                let words = described(request);
                self.prints.say(SHOWN, &format!("{words}: too much is bound to do so again when the broker restarts"));
                None
            }
        }
    }

    fn fits(&self, frame: &LinkFrame) -> bool {
        self.session.as_ref().is_none_or(|session| frame.fits(session.head_bytes_max, session.blob_bytes_max))
    }

    fn offer(&mut self, frame: LinkFrame) -> SendResult {
        let Some(session) = &self.session else { return SendResult::NoSession };
        let patience = if self.hangs { Duration::ZERO } else { ROOM_WITHIN };
        match session.shared.frames.offer(frame, (), patience) {
            Ok(is_sent) => {
                self.hangs = !is_sent;
                if is_sent { SendResult::Sent } else { SendResult::NoRoom }
            }
            Err(QueueEnded) => {
                self.session = None;
                self.again.clear();
                SendResult::NoSession
            }
        }
    }
}

/// The result of sending a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendResult {
    Sent,
    /// The connection is lost, or the broker hangs, and what it has not taken is as much as may be.
    NoRoom,
    NoSession,
}

/// Orders that are about one channel alone, as all process libraries write them: where it is not there they are
/// refused, asked or not.
const OF_A_CHANNEL: [&[u8]; 4] =
    [b"{\"WebSocketPush\"", b"{\"WebSocketExtPushOutgoing\"", b"{\"WebSocketSubscribe\"", b"{\"WebSocketUnsubscribe\""];

/// Those about many, which reach no channel then.
const OF_MANY: [&[u8]; 3] = [b"{\"WebSocketPushMany\"", b"{\"WebSocketBroadcast\"", b"{\"WebSocketPublish\""];

/// The answer of a broker that has no channels; paths are bound there when it is back.
fn without_channels(request: ActionRequest) -> Option<KernelMessage> {
    let ActionRequest { action, reply } = request;
    match action {
        CheckedAction::BindHttp { .. }
        | CheckedAction::UnbindHttp { .. }
        | CheckedAction::BindWebSocket { .. }
        | CheckedAction::UnbindWebSocket { .. }
        | CheckedAction::Grant { channel: None, .. }
        // Closing a closed channel is no failure (node contract, section 3).
        | CheckedAction::Close { .. } => reply.done(),
        CheckedAction::PushMany { audience, .. } => {
            let not_found = match audience {
                Audience::Channels(channels) => channels.len() as u64,
                _ => 0,
            };
            reply.counted(PushCounts { not_found, ..PushCounts::default() })
        }
        CheckedAction::Push { .. } | CheckedAction::Subscribe { .. } | CheckedAction::Grant { .. } => Some(reply.refused(HttpServerError::WsChannelNotFound)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_that_nobody_answers_take_no_place_from_others_for_ever() {
        let unanswered = Unanswered::default();
        let reply = || Reply::unasked(1, "our@p:p:t.os".parse().unwrap(), ServerName::default());
        let answer = || Some(reply().refused(HttpServerError::WsChannelNotFound));
        let now = Instant::now();
        for id in 0..ASKED_MAX as u64 {
            assert!(unanswered.ask(id, &mut answer(), (id % 2 == 0).then_some(5), now));
        }
        let later = |seconds| now + Duration::from_secs(seconds);
        assert!(!unanswered.ask(u64::MAX, &mut answer(), None, later(4)), "all are still waited for");
        assert!(unanswered.ask(u64::MAX, &mut answer(), None, later(5)));
        assert_eq!(unanswered.give_up().len(), ASKED_MAX / 2 + 1, "those without a time are kept");
    }
}
