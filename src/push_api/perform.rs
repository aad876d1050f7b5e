//! Carrying out requests of the API: pushes in the name of processes, and queries of topics and channels.
//!
//! Invariants: a push never waits; nothing is done in the name of a process that is gone.

use super::answer::ApiAnswer;
use super::body::{OnOthers, OutcomeWanted, PublishOrder, PublishTo, decoded};
use crate::admission::tree_bytes_in_order;
use crate::broker::{
    Audience, Broadcast, BrokerHandle, ChannelAnswer, ChannelAt, ChannelFilter, ChannelQuestion, ChannelReport,
    CheckedOrder, Message, OnNodes, Outcome, Presence, Present, ProcessHandle, PushError, Ticket, TopicQuery,
    TopicReport,
};
use crate::channel::ChannelId;
use crate::hub::{self, grammar};
use crate::process_id::ProcessId;
use crate::words::strict::digits;
use crate::words::topic;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long an outcome is waited for: shards tell it within a turn or two, whatever clients do.
pub(super) const OUTCOME_WITHIN: Duration = Duration::from_secs(5);

/// With what a channel is closed where the request does not say (RFC 6455 7.4.1: policy).
const CLOSE_CODE: u16 = 1008;

/// Topics of a page, unless the request says how many.
const TOPICS_AT_ONCE: usize = 100;
const TOPICS_AT_ONCE_MAX: usize = 1000;

/// Processes whose handles are kept.
const HANDLES_MAX: usize = 256;

type Handles = HashMap<ProcessId, ProcessHandle>;

/// See the module. Its clones act by the same handles, so that together they are one producer for each process.
#[derive(Clone)]
pub(super) struct Performer {
    target: BrokerHandle,
    process: Option<ProcessId>,
    /// Of all clones; locked where one of them meets a process for the first time.
    shared: Arc<Mutex<Handles>>,
    handles: Handles,
}

/// The result of a push.
pub(super) enum PushResult {
    Accepted,
    /// The outcome was asked for.
    Asked(PushTickets),
}

/// A claim to how many subscribers a topic has on all nodes.
pub(super) struct Counting {
    topic: String,
    here: usize,
    /// One for each form of it.
    elsewhere: Vec<Ticket<Presence>>,
}

impl Counting {
    /// Returns whether others may still say it.
    pub(super) fn is_slow(&self) -> bool {
        self.elsewhere.iter().any(|ticket| !ticket.is_known())
    }

    /// The outcome for the answer; none: not known in time.
    pub(super) fn wait(&self, timeout: Duration) -> Option<Value> {
        let until = Instant::now() + timeout;
        let mut nodes = BTreeMap::<Arc<str>, Option<Present>>::new();
        let (mut subscribers, mut is_partial) = (self.here, false);
        for ticket in &self.elsewhere {
            let presence = ticket.wait(until.saturating_duration_since(Instant::now())).ok()?;
            is_partial |= presence.is_partial;
            for (node, present) in presence.nodes {
                subscribers += present.subscribers;
                let none = Present { subscribers: 0, age: Duration::ZERO };
                // Unknown in one form is unknown in both.
                if let Some(sum) = nodes.entry(node).or_insert(Some(none)) {
                    sum.subscribers += present.subscribers;
                    sum.age = sum.age.max(present.age);
                }
            }
            nodes.extend(presence.unknown.into_iter().map(|node| (node, None)));
        }
        let told = nodes.iter().map(|(node, present)| {
            let told = present.map(
                |Present { subscribers, age }| json!({"subscribers": subscribers, "age_ms": age.as_millis() as u64}),
            );
            (node.to_string(), told.unwrap_or(Value::Null))
        });
        let nodes = Value::Object(told.collect());
        Some(
            json!({"topic": self.topic, "subscribers": subscribers, "here": self.here, "nodes": nodes, "partial": is_partial}),
        )
    }
}

/// The names under which channels of a process are subscribed to a topic: at the hub also the one for those that want
/// an envelope.
fn forms_of(process: &ProcessHandle, name: &str) -> Vec<String> {
    let twin = grammar::twin(name).filter(|_| process.id().as_str() == hub::PROCESS);
    [name.to_owned()].into_iter().chain(twin).collect()
}

/// How many channels here are subscribed to a topic, in whatever form.
fn subscribers(process: &ProcessHandle, name: &str) -> usize {
    forms_of(process, name).iter().map(|form| process.subscribers(form)).sum()
}

/// The claims to the outcomes of one request's pushes: one, or one for each form (at the hub) and node.
#[derive(Default)]
pub(super) struct PushTickets {
    here: Vec<Ticket>,
    /// Empty if other nodes were not asked.
    nodes: Vec<Ticket<OnNodes>>,
}

