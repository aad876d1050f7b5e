//! Texts of a client about a channel that outlives its connection: the subprotocol element with which it resumes, and
//! control texts. Nothing that it invents is a token, no secret stays in a head passed on, and nothing else is removed.

use pushring::internals::channel::ChannelId;
use pushring::internals::resume::{Control, Keys, element, text};
use serde_json::Value;

/// The bytes are a control text, rather than subprotocols that are offered.
const CONTROL: u8 = 1;
/// A good element is offered among them.
const RETURNS: u8 = 2;

/// A byte of settings, then what the client sends.
pub fn holds(data: &[u8]) {
    let Some((&settings, bytes)) = data.split_first() else { return };
    if settings & CONTROL != 0 {
        return is_understood(bytes);
    }
    let Ok(field) = std::str::from_utf8(bytes) else { return };
    let keys = Keys::new(&[settings; 32]);
    let (channel, received) = (ChannelId::new(u32::from(settings) << 3), u64::from(settings));
    let token = keys.mint(channel, 1);
    let good = format!("resume.{channel}.{}.{received}", token.text());
    let field = if settings & RETURNS != 0 { format!("{field},{good}") } else { field.to_owned() };
    let elements: Vec<&str> = field.split(',').map(str::trim).collect();
    let asks: Vec<&&str> = elements.iter().filter(|element| element.starts_with("resume.")).collect();
    match element::find(elements.iter().map(|element| element.as_bytes())) {
        None => assert!(asks.is_empty()),
        Some(Err(_)) => assert!(asks.len() > 1 || *asks[0] != good),
        Some(Ok(ask)) => {
            assert_eq!(asks.len(), 1, "who asks for two asks for none");
            let written = format!("resume.{}.{}.{}", ask.channel, ask.token.text(), ask.received);
            assert_eq!(element::find(std::iter::once(written.as_bytes())), Some(Ok(ask)));
            let is_good = (ask.channel, ask.token) == (channel, token);
            assert_eq!(keys.verify(ask.channel, &ask.token).is_ok(), is_good, "nobody makes up a token");
        }
    }
    let shown = element::without_secrets(&field);
    let kept: Vec<&str> = elements
        .into_iter()
        .filter(|element| {
            let element = element.to_ascii_lowercase();
            !element.starts_with("resume.") && !element.starts_with("bearer.")
        })
        .collect();
    assert_eq!(shown, kept.join(", "));
}

/// As a reader of JSON has it that takes whatever is well-formed.
fn is_understood(bytes: &[u8]) {
    // Control texts are Text, which is UTF-8 before it is read (RFC 6455 8.1).
    if std::str::from_utf8(bytes).is_err() {
        return;
    }
    match (text::control(bytes), serde_json::from_slice::<Value>(bytes)) {
        (Ok(Control { ack, ping, says_more }), Ok(value)) => {
            let number =
                |name| value.get(name).filter(|number| !number.is_null()).map(|number| number.as_u64().unwrap());
            assert_eq!((ack, ping.map(u64::from)), (number("ack"), number("ping")));
            let mut fields = value.as_object().unwrap().keys();
            assert_eq!(says_more, fields.any(|name| name != "ack" && name != "ping"));
        }
        // JSON has numbers that this reader cannot hold (RFC 8259 section 6).
        (Ok(_), Err(error)) if error.to_string().starts_with("number out of range") => {}
        (Ok(said), Err(error)) => panic!("{said:?} of what is no JSON: {error}"),
        (Err(_), _) => {}
    }
}
