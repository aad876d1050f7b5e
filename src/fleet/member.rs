//! One node of a fleet, without I/O: orders, messages and the time go in; messages to publish, orders for the broker
//! and reports come out.
//!
//! Invariants: claims of another node are accepted about itself only, and only where its subject allows it; each
//! message is delivered once and in order of its source and audience, or it is counted as lost and reported.

use super::Options;
use super::header::{Header, HeaderError, Reader, TooLong};
use super::incoming::{AnnouncedCount, Incoming, Number, Verdict};
use super::interest::{Interest, Wanted};
use super::names::Name;
use super::outgoing::{ForgottenCounts, Outgoing, Tail};
use super::pending_questions::{self, PendingQuestions};
use super::roster::{Announcement, Change, Roster};
use super::standing::{CountsAtStart, CountsReached, LINES_PER_QUESTION};
use super::subject::{AudienceKey, Kind, NamedAudience, SubjectParts, Subjects, Target};
use super::tails::{LINE_BYTES, TAIL_BYTES, read_line, read_tail, write_tail};
use super::traffic::{
    ChannelAsked, Channels, Delivery, Effects, FleetNews, Numbered, OutboundPush, OutboundTo, Publish, QuestionResult,
    Refusal,
};
use crate::broker::{ChannelQuestion, FleetCounts, FleetLine, FleetNode, Message, OnNodes, Outcome};
use crate::channel::ChannelId;
use crate::process_id::ProcessId;
use crate::proto::close;
use crate::resume::RunId;
use crate::shard::command::PushKind;
use crate::shard::operating::ChannelReport;
use crate::words::topic;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Counts that are announced in one second: some 135 kB.
const TAILS_MAX: usize = 4096;

/// Payloads up to here that shards keep by reference are copied, so that they keep no more than themselves: half of
/// what NATS' client reads at a time. Shards copy those up to `OWN_COPY_BYTES_MAX` themselves, but for values that
/// conflate.
const COPIED_BYTES_MAX: usize = 32 * 1024;
const OWN_COPY_BYTES_MAX: usize = 4096;

/// Of these in one message: a third of what the smallest servers take.
const TAILS_PER_MESSAGE: usize = 512;

/// The start of an announcement: how many counts were forgotten, and how long ago the last was.
const FORGOTTEN_BYTES: usize = 8 + 8;

/// Everything is announced again at most once in this time, however many nodes ask.
const AGAIN_AFTER_MS: u64 = 5_000;

/// The most bytes kept of a node's description of itself.
const ABOUT_BYTES_MAX: usize = 4096;

/// The most bytes of an answer about a channel: some hundred topics' names, or all of them where they are short.
const SHOWN_BYTES_MAX: usize = 32 * 1024;

/// The number of losses kept for questions.
const LOSSES_MAX: usize = 100;

/// See the module.
#[derive(Debug)]
pub(super) struct Member {
    subjects: Subjects,
    node: Name,
    incarnation: u64,
    outgoing: Outgoing,
    incoming: Incoming,
    interest: Interest,
    standing: CountsAtStart,
    roster: Roster,
    /// Where pushes to channels of this node come.
    own_line: AudienceKey,
    own_since_ms: u64,
    asks: u64,
    announces: u64,
    announced_all_ms: Option<u64>,
    is_asked: bool,
    /// Pushes of which other nodes are to say what became of them.
    pending_questions: PendingQuestions,
    /// Counts since the start.
    pub counts: FleetCounts,
    lost_of: BTreeMap<Arc<str>, u64>,
    losses: VecDeque<FleetLine>,
}

impl Member {
    /// A node that begins now. `incarnation` is larger than that of any former self.
    pub(super) fn new(options: &Options, incarnation: u64, now_ms: u64) -> Self {
        let (lost_of, losses, counts) = Default::default();
        let (own_line, mut standing) = (AudienceKey::to_node(&options.node), CountsAtStart::default());
        standing.listens(own_line);
        Self {
            subjects: Subjects::new(options.fleet.clone()),
            node: options.node.clone(),
            incarnation,
            outgoing: Outgoing::new(options.subjects_max),
            incoming: Incoming::new(options.subjects_max),
            interest: Interest::new(options.subjects_max),
            standing,
            roster: Roster::default(),
            own_line,
            own_since_ms: now_ms,
            asks: 0,
            announces: 0,
            announced_all_ms: None,
            is_asked: false,
            pending_questions: PendingQuestions::default(),
            counts,
            lost_of,
            losses,
        }
    }