impl PushTickets {
    /// Returns whether waiting for it may take as long as other nodes do.
    pub(super) fn is_slow(&self) -> bool {
        self.nodes.iter().any(|ticket| !ticket.is_known())
    }

    /// The heap bytes that it takes once so many other nodes have said what became of it there.
    pub(super) fn heap_bytes(&self, nodes: usize) -> usize {
        let places = self.here.capacity() * size_of::<Ticket>() + self.nodes.capacity() * size_of::<Ticket<OnNodes>>();
        let of_nodes = Ticket::<OnNodes>::HEAP_BYTES + tree_bytes_in_order::<Arc<str>, Outcome>(nodes);
        places + self.here.len() * Ticket::<Outcome>::HEAP_BYTES + self.nodes.len() * of_nodes
    }

    /// The outcomes of all pushes for the answer. None: not known in time.
    pub(super) fn wait(&self, timeout: Duration) -> Option<Value> {
        let until = Instant::now() + timeout;
        let left = || until.saturating_duration_since(Instant::now());
        let mut sum = Outcome::default();
        for ticket in &self.here {
            sum.add(&ticket.wait(left()).ok()?);
        }
        let mut answer = counts(&sum);
        if self.nodes.is_empty() {
            return Some(answer);
        }
        let (mut said, mut is_partial) = (BTreeMap::<Arc<str>, Option<Outcome>>::new(), false);
        for ticket in &self.nodes {
            let on_nodes = ticket.wait(left()).ok()?;
            is_partial |= on_nodes.is_partial;
            for (node, outcome) in on_nodes.said {
                // Unknown in one form is unknown in both.
                if let Some(sum) = said.entry(node).or_insert_with(|| Some(Outcome::default())) {
                    sum.add(&outcome);
                }
            }
            said.extend(on_nodes.silent.into_iter().map(|node| (node, None)));
        }
        let nodes = said.iter().map(|(node, outcome)| (node.to_string(), outcome.as_ref().map_or(Value::Null, counts)));
        answer["nodes"] = Value::Object(nodes.collect());
        answer["partial"] = is_partial.into();
        Some(answer)
    }

    /// A push to be given with others; keeps what it is asked of.
    fn checked<'p>(&mut self, push: Broadcast<'p>, wanted: OutcomeWanted) -> Result<CheckedOrder<'p>, ApiAnswer> {
        let checked = match wanted {
            OutcomeWanted::Nothing => push.checked(),
            OutcomeWanted::Here => push.ask().checked().map(|(checked, here)| {
                self.here.push(here);
                checked
            }),
            OutcomeWanted::Nodes => push.ask_nodes().checked().map(|(checked, (here, nodes))| {
                self.here.push(here);
                self.nodes.push(nodes);
                checked
            }),
        };
        checked.map_err(refusal)
    }
}

/// A claim to what another node says of a channel of its own.
pub(super) struct ChannelTicket {
    at: ChannelAt,
    said: Ticket<ChannelAnswer>,
}

impl ChannelTicket {
    /// Returns whether the node may still say it.
    pub(super) fn is_slow(&self) -> bool {
        !self.said.is_known()
    }

    pub(super) fn answer(&self) -> ApiAnswer {
        match self.said.get().unwrap_or(ChannelAnswer::Silent) {
            ChannelAnswer::Shown(report) => shown(*report, Some(&self.at.node)),
            ChannelAnswer::Closed => ApiAnswer::json(202, &json!({"closed": self.at.to_string()})),
            ChannelAnswer::NotFound => no_channel(&self.at),
            ChannelAnswer::Silent => {
                let why = format!("node {} has not answered: it is away, slow, or none of this fleet", self.at.node);
                ApiAnswer::error(503, None, &why).with("retry-after", "1")
            }
        }
    }
}

/// A channel as it is shown.
fn shown(mut report: ChannelReport, node: Option<&str>) -> ApiAnswer {
    report.topics = report.topics.iter().filter_map(|name| grammar::name_of(name)).map(Into::into).collect();
    report.topics.sort_unstable();
    let mut channel = serde_json::to_value(&report).expect("reports are plain JSON");
    if let Some(node) = node {
        channel["node"] = node.into();
    }
    ApiAnswer::json(200, &channel)
}

type Query = BTreeMap<String, String>;

impl Performer {
    pub(super) fn new(target: BrokerHandle, process: Option<ProcessId>) -> Self {
        Self { target, process, shared: Arc::default(), handles: Handles::new() }
    }

