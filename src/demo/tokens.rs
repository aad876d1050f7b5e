//! `tokens:pushring:sys`: writes a text to each client, a word at a time, as a language model would. Its channels
//! outlive their connections, so a page whose connection is cut continues without a missing word.
//!
//! - At `/tokens:pushring:sys/` each client is sent the words of [`TEXT`] in order, twenty a second, again and again. A
//!   client that has the text knows at each place which word must come.
//! - A client that sends `cut` has its connection cut at once and without a close frame, as by a failing network.

use crate::broker::{AttachOptions, BrokerHandle, Event, Message, Process, PushError, ServiceError};
use crate::channel::ChannelId;
use crate::gateway::WebSocketRule;
use std::collections::HashMap;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The text that is written.
pub const TEXT: &str = include_str!("tokens.txt");

const PROCESS: &str = "tokens:pushring:sys";
const EVERY: Duration = Duration::from_millis(50);

/// How long a wait for a client lasts before it begins anew.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// A word goes as far as the white space behind it.
fn words() -> Vec<&'static str> {
    TEXT.split_inclusive(char::is_whitespace).collect()
}

/// Starts the process. It ends with the broker.
///
/// # Errors
/// See [`ServiceError`].
pub fn start(broker: &BrokerHandle) -> Result<JoinHandle<()>, ServiceError> {
    let process = broker.process(PROCESS, AttachOptions::default())?;
    process.bind("/", WebSocketRule { resume: true, ..WebSocketRule::default() })?;
    let writer = Writer { process, words: words(), places: HashMap::new() };
    Ok(thread::Builder::new().name("tokens".to_owned()).spawn(move || writer.run())?)
}

struct Writer {
    process: Process,
    words: Vec<&'static str>,
    /// The next word of each channel.
    places: HashMap<ChannelId, usize>,
}

impl Writer {
    fn run(mut self) {
        let mut events = Vec::new();
        let mut due = Instant::now();
        loop {
            let patience = match self.places.is_empty() {
                true => WAIT_MAX,
                false => due.saturating_duration_since(Instant::now()),
            };
            if self.process.recv_batch(&mut events, patience).is_err() {
                return;
            }
            let mut done = events.drain(..).try_for_each(|event| self.on_event(event));
            let now = Instant::now();
            if now >= due && !self.places.is_empty() {
                due = now + EVERY;
                done = done.and_then(|()| self.write());
            }
            // The only error is that the broker has stopped.
            if done.is_err() {
                return;
            }
        }
    }

    fn on_event(&mut self, event: Event) -> Result<(), PushError> {
        match event {
            Event::Opened(opened) => drop(self.places.insert(opened.channel, 0)),
            Event::Closed(closed) => drop(self.places.remove(&closed.channel)),
            Event::Message { channel, payload, .. } if &*payload == b"cut" => {
                self.process.disconnect(channel).send()?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Sends each channel its next word.
    fn write(&mut self) -> Result<(), PushError> {
        let mut batch = self.process.batch();
        for (&channel, place) in &mut self.places {
            batch.send(self.process.push(channel, Message::text(self.words[*place])))?;
            *place = (*place + 1) % self.words.len();
        }
        batch.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_ends_with_white_space() {
        assert!(words().len() > 100 && words().iter().all(|word| word.ends_with(char::is_whitespace)));
        assert_eq!(words().concat(), TEXT);
    }
}
