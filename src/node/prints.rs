//! The node's terminal: the server's prints, and warnings, for nodes do not subscribe to `tracing`.
//!
//! Invariants: nothing here waits for the terminal, which may read slowly; a flood of warnings fills it with
//! [`WARNINGS_PER_SECOND`] lines at most. Subscribers of `tracing` receive everything as before.

use super::host::Host;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{Interest, NoSubscriber};
use tracing::{Dispatch, Event, Level, Metadata, Subscriber, dispatcher};

/// For all users.
pub(crate) const SHOWN: u8 = 0;

/// The verbosity of details about the runtime.
pub(crate) const VERBOSE: u8 = 2;

/// More in the same second are counted, and told of in the next.
const WARNINGS_PER_SECOND: u32 = 8;

/// The way to the terminal.
pub(crate) struct TerminalPrinter<H: Host> {
    host: Arc<H>,
    sink: mpsc::Sender<H::Print>,
}

impl<H: Host> Clone for TerminalPrinter<H> {
    fn clone(&self) -> Self {
        Self { host: self.host.clone(), sink: self.sink.clone() }
    }
}

impl<H: Host> TerminalPrinter<H> {
    pub(crate) fn new(host: Arc<H>, sink: mpsc::Sender<H::Print>) -> Self {
        Self { host, sink }
    }

    /// Prints it, unless too many lines wait for the terminal already.
    pub(crate) fn say(&self, verbosity: u8, text: &str) {
        let _ = self.sink.try_send(self.host.print(verbosity, format!("http-server: {}", printable(text))));
    }
}

/// One line whatever it holds: what a client or a process chose must not move the cursor of a terminal.
fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// Warnings of this crate, on their way to a terminal. Held back until [`release`](Self::release), so that what a node
/// prints first is where the server listens.
pub(crate) struct Warnings {
    print: Box<dyn Fn(&str) + Send + Sync>,
    flow: Mutex<PrintRate>,
}

struct PrintRate {
    /// Lines printed before the release.
    held: Option<Vec<String>>,
    second: Instant,
    said: u32,
    left_out: u32,
}

impl Warnings {
    pub(crate) fn new<H: Host>(prints: TerminalPrinter<H>) -> Arc<Self> {
        let flow = PrintRate { held: Some(Vec::new()), second: Instant::now(), said: 0, left_out: 0 };
        Arc::new(Self { print: Box::new(move |text| prints.say(SHOWN, text)), flow: Mutex::new(flow) })
    }

    /// Runs `run` such that its warnings, and those of threads that it starts, are printed too.
    pub(crate) fn also_printed<T>(self: &Arc<Self>, run: impl FnOnce() -> T) -> T {
        dispatcher::with_default(&self.dispatch(), run)
    }

    /// The subscriber for a thread whose log goes to the terminal.
    pub(crate) fn dispatch(self: &Arc<Self>) -> Dispatch {
        let before = dispatcher::get_default(Dispatch::clone);
        Dispatch::new(TerminalSubscriber { warnings: self.clone(), before })
    }

    /// Prints the held lines; later ones are printed at once.
    pub(crate) fn release(&self) {
        let held = self.flow.lock().unwrap_or_else(PoisonError::into_inner).held.take();
        held.iter().flatten().for_each(|text| (self.print)(text));
    }

    fn warn(&self, text: String) {
        let mut flow = self.flow.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = &mut flow.held {
            if held.len() < WARNINGS_PER_SECOND as usize {
                held.push(text);
            }
            return;
        }
        let now = Instant::now();
        if now - flow.second >= Duration::from_secs(1) {
            let left_out = std::mem::take(&mut flow.left_out);
            (flow.second, flow.said) = (now, 0);
            if left_out > 0 {
                (self.print)(&format!("{left_out} more warnings in a second"));
            }
        }
        flow.said += 1;
        if flow.said > WARNINGS_PER_SECOND {
            flow.left_out += 1;
        } else {
            (self.print)(&text);
        }
    }
}

