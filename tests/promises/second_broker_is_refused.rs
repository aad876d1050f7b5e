//! A second broker on the same address is refused: its shards would silently take half of the first one's clients.

use crate::support;
use pushring::{Broker, Config, StartError};
use std::time::Duration;
use support::{broker, free_port, on_each_driver};

#[test]
fn an_address_is_one_brokers_alone() {
    on_each_driver(|driver| {
        // Nobody else is given it when the first has stopped.
        let address = ([127, 0, 0, 1], free_port()).into();
        let first = broker(driver, |config| config.listen = address);
        assert_eq!(first.address(), address);
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