    /// How many other nodes there are.
    pub(super) fn nodes(&self) -> usize {
        self.target.fleet().map_or(0, |fleet| fleet.nodes.len())
    }

    pub(super) fn push(&mut self, order: PublishOrder) -> Result<PushResult, ApiAnswer> {
        let PublishOrder { to, process, message, is_json, policy, except, outcome } = order;
        let handle = self.acting(process.as_ref())?;
        let mut enveloped = None;
        if let PublishTo::All(Audience::Topic(name)) = &to
            && handle.id().as_str() == hub::PROCESS
        {
            let payload = if is_json { hub::json_of(&message) } else { hub::payload_of(&message) };
            enveloped = hub::envelope(handle, name, &payload);
        }
        let mut on_others = OnOthers::new();
        let audience = match to {
            PublishTo::All(audience) => audience,
            PublishTo::Channels(channels, others) => {
                on_others = others;
                Audience::Channels(channels)
            }
            PublishTo::User(user) => match topic::of_user(&user) {
                Some(topic) => Audience::Topic(topic.into()),
                None => return Err(ApiAnswer::error(400, Some("to.user"), "a user's name has 1 to 200 bytes")),
            },
        };
        if !on_others.is_empty() && !handle.is_in_fleet() {
            let why = "this broker is in no fleet: channels are numbers, without a node";
            return Err(ApiAnswer::error(404, Some("to.channels"), why));
        }
        let push = |message: Message, audience: Audience| {
            let push = handle.broadcast(message).to(audience).except_all(except.iter().copied());
            if let Some(policy) = policy { push.policy(policy) } else { push }
        };
        // A list of channels is of one node.
        let everywhere = !matches!(audience, Audience::Channels(_));
        let mut pushes = vec![push(message.clone(), audience).everywhere_if(everywhere)];
        pushes.extend(
            enveloped.map(|(topic, text)| push(Message::text(text), Audience::Topic(topic.into())).everywhere()),
        );
        let of_node =
            |(node, channels): (String, _)| push(message.clone(), Audience::Channels(channels)).on_node(&node);
        pushes.extend(on_others.into_iter().map(of_node));
        // All of them, or none: a client that is refused may repeat its request.
        let mut tickets = PushTickets::default();
        let orders: Vec<_> = pushes.into_iter().map(|push| tickets.checked(push, outcome)).collect::<Result<_, _>>()?;
        CheckedOrder::give_all(orders).map_err(refusal)?;
        Ok(if outcome == OutcomeWanted::Nothing { PushResult::Accepted } else { PushResult::Asked(tickets) })
    }

    /// The handle that acts for a process, as long as that is attached.
    fn acting(&mut self, process: Option<&ProcessId>) -> Result<&ProcessHandle, ApiAnswer> {
        let Some(id) = process.or(self.process.as_ref()).cloned() else {
            return Err(ApiAnswer::error(400, Some("to.process"), "say in the name of which process"));
        };
        if self.handles.get(&id).is_none_or(|handle| !handle.is_attached()) {
            let Some(handle) = self.shared_handle(&id) else {
                self.handles.remove(&id);
                return Err(ApiAnswer::error(404, Some("to.process"), &format!("no process {id} is attached")));
            };
            keep(&mut self.handles, &id, handle);
        }
        Ok(&self.handles[&id])
    }

    fn shared_handle(&self, id: &ProcessId) -> Option<ProcessHandle> {
        // No panic leaves it half changed.
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = shared.get(id).filter(|handle| handle.is_attached()) {
            return Some(handle.clone());
        }
        let handle = self.target.acting(id)?;
        keep(&mut shared, id, handle.clone());
        Some(handle)
    }

    fn process_of(&self, query: &Query) -> Result<ProcessId, ApiAnswer> {
        match (query.get("process"), &self.process) {
            (Some(id), _) => {
                ProcessId::named(id).map_err(|error| ApiAnswer::error(400, Some("process"), &error.to_string()))
            }
            (None, Some(process)) => Ok(process.clone()),
            (None, None) => Err(ApiAnswer::error(400, Some("process"), "say of which process, with ?process=ID")),
        }
    }

