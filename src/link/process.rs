//! The broker's end of a process over a link: its events become frames, on a thread of the session's.

use super::convert::{event_out, live_channel};
use super::frame::LinkFrame;
use super::session::{Actor, AskedSession, Forget, FrameMark, Registry, Session, SessionEnd, SessionKey, bye, refused};
use super::wire::{ByeCode, HelloRefused, RefusedCode};
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

/// The fields of a process' hello.
pub(super) struct ProcessHello {
    pub id: ProcessId,
    pub options: AttachOptions,
}

impl AskedSession for ProcessHello {
    fn key(&self) -> SessionKey {
        SessionKey::Process(self.id.clone())
    }

    /// Attaches a process, and runs what gives its events to the session.
    fn begin(&self, registry: &Arc<Registry>) -> Result<Arc<Session>, HelloRefused> {
        let attached = registry.broker.process(self.id.clone(), self.options);
        let process = attached.map_err(|error| match error {
            AttachError::Taken(_) | AttachError::Name(_) => refused(RefusedCode::Taken, &error.to_string()),
            AttachError::Panicked(_) | AttachError::Stopped => refused(RefusedCode::Stopped, &error.to_string()),
        })?;
        let session = Arc::new(Session::new(Actor::Process(process.handle().clone()), process.handle().memory()));
        let feeder = EventSender { process, session: session.clone(), registry: registry.clone(), key: self.key() };
        let spawned = thread::Builder::new().name("link-events".to_owned()).spawn(move || feeder.run());
        spawned.map_err(|error| refused(RefusedCode::Full, &format!("no thread: {error}")))?;
        Ok(session)
    }

    /// It is told what it wants to be told from now on.
    fn succeed(&self, _: &Registry, session: &Session) -> Result<(), HelloRefused> {
        let Actor::Process(owner) = &session.actor else { unreachable!("a process' key is no kernel's") };
        owner.set_wishes(&self.options);
        Ok(())
    }
}

struct EventSender {
    process: Process,
    session: Arc<Session>,
    registry: Arc<Registry>,
    key: SessionKey,
}

impl EventSender {
    fn run(self) {
        let Self { process, session, registry, key } = self;
        // Dropped behind the process: its id is free then.
        let _forget = Forget { session: session.clone(), registry, key };
        feed(&process, &session);
        match session.why() {
            SessionEnd::Bye | SessionEnd::Stopped => drop(process),
            SessionEnd::Failed | SessionEnd::Violation => process.fail(),
            SessionEnd::Grace => process.end(code::SERVICE_RESTART, "the process has gone"),
        }
    }
}

/// Hands events on until the session or the broker is over. Waits for the peer, never with a shard.
fn feed(process: &Process, session: &Session) {
    let mut events = Vec::new();
    while !session.frames.has_ended() {
        match process.recv_charged(&mut events, WAIT_MAX) {
            // Sending waits for the peer. What waits meanwhile stays charged, and becomes frames a few at a time.
            Ok(_charge) => {
                let mut frames = events.drain(..).filter_map(frame);
                loop {
                    let some: Vec<_> = frames.by_ref().take(FRAMES_AT_A_TIME).collect();
                    if some.is_empty() {
                        break;
                    }
                    if session.frames.send_through(some).is_err() {
                        return;
                    }
                }
            }
            Err(Stopped) => {
                return session.end(SessionEnd::Stopped, Some(bye(ByeCode::Stopped, "the broker has stopped")));
            }
        }
    }
}

fn frame(event: Event) -> Option<(LinkFrame, FrameMark)> {
    let mark = match &event {
        Event::Opened(opened) => FrameMark::Opened(Box::new(live_channel(opened))),
        Event::Closed(closed) => FrameMark::Closed(closed.channel.get()),
        _ => FrameMark::Event,
    };
    let (head, blob) = event_out(event)?;
    Some((LinkFrame::bare(&head).with(blob), mark))
}
