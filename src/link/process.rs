//! The broker's end of a process over a link: its events become frames, on a thread of the session's.

use super::convert::{event_out, live_channel};
use super::frame::Frame;
use super::server::bye;
use super::session::{Actor, End, Forget, Key, Mark, Registry, Session, refused};
use super::wire::{ByeCode, Refused, RefusedCode};
use crate::broker::{AttachError, AttachOptions, Event, Process, Stopped};
use crate::process_id::ProcessId;
use crate::proto::close::code;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Enough to be written together.
const FRAMES_AT_A_TIME: usize = 256;

/// How long a wait for events lasts before it begins anew.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// Attaches a process, and runs what gives its events to the session.
pub fn begin(registry: &Arc<Registry>, id: ProcessId, options: AttachOptions) -> Result<Arc<Session>, Refused> {
    let process = registry.broker.process(id.clone(), options).map_err(|error| match error {
        AttachError::Taken(_) | AttachError::Name(_) => refused(RefusedCode::Taken, &error.to_string()),
        AttachError::Panicked(_) | AttachError::Stopped => refused(RefusedCode::Stopped, &error.to_string()),
    })?;
    let session = Arc::new(Session::new(Actor::Process(process.handle().clone()), process.handle().purse()));
    let feeder = Feeder { process, session: session.clone(), registry: registry.clone(), key: Key::Process(id) };
    let spawned = thread::Builder::new().name("link-events".to_owned()).spawn(move || feeder.run());
    spawned.map_err(|error| refused(RefusedCode::Full, &format!("no thread: {error}")))?;
    Ok(session)
}

struct Feeder {
    process: Process,
    session: Arc<Session>,
    registry: Arc<Registry>,
    key: Key,
}

impl Feeder {
    fn run(self) {
        let Self { process, session, registry, key } = self;
        // Dropped behind the process: its id is free then.
        let _forget = Forget { session: session.clone(), registry, key };
        feed(&process, &session);
        match session.why() {
            End::Bye | End::Stopped => drop(process),
            End::Failed | End::Violation => process.fail(),
            End::Grace => process.end(code::SERVICE_RESTART, "the process has gone"),
        }
    }
}

/// Hands events on until the session or the broker is over. Waits for the peer, never with a shard.
fn feed(process: &Process, session: &Session) {
    let mut events = Vec::new();
    while !session.line.has_ended() {
        match process.recv_charged(&mut events, WAIT_MAX) {
            // Sending waits for the peer. What waits meanwhile stays charged, and becomes frames a few at a time.
            Ok(_charge) => {
                let mut frames = events.drain(..).filter_map(frame);
                loop {
                    let some: Vec<_> = frames.by_ref().take(FRAMES_AT_A_TIME).collect();
                    if some.is_empty() {
                        break;
                    }
                    if session.line.send(some).is_err() {
                        return;
                    }
                }
            }
            Err(Stopped) => {
                return session.end(End::Stopped, Some(bye(ByeCode::Stopped, "the broker has stopped")));
            }
        }
    }
}

fn frame(event: Event) -> Option<(Frame, Mark)> {
    let mark = match &event {
        Event::Opened(opened) => Mark::Opened(Box::new(live_channel(opened))),
        Event::Closed(closed) => Mark::Closed(closed.channel.get()),
        Event::Outcome { .. } => Mark::Answer,
        _ => Mark::Event,
    };
    let (head, blob) = event_out(event)?;
    Some((Frame::bare(&head).with(blob), mark))
}