/// Hands everything to the subscriber there was before, and this crate's warnings to the terminal as well.
struct TerminalSubscriber {
    warnings: Arc<Warnings>,
    before: Dispatch,
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    let root = env!("CARGO_CRATE_NAME");
    let is_here = metadata.target().strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    is_here && *metadata.level() <= Level::WARN && metadata.is_event()
}

impl Subscriber for TerminalSubscriber {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        let before = self.before.register_callsite(metadata);
        if is_ours(metadata) { Interest::always() } else { before }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_ours(metadata) || self.before.enabled(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        // A wrapped subscriber decides for itself, callsite by callsite.
        self.before.is::<NoSubscriber>().then_some(LevelFilter::WARN)
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        self.before.new_span(attributes)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        self.before.record(span, values);
    }

    fn record_follows_from(&self, span: &Id, follows: &Id) {
        self.before.record_follows_from(span, follows);
    }

    fn event(&self, event: &Event<'_>) {
        if is_ours(event.metadata()) {
            let mut words = LogText::default();
            event.record(&mut words);
            self.warnings.warn(format!("{}{}", words.message, words.fields));
        }
        if self.before.enabled(event.metadata()) {
            self.before.event(event);
        }
    }

    fn enter(&self, span: &Id) {
        self.before.enter(span);
    }

    fn exit(&self, span: &Id) {
        self.before.exit(span);
    }

    fn clone_span(&self, id: &Id) -> Id {
        self.before.clone_span(id)
    }

    fn try_close(&self, id: Id) -> bool {
        self.before.try_close(id)
    }
}

/// An event as one line: its message, then its fields.
#[derive(Default)]
struct LogText {
    message: String,
    fields: String,
}

impl Visit for LogText {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let written = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
        written.expect("the writer is memory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::KernelMessage;

    struct Terminal;

    impl Host for Terminal {
        type Message = ();
        type Print = (u8, String);

        fn to_ours(&self, (): ()) -> Option<KernelMessage> {
            None
        }

        fn to_node(&self, _: KernelMessage) {}

        fn print(&self, verbosity: u8, text: String) -> (u8, String) {
            (verbosity, text)
        }

        fn is_password(&self, _: &[u8], _: &str) -> bool {
            false
        }
    }

    fn said(sink: &mut mpsc::Receiver<(u8, String)>) -> Vec<String> {
        std::iter::from_fn(|| sink.try_recv().ok()).map(|(_, text)| text).collect()
    }

    #[test]
    fn warnings_are_printed_once_the_server_listens_and_nothing_else_is() {
        let (prints, mut sink) = mpsc::channel(32);
        let prints = TerminalPrinter::new(Arc::new(Terminal), prints);
        let warnings = Warnings::new(prints.clone());
        warnings.also_printed(|| {
            tracing::warn!(peer = "127.0.0.1\u{1b}[2J", count = 3, "early");
            prints.say(SHOWN, "listening");
            warnings.release();
            tracing::info!("nothing for a terminal");
            tracing::warn!(target: "another::crate", "not ours");
            tracing::error!("late");
        });
        tracing::warn!("outside");
        let lines = ["listening", "early peer=\"127.0.0.1\\u{1b}[2J\" count=3", "late"];
        assert_eq!(said(&mut sink), lines.map(|line| format!("http-server: {line}")));
    }

    #[test]
    fn a_flood_fills_a_few_lines_and_is_counted() {
        let (prints, mut sink) = mpsc::channel(1000);
        let warnings = Warnings::new(TerminalPrinter::new(Arc::new(Terminal), prints));
        warnings.release();
        warnings.also_printed(|| (0..500).for_each(|number| tracing::warn!(number, "again")));
        let lines = said(&mut sink).len();
        assert!((WARNINGS_PER_SECOND as usize..100).contains(&lines), "{lines} lines");
    }
}