    /// The subjects to which every node subscribes.
    pub(super) fn subscriptions(&self) -> [String; 6] {
        [
            self.subjects.of_all("*", Kind::Node),
            self.subjects.of_all("*", Kind::Tails),
            self.subjects.of_all("*", Kind::Ask),
            self.subjects.of_all("*", Kind::Count),
            self.subjects.to_node("*", Kind::Channels, self.node.as_str()),
            self.subjects.to_node("*", Kind::Answer, self.node.as_str()),
        ]
    }

    /// The audiences that are listened to.
    pub(super) fn lines(&self) -> Vec<AudienceKey> {
        self.interest.lines().copied().collect()
    }

    /// Returns whether an audience is listened to.
    pub(super) fn listens_to(&self, line: &AudienceKey) -> bool {
        self.interest.get(line).is_some()
    }

    /// The subject of an audience.
    pub(super) fn subscription(&self, line: &AudienceKey) -> String {
        self.subjects.of_line("*", line)
    }

    /// The bytes of a message with this payload.
    pub(super) fn bytes_of(node: &Name, outbound: &OutboundPush) -> usize {
        let (name, channels) = match &outbound.to {
            OutboundTo::All(NamedAudience::Topic(name) | NamedAudience::Path(name)) => (name.len(), 0),
            OutboundTo::All(NamedAudience::Process) => (0, 0),
            OutboundTo::Channels(_, list) | OutboundTo::Guest(_, list) => (0, list.len()),
        };
        let process = outbound.process.as_str().len();
        Header::len(node.as_str().len(), process, name, channels) + outbound.frame.payload.len()
    }

    /// Returns whether its names and list can be told in a header.
    pub(super) fn fits(outbound: &OutboundPush) -> bool {
        let counted = match &outbound.to {
            OutboundTo::All(NamedAudience::Topic(name) | NamedAudience::Path(name)) => name.len(),
            OutboundTo::All(NamedAudience::Process) => 0,
            OutboundTo::Channels(_, list) | OutboundTo::Guest(_, list) => list.len(),
        };
        u16::try_from(counted.max(outbound.process.as_str().len())).is_ok()
    }

    /// Gives a push its number.
    ///
    /// # Errors
    /// A name does not fit a header; it has got no number.
    pub(super) fn publish(&mut self, outbound: OutboundPush, now_ms: u64) -> Result<Numbered, TooLong> {
        if !Self::fits(&outbound) {
            return Err(TooLong);
        }
        let OutboundPush { process, to, frame, policy, asks } = outbound;
        let own = self.node.as_str();
        let (mut of, is_guest) = (None, matches!(to, OutboundTo::Guest(..)));
        let (line, subject, name, channels) = match to {
            OutboundTo::All(to) => {
                let target = Target { process: process.clone(), to };
                let line = target.line();
                (line, self.subjects.of_line(own, &line), target.name().to_owned(), Vec::new())
            }
            OutboundTo::Channels(node, list) | OutboundTo::Guest(node, list) => {
                let subject = self.subjects.to_node(own, Kind::Channels, node.as_str());
                of = Some(node.shared().clone());
                (AudienceKey::to_node(&node), subject, String::new(), list)
            }
        };
        let mut header = Header {
            kind: if is_guest { Kind::Guest } else { line.kind },
            frame: frame.kind,
            policy,
            source: self.node.clone(),
            incarnation: self.incarnation,
            stream: 0,
            sequence: 0,
            ask: 0,
            process: process.as_str().to_owned(),
            name,
            channels,
        };
        (header.stream, header.sequence) = self.outgoing.next(line, now_ms);
        let asked = asks.then(|| {
            let nodes = match &of {
                Some(node) => BTreeSet::from([node.clone()]),
                None => self.roster.there().cloned().collect(),
            };
            self.pending_questions.ask(nodes)
        });
        header.ask = asked.as_ref().and_then(|asked| asked.as_ref().ok()).copied().unwrap_or(0);
        let bytes = Bytes::from(header.write(&frame.payload)?);
        self.counts.sent += 1;
        self.counts.sent_bytes += bytes.len() as u64;
        let ask = (header.ask != 0 && of.is_none()).then(|| {
            let mut payload = header.ask.to_be_bytes().to_vec();
            payload.push(line.kind.number());
            payload.extend_from_slice(&line.hash);
            self.say(Kind::Ask, &payload)
        });
        Ok(Numbered { push: Publish { subject, bytes }, ask, asked })
    }

    /// The outcome here of a push of `node`, as a message for it.
    pub(super) fn answer(&mut self, node: &Name, ask: u64, outcome: &Outcome) -> Publish {
        let mut payload = ask.to_be_bytes().to_vec();
        pending_questions::counts_of(outcome).iter().for_each(|count| payload.extend_from_slice(&count.to_be_bytes()));
        let own = self.node.as_str();
        self.announces += 1;
        let header = Header::about(Kind::Answer, self.node.clone(), self.incarnation, self.announces);
        let bytes = header.write(&payload).expect("names of nodes are short").into();
        Publish { subject: self.subjects.to_node(own, Kind::Answer, node.as_str()), bytes }
    }

