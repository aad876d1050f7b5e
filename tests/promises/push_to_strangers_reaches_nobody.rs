//! A push to a channel that is closed, never existed, or belongs to another process is not delivered, and its outcome
//! says so.

use crate::support;
use pushring::ChannelId;
use pushring::{AttachOptions, Audience, Outcome};
use support::{Inbound, Push, broker, on_each_driver, process, push_outcome, recv};
use tungstenite::Message;

#[test]
fn a_push_reaches_only_live_channels_of_its_own_process() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let (ours, theirs) =
            (process(&broker, "ours", AttachOptions::default()), process(&broker, "theirs", AttachOptions::default()));
        let (mut inbound, mut their_inbound) = (Inbound::default(), Inbound::default());
        let (mut client, live) = inbound.open(&broker, &ours);
        let (mut stranger, foreign) = their_inbound.open(&broker, &theirs);
        let (mut gone, closed) = inbound.open(&broker, &ours);
        gone.close(None).unwrap();
        assert_eq!(inbound.closed(&ours).channel, closed);
        let unknown = ChannelId::new(live.get().wrapping_add(1_000_000));

        let not_found = Outcome { not_found: 1, ..Outcome::default() };
        let not_owner = Outcome { not_owner: 1, ..Outcome::default() };
        assert_eq!(push_outcome(&ours, closed, Push::text("secret"), None), not_found);
        assert_eq!(push_outcome(&ours, unknown, Push::text("secret"), None), not_found);
        assert_eq!(push_outcome(&ours, foreign, Push::text("secret"), None), not_owner);

        let audience = Audience::Channels(vec![live, closed, unknown, foreign]);
        let ticket = ours.broadcast(Push::text("for ours")).to(audience).ask().send().unwrap();
        // The four may live on two shards; the counts of both are added.
        let expected = Outcome { sent: 1, not_found: 2, not_owner: 1, ..Outcome::default() };
        assert_eq!(ticket.wait(support::PATIENCE), Ok(expected));
        // Nor may one process close another's channel.
        ours.close(foreign, 3000, "not yours").send().unwrap();
        ours.broadcast(Push::text("all of ours")).send().unwrap();

        // The other process' client first gets its own process' push, after all of that.
        let marker = Outcome { sent: 1, ..Outcome::default() };
        assert_eq!(push_outcome(&theirs, foreign, Push::text("for theirs"), None), marker);
        assert_eq!(recv(&mut stranger), Message::text("for theirs"));
        assert_eq!(recv(&mut client), Message::text("for ours"));
        assert_eq!(recv(&mut client), Message::text("all of ours"));
        while let Ok(message) = gone.read() {
            assert!(message.is_close(), "a closed client got {message:?}");
        }
    });
}
