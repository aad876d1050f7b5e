//! The clients of a rolling restart, as the clients' libraries behave: one that is told to come back waits as long as
//! it is told, comes to the next node that takes it, with the token of its channel, and counts what it hears.
//!
//! Invariant: what is heard is judged for each channel alone; where a client goes, it is told that it begins anew.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

use super::super::common::{BROADCAST, PROCESS};
use super::scene::{Entrance, MessageId, Scene};
use crate::client::engine::{CONNECTING_MAX, Pace};
use crate::client::tls::TlsOptions;
use crate::client::{Closure, Engine, Handler, Message, Opcode, Outbox};
use crate::payload::Stamp;
use crate::sys;

/// A client that no node takes asks again after this.
const AGAIN_NS: u64 = 20_000_000;

/// Messages of the broker itself begin with this.
const CONTROL: u8 = 0x1e;

/// What all clients have heard.
#[derive(Debug, Default, Serialize)]
pub(super) struct Heard {
    /// They were told to come back (1012), and in the first message on another node that their channel is a new one.
    pub moved: u64,
    pub began_anew: u64,
    /// They were closed otherwise.
    pub cut_off: u64,
    /// Messages that came twice or out of order on a channel.
    pub doubled: u64,
    /// Messages missing between others on a channel, and those of them that it was not told of.
    pub missing: u64,
    pub untold: u64,
    /// Messages that had been heard on an earlier channel.
    pub again_elsewhere: u64,
    #[serde(skip)]
    pub messages: HashMap<MessageId, u64>,
}

#[derive(Debug, Default)]
struct Mover {
    /// The node that it comes to, or is at.
    node: usize,
    /// It comes then.
    due_ns: Option<u64>,
    is_greeted: bool,
    /// Its channel's id and token, from its last hello.
    channel: Option<(u64, String)>,
    received: u64,
    /// The last number of each sender on this channel, and on all.
    last: HashMap<u32, u64>,
    last_ever: HashMap<u32, u64>,
    missing: u64,
    told: u64,
}

struct Movers<'a, 'b> {
    scene: &'a Scene<'b>,
    clients: Vec<Mover>,
    heard: Heard,
}

impl Movers<'_, '_> {
    fn greet(&mut self, client: usize, hello: &Value) {
        let mover = &mut self.clients[client];
        let (Some(id), Some(token)) = (hello["channel_id"].as_u64(), hello["resume"].as_str()) else { return };
        mover.is_greeted = true;
        let former = mover.channel.replace((id, token.to_owned()));
        if former.is_some() && hello["resumed"] == false && hello["reason"].is_string() {
            self.heard.began_anew += 1;
        }
        self.scene.channels.lock().expect("no thread panics with it")[client] = Some((mover.node, id as u32));
        self.scene.present.fetch_add(1, Ordering::Relaxed);
    }

    fn note(&mut self, client: usize, id: MessageId) {
        let mover = &mut self.clients[client];
        *self.heard.messages.entry(id).or_default() += 1;
        let (from, number) = id;
        match mover.last.insert(from, number) {
            Some(last) if number <= last => self.heard.doubled += 1,
            // Those to single channels have numbers of all channels.
            Some(last) if from & BROADCAST != 0 => mover.missing += number - last - 1,
            _ => {}
        }
        let ever = mover.last_ever.entry(from).or_default();
        self.heard.again_elsewhere += u64::from(number <= *ever);
        *ever = number.max(*ever);
    }

    /// The channel is over.
    fn settle(&mut self, client: usize) {
        let mover = &mut self.clients[client];
        if std::mem::take(&mut mover.is_greeted) {
            self.scene.present.fetch_sub(1, Ordering::Relaxed);
        }
        self.scene.channels.lock().expect("no thread panics with it")[client] = None;
        let (missing, told) = (std::mem::take(&mut mover.missing), std::mem::take(&mut mover.told));
        self.heard.missing += missing;
        self.heard.untold += missing.saturating_sub(told);
        mover.last.clear();
        mover.received = 0;
    }
}

