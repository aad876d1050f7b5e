//! Hogs that are processes: attached over the server's link, they order all that they may, and take what they cause.
//!
//! Invariant: each does lawful things only, over and over until it is told to end. It knows nothing of what is
//! measured.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ValueEnum;
use pushring::link::{Client, ClientOptions};
use pushring::{Audience, ChannelId, Event, HttpRule, Message, Policy};
use serde::Serialize;

use crate::client::plain::open;
use crate::client::{Opcode, Target, frame};

/// The process that the hog is.
pub(crate) const HOG: &str = "hog:loadtest:sys";

const SOON: Duration = Duration::from_millis(10);

/// The continuous work of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ProcessHog {
    /// It reads nothing until its clients are not read any more, then everything at once, so that all of them go on.
    Resumes,
    /// It answers each request with 100,000 header fields.
    Headers,
    /// It pushes to the same channel, named 200,000 times.
    SameId,
    /// It conflates 60,000 values for a client that does not read, with keys that an unkeyed hash would collide at.
    Keys,
    /// It queues pings for a client that does not read, and then messages that drop the oldest.
    Pings,
    /// It has bound a pattern of 16 wildcards, and clients ask for paths of 15 KiB.
    Patterns,
    /// It binds 16,000 paths and takes them back.
    Binds,
}

/// Works until it is `over`. `target` leads to the hog's own path.
pub(crate) fn work(
    hog: ProcessHog,
    link: &Path,
    target: &Target,
    clients: usize,
    over: &AtomicBool,
) -> anyhow::Result<()> {
    let options = ClientOptions { policy: Policy::DropNewest, ..ClientOptions::default() };
    let process = Client::connect(link, &HOG.parse()?, options).context("attaching the hog")?;
    process.bind("/", Default::default())?;
    let hog = |process: &Client| match hog {
        ProcessHog::Resumes => resumes(process, target, clients, over),
        ProcessHog::Headers => headers(process, target, over),
        ProcessHog::SameId => same_id(process, target, over),
        ProcessHog::Keys => keys(process, target, over),
        ProcessHog::Pings => pings(process, target, over),
        ProcessHog::Patterns => patterns(process, target, over),
        ProcessHog::Binds => binds(process, over),
    };
    hog(&process)
}

fn is_over(over: &AtomicBool) -> bool {
    over.load(Ordering::Relaxed)
}

/// A client of the hog that reads nothing, and its channel.
fn slow_client(process: &Client, target: &Target) -> anyhow::Result<(TcpStream, ChannelId)> {
    let stream = open(target)?;
    let mut events = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        process.recv_batch(&mut events, SOON)?;
        for event in events.drain(..) {
            if let Event::Opened(opened) = event {
                return Ok((stream, opened.channel));
            }
        }
    }
    anyhow::bail!("the hog's client did not connect")
}

fn resumes(process: &Client, target: &Target, clients: usize, over: &AtomicBool) -> anyhow::Result<()> {
    let mut message = Vec::new();
    frame::write_masked(Opcode::Binary, &[7; 32 * 1024], [0; 4], &mut message);
    let mut events = Vec::new();
    let mut streams = Vec::with_capacity(clients);
    while streams.len() < clients && !is_over(over) {
        let stream = open(target)?;
        stream.set_nonblocking(true)?;
        streams.push((stream, 0));
        process.recv_batch(&mut events, Duration::ZERO)?;
        events.clear();
    }
    while !is_over(over) {
        // Each sends while it may; what a full socket does not take goes on from there.
        for (stream, at) in &mut streams {
            while let Ok(sent) = stream.write(&message[*at..]) {
                *at = (*at + sent) % message.len();
                if *at != 0 || is_over(over) {
                    break;
                }
            }
        }
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until && !is_over(over) {
            process.recv_batch(&mut events, SOON)?;
            events.clear();
        }
    }
    Ok(())
}

fn headers(process: &Client, target: &Target, over: &AtomicBool) -> anyhow::Result<()> {
    process.bind_http("/", HttpRule::default())?;
    let fields: Vec<(Box<str>, Box<str>)> =
        (0..100_000).map(|number| (format!("x-{number}").into(), "".into())).collect();
    std::thread::scope(|scope| {
        let asker = scope.spawn(|| -> anyhow::Result<()> {
            while !is_over(over) {
                ask(target, &target.path)?;
            }
            Ok(())
        });
        let mut events = Vec::new();
        while !asker.is_finished() {
            process.recv_batch(&mut events, SOON)?;
            for event in events.drain(..) {
                if let Event::Http(request) = event {
                    process.respond(request.id, 200, fields.clone(), "")?;
                }
            }
        }
        asker.join().map_err(|_| anyhow::anyhow!("the asker panicked"))?
    })
}

/// One request and its whole answer.
fn ask(target: &Target, path: &str) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(target.address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", target.host)?;
    std::io::copy(&mut stream.take(u64::MAX), &mut std::io::sink()).context("an answer")?;
    Ok(())
}

fn same_id(process: &Client, target: &Target, over: &AtomicBool) -> anyhow::Result<()> {
    let (mut stream, channel) = slow_client(process, target)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut drain = vec![0; 1 << 20];
    while !is_over(over) {
        let to = Audience::Channels(vec![channel; 200_000]);
        process.push_many(to, &[], Message::binary(&b"x"[..]), None, None)?;
        while !is_over(over) && stream.read(&mut drain).is_ok_and(|read| read > 0) {}
    }
    Ok(())
}

/// Fills what a client that does not read has in its sockets.
fn fill(process: &Client, channel: ChannelId) -> anyhow::Result<()> {
    for _ in 0..12 {
        process.push(channel, Message::binary(vec![0; 500_000]), Some(Policy::DropNewest), None)?;
    }
    Ok(())
}

fn keys(process: &Client, target: &Target, over: &AtomicBool) -> anyhow::Result<()> {
    let (_stream, channel) = slow_client(process, target)?;
    fill(process, channel)?;
    let mut number = 0_u64;
    while !is_over(over) {
        let policy = Policy::Conflate { key: (number % 60_000) << 40 };
        process.push(channel, Message::binary(&b"x"[..]), Some(policy), None)?;
        number += 1;
    }
    Ok(())
}

fn pings(process: &Client, target: &Target, over: &AtomicBool) -> anyhow::Result<()> {
    let (_stream, channel) = slow_client(process, target)?;
    fill(process, channel)?;
    while !is_over(over) {
        for _ in 0..43_000 {
            process.push(channel, Message::ping(&b""[..])?, Some(Policy::DropNewest), None)?;
        }
        for _ in 0..1_000 {
            process.push(channel, Message::binary(vec![1; 1000]), Some(Policy::DropOldest), None)?;
        }
    }
    Ok(())
}

fn patterns(process: &Client, target: &Target, over: &AtomicBool) -> anyhow::Result<()> {
    process.bind_http(&"/*a/x/*b/x".repeat(8), HttpRule::default())?;
    let path: Arc<str> = format!("{}{}", target.path.trim_end_matches('/'), "/x/a".repeat(3_800)).into();
    while !is_over(over) {
        ask(target, &path)?;
    }
    Ok(())
}

fn binds(process: &Client, over: &AtomicBool) -> anyhow::Result<()> {
    while !is_over(over) {
        for number in (0..16_000).take_while(|_| !is_over(over)) {
            process.bind(&format!("/path/{number}"), Default::default())?;
        }
        for number in (0..16_000).take_while(|_| !is_over(over)) {
            process.unbind(&format!("/path/{number}"))?;
        }
    }
    Ok(())
}
