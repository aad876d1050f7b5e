//! What is a process' own, and runs on a shard's thread all the same, harms nobody else: a waker that panics ends no
//! shard, and a handler that is the last to have the broker keeps none from ending. What does end a shard ends the
//! broker, whether or not anybody waits for it: a process hears that it has stopped, rather than nothing of a part of
//! its clients.

use crate::support;
use bytes::Bytes;
use pushring::{AttachOptions, ChannelId, Event, Here, Message, PushError, Stopped};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use support::{Inbound, PATIENCE, broker, on_each_driver, process, recv, send};

/// A task whose executor is broken.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("the executor of a task is broken, as it should be in this test");
    }
}

#[test]
fn a_waker_that_panics_ends_no_shard() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.shards = 1);
        let mut inbound = Inbound::default();
        let other = process(&broker, "other", AttachOptions::default());
        let mut broken = process(&broker, "broken", AttachOptions::default());
        let waker = Waker::from(Arc::new(Panics));
        let is_ready = pin!(broken.recv()).poll(&mut Context::from_waker(&waker)).is_ready();
        assert!(!is_ready, "nothing has come yet");
        let _client = support::connect(&broker, &format!("/{}/", broken.id()));
        assert!(matches!(broken.recv_timeout(PATIENCE), Ok(Some(Event::Opened(_)))), "its events come all the same");
        // Those of its pushes that are not known yet when they are looked at.
        for _ in 0..100 {
            let ticket = broken.broadcast(Message::text("?")).ask().try_send().unwrap();
            let mut ticket = pin!(ticket);
            if let Poll::Ready(outcome) = ticket.as_mut().poll(&mut Context::from_waker(&waker)) {
                assert_eq!(outcome.sent, 1);
            }
        }
        let (mut client, channel) = inbound.open(&broker, &other);
        send(&mut client, "are you there?");
        inbound.message(&other, channel);
        other.push(channel, Message::text("yes")).send().unwrap();
        assert_eq!(recv(&mut client).to_text().unwrap(), "yes");
        broker.stop(std::time::Duration::ZERO).unwrap();
    });
}

/// A handler may be the last to have the broker, and a shard cannot wait for its own end.
#[test]
fn a_broker_whose_last_owner_is_a_handler_ends_when_it_is_told_to() {
    on_each_driver(|driver| {
        let broker = Arc::new(broker(driver, |_| {}));
        let mut chat = process(&broker, "chat", AttachOptions::default());
        let its_own = broker.clone();
        let keeps = move |_| {
            let its_own = its_own.clone();
            move |_: &mut Here<'_>, _: Event| assert_eq!(its_own.shards(), 2)
        };
        broker.handle().on_shards("keeps", keeps).unwrap().detach();
        let (handle, address) = (broker.handle(), broker.address());
        drop(broker);
        assert!(std::net::TcpStream::connect(address).is_ok(), "it has an owner still");
        handle.stop(std::time::Duration::ZERO);
        assert_eq!(chat.recv_timeout(PATIENCE).map(|_| ()), Err(Stopped));
    });
}

/// Memory of a process that panics when it is given back: on the shard's thread, which was the last to have it.
struct Explodes;

impl AsRef<[u8]> for Explodes {
    fn as_ref(&self) -> &[u8] {
        b"tick"
    }
}

impl Drop for Explodes {
    fn drop(&mut self) {
        panic!("the memory of a message is broken, as it should be in this test");
    }
}

#[test]
fn a_broker_that_has_lost_a_shard_stops_though_nobody_waits_for_it() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let mut chat = process(&broker, "chat", AttachOptions::default());
        let (one, other) = (ChannelId::new(0), ChannelId::new(1));
        chat.push(one, Message::binary(Bytes::from_owner(Explodes))).send().unwrap();
        assert_eq!(chat.recv_timeout(PATIENCE).map(|_| ()), Err(Stopped), "it is told");
        for channel in [one, other] {
            assert_eq!(chat.push(channel, Message::text("late")).send(), Err(PushError::Stopped));
        }
        assert!(std::net::TcpStream::connect(broker.address()).is_err(), "no shard listens");
        assert!(broker.handle().is_draining() && broker.handle().reports().is_empty());
        let died = broker.wait().unwrap_err();
        assert_eq!(died.shard, 0, "{died}");
    });
}
