//! Where a broker listens: for plain HTTP, for TLS, or both, one socket for each shard.

use super::{Config, StartError};
use crate::driver::kernel_sockets::Listeners;
use crate::driver::listen::{listen, share};
use std::net::{SocketAddr, TcpListener};

/// Opens the listeners of all shards; and where that is, for anything and for TLS.
pub(super) fn open(
    config: &Config,
    shards: usize,
) -> Result<(Vec<Listeners>, SocketAddr, Option<SocketAddr>), StartError> {
    let plain = match &config.listener {
        _ if !config.listens_plain => Vec::new(),
        Some(listener) => share(listener, shards, &config.tcp)?,
        None => listen(config.listen, shards, &config.tcp)?,
    };
    let tls = match config.tls_listen {
        Some(_) if config.shard.tls.is_none() => return Err(StartError::NoCertificate),
        Some(address) => listen(address, shards, &config.tcp)?,
        None => Vec::new(),
    };
    let address_of = |listeners: &[TcpListener]| listeners.first().map(TcpListener::local_addr).transpose();
    let tls_address = address_of(&tls)?;
    let address = address_of(&plain)?.or(tls_address).ok_or(StartError::Nowhere)?;
    let (mut plain, mut tls) = (plain.into_iter(), tls.into_iter());
    let listeners = std::iter::repeat_with(|| Listeners { plain: plain.next(), tls: tls.next() });
    Ok((listeners.take(shards).collect(), address, tls_address))
}
