//! HTTP on a connection: requests that are answered here, passed to a process, or become WebSockets.
//!
//! Invariants: one request at a time is being answered, so responses keep their order; a waiting request is answered
//! exactly once, by its process or by its deadline; bytes behind an upgrade request are frames; a request that its head
//! alone refuses is answered before its body is taken in.

use crate::admission::HeapBytes;
use crate::channel::ChannelId;
use crate::gateway::{self, Entry, OwnerId, TokenError};
use crate::http::{self, AfterResponse, HttpStep, PreparedResponse, connection::HttpPhase};
use crate::proto::deflate::{DeflateContext, Terms, negotiate};
use crate::proto::{self, MessageKind, UpgradeError, upgrade};
use crate::resume::{self, ResumeToken};
use crate::shard::command::RespondCommand;
use crate::shard::config::Deflate;
use crate::shard::core::Shard;
use crate::shard::event::{Event, HttpAsk, HttpRequest, Opened, RequestId};
use crate::shard::intake::exchange::{Exchange, PendingRequest};
use crate::shard::memory::SharedCharge;
use crate::shard::out::kept_channels::ResumeHolder;
use crate::shard::owners::directory::{Directory, Owner};
use crate::shard::table::arrival::{ResumeRequest, StreamRequest, Upgraded};
use crate::shard::table::connection::{ConnectionPhase, Flag, Linger, Registering, SocketEnd};
use crate::shard::table::opening::Opening;
use crate::shard::table::relayed_message::{RelayedMessage, no_such_stream};
use crate::shard::table::slot::Slot;
use crate::shard::table::stopping;
use crate::shard::work;
use crate::sse;
use bytes::Bytes;
use smallvec::SmallVec;
use std::sync::Arc;

/// How long a message of a client that only receives may wait for the shard of its channel.
const SAID_TIMEOUT_S: u32 = 15;

/// The decision on a request; owned, so that the request's bytes may be released.
enum Decision {
    Answer(PreparedResponse),
    Ask { owner: OwnerId, timeout_s: u32, ask: HttpAsk, body: Bytes },
    Upgrade { response: Vec<u8>, ws: proto::WebSocketConnection, target: UpgradeTarget },
    Say { timeout_s: u32, message: UpwardMessage },
}

/// A message of a client that only receives.
struct UpwardMessage {
    owner: OwnerId,
    channel: ChannelId,
    token: ResumeToken,
    holder: ResumeHolder,
    kind: MessageKind,
    payload: Bytes,
}

enum UpgradeTarget {
    Bound {
        owner: Arc<Owner>,
        bound_path: Arc<str>,
        path: Arc<str>,
        forwarded_for: Option<Box<str>>,
        extension: bool,
        /// Where the channel is to outlive its connection.
        wish: Option<ResumeRequest>,
    },
    Register {
        forwarded_for: Option<Box<str>>,
    },
    /// It is told why by a close frame.
    Refused {
        code: u16,
        why: TokenError,
    },
}

impl Shard {
    pub(in crate::shard) fn receive_http(&mut self, slot: Slot, bytes: &mut [u8]) {
        let ending = ConnectionPhase::Ending(Linger::default());
        let phase = std::mem::replace(&mut self.table[slot].phase, ending);
        let ConnectionPhase::Http(mut exchange) = phase else { unreachable!("only HTTP connections come here") };
        let directory = self.owners.directory().clone();
        let client = self.table[slot].client_of_requests();
        let mut pending = None;
        let Exchange { http, origin, .. } = &mut *exchange;
        let decision = match http.feed(bytes) {
            HttpStep::Wait => None,
            HttpStep::BodyPending { head, send_continue } => {
                self.work.spend(work::REQUEST_NS);
                let entry = self.enter(&directory, &head, client);
                *origin = origin_of(&entry);
                let body_bytes_max = self.body_bytes_max(&entry);
                match self.refuse_by_head(&directory, entry, head) {
                    None => {
                        pending = Some((body_bytes_max, send_continue));
                        None
                    }
                    refusal => refusal.map(Decision::Answer),
                }
            }
            HttpStep::Rejected(rejection) => Some(Decision::Answer(rejection.response())),
            HttpStep::Request(request) => {
                self.stats.requests += 1;
                self.work.spend(work::REQUEST_NS);
                Some(self.check_request(slot, &directory, client, request, origin))
            }
        };
        let decision = match pending {
            Some((body_bytes_max, send_continue)) => match exchange.http.limit_body(body_bytes_max) {
                Ok(()) => {
                    if send_continue {
                        self.send_opaque(slot, http::CONTINUE, Bytes::new());
                    }
                    None
                }
                Err(rejection) => Some(Decision::Answer(rejection.response())),
            },
            None => decision,
        };
        self.work.spend(exchange.http.take_framing_bytes() as u64 * work::CHUNK_FRAMING_NS);
        self.carry_out(slot, exchange, decision);
    }