    /// Asks other nodes how many subscribers a topic has there: under which number they will say, or what there is to
    /// say already.
    ///
    /// # Errors
    /// A name does not fit a header.
    pub(super) fn count(
        &mut self,
        process: &ProcessId,
        topic: &str,
    ) -> Result<(Publish, Result<u64, OnNodes>), TooLong> {
        self.announces += 1;
        let mut header = Header::about(Kind::Count, self.node.clone(), self.incarnation, self.announces);
        (header.process, header.name) = (process.as_str().to_owned(), topic.to_owned());
        // Before waiting for answers: a message that is too large is not sent, and no node is asked.
        header.write(&[])?;
        let asked = self.pending_questions.ask(self.roster.there().cloned().collect());
        header.ask = asked.as_ref().copied().unwrap_or(0);
        let subject = self.subjects.of_all(self.node.as_str(), Kind::Count);
        Ok((Publish { subject, bytes: header.write(&[])?.into() }, asked))
    }

    /// Asks a node of a channel of its own: under which number it will say.
    ///
    /// # Errors
    /// A reason does not fit a header.
    pub(super) fn ask_of_channel(
        &mut self,
        node: &Name,
        channel: ChannelId,
        what: &ChannelQuestion,
    ) -> Result<(Publish, Result<u64, OnNodes>), TooLong> {
        self.announces += 1;
        let (kind, payload) = match what {
            ChannelQuestion::Look => (Kind::Look, Vec::new()),
            ChannelQuestion::Close(code, reason) => {
                let reason = close::cut(reason, close::REASON_BYTES_MAX);
                (Kind::Close, [&code.to_be_bytes(), reason.as_bytes()].concat())
            }
        };
        let mut header = Header::about(kind, self.node.clone(), self.incarnation, self.announces);
        header.channels = vec![channel];
        let asked = self.pending_questions.ask([node.shared().clone()].into());
        header.ask = asked.as_ref().copied().unwrap_or(0);
        let subject = self.subjects.to_node(self.node.as_str(), kind, node.as_str());
        Ok((Publish { subject, bytes: header.write(&payload)?.into() }, asked))
    }

    /// A channel here that `node` has asked for; none: there is none.
    pub(super) fn shown(&mut self, node: &Name, ask: u64, channel: Option<ChannelReport>) -> Publish {
        let json = |report: &ChannelReport| serde_json::to_vec(report).expect("reports are plain JSON");
        let mut shown = channel.as_ref().map(json).unwrap_or_default();
        if let Some(mut channel) = channel.filter(|_| shown.len() > SHOWN_BYTES_MAX) {
            // How many there are is said beside.
            channel.topics.clear();
            shown = json(&channel);
        }
        self.announces += 1;
        let header = Header::about(Kind::Shown, self.node.clone(), self.incarnation, self.announces);
        let payload = [&ask.to_be_bytes()[..], &shown].concat();
        let bytes = header.write(&payload).expect("names of nodes are short").into();
        Publish { subject: self.subjects.to_node(self.node.as_str(), Kind::Shown, node.as_str()), bytes }
    }

    /// The outcomes of a push that has waited long enough. None: it is settled.
    pub(super) fn give_up(&mut self, ask: u64) -> Option<OnNodes> {
        self.pending_questions.give_up(ask)
    }

    /// Wants to hear what is said to an audience, if it does already or `may`.
    pub(super) fn listen_if(
        &mut self,
        target: &Target,
        now_ms: u64,
        may: impl FnOnce() -> bool,
    ) -> (AudienceKey, Wanted) {
        let line = target.line();
        let wanted = self.interest.want(line, target, now_ms, may);
        if wanted == Wanted::New {
            self.standing.listens(line);
        }
        (line, wanted)
    }

    /// Messages to publish after the subscriptions to new audiences, which ask how far others have counted for them.
    pub(super) fn ask_standing(&mut self, now_ms: u64) -> Vec<Publish> {
        let asked = self.standing.ask(self.roster.there(), now_ms);
        let asked = asked.into_iter().map(|(question, lines)| {
            let mut payload = question.to_be_bytes().to_vec();
            for line in lines {
                payload.push(line.kind.number());
                payload.extend_from_slice(&line.hash);
            }
            payload
        });
        let asked: Vec<Vec<u8>> = asked.collect();
        asked.iter().map(|payload| self.say(Kind::Where, payload)).collect()
    }