    pub(super) fn topics(&self, query: &Query) -> ApiAnswer {
        let asked = || {
            let limit = match query.get("limit").map(|limit| digits::<u64>(limit)) {
                None => TOPICS_AT_ONCE,
                Some(Some(limit @ 1..)) => usize::try_from(limit).unwrap_or(usize::MAX).min(TOPICS_AT_ONCE_MAX),
                Some(_) => return Err(ApiAnswer::error(400, Some("limit"), "a number from 1 to 1000")),
            };
            let (prefix, after) = (query.get("prefix").cloned().unwrap_or_default(), query.get("after").cloned());
            let process = self.process_of(query)?;
            // One more tells whether there is another page.
            let enveloped = (process.as_str() == hub::PROCESS).then(|| {
                let (prefix, after) = (grammar::before_twin(&prefix), after.as_deref().map(grammar::before_twin));
                let query = TopicQuery { process: process.clone(), prefix, after, limit: None };
                self.named_topics(query, limit + 1, grammar::name_of)
            });
            let query = TopicQuery { process, prefix, after, limit: None };
            let raw = self.named_topics(query, limit + 1, |name| (!topic::is_reserved(name)).then_some(name));
            let topics = merged(raw, enveloped.unwrap_or_default());
            let page = &topics[..topics.len().min(limit)];
            let next = page.last().filter(|_| topics.len() > limit).map(|last| last.topic.clone());
            Ok(ApiAnswer::json(200, &json!({"topics": page, "next": next})))
        };
        asked().unwrap_or_else(|refused: ApiAnswer| refused)
    }

    /// At least so many of the topics that are asked for, if there are as many, by the names that clients give them;
    /// those of users are never listed.
    fn named_topics(
        &self,
        mut query: TopicQuery,
        least: usize,
        name_of: impl Fn(&str) -> Option<&str>,
    ) -> Vec<TopicReport> {
        let at_once = least.min(TOPICS_AT_ONCE_MAX);
        query.limit = Some(at_once);
        let mut named = Vec::new();
        loop {
            let found = self.target.topics(&query);
            let last = found.last().filter(|_| found.len() == at_once).map(|report| report.topic.clone());
            named.extend(found.into_iter().filter_map(|report| {
                let topic = name_of(&report.topic)?.into();
                Some(TopicReport { topic, ..report })
            }));
            match last {
                Some(last) if named.len() < least => {
                    // Not one page after another of what is not listed.
                    let behind = if name_of(&last).is_some() { &*last } else { topic::BEHIND_RESERVED };
                    query.after = Some(behind.to_owned());
                }
                _ => return named,
            }
        }
    }

    pub(super) fn topic(&self, name: &str, query: &Query) -> ApiAnswer {
        let Some(name) = decoded(name).filter(|name| topic::check(name).is_ok() && !topic::is_reserved(name)) else {
            return ApiAnswer::error(400, Some("topic"), "the name of a topic, percent-encoded");
        };
        let process = match self.process_of(query) {
            Ok(process) => process,
            Err(refused) => return refused,
        };
        match self.target.acting(&process).map_or(0, |handle| subscribers(&handle, &name)) {
            0 => ApiAnswer::error(404, None, "no channel is subscribed to this topic"),
            subscribers => ApiAnswer::json(200, &json!({"topic": name, "subscribers": subscribers})),
        }
    }

    /// How many subscribers a topic has on all nodes of the fleet.
    pub(super) fn topic_everywhere(&self, name: &str, query: &Query) -> Result<Counting, ApiAnswer> {
        let topic = decoded(name).filter(|name| topic::check(name).is_ok() && !topic::is_reserved(name));
        let why = "the name of a topic, percent-encoded";
        let topic = topic.ok_or_else(|| ApiAnswer::error(400, Some("topic"), why))?;
        let process = self.process_of(query)?;
        let handle = self.target.acting(&process);
        let handle = handle
            .ok_or_else(|| ApiAnswer::error(404, Some("process"), &format!("no process {process} is attached")))?;
        let elsewhere = forms_of(&handle, &topic).iter().map(|form| handle.presence(form)).collect();
        Ok(Counting { here: subscribers(&handle, &topic), elsewhere, topic })
    }

    pub(super) fn channel(&self, id: &str) -> ApiAnswer {
        let Some(channel) = digits(id).map(ChannelId::new) else { return no_number() };
        let filter = ChannelFilter { channel: Some(channel), ..ChannelFilter::default() };
        match self.target.channels(&filter, 0, 1).0.pop() {
            None => no_channel(&channel),
            Some(report) => shown(report, self.target.fleet_node()),
        }
    }