    /// Does what was decided about what its client has sent. None: the rest of that is waited for.
    fn carry_out(&mut self, slot: Slot, exchange: Box<Exchange>, decision: Option<Decision>) {
        match decision {
            None => {
                self.table[slot].phase = ConnectionPhase::Http(exchange);
                if self.table[slot].flags.has(Flag::HalfClosed) {
                    // All that its client has asked for has been answered; the rest of this will not come.
                    return self.connection_failed(slot);
                }
                self.set_http_deadline(slot);
            }
            Some(Decision::Answer(response)) => {
                self.table[slot].phase = ConnectionPhase::Http(exchange);
                self.answer(slot, response);
            }
            Some(Decision::Ask { owner, timeout_s, ask, body }) => {
                self.table[slot].phase = ConnectionPhase::Http(exchange);
                self.ask(slot, owner, timeout_s, ask, body);
            }
            Some(Decision::Say { timeout_s, message }) => {
                self.table[slot].phase = ConnectionPhase::Http(exchange);
                self.take_message(slot, timeout_s, message);
            }
            Some(Decision::Upgrade { response, ws, target }) => {
                let leftover = exchange.http.into_leftover();
                let (token, flags) = (self.table.token(slot), self.table[slot].flags);
                self.upgrade(slot, response, ws, target, leftover);
                if flags.has(Flag::HalfClosed) {
                    // Its end was found while it was answered something else, and stands behind all that it has sent:
                    // where some of that waits, it is found again.
                    self.handle_hangup(token, SocketEnd::Finished);
                    if self.wants_read(token) {
                        self.handle_end(token, SocketEnd::Finished, self.now_ms);
                    }
                }
            }
        }
    }

