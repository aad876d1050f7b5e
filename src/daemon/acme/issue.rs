//! One order of a certificate, from the account to the chain, by instant-acme (RFC 8555 section 7).

use super::state::{ACCOUNT, AcmeState};
use crate::daemon::config::DaemonConfig;
use anyhow::{Context, anyhow, bail};
use instant_acme::{
    Account, AccountBuilder, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder, OrderStatus,
    RetryPolicy,
};
use pushring::BrokerHandle;
use pushring::internals::gateway::Challenges;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// How long an order may take, whatever the authority does: they validate within seconds.
const ORDER_MAX: Duration = Duration::from_secs(300);

/// How long validation and signing may take each.
const PATIENCE: Duration = Duration::from_secs(90);

/// The authority that signs.
pub(super) struct CertificateAuthority {
    url: String,
    ca: Option<PathBuf>,
    contacts: Vec<String>,
}

impl CertificateAuthority {
    /// The one that `config` names.
    pub(super) fn new(config: &DaemonConfig) -> Self {
        Self {
            url: config.tls_acme_url.clone(),
            ca: Some(config.tls_acme_ca.clone()).filter(|file| !file.as_os_str().is_empty()),
            contacts: config.tls_acme_contacts.0.iter().map(|address| format!("mailto:{address}")).collect(),
        }
    }

    /// Where it is asked.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// A certificate for `names` with a fresh key: its chain and its key, PEM.
    ///
    /// # Errors
    /// The authority's refusal, or the reason why it cannot be asked.
    pub(super) async fn issue(
        &self,
        names: &[String],
        state: &AcmeState,
        broker: &BrokerHandle,
    ) -> anyhow::Result<String> {
        let order = self.order(names, state, broker);
        tokio::time::timeout(ORDER_MAX, order).await.with_context(|| format!("{} answers too slowly", self.url))?
    }

    async fn order(&self, names: &[String], state: &AcmeState, broker: &BrokerHandle) -> anyhow::Result<String> {
        let identifiers: Vec<_> = names.iter().cloned().map(Identifier::Dns).collect();
        let wanted = NewOrder::new(&identifiers);
        let account = self.account(state).await.context("no account")?;
        let mut order = match account.new_order(&wanted).await {
            Err(error) if is_unknown_account(&error) => {
                self.new_account(state).await.context("no account")?.new_order(&wanted).await
            }
            order => order,
        }
        .context("no order")?;
        let mut challenges = Challenges::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.context("no authorization")?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let mut challenge = authorization
                .challenge(ChallengeType::Http01)
                .context("the authority does not validate over HTTP (http-01)")?;
            let answer = challenge.key_authorization();
            challenges.insert(challenge.token.clone(), answer.as_str().to_owned());
            broker.set_challenges(challenges.clone())?;
            challenge.set_ready().await.context("no validation")?;
        }
        let patience = RetryPolicy::new().timeout(PATIENCE);
        if order.poll_ready(&patience).await.context("no validation")? != OrderStatus::Ready {
            bail!("the names were not validated: {}", why_not(&mut order).await);
        }
        let key = order.finalize().await.context("no certificate")?;
        let chain = order.poll_certificate(&patience).await.context("no certificate")?;
        Ok(format!("{}\n{key}", chain.trim_end()))
    }

    /// The stored account, or a new one: an operator that names a host in the settings has agreed to the terms.
    async fn account(&self, state: &AcmeState) -> anyhow::Result<Account> {
        if let Some(kept) = state.read(ACCOUNT)? {
            let kept: KeptAccount = serde_json::from_slice(&kept).context("the stored account cannot be read")?;
            // Another authority knows another account.
            if kept.url == self.url {
                return Ok(self.client()?.from_credentials(kept.credentials).await?);
            }
        }
        self.new_account(state).await
    }

    async fn new_account(&self, state: &AcmeState) -> anyhow::Result<Account> {
        let contact: Vec<&str> = self.contacts.iter().map(String::as_str).collect();
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let (account, credentials) = self.client()?.create(&new, self.url.clone(), None).await?;
        let kept = KeptAccount { url: self.url.clone(), credentials };
        state.write(ACCOUNT, &serde_json::to_vec(&kept)?)?;
        Ok(account)
    }

    fn client(&self) -> anyhow::Result<AccountBuilder> {
        Ok(match &self.ca {
            Some(file) => {
                let name = || format!("tls_acme_ca: {}", file.display());
                fs::read(file).with_context(name)?;
                // The error has in it what stands there, which may be a key by mistake.
                Account::builder_with_root(file).map_err(|_| anyhow!("{}: it is no certificate in PEM", name()))?
            }
            None => Account::builder()?,
        })
    }
}

/// Returns whether the authority has no such account, any more perhaps (RFC 8555 6.7).
fn is_unknown_account(error: &instant_acme::Error) -> bool {
    const UNKNOWN: &str = "urn:ietf:params:acme:error:accountDoesNotExist";
    matches!(error, instant_acme::Error::Api(problem) if problem.r#type.as_deref() == Some(UNKNOWN))
}

/// An account and where it is one.
#[derive(serde::Serialize, serde::Deserialize)]
struct KeptAccount {
    url: String,
    credentials: instant_acme::AccountCredentials,
}

/// The authority's reasons for not validating the names.
async fn why_not(order: &mut instant_acme::Order) -> String {
    let mut reasons = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else { continue };
        let name = state.identifier().to_string();
        let errors = state.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        reasons.extend(errors.map(|error| format!("{name}: {error}")));
    }
    if reasons.is_empty() { "the authority does not say why".to_owned() } else { reasons.join("; ") }
}