    /// Asks a node of the fleet to tell of a channel, or to close it as the request says. An answer there is already
    /// where it is this node's own, or the request is wrong.
    pub(super) fn ask_of_channel(
        &self,
        node: &str,
        id: &str,
        closes: Option<&Query>,
    ) -> Result<ChannelTicket, ApiAnswer> {
        let Some(own) = self.target.fleet_node() else {
            let why = "this broker is in no fleet: channels are numbers, without a node";
            return Err(ApiAnswer::error(404, Some("channel"), why));
        };
        if node == own {
            return Err(closes.map_or_else(|| self.channel(id), |query| self.close(id, query)));
        }
        let at: ChannelAt = format!("{node}/{id}").parse().map_err(|_| no_number())?;
        let what = match closes {
            None => ChannelQuestion::Look,
            Some(query) => {
                let (code, reason) = close_of(query)?;
                ChannelQuestion::Close(code, reason.into())
            }
        };
        let said = self.target.ask_of_channel(&at, what).ok_or_else(|| no_channel(&at))?;
        Ok(ChannelTicket { at, said })
    }

    pub(super) fn close(&self, id: &str, query: &Query) -> ApiAnswer {
        let Some(channel) = digits(id).map(ChannelId::new) else { return no_number() };
        let (code, reason) = match close_of(query) {
            Ok(close) => close,
            Err(refused) => return refused,
        };
        let closed = self.target.close(channel, code, reason).ask().try_send();
        match closed.map(|ticket| ticket.wait(OUTCOME_WITHIN)) {
            Ok(Ok(Outcome { not_found: 0, .. })) => ApiAnswer::json(202, &json!({"closed": channel})),
            Ok(Ok(_)) => no_channel(&channel),
            Ok(Err(_)) => ApiAnswer::error(503, None, "the shard did not answer in time").with("retry-after", "1"),
            Err(error) => refusal(error),
        }
    }
}

/// The topics of both lists, by name: the subscribers of one that is in both are those of both.
fn merged(one: Vec<TopicReport>, other: Vec<TopicReport>) -> Vec<TopicReport> {
    let mut all = BTreeMap::<Arc<str>, usize>::new();
    for TopicReport { topic, subscribers } in one.into_iter().chain(other) {
        *all.entry(topic).or_default() += subscribers;
    }
    all.into_iter().map(|(topic, subscribers)| TopicReport { topic, subscribers }).collect()
}

fn keep(handles: &mut Handles, id: &ProcessId, handle: ProcessHandle) {
    if handles.len() >= HANDLES_MAX {
        handles.clear();
    }
    handles.insert(id.clone(), handle);
}

fn no_number() -> ApiAnswer {
    ApiAnswer::error(400, Some("channel"), "the number of a channel")
}

/// The code and reason with which a request closes a channel.
fn close_of(query: &Query) -> Result<(u16, &str), ApiAnswer> {
    let code = query.get("code").map_or(CLOSE_CODE, |code| digits(code).unwrap_or(0));
    if !crate::proto::close::code_may_travel(code) {
        let why = "a code that may travel (RFC 6455 7.4): 1000 to 1014, 3000 to 4999";
        return Err(ApiAnswer::error(400, Some("code"), why));
    }
    Ok((code, query.get("reason").map_or("closed over HTTP", String::as_str)))
}

fn no_channel(channel: &dyn std::fmt::Display) -> ApiAnswer {
    ApiAnswer::error(404, None, &format!("there is no channel {channel}"))
}

/// Why a push was not accepted.
fn refusal(error: PushError) -> ApiAnswer {
    match error {
        PushError::InboxFull => {
            ApiAnswer::error(429, None, "a shard has too much to do: nothing was pushed").with("retry-after", "1")
        }
        PushError::Partly => unreachable!("only handlers give orders that are accepted in part"),
        PushError::TooLarge => ApiAnswer::error(413, None, &error.to_string()),
        PushError::ChannelsAreHere | PushError::OnlyChannels => {
            ApiAnswer::error(400, Some("to.channels"), &error.to_string())
        }
        PushError::Topic(_) => ApiAnswer::error(400, Some("to.topic"), &error.to_string()),
        PushError::OutcomesUnread | PushError::Stopped => {
            ApiAnswer::error(503, None, &error.to_string()).with("retry-after", "1")
        }
    }
}

/// An outcome in JSON.
fn counts(outcome: &Outcome) -> Value {
    let Outcome { sent, queued, queued_bytes, conflated, dropped, closed, not_found, not_owner, .. } = outcome;
    let Outcome { fleet_full, fleet_down, fleet_too_large, .. } = outcome;
    let mut counts = json!({
        "sent": sent, "queued": queued, "queued_bytes": queued_bytes, "conflated": conflated, "dropped": dropped,
        "closed": closed, "not_found": not_found, "not_owner": not_owner,
    });
    // Where there is no fleet nothing is said of one.
    for (name, count) in [("fleet_full", fleet_full), ("fleet_down", fleet_down), ("fleet_too_large", fleet_too_large)]
    {
        if *count > 0 {
            counts[name] = json!(count);
        }
    }
    counts
}
