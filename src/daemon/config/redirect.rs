//! The redirect of requests without TLS, from the settings.

use super::{DaemonConfig, Redirect};
use anyhow::ensure;

impl DaemonConfig {
    /// Whether they can be sent on as it is wanted.
    pub(super) fn check_redirect(&self) -> anyhow::Result<()> {
        if self.tls_redirect == Redirect::Off {
            return Ok(());
        }
        let is_both = self.listen.0.is_some() && self.tls_listen.0.is_some();
        ensure!(is_both, "tls_redirect: needs listen and tls_listen: set both");
        let has_port = self.redirect_port() != Some(0);
        ensure!(has_port, "tls_redirect: tls_listen has no fixed port: give the port that clients use");
        Ok(())
    }

    /// To which port of the host that they name they are sent on, if they are.
    pub(super) fn redirect_port(&self) -> Option<u16> {
        match self.tls_redirect {
            Redirect::Off => None,
            Redirect::On => self.tls_listen.0.map(|address| address.port()),
            Redirect::To(port) => Some(port),
        }
    }
}