    /// Checks a request by its head.
    fn enter<'d>(
        &mut self,
        directory: &'d Directory,
        head: &http::Head<'_>,
        peer: gateway::RequestSource,
    ) -> Entry<'d> {
        let entry = gateway::enter(&directory.gateway, head, peer, self.time_of_day.unix_s);
        if matches!(&entry, Entry::Answer(response) if response.status() == 421) {
            self.note_foreign_host(head);
        }
        let access = directory.gateway.settings().hub.as_ref();
        if may_be_of_hub(&entry) && access.is_some_and(|access| access.checks_signature_of(head)) {
            self.work.spend(work::SIGNATURE_NS);
        }
        entry
    }

    /// Decides what is done with a whole request.
    fn check_request(
        &mut self,
        slot: Slot,
        directory: &Directory,
        peer: gateway::RequestSource,
        request: http::ParsedRequest<'_>,
        origin: &mut Option<String>,
    ) -> Decision {
        if self.is_stopping() {
            return Decision::Answer(stopping());
        }
        let settings = directory.gateway.settings();
        // Looked up and counted for handshakes alone: other requests cost no lock.
        let wants_channel = request.head.wants_websocket || sse::asked(&request.head) == Some(sse::SseAsk::Stream);
        let client = wants_channel.then(|| self.client_of(slot, settings, &request.head)).flatten();
        if let Some(refusal) = self.refuse_handshake(slot, client) {
            return Decision::Answer(refusal);
        }
        self.note_forwarded(slot, &request.head);
        let entry = self.enter(directory, &request.head, peer);
        *origin = origin_of(&entry);
        if request.body.len() > self.body_bytes_max(&entry) {
            // It has come with its head.
            return Decision::Answer(http::BODY_TOO_LARGE.response());
        }
        let decision = self.decide(directory, entry, request);
        match decision {
            Decision::Upgrade { ref target, .. } => {
                let refusal = self
                    .refuse_unread(slot, target)
                    .or_else(|| self.count_forwarded(slot, client))
                    .or_else(|| self.refuse_to_open(target));
                refusal.map_or(decision, Decision::Answer)
            }
            _ => decision,
        }
    }

    /// The refusal of a request whose head says enough: nothing of its body is taken in.
    fn refuse_by_head(
        &self,
        directory: &Directory,
        entry: Entry<'_>,
        head: http::Head<'_>,
    ) -> Option<PreparedResponse> {
        if self.is_stopping() {
            return Some(stopping());
        }
        match self.decide(directory, entry, http::ParsedRequest { head, body: Bytes::new() }) {
            Decision::Answer(refusal) => Some(refusal),
            Decision::Ask { .. } | Decision::Upgrade { .. } | Decision::Say { .. } => None,
        }
    }

    /// The answer to a client that has not read its earlier data, and asks for a replay or moves to another shard: both
    /// begin with an empty queue.
    fn refuse_unread(&self, slot: Slot, target: &UpgradeTarget) -> Option<PreparedResponse> {
        let UpgradeTarget::Bound { wish: Some(wish), .. } = target else { return None };
        let begins_empty = wish.stream.is_some() || self.goes_to(wish).is_some();
        let outbound = &self.table[slot].outbound;
        // Records that end a handshake go before all else, wherever the connection goes: a client's first request may
        // come with its Finished.
        let is_unread = begins_empty && (outbound.is_blocked() || outbound.offerable_bytes() > 0);
        is_unread.then(|| PreparedResponse::text(503, "what was sent before is unread: connect anew").closing())
    }

    /// The largest body that such a request may have.
    fn body_bytes_max(&self, entry: &Entry<'_>) -> usize {
        let anybodys = self.config.http_limits.body_bytes_max;
        match entry {
            Entry::Login(_) => gateway::LOGIN_BYTES_MAX.min(anybodys),
            Entry::Say(_) => self.config.limits.message_bytes_max.min(anybodys),
            Entry::Dynamic(dynamic) if !dynamic.is_logged_in => anybodys,
            // A call comes from this machine alone, and may bring a package to install.
            Entry::Dynamic(_) | Entry::Rpc { .. } => anybodys.max(self.config.body_bytes_max_logged_in),
            _ => anybodys,
        }
    }

    /// The answer where a process may have no more connections, or could not be told of one.
    fn refuse_to_open(&mut self, target: &UpgradeTarget) -> Option<PreparedResponse> {
        if let UpgradeTarget::Bound { wish: Some(wish), .. } = target
            && self.goes_to(wish).is_some()
        {
            // Its channel is counted already, or where it goes to.
            return None;
        }
        if !self.may_open(target) {
            return Some(busy());
        }
        match target {
            UpgradeTarget::Bound { owner, .. } if !self.count_of_process(owner) => Some(self.refuse_for_process(owner)),
            UpgradeTarget::Bound { .. } | UpgradeTarget::Register { .. } | UpgradeTarget::Refused { .. } => None,
        }
    }

    /// Returns whether the process that will be told of a channel has room for that.
    fn may_open(&self, target: &UpgradeTarget) -> bool {
        match target {
            UpgradeTarget::Bound { owner, path, forwarded_for, .. } => {
                let opened_bytes = size_of::<Opened>() + path.heap_bytes() + forwarded_for.heap_bytes();
                self.owners.has_room_to_open(owner, opened_bytes)
            }
            // It is not known yet, or there is none.
            UpgradeTarget::Register { .. } | UpgradeTarget::Refused { .. } => true,
        }
    }

    fn decide(&self, directory: &Directory, entry: Entry<'_>, request: http::ParsedRequest<'_>) -> Decision {
        let lost = || Decision::Answer(PreparedResponse::text(503, "the process is not attached"));
        match entry {
            Entry::Answer(response) => Decision::Answer(response),
            Entry::Upgrade(entry) => {
                let deflate = entry.deflate;
                let wish = entry.resume.then(|| wish_of(&entry));
                match target_of(directory, entry, wish) {
                    Some(target) => self.handshake(&request.head, target, deflate),
                    None => lost(),
                }
            }
            Entry::Stream(entry) => {
                let response = sse::start(entry.origin.as_deref(), &self.time_of_day.date);
                let last = sse::last_event(&request.head);
                let wish = ResumeRequest { stream: Some(StreamRequest { last }), ..wish_of(&entry) };
                match target_of(directory, *entry, Some(wish)) {
                    Some(target) => Decision::Upgrade { response, ws: proto::WebSocketConnection::new(None), target },
                    None => lost(),
                }
            }
            Entry::Say(entry) => match sse::said_by(&request.head) {
                None => Decision::Answer(PreparedResponse::text(
                    400,
                    "sse-channel is ID.TOKEN, as the stream's first event says",
                )),
                Some((channel, token)) if self.keys.verify(channel, &token).is_err() => {
                    Decision::Answer(no_such_stream())
                }
                Some((channel, token)) => {
                    let holder = ResumeHolder::of(&entry.path, wish_of(&entry).user.as_deref());
                    let (kind, payload) = (kind_of(&request.head), request.body);
                    let message = UpwardMessage { owner: entry.owner, channel, token, holder, kind, payload };
                    Decision::Say { timeout_s: SAID_TIMEOUT_S, message }
                }
            },
            Entry::Register { forwarded_for } => self.handshake(
                &request.head,
                UpgradeTarget::Register { forwarded_for: forwarded_for.map(Into::into) },
                false,
            ),
            Entry::Refuse { code, why } => self.handshake(&request.head, UpgradeTarget::Refused { code, why }, false),
            Entry::Dynamic(dynamic) => Decision::Ask {
                owner: dynamic.owner,
                timeout_s: dynamic.timeout_s,
                ask: HttpAsk::Path(Box::new(dynamic.request)),
                body: request.body,
            },
            Entry::Login(login) => match directory.system {
                Some(owner) => {
                    Decision::Ask { owner, timeout_s: 60, ask: HttpAsk::Login(Box::new(login)), body: request.body }
                }
                None => lost(),
            },
            Entry::Rpc { timeout_s } => match directory.system {
                Some(owner) => Decision::Ask { owner, timeout_s, ask: HttpAsk::Rpc, body: request.body },
                None => lost(),
            },
        }
    }

    /// A message of a client that only receives: its process is told on the shard of its channel.
    fn take_message(&mut self, slot: Slot, timeout_s: u32, message: UpwardMessage) {
        let UpwardMessage { owner, channel, token, holder, kind, payload } = message;
        if kind == MessageKind::Text && std::str::from_utf8(&payload).is_err() {
            return self.answer(slot, PreparedResponse::text(400, "the content type is text, and this is no UTF-8"));
        }
        if let Some((request, _)) = self.wait_for_answer(slot, owner, timeout_s) {
            self.say(RelayedMessage { request, owner, channel, token, holder, kind, payload });
        }
    }

    /// The answer to an upgrade request that may enter. `deflate`: compression is offered on this very path.
    fn handshake(&self, head: &http::Head<'_>, mut target: UpgradeTarget, deflate: bool) -> Decision {
        let mut supported: SmallVec<[&str; 4]> = self.config.subprotocols.iter().map(String::as_str).collect();
        if matches!(&target, UpgradeTarget::Bound { wish: Some(_), .. } | UpgradeTarget::Refused { .. }) {
            supported.push(resume::SUBPROTOCOL);
        }
        let is_hub = matches!(&target, UpgradeTarget::Bound { wish: Some(ResumeRequest { grant: Some(_), .. }), .. });
        match upgrade::negotiate(head.method, head.minor_version, head.headers(), &supported) {
            Ok(upgrade) if is_hub && upgrade.protocol != Some(resume::SUBPROTOCOL) => Decision::Answer(
                PreparedResponse::text(400, "the hub speaks the subprotocol pushring.1: offer it").closing(),
            ),
            Ok(upgrade) => {
                let offers = (deflate || self.config.deflate.everywhere).then(|| upgrade.extensions());
                let agreed = offers.and_then(|offers| negotiate(offers, self.deflate_terms()));
                let mut response = Vec::with_capacity(256);
                if head.expects_continue {
                    // RFC 9110 section 7.8: 100 comes before 101.
                    response.extend_from_slice(http::CONTINUE);
                }
                upgrade::append_response(&mut response, &upgrade, agreed);
                if let UpgradeTarget::Bound { wish, .. } = &mut target {
                    *wish = wish.take().filter(|_| upgrade.protocol == Some(resume::SUBPROTOCOL));
                    if let Some(wish) = wish {
                        wish.ask = resume::element::find(upgrade::protocols(head.headers()));
                    }
                }
                Decision::Upgrade { response, ws: proto::WebSocketConnection::new(agreed), target }
            }
            Err(error) => Decision::Answer(refusal(error)),
        }
    }

    fn deflate_terms(&self) -> Terms {
        let Deflate { window_bits, takeover_bytes_max, .. } = self.config.deflate;
        let takeover = self.out.context_bytes() + DeflateContext::bytes_max(window_bits) <= takeover_bytes_max;
        Terms { window_bits, takeover }
    }

    /// Answers with 101 and continues with frames.
    fn upgrade(
        &mut self,
        slot: Slot,
        response: Vec<u8>,
        ws: proto::WebSocketConnection,
        target: UpgradeTarget,
        leftover: Vec<u8>,
    ) {
        let target = match target {
            UpgradeTarget::Bound { owner, bound_path, path, forwarded_for, extension, wish: Some(wish) } => {
                let (agreed, owner) = (ws.deflate(), owner.id);
                let upgraded =
                    Upgraded { response, agreed, owner, bound_path, path, forwarded_for, extension, wish, leftover };
                return self.begin_kept(slot, upgraded);
            }
            target => target,
        };
        let mut leftover = leftover;
        *self.responses.entry(101).or_default() += 1;
        self.send_opaque(slot, &response, Bytes::new());
        if let Some(agreed) = ws.deflate().filter(|agreed| agreed.server_takes_context_over()) {
            self.out.take_context_over(slot, agreed.server_window_bits());
        }
        match target {
            UpgradeTarget::Bound { owner, bound_path, path, forwarded_for, extension, wish: _ } => {
                let (registered, keeps, grant) = (false, None, None);
                let opening =
                    Opening { ws, owner, bound_path, path, forwarded_for, registered, extension, keeps, grant };
                self.open_channel(slot, opening);
            }
            UpgradeTarget::Register { forwarded_for } => {
                let registering = Registering { ws, forwarded_for };
                self.table[slot].phase = ConnectionPhase::Registering(Box::new(registering));
                self.set_deadline(slot, self.now_ms + self.config.register_timeout_ms);
            }
            UpgradeTarget::Refused { code, why } => {
                let registering = Registering { ws, forwarded_for: None };
                self.table[slot].phase = ConnectionPhase::Registering(Box::new(registering));
                return self.refuse_registration(slot, code, &why.to_string());
            }
        }
        if !leftover.is_empty() {
            self.receive(slot, &mut leftover);
        }
    }

    fn ask(&mut self, slot: Slot, owner: OwnerId, timeout_s: u32, ask: HttpAsk, body: Bytes) {
        if let Some((id, place)) = self.wait_for_answer(slot, owner, timeout_s) {
            self.owners.emit(place, Event::Http(Box::new(HttpRequest { id, ask, body, timeout_s })));
        }
    }

    /// The request waits for an answer of its process, at this place. None: it has been refused.
    fn wait_for_answer(&mut self, slot: Slot, owner: OwnerId, timeout_s: u32) -> Option<(RequestId, u32)> {
        let Some(local) = self.owners.directory().owners.get(&owner).cloned() else {
            self.answer(slot, PreparedResponse::text(503, "the process is not attached"));
            return None;
        };
        let place = self.owners.place_of(&local);
        if !self.owners.has_room(place) {
            self.owners.forget_if_idle(place);
            self.answer(slot, busy());
            return None;
        }
        if !self.count_of_process(&local) {
            self.owners.forget_if_idle(place);
            let refusal = self.refuse_for_process(&local);
            self.answer(slot, refusal);
            return None;
        }
        // The slot and the shard say where the request waits, the random bits that it was not guessed.
        let random = self.intake.random() & 0xffff_ffff_0000_0000;
        let id = RequestId(random | u64::from(slot.get()) << RequestId::SHARD_BITS | u64::from(self.intake.shard));
        if let ConnectionPhase::Http(exchange) = &mut self.table[slot].phase {
            exchange.asked = Some(PendingRequest::new(owner, id, local.connections.clone()));
            exchange.phase = HttpPhase::Response;
        }
        self.owners[place].asked.insert(slot);
        self.set_deadline(slot, self.now_ms + u64::from(timeout_s) * 1000);
        if self.table[slot].flags.has(Flag::HalfClosed) {
            self.hurry_deadline(slot);
        }
        Some((id, place))
    }

    /// A process' answer; one that is not awaited any more, or that another process was asked for, is dropped.
    pub(in crate::shard) fn respond(&mut self, respond: RespondCommand) {
        let slot = respond.request.slot();
        let Some(connection) = self.table.get_mut(slot) else { return };
        let ConnectionPhase::Http(exchange) = &mut connection.phase else { return };
        let is_asked = |asked: &PendingRequest| (asked.owner, asked.request) == (respond.owner, respond.request);
        if !exchange.asked.as_ref().is_some_and(is_asked) {
            return;
        }
        self.answer(slot, respond.response);
    }

    /// Sends a response to the request in progress.
    pub(in crate::shard) fn answer(&mut self, slot: Slot, response: PreparedResponse) {
        if self.table[slot].is_shaking() {
            // Nothing can be said yet.
            return self.remove(slot);
        }
        let is_over = self.is_stopping() || self.is_draining();
        let is_half_closed = self.table[slot].flags.has(Flag::HalfClosed);
        self.forget_asked(slot);
        let ConnectionPhase::Http(exchange) = &mut self.table[slot].phase else { return };
        let last = is_over || (is_half_closed && !exchange.http.has_more());
        exchange.responding = true;
        exchange.phase = HttpPhase::Response;
        let response = match exchange.origin.take() {
            Some(origin) => sse::shared_with(response, Some(&origin)),
            None => response,
        };
        let response = if last { response.closing() } else { response };
        let mut head = Vec::with_capacity(256);
        *self.responses.entry(response.status()).or_default() += 1;
        let body = exchange.http.respond(response, &self.time_of_day.date, &mut head);
        self.send_opaque(slot, &head, body);
        self.set_response_deadline(slot);
    }

    /// The answer that this connection was promised, if it was, is not awaited any more.
    pub(in crate::shard) fn forget_asked(&mut self, slot: Slot) {
        if let ConnectionPhase::Http(exchange) = &mut self.table[slot].phase
            && let Some(asked) = exchange.asked.take()
        {
            self.owners.forget_asked(asked.owner, slot);
        }
    }

    /// How long the client may take nothing of its response.
    fn set_response_deadline(&mut self, slot: Slot) {
        let connection = &mut self.table[slot];
        let ConnectionPhase::Http(exchange) = &mut connection.phase else { return };
        exchange.left_bytes = connection.outbound.queued_bytes();
        exchange.unread_bytes = exchange.http.unread_bytes();
        self.set_deadline(slot, self.now_ms + self.config.http_idle_timeout_ms);
    }

    /// Everything queued on an HTTP connection has left.
    pub(in crate::shard) fn response_left(&mut self, slot: Slot) {
        let ConnectionPhase::Http(exchange) = &mut self.table[slot].phase else { return };
        if !std::mem::take(&mut exchange.responding) {
            return;
        }
        match exchange.http.response_left() {
            AfterResponse::Close => self.end_connection(slot),
            // A client whose request was being answered when the broker began to stop was told that the connection
            // stays open.
            AfterResponse::Feed if self.is_stopping() => self.end_connection(slot),
            AfterResponse::Feed => {
                let connection = &mut self.table[slot];
                // A client that waited for a response had nothing to send: that time does not count if it continues as
                // a WebSocket.
                connection.heard(self.now_ms);
                if let ConnectionPhase::Http(exchange) = &mut connection.phase {
                    exchange.feeds = true;
                }
                self.intake.resume(connection, slot);
                // The request's memory is free.
                if self.table[slot].flags.has(Flag::Holds) {
                    self.weigh(slot);
                }
            }
        }
    }

    /// Returns whether a response has left, and what came behind its request was not looked at yet.
    pub(super) fn is_request_waiting(&mut self, slot: Slot) -> bool {
        match &mut self.table[slot].phase {
            ConnectionPhase::Http(exchange) => std::mem::take(&mut exchange.feeds),
            ConnectionPhase::Registering(_) | ConnectionPhase::Open(_) | ConnectionPhase::Ending(_) => false,
        }
    }

    fn set_http_deadline(&mut self, slot: Slot) {
        let is_stopping = self.is_stopping();
        let ConnectionPhase::Http(exchange) = &mut self.table[slot].phase else { return };
        let phase = exchange.http.phase();
        // A slow client does not push its own deadline back, nor one that sends on while it is answered.
        if exchange.phase != phase && !exchange.responding && !is_stopping {
            exchange.phase = phase;
            exchange.body_bytes = exchange.http.body_bytes();
            let timeout_ms = match phase {
                HttpPhase::Idle | HttpPhase::Response | HttpPhase::Close => self.config.http_idle_timeout_ms,
                HttpPhase::Head => self.config.head_timeout_ms,
                HttpPhase::Body => self.config.body_timeout_ms,
            };
            self.set_deadline(slot, self.now_ms + timeout_ms);
        }
    }

    /// The time for a head, a body, a response or the next request is up.
    pub(in crate::shard) fn http_expired(&mut self, slot: Slot) {
        let connection = &self.table[slot];
        if connection.is_shaking() {
            return self.handshake_expired(slot);
        }
        let ConnectionPhase::Http(exchange) = &connection.phase else { return };
        if exchange.responding {
            // A large response may take long on a slow line, but not stand still. A client that sends first and reads
            // later is still sending.
            let sends = exchange.unread_bytes - exchange.http.unread_bytes();
            let stands_still = connection.outbound.queued_bytes() >= exchange.left_bytes
                && (sends == 0 || sends < self.config.least_bytes(self.config.http_idle_timeout_ms));
            return if stands_still { self.remove(slot) } else { self.set_response_deadline(slot) };
        }
        match exchange.http.phase() {
            // In no protocol that it speaks could it be answered.
            _ if exchange.proxy_header.is_some() => self.remove(slot),
            HttpPhase::Idle | HttpPhase::Close => self.end_connection(slot),
            HttpPhase::Head | HttpPhase::Body | HttpPhase::Response if self.is_stopping() => {
                self.answer(slot, stopping());
            }
            // A large body may take long on a slow line, too.
            HttpPhase::Body if self.body_comes(slot) => {
                self.set_deadline(slot, self.now_ms + self.config.body_timeout_ms);
            }
            HttpPhase::Head | HttpPhase::Body => {
                self.answer(slot, PreparedResponse::text(408, "the request did not arrive in time").closing());
            }
            HttpPhase::Response => {
                self.answer(slot, PreparedResponse::text(408, "the process did not answer in time"));
            }
        }
    }

    /// Returns whether the body has come at the least rate since that was last asked.
    fn body_comes(&mut self, slot: Slot) -> bool {
        let least_bytes = self.config.least_bytes(self.config.body_timeout_ms).max(1);
        let ConnectionPhase::Http(exchange) = &mut self.table[slot].phase else { return false };
        let body_bytes = exchange.http.body_bytes();
        let came_bytes = body_bytes - std::mem::replace(&mut exchange.body_bytes, body_bytes);
        came_bytes as u64 >= least_bytes
    }

    /// A process is gone: if this connection waits for its answer, it gets another.
    pub(in crate::shard) fn refuse_request_of(&mut self, owner: OwnerId, slot: Slot) {
        if let ConnectionPhase::Http(exchange) = &self.table[slot].phase
            && exchange.asked.as_ref().is_some_and(|asked| asked.owner == owner)
        {
            self.answer(slot, PreparedResponse::text(500, "the process ended before it answered"));
            self.work.spend(work::END_NS);
        }
    }

    /// Queues bytes that are not frames.
    pub(in crate::shard) fn send_opaque(&mut self, slot: Slot, head: &[u8], body: Bytes) {
        let copy_bytes_max = self.config.copy_bytes_max;
        let outbound = &mut self.table[slot].outbound;
        if outbound.is_blocked() {
            // The client has not even taken our 100. One response at a time, so it is at most one that is copied.
            outbound.push_opaque_behind([head, &body].concat());
            return self.weigh(slot);
        }
        // Content that others hold too is not ours.
        let charge = (body.len() > copy_bytes_max)
            .then(|| if body.is_unique() { self.memory.charge(body.len(), None) } else { SharedCharge::default() });
        self.out.push_opaque(&mut self.table[slot], slot, head, body, charge);
    }
}

