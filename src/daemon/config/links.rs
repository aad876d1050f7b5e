//! The settings of links, as a link takes them.

use super::{DaemonConfig, Size, SocketMode, parse_address};
use crate::daemon::users;
use anyhow::{Context, anyhow, ensure};
use pushring::{PAYLOAD_BYTES_MAX, link};
use std::net::SocketAddr;
use std::path::Path;

/// What a kernel is told of a request is JSON, at worst four times as long as its head was, and the head of a link's
/// frame has 1 MiB.
const LINKED_HEAD_BYTES_MAX: usize = 128 << 10;

impl DaemonConfig {
    /// Returns whether processes of other programs can attach.
    pub(crate) fn has_link(&self) -> bool {
        !self.link.as_os_str().is_empty() || !self.link_tcp.is_empty()
    }

    /// Returns whether there may be paths that need a login: the hub has tokens of its own.
    pub(crate) fn may_need_logins(&self) -> bool {
        self.has_link() || !self.hub
    }

    /// Where and how processes of other programs attach; none: nowhere.
    ///
    /// # Errors
    /// An invalid value, with its key.
    pub(crate) fn link(&self, token: Option<link::LinkToken>) -> anyhow::Result<Option<link::LinkConfig>> {
        self.try_link(token).map_err(|error| self.sources.locate(error))
    }

    fn try_link(&self, token: Option<link::LinkToken>) -> anyhow::Result<Option<link::LinkConfig>> {
        let path = Some(&self.link).filter(|path| !path.as_os_str().is_empty()).cloned();
        let tcp: Option<SocketAddr> = match self.link_tcp.as_str() {
            "" => None,
            text => Some(parse_address(text).map_err(|why| anyhow!("link_tcp: {why}"))?),
        };
        let has_token = !self.link_token_file.as_os_str().is_empty();
        ensure!(tcp.is_none() || has_token, "link_tcp: over TCP processes need a token (link_token_file)");
        ensure!(self.link_peers_max > 0, "link_peers_max: must be more than 0");
        let blob_bytes_max = self.message_bytes_max.0.max(self.body_bytes_max.0).max(self.body_bytes_max_logged_in.0);
        if self.has_link() {
            let fits = blob_bytes_max <= PAYLOAD_BYTES_MAX;
            ensure!(fits, "link: messages and bodies of over 2GiB do not fit its frames");
            let fits = self.head_bytes_max.0 <= LINKED_HEAD_BYTES_MAX;
            let most = Size(LINKED_HEAD_BYTES_MAX);
            ensure!(fits, "head_bytes_max: at most {most} with a link: what it tells of a request has to fit a frame");
        }
        let access = self.link_access()?;
        Ok(self.has_link().then(|| link::LinkConfig {
            path,
            access,
            tcp,
            token,
            owner_grace: self.owner_grace.duration(),
            peers_max: self.link_peers_max,
            blob_bytes_max,
            ..link::LinkConfig::default()
        }))
    }

    /// The users that may attach over the Unix socket.
    ///
    /// # Errors
    /// There is no such group.
    pub(crate) fn link_access(&self) -> anyhow::Result<link::Access> {
        let group = match self.link_group.as_str() {
            "" => None,
            name => Some(users::group_id(Path::new("/"), name).with_context(|| format!("link_group: {name:?}"))?),
        };
        let mode = match (self.link_mode, group) {
            (SocketMode::Is(mode), _) => mode,
            (SocketMode::Auto, Some(_)) => 0o660,
            (SocketMode::Auto, None) => 0o600,
        };
        Ok(link::Access { mode, group })
    }
}