    /// The audiences that no channel here belongs to any more.
    pub(super) fn sweep(&mut self, now_ms: u64, has_members: impl Fn(&Target) -> bool) -> Vec<(AudienceKey, Target)> {
        let idle = self.interest.sweep(now_ms, has_members);
        for (line, _) in &idle {
            self.incoming.leave(line);
            self.standing.leaves(line);
        }
        idle
    }

    /// Handles a new connection: asks other nodes to repeat how far they have counted, and tells them the same of this
    /// one. Returns news of questions that got lost.
    pub(super) fn reconnected(&mut self, now_ms: u64) -> Vec<FleetNews> {
        self.asks += 1;
        self.outgoing.announce_all();
        self.unanswered(None, now_ms)
    }

    /// Handles a new connection of `node`, or of this node: for questions without an answer it is unknown which
    /// messages are lost.
    fn unanswered(&mut self, node: Option<&Arc<str>>, now_ms: u64) -> Vec<FleetNews> {
        let lost = self.standing.broken(node);
        lost.into_iter().map(|(source, line)| self.lost(&source, Some(&line), None, now_ms)).collect()
    }

    /// Once a second: what this node says of itself and of its counts, and what has become known to be lost.
    ///
    /// # Panics
    /// Never: what it writes fits.
    pub(super) fn tick(&mut self, now_ms: u64, about: Announcement) -> (Vec<Publish>, Vec<FleetNews>) {
        let gone = self.roster.gone(now_ms);
        gone.iter().for_each(|node| self.standing.gone(node));
        let mut told: Vec<FleetNews> = gone.into_iter().map(|node| FleetNews::Gone { node }).collect();
        self.standing.sweep(now_ms);
        for (line, source, verdict) in self.incoming.believe(now_ms) {
            told.extend(self.judge(&line, &source, verdict, now_ms));
        }
        if self.is_asked && self.announced_all_ms.is_none_or(|at_ms| at_ms + AGAIN_AFTER_MS <= now_ms) {
            (self.is_asked, self.announced_all_ms) = (false, Some(now_ms));
            self.outgoing.announce_all();
        }
        let about = Announcement { asks: self.asks, listens: self.interest.len() as u64, ..about };
        let about = serde_json::to_vec(&about).expect("plain data");
        let mut said = vec![self.say(Kind::Node, &about)];
        let tails = self.outgoing.tails(TAILS_MAX, now_ms);
        let ForgottenCounts { count, last_ms } = self.outgoing.forgotten();
        let age_ms = now_ms.saturating_sub(last_ms);
        // One at least, so that what was forgotten is told.
        let chunks = if tails.is_empty() { vec![&[][..]] } else { tails.chunks(TAILS_PER_MESSAGE).collect() };
        for chunk in chunks {
            let mut bytes = Vec::with_capacity(FORGOTTEN_BYTES + chunk.len() * TAIL_BYTES);
            bytes.extend_from_slice(&count.to_be_bytes());
            bytes.extend_from_slice(&age_ms.to_be_bytes());
            chunk.iter().for_each(|tail| write_tail(tail, &mut bytes));
            said.push(self.say(Kind::Tails, &bytes));
        }
        (said, told)
    }

    fn say(&mut self, kind: Kind, payload: &[u8]) -> Publish {
        let bytes = self.bytes_about(kind, payload);
        Publish { subject: self.subjects.of_all(self.node.as_str(), kind), bytes }
    }

    fn bytes_about(&mut self, kind: Kind, payload: &[u8]) -> Bytes {
        self.announces += 1;
        let header = Header::about(kind, self.node.clone(), self.incarnation, self.announces);
        header.write(payload).expect("names of nodes are short").into()
    }

    /// Judges a message.
    pub(super) fn receive(&mut self, subject: &str, bytes: &Bytes, now_ms: u64) -> Effects {
        let parts = self.subjects.parse(subject);
        let source = parts.map_or("", |parts| parts.source);
        match self.received(parts, bytes, now_ms) {
            Ok(received) => received,
            Err(why) => {
                let count = match why {
                    Refusal::Version(_) => &mut self.counts.refused_version,
                    Refusal::Source => &mut self.counts.refused_source,
                    Refusal::Subject => &mut self.counts.refused_subject,
                    Refusal::Malformed => &mut self.counts.refused_malformed,
                    Refusal::Twin => &mut self.counts.refused_twin,
                };
                *count += 1;
                let told = vec![FleetNews::Refused { source: source.chars().take(64).collect(), why }];
                Effects { told, ..Effects::default() }
            }
        }
    }