impl Handler for Movers<'_, '_> {
    fn message(&mut self, client: usize, message: &Message<'_>, _: u64, _: &mut Outbox<'_>) {
        let text = message.head.get(..message.length as usize).unwrap_or_default();
        match (message.opcode, text) {
            (Opcode::Text, text) if !self.clients[client].is_greeted => {
                if let Ok(hello) = serde_json::from_slice(text) {
                    self.greet(client, &hello);
                }
            }
            (Opcode::Text, [CONTROL, control @ ..]) => {
                let dropped = serde_json::from_slice::<Value>(control).ok().and_then(|said| said["dropped"].as_u64());
                let mover = &mut self.clients[client];
                mover.told += dropped.unwrap_or(0);
                mover.received += dropped.unwrap_or(0);
            }
            (Opcode::Binary, _) => {
                self.clients[client].received += 1;
                let stamp = Stamp::read(message.head).filter(|stamp| stamp.run == self.scene.run && message.uniform);
                match stamp {
                    Some(stamp) => self.note(client, (stamp.client, stamp.sequence)),
                    None => self.heard.doubled += 1,
                }
            }
            // The process tells the channel's id.
            _ => self.clients[client].received += 1,
        }
    }

    fn closed(&mut self, client: usize, closure: &Closure) {
        let now_ns = sys::now_ns();
        let was_open = self.clients[client].is_greeted;
        let retry_ms = closure
            .reason
            .split_once('{')
            .and_then(|(_, rest)| serde_json::from_str::<Value>(&format!("{{{rest}")).ok()?["retry_ms"].as_u64());
        let wait_ns = match (was_open, closure.code) {
            (true, Some(1012)) => {
                self.heard.moved += 1;
                retry_ms.unwrap_or(0) * 1_000_000
            }
            (true, _) => {
                self.heard.cut_off += 1;
                0
            }
            // It was not let in, or let in and told to go before its first message.
            (false, _) => AGAIN_NS,
        };
        if was_open {
            self.settle(client);
        }
        let nodes = self.scene.settings.nodes;
        let mover = &mut self.clients[client];
        (mover.node, mover.due_ns) = ((mover.node + 1) % nodes, Some(now_ns + wait_ns));
    }
}

/// Opens all clients, and has them come back, until all is over.
pub(super) fn movers(scene: &Scene<'_>) -> anyhow::Result<Heard> {
    let nodes = scene.settings.nodes;
    let clients = (0..nodes * scene.settings.clients).map(|client| Mover {
        node: client % nodes,
        due_ns: Some(0),
        ..Mover::default()
    });
    let mut movers = Movers { scene, clients: clients.collect(), heard: Heard::default() };
    let mut engines: Vec<Option<(u32, Engine)>> = (0..nodes).map(|_| None).collect();
    while !scene.is_over.load(Ordering::Acquire) {
        for (node, engine) in engines.iter_mut().enumerate() {
            let entrance = scene.entrance(node);
            let is_new = |entrance: &Entrance| engine.as_ref().is_none_or(|(life, _)| *life != entrance.life);
            if let Some(entrance) = entrance.filter(is_new) {
                *engine = Some((entrance.life, Engine::new(target(&entrance.url)?, Pace::Block)?));
            }
        }
        come(scene, &mut movers, &mut engines)?;
        for (_, engine) in engines.iter_mut().flatten() {
            engine.poll(2, &mut movers)?;
        }
    }
    (0..movers.clients.len()).for_each(|client| movers.settle(client));
    Ok(movers.heard)
}

fn target(url: &str) -> anyhow::Result<crate::client::Target> {
    let tls_options = TlsOptions { authority: None, classic: false, resumes: false };
    let mut target = crate::client::Target::parse(url, &format!("/{PROCESS}/"), &tls_options)?;
    target.sources = 16;
    Ok(target)
}

/// Connects the clients whose time it is, not too many at a time.
fn come(scene: &Scene<'_>, movers: &mut Movers<'_, '_>, engines: &mut [Option<(u32, Engine)>]) -> anyhow::Result<()> {
    let (now_ns, nodes) = (sys::now_ns(), engines.len());
    let mut room = CONNECTING_MAX;
    for client in 0..movers.clients.len() {
        let mover = &mut movers.clients[client];
        if room == 0 || mover.due_ns.is_none_or(|due_ns| due_ns > now_ns) {
            continue;
        }
        room -= 1;
        let is_open = scene.entrance(mover.node).is_some_and(|entrance| entrance.is_open);
        let engine = engines[mover.node].as_mut().filter(|_| is_open);
        let Some((_, engine)) = engine else {
            mover.node = (mover.node + 1) % nodes;
            continue;
        };
        let resume = mover.channel.as_ref();
        let resume = resume.map_or(String::new(), |(id, token)| format!(", resume.{id}.{token}.{}", mover.received));
        mover.due_ns = None;
        engine.start_offering(client, &format!("pushring.1{resume}")).context("connecting a client")?;
    }
    Ok(())
}