/// Returns whether a token of the hub may have been looked at: nobody looks at one that comes to another path.
fn may_be_of_hub(entry: &Entry<'_>) -> bool {
    match entry {
        Entry::Upgrade(upgrade) => upgrade.grant.is_some(),
        Entry::Stream(upgrade) | Entry::Say(upgrade) => upgrade.grant.is_some(),
        Entry::Refuse { .. } | Entry::Answer(_) => true,
        Entry::Register { .. } | Entry::Dynamic(_) | Entry::Login(_) | Entry::Rpc { .. } => false,
    }
}

/// The listed origin of the page that asks: without its fields in the answer a page would take its message for lost,
/// and send it again. A refusal of the gateway has them already.
fn origin_of(entry: &Entry<'_>) -> Option<String> {
    match entry {
        Entry::Stream(upgrade) | Entry::Say(upgrade) => upgrade.origin.clone(),
        _ => None,
    }
}

/// The options of a channel that may outlive its connection, or only receives.
fn wish_of(entry: &gateway::BoundUpgrade<'_>) -> ResumeRequest {
    let of_grant = entry.grant.as_ref().and_then(|grant| grant.user.as_deref());
    ResumeRequest {
        user: of_grant.or(entry.user).map(Into::into),
        grant: entry.grant.clone(),
        tells: entry.resume_events,
        ask: None,
        stream: None,
    }
}