    fn received(&mut self, parts: Option<SubjectParts<'_>>, bytes: &Bytes, now_ms: u64) -> Result<Effects, Refusal> {
        let parts = parts.ok_or(Refusal::Subject)?;
        let (header, at) = Header::read(bytes).map_err(|error| match error {
            HeaderError::Version(version) => Refusal::Version(version),
            HeaderError::Malformed => Refusal::Malformed,
        })?;
        if header.source.as_str() != parts.source {
            return Err(Refusal::Source);
        }
        if header.kind.word() != parts.kind {
            return Err(Refusal::Subject);
        }
        if header.source == self.node {
            // Servers do not hand us our own, unless we are what is left of a former connection.
            return if header.incarnation == self.incarnation { Ok(Effects::default()) } else { Err(Refusal::Twin) };
        }
        let payload = bytes.slice(at..);
        match header.kind {
            Kind::Node => self.hear(&header, &payload, now_ms),
            Kind::Tails => self.hear_tails(&header, &payload, now_ms),
            Kind::Ask => self.hear_ask(&header, &payload),
            Kind::Where => self.hear_where(&header, &payload, now_ms),
            Kind::Stood => self.hear_stood(&header, parts.token, &payload, now_ms),
            Kind::Count => {
                let process: ProcessId = header.process.parse().map_err(|_| Refusal::Malformed)?;
                topic::check(&header.name).map_err(|_| Refusal::Malformed)?;
                let count = Some((process, header.name.into(), header.source, header.ask));
                Ok(Effects { count, ..Effects::default() })
            }
            Kind::Answer => self.hear_answer(&header, parts.token, &payload),
            Kind::Shown => self.hear_shown(&header, parts.token, &payload),
            Kind::Look | Kind::Close => self.hear_of_channel(header, parts.token, &payload),
            Kind::Topic | Kind::Path | Kind::Process | Kind::Channels | Kind::Guest => {
                self.hear_push(header, parts.token, payload, bytes.len(), now_ms)
            }
        }
    }

    fn hear(&mut self, header: &Header, payload: &[u8], now_ms: u64) -> Result<Effects, Refusal> {
        if payload.len() > ABOUT_BYTES_MAX {
            return Err(Refusal::Malformed);
        }
        let about: Announcement = serde_json::from_slice(payload).map_err(|_| Refusal::Malformed)?;
        let node = header.source.shared();
        let (change, is_asking) = self.roster.hear(node, header.incarnation, about, now_ms);
        if let Change::Restarted { is_clock_back } = change {
            self.standing.restarted(node);
            if is_clock_back {
                // Otherwise its next messages would be taken for those of its former life.
                self.incoming.forget(node);
            }
        }
        self.is_asked |= is_asking;
        let is_news = !matches!(change, Change::None | Change::Ignored);
        let mut told = if is_news { vec![FleetNews::Node { node: node.clone(), change }] } else { Vec::new() };
        if is_asking && matches!(change, Change::None | Change::Back { .. }) {
            told.extend(self.unanswered(Some(node), now_ms));
        }
        Ok(Effects { told, ..Effects::default() })
    }

