//! A second broker on the same address is refused: its shards would silently take half of the first one's clients.

use crate::support;
use pushring::{Broker, Config, StartError};
use std::time::Duration;
use support::{broker, on_each_driver};

#[test]
fn an_address_is_one_brokers_alone() {
    on_each_driver(|driver| {
        let first = broker(driver, |_| {});
        let address = first.address();
        let second = Broker::start(Config { listen: address, shards: 2, driver, ..Config::default() });
        match second {
            Err(StartError::Listen(error)) => {
                assert!(error.to_string().contains(&address.port().to_string()), "it names the address: {error}");
            }
            Err(other) => panic!("another error: {other}"),
            Ok(_) => panic!("two brokers listen on {address}"),
        }
        first.stop(Duration::ZERO).unwrap();
        // Once the first has stopped, the address is free.
        let third = Broker::start(Config { listen: address, shards: 2, driver, ..Config::default() }).unwrap();
        assert_eq!(third.address(), address);
    });
}