/// Where a request that was let in opens a channel. None: its process is gone.
fn target_of(
    directory: &Directory,
    entry: gateway::BoundUpgrade<'_>,
    wish: Option<ResumeRequest>,
) -> Option<UpgradeTarget> {
    let owner = directory.owners.get(&entry.owner).cloned()?;
    let bound_path = if entry.bound_path.is_empty() { "/".into() } else { entry.bound_path.into() };
    let forwarded_for = entry.forwarded_for.map(Into::into);
    Some(UpgradeTarget::Bound {
        owner,
        bound_path,
        path: entry.path.into(),
        forwarded_for,
        extension: entry.extension,
        wish,
    })
}

/// The type of a message that comes as a body: Text, if its media type says so or it is JSON.
fn kind_of(head: &http::Head<'_>) -> MessageKind {
    let mime = head.text("content-type").unwrap_or_default().to_ascii_lowercase();
    let mime = mime.split(';').next().unwrap_or_default().trim();
    let is_text = mime.starts_with("text/") || mime == "application/json" || mime.ends_with("+json");
    if is_text { MessageKind::Text } else { MessageKind::Binary }
}

fn busy() -> PreparedResponse {
    PreparedResponse::text(503, "the process has too much to do").with("retry-after", "1")
}

fn refusal(error: UpgradeError) -> PreparedResponse {
    let response = PreparedResponse::text(error.status(), error.to_string()).closing();
    // RFC 6455 4.4: say which version would do.
    error.headers().iter().fold(response, |response, &(name, value)| response.with(name, value))
}