    /// A node that does not listen to an audience says so; one that does reports the outcome of the push itself.
    fn hear_ask(&mut self, header: &Header, payload: &[u8]) -> Result<Effects, Refusal> {
        let mut reader = Reader { bytes: payload, at: 0 };
        let read = |reader: &mut Reader<'_>| -> Result<(u64, AudienceKey), HeaderError> {
            Ok((u64::from_be_bytes(reader.array()?), read_line(reader)?))
        };
        let (ask, line) = read(&mut reader).map_err(|_| Refusal::Malformed)?;
        if reader.at < payload.len() {
            return Err(Refusal::Malformed);
        }
        let answer = match self.interest.get(&line) {
            Some(_) => None,
            None => Some(self.answer(&header.source, ask, &Outcome::default())),
        };
        Ok(Effects { answer, ..Effects::default() })
    }

    /// How far this node has counted, for one that has begun to listen.
    fn hear_where(&mut self, header: &Header, payload: &[u8], now_ms: u64) -> Result<Effects, Refusal> {
        let (question, lines) = payload.split_first_chunk::<8>().ok_or(Refusal::Malformed)?;
        let (lines, rest) = lines.as_chunks::<LINE_BYTES>();
        if !rest.is_empty() || lines.len() > LINES_PER_QUESTION {
            return Err(Refusal::Malformed);
        }
        let mut said: Vec<u8> = question.to_vec();
        said.extend_from_slice(&self.outgoing.streams().to_be_bytes());
        for line in lines {
            let mut reader = Reader { bytes: line, at: 0 };
            let line = read_line(&mut reader).map_err(|_| Refusal::Malformed)?;
            if let Some(tail) = self.outgoing.tail(&line, now_ms) {
                write_tail(&tail, &mut said);
            }
        }
        let subject = self.subjects.to_node(self.node.as_str(), Kind::Stood, header.source.as_str());
        let answer = Some(Publish { subject, bytes: self.bytes_about(Kind::Stood, &said) });
        Ok(Effects { answer, ..Effects::default() })
    }

    /// How far another node had counted when this one began to listen.
    fn hear_stood(&mut self, header: &Header, token: &str, payload: &[u8], now_ms: u64) -> Result<Effects, Refusal> {
        if token != self.node.as_str() {
            return Err(Refusal::Subject);
        }
        let (source, incarnation) = (header.source.shared(), header.incarnation);
        let (question, rest) = payload.split_first_chunk().ok_or(Refusal::Malformed)?;
        let (streams, tails) = rest.split_first_chunk().ok_or(Refusal::Malformed)?;
        let (tails, rest) = tails.as_chunks::<TAIL_BYTES>();
        if !rest.is_empty() || tails.len() > LINES_PER_QUESTION {
            return Err(Refusal::Malformed);
        }
        let (question, streams) = (u64::from_be_bytes(*question), u32::from_be_bytes(*streams));
        let mut told = Vec::new();
        // Only nodes that were asked, and have not answered yet, are heard.
        let is_news = self.standing.hear(question, source, CountsReached { incarnation, streams });
        for tail in tails.iter().filter(|_| is_news) {
            let Tail { line, stream, last, .. } =
                read_tail(&mut Reader { bytes: tail, at: 0 }).map_err(|_| Refusal::Malformed)?;
            if !self.standing.was_asked(question, &line) {
                continue;
            }
            let number = Number { incarnation, stream, sequence: last };
            let (verdict, forgotten) = self.incoming.stood(line, source, number);
            told.extend(verdict.and_then(|verdict| self.judge(&line, source, verdict, now_ms)));
            if let Some((line, forgotten)) = forgotten {
                told.push(self.lost(&forgotten, Some(&line), None, now_ms));
            }
        }
        Ok(Effects { told, ..Effects::default() })
    }

    fn hear_answer(&mut self, header: &Header, token: &str, payload: &[u8]) -> Result<Effects, Refusal> {
        if token != self.node.as_str() {
            return Err(Refusal::Subject);
        }
        let (ask, outcome) = pending_questions::read(payload).map_err(|_| Refusal::Malformed)?;
        let on_nodes = self.pending_questions.answer(ask, header.source.shared(), outcome);
        let settled = on_nodes.map(|on_nodes| QuestionResult { ask, on_nodes, shown: None });
        Ok(Effects { settled, ..Effects::default() })
    }

    /// A channel of another node, or that there is none.
    fn hear_shown(&mut self, header: &Header, token: &str, payload: &[u8]) -> Result<Effects, Refusal> {
        if token != self.node.as_str() {
            return Err(Refusal::Subject);
        }
        let (ask, shown) = payload.split_first_chunk().ok_or(Refusal::Malformed)?;
        if shown.len() > SHOWN_BYTES_MAX {
            return Err(Refusal::Malformed);
        }
        let shown: Option<Box<ChannelReport>> = match shown {
            [] => None,
            shown => Some(serde_json::from_slice(shown).map_err(|_| Refusal::Malformed)?),
        };
        let ask = u64::from_be_bytes(*ask);
        let on_nodes = self.pending_questions.answer(ask, header.source.shared(), Outcome::default());
        let settled = on_nodes.map(|on_nodes| QuestionResult { ask, on_nodes, shown });
        Ok(Effects { settled, ..Effects::default() })
    }

    /// Handles another node's question about a channel here.
    fn hear_of_channel(&self, header: Header, token: &str, payload: &[u8]) -> Result<Effects, Refusal> {
        if token != self.node.as_str() {
            return Err(Refusal::Subject);
        }
        let Header { source, ask, channels, kind, .. } = header;
        let [channel] = channels[..] else { return Err(Refusal::Malformed) };
        let what = match (kind, payload.split_first_chunk()) {
            (Kind::Look, None) if payload.is_empty() => ChannelQuestion::Look,
            (Kind::Close, Some((code, reason))) if reason.len() <= close::REASON_BYTES_MAX => {
                let code = u16::from_be_bytes(*code);
                let reason = std::str::from_utf8(reason).map_err(|_| Refusal::Malformed)?;
                if !close::code_may_travel(code) {
                    return Err(Refusal::Malformed);
                }
                ChannelQuestion::Close(code, reason.into())
            }
            _ => return Err(Refusal::Malformed),
        };
        Ok(Effects { of_channel: Some(ChannelAsked { source, ask, channel, what }), ..Effects::default() })
    }

    fn hear_tails(&mut self, header: &Header, payload: &[u8], now_ms: u64) -> Result<Effects, Refusal> {
        let (source, incarnation) = (header.source.shared().clone(), header.incarnation);
        let mut reader = Reader { bytes: payload, at: 0 };
        let [forgotten, age_ms] = [reader.array(), reader.array()];
        let forgotten = u64::from_be_bytes(forgotten.map_err(|_| Refusal::Malformed)?);
        let age_ms = u64::from_be_bytes(age_ms.map_err(|_| Refusal::Malformed)?);
        if !(payload.len() - reader.at).is_multiple_of(TAIL_BYTES) {
            return Err(Refusal::Malformed);
        }
        let mut told = Vec::new();
        // Of a node that was not heard before it is told only if it was in our time.
        let is_ours = now_ms.saturating_sub(age_ms) > self.own_since_ms;
        if self.roster.forgets(&source, incarnation, forgotten, is_ours) {
            told.push(self.lost(&source, None, None, now_ms));
        }
        while reader.at < payload.len() {
            let tail = read_tail(&mut reader).map_err(|_| Refusal::Malformed)?;
            let since_ms = match tail.line == self.own_line {
                true => self.own_since_ms,
                false => match self.interest.get(&tail.line) {
                    Some((_, since_ms)) => since_ms,
                    None => continue,
                },
            };
            let number = Number { incarnation, stream: tail.stream, sequence: tail.last };
            let is_younger = self.standing.is_younger(&tail.line, &source, incarnation, tail.stream);
            let announced = AnnouncedCount { number, age_ms: tail.age_ms, now_ms, since_ms, is_younger };
            if let Some((line, forgotten)) = self.incoming.claim(tail.line, &source, announced) {
                told.push(self.lost(&forgotten, Some(&line), None, now_ms));
            }
        }
        Ok(Effects { told, ..Effects::default() })
    }

    fn hear_push(
        &mut self,
        header: Header,
        token: &str,
        payload: Bytes,
        bytes: usize,
        now_ms: u64,
    ) -> Result<Effects, Refusal> {
        // All messages of one read share its buffer: what shards keep by reference must not keep its neighbours.
        let is_kept = payload.len() > OWN_COPY_BYTES_MAX || header.policy.is_some_and(|policy| policy.key().is_some());
        let is_copied = is_kept && payload.len() <= COPIED_BYTES_MAX;
        let payload = if is_copied { Bytes::copy_from_slice(&payload) } else { payload };
        let process: ProcessId = header.process.parse().map_err(|_| Refusal::Malformed)?;
        let to = match header.kind {
            Kind::Topic => {
                topic::check(&header.name).map_err(|_| Refusal::Malformed)?;
                Channels::Of(NamedAudience::Topic(header.name.into()))
            }
            Kind::Path => Channels::Of(NamedAudience::Path(header.name.into())),
            Kind::Process if header.name.is_empty() => Channels::Of(NamedAudience::Process),
            Kind::Channels => Channels::List(header.channels),
            Kind::Guest => {
                let guest = format!("{}@{process}", self.roster.known_as(header.source.as_str()));
                Channels::Guest(guest.into(), header.channels)
            }
            _ => return Err(Refusal::Malformed),
        };
        let line = match &to {
            Channels::Of(to) => {
                let line = Target { process: process.clone(), to: to.clone() }.line();
                if !Subjects::is_of(token, &line) {
                    return Err(Refusal::Subject);
                }
                if self.interest.get(&line).is_none() {
                    // Sent before NATS knew that this node does not listen any more.
                    let ask = header.ask;
                    let answer = (ask != 0).then(|| self.answer(&header.source, ask, &Outcome::default()));
                    return Ok(Effects { answer, ..Effects::default() });
                }
                line
            }
            Channels::List(_) | Channels::Guest(..) if token == self.node.as_str() => self.own_line,
            Channels::List(_) | Channels::Guest(..) => return Err(Refusal::Subject),
        };
        let message = message(header.frame, payload).ok_or(Refusal::Malformed)?;
        let Header { source, incarnation, stream, sequence, policy, ask, .. } = header;
        let (verdict, forgotten) = self.incoming.take(line, source.shared(), Number { incarnation, stream, sequence });
        let mut told: Vec<FleetNews> = self.judge(&line, source.shared(), verdict, now_ms).into_iter().collect();
        if let Some((line, of)) = forgotten {
            told.push(self.lost(&of, Some(&line), None, now_ms));
        }
        if verdict == Verdict::Late {
            self.counts.late += 1;
            return Ok(Effects { told, ..Effects::default() });
        }
        self.counts.received += 1;
        self.counts.received_bytes += bytes as u64;
        let shared = source.shared().clone();
        let asked = (ask != 0).then_some((source, ask));
        let delivery = Some(Delivery { source: shared, process, channels: to, message, policy, asked });
        Ok(Effects { delivery, told, ..Effects::default() })
    }

    /// Reports the losses of a verdict.
    fn judge(&mut self, line: &AudienceKey, source: &Arc<str>, verdict: Verdict, now_ms: u64) -> Option<FleetNews> {
        match verdict {
            Verdict::Next | Verdict::Late => None,
            Verdict::Behind { lost } => Some(self.lost(source, Some(line), Some(lost), now_ms)),
            Verdict::Recounted { lost } => {
                self.count_lost(source, lost);
                Some(self.lost(source, Some(line), None, now_ms))
            }
            // That it began anew is told of the node; what its former self had sent was announced by it.
            Verdict::Restarted { lost: 0 } => None,
            Verdict::Restarted { lost } => Some(self.lost(source, Some(line), Some(lost), now_ms)),
        }
    }

    /// So many messages of another node had no room here, for an audience or, without one, for single channels.
    pub(super) fn undelivered(&mut self, source: &Arc<str>, to: Option<&Target>, count: u32, now_ms: u64) -> FleetNews {
        let line = to.map_or(self.own_line, Target::line);
        self.lost(source, Some(&line), Some(count.into()), now_ms)
    }

    fn count_lost(&mut self, source: &Arc<str>, lost: u64) {
        self.counts.lost = self.counts.lost.saturating_add(lost);
        if self.lost_of.len() < super::roster::NODES_MAX || self.lost_of.contains_key(source) {
            let of = self.lost_of.entry(source.clone()).or_default();
            *of = of.saturating_add(lost);
        }
    }

    fn lost(&mut self, source: &Arc<str>, line: Option<&AudienceKey>, count: Option<u64>, now_ms: u64) -> FleetNews {
        match count {
            Some(lost) => self.count_lost(source, lost),
            None => self.counts.gaps_unknown += 1,
        }
        let to = line.and_then(|line| self.interest.get(line)).map(|(target, _)| target.clone());
        if self.losses.len() >= LOSSES_MAX {
            self.losses.pop_front();
        }
        let said = match (&to, line) {
            (Some(target), _) => format!("{} {} {}", target.process, target.kind().word(), target.name()),
            (None, Some(_)) => "channels of this node".to_owned(),
            (None, None) => "audiences that the node has forgotten".to_owned(),
        };
        self.losses.push_back(FleetLine { unix_ms: now_ms, node: source.to_string(), to: said, lost: count });
        FleetNews::Lost { source: source.clone(), to, count }
    }

    /// The other nodes, and where messages were lost last.
    pub(super) fn seen(&self, now_ms: u64) -> (Vec<FleetNode>, Vec<FleetLine>) {
        let nodes = self.roster.nodes().map(|(name, known)| FleetNode {
            node: name.to_string(),
            version: known.about.version.clone(),
            address: known.about.address.clone(),
            public: known.about.public.clone(),
            channels: known.about.channels,
            heard_ms: now_ms.saturating_sub(known.heard_ms),
            is_gone: known.is_gone,
            draining: known.about.draining,
            lost: self.lost_of.get(name).copied().unwrap_or(0),
        });
        (nodes.collect(), self.losses.iter().cloned().collect())
    }

    /// Where clients reach other nodes.
    pub(super) fn runs(&self) -> BTreeMap<RunId, Arc<str>> {
        self.roster.runs()
    }

    /// The heap bytes of its tables.
    pub(super) fn heap_bytes(&self) -> usize {
        let numbers = self.outgoing.heap_bytes() + self.incoming.heap_bytes();
        numbers + self.interest.heap_bytes() + self.standing.heap_bytes() + self.pending_questions.heap_bytes()
    }

    /// The number of audiences it listens to, of its own counts, and of others'.
    pub(super) fn sizes(&self) -> [u64; 3] {
        [self.interest.len(), self.outgoing.len(), self.incoming.len()].map(|size| size as u64)
    }

    /// How often there was no room to listen.
    pub(super) fn listens_refused(&self) -> u64 {
        self.interest.refused()
    }
}

fn message(frame: PushKind, payload: Bytes) -> Option<Message> {
    let message = match frame {
        PushKind::Message(kind) => Message::of_kind(kind, payload),
        PushKind::Ping => Message::ping(payload),
        PushKind::Pong => Message::pong(payload),
        PushKind::ControlText { .. } => return None,
    };
    message.ok()
}

#[cfg(test)]
#[path = "member_tests.rs"]
mod tests;
