//! The admin listener's answers, path by path. Each is a question to the [`Operator`], as the command line asks it.

use super::AdminParts;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Extension, Query, Request as HttpRequest, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use pushring::control::{self, ChannelQuery, ControlAnswer, ControlRequest, Exposition, Filter};
use pushring::{ChannelFilter, TopicQuery};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The page at `/`; it asks for the token itself, and shows it with every question.
const PAGE: &str = include_str!("page.html");

/// The page loads nothing from elsewhere, and is shown in no frame.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                           base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The largest question, in bytes.
const BODY_BYTES_MAX: usize = 16 << 10;

/// How long shards may take to answer; within that they do in thousands of turns.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

type AdminState = State<Arc<AdminParts>>;

/// All paths, behind the guard.
pub(super) fn router(parts: Arc<AdminParts>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/stats.json", get(stats))
        .route("/disconnects", get(disconnects))
        .route("/channels", get(channels))
        .route("/channels/close", post(close))
        .route("/processes", get(processes))
        .route("/topics", get(topics))
        .route("/drain", post(drain))
        .route("/reload", post(reload))
        .fallback(async || error(StatusCode::NOT_FOUND, "there is nothing at this path: / is the page"))
        .method_not_allowed_fallback(async || error(StatusCode::METHOD_NOT_ALLOWED, "another method is needed here"))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(parts.clone(), guarded))
        .with_state(parts)
}

async fn guarded(State(parts): AdminState, peer: Extension<SocketAddr>, request: HttpRequest, next: Next) -> Response {
    let admitted = parts.guard.admit(peer.ip(), request.uri().path(), request.headers());
    let mut response = match admitted {
        Ok(()) => next.run(request).await,
        // The page itself holds no data: a client without a token gets it in order to enter one.
        Err((StatusCode::UNAUTHORIZED, _)) if request.uri().path() == "/" && wants_html(request.headers()) => {
            (StatusCode::UNAUTHORIZED, page().await).into_response()
        }
        Err((status, why)) => error(status, why),
    };
    let headers = response.headers_mut();
    if response_is_refused(headers, admitted.is_err_and(|(status, _)| status == StatusCode::UNAUTHORIZED)) {
        headers.insert(WWW_AUTHENTICATE, "Bearer realm=\"pushring\"".parse().expect("plain ASCII"));
    }
    headers.entry(CACHE_CONTROL).or_insert("no-store".parse().expect("plain ASCII"));
    headers.insert("x-content-type-options", "nosniff".parse().expect("plain ASCII"));
    response
}

/// RFC 9110 section 15.5.2: a 401 names the scheme.
fn response_is_refused(headers: &HeaderMap, unauthorized: bool) -> bool {
    unauthorized && !headers.contains_key(WWW_AUTHENTICATE)
}

fn wants_html(headers: &HeaderMap) -> bool {
    headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).is_some_and(|accept| accept.contains("text/html"))
}

async fn page() -> Response {
    ([(HeaderName::from_static("content-security-policy"), PAGE_POLICY)], Html(PAGE)).into_response()
}

async fn livez() -> Response {
    text(StatusCode::OK, "alive\n")
}

#[derive(Deserialize)]
struct ReadyQuery {
    verbose: Option<String>,
}

async fn readyz(State(parts): AdminState, query: Query<ReadyQuery>) -> Response {
    let (is_ready, reasons) = match ask(&parts, readiness).await {
        Ok(readiness) => readiness,
        Err(why) => (false, vec![format!("[-] shards: {why}")]),
    };
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let summary = if is_ready { "ready" } else { "not ready" };
    match query.verbose {
        Some(_) => text(status, reasons.join("\n") + "\n" + summary + "\n"),
        None => text(status, summary.to_owned() + "\n"),
    }
}

/// Whether clients should be sent here, and line by line why or why not.
fn readiness(parts: &AdminParts) -> (bool, Vec<String>) {
    let broker = parts.operator.broker();
    let shards = broker.reports().len();
    let draining = if broker.is_draining() { Err("it drains or stops") } else { Ok("no") };
    let accepting = if shards > 0 { Ok(format!("{shards} shards")) } else { Err("no shard answers".to_owned()) };
    let mut checks = vec![("accepting", accepting), ("draining", draining.map(str::to_owned).map_err(str::to_owned))];
    checks.extend(parts.needs.iter().map(|need| (need.name, (need.is_met)())));
    let is_ready = checks.iter().all(|(_, check)| check.is_ok());
    let line = |(name, check): (&str, Result<String, String>)| match check {
        Ok(fact) => format!("[+] {name}: {fact}"),
        Err(why) => format!("[-] {name}: {why}"),
    };
    (is_ready, checks.into_iter().map(line).collect())
}

async fn metrics(State(parts): AdminState, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or("").to_owned();
    let exposition = Exposition::of_accept(&accept);
    match ask(&parts, move |parts| control::metrics(&parts.operator.overview(), exposition)).await {
        Ok(text) => ([(CONTENT_TYPE, exposition.mime()), (axum::http::header::VARY, "accept")], text).into_response(),
        Err(why) => error(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

async fn stats(parts: AdminState) -> Response {
    answer(&parts, ControlRequest::Stats {}).await
}

async fn processes(parts: AdminState) -> Response {
    answer(&parts, ControlRequest::Processes {}).await
}

async fn topics(
    parts: AdminState,
    query: Result<Query<TopicQuery>, axum::extract::rejection::QueryRejection>,
) -> Response {
    match query {
        Ok(Query(query)) => answer(&parts, ControlRequest::Topics(query)).await,
        Err(rejection) => error(StatusCode::BAD_REQUEST, &rejection.body_text()),
    }
}

async fn disconnects(
    parts: AdminState,
    query: Result<Query<Filter>, axum::extract::rejection::QueryRejection>,
) -> Response {
    match query {
        Ok(Query(filter)) => answer(&parts, ControlRequest::Disconnects(filter)).await,
        Err(rejection) => error(StatusCode::BAD_REQUEST, &rejection.body_text()),
    }
}

/// `/channels?process=…&path=…&address=…&after=…&limit=…&fullest=true`: flat, as a query string is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChannelsQuery {
    channel: Option<pushring::ChannelId>,
    process: Option<pushring::ProcessId>,
    path: Option<Box<str>>,
    address: Option<pushring::IpPrefix>,
    queued_bytes_min: Option<usize>,
    after: Option<pushring::Cursor>,
    limit: Option<usize>,
    #[serde(default)]
    fullest: bool,
}

async fn channels(
    parts: AdminState,
    query: Result<Query<ChannelsQuery>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(rejection) => return error(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    let ChannelsQuery { channel, process, path, address, queued_bytes_min, after, limit, fullest } = query;
    let queued_bytes_min = queued_bytes_min.unwrap_or(0);
    let filter = ChannelFilter { channel, process, path, address, queued_bytes_min };
    answer(&parts, ControlRequest::Channels(ChannelQuery { filter, after, limit, fullest })).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CloseRequest {
    channel: pushring::ChannelId,
    reason: Option<String>,
}

async fn close(parts: AdminState, headers: HeaderMap, body: Bytes) -> Response {
    match parse::<CloseRequest>(&headers, &body) {
        Ok(CloseRequest { channel, reason }) => answer(&parts, ControlRequest::Kick { channel, reason }).await,
        Err(refused) => *refused,
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DrainRequest {
    grace_ms: Option<u64>,
    over_ms: Option<u64>,
}

async fn drain(parts: AdminState, headers: HeaderMap, body: Bytes) -> Response {
    match parse::<DrainRequest>(&headers, &body) {
        Ok(DrainRequest { grace_ms, over_ms }) => answer(&parts, ControlRequest::Drain { grace_ms, over_ms }).await,
        Err(refused) => *refused,
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reload {}

async fn reload(parts: AdminState, headers: HeaderMap, body: Bytes) -> Response {
    match parse::<Reload>(&headers, &body) {
        Ok(Reload {}) => answer(&parts, ControlRequest::Reload {}).await,
        Err(refused) => *refused,
    }
}

/// A page of another site can post text and forms without asking first, but no JSON.
fn parse<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, Box<Response>> {
    let mime = headers.get(CONTENT_TYPE).and_then(|mime| mime.to_str().ok()).unwrap_or("");
    let mime = mime.split(';').next().unwrap_or("").trim();
    if !mime.eq_ignore_ascii_case("application/json") {
        let why = "the body must be JSON, and Content-Type say application/json";
        return Err(Box::new(error(StatusCode::UNSUPPORTED_MEDIA_TYPE, why)));
    }
    serde_json::from_slice(body).map_err(|why| Box::new(error(StatusCode::BAD_REQUEST, &why.to_string())))
}

/// Asks beside the connections: a shard answers within a turn, and a thread of its own waits for it.
async fn ask<T: Send + 'static>(
    parts: &Arc<AdminParts>,
    question: impl FnOnce(&AdminParts) -> T + Send + 'static,
) -> Result<T, String> {
    let parts = parts.clone();
    let asked = tokio::task::spawn_blocking(move || question(&parts));
    match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err("asking has failed; the log says why".to_owned()),
        Err(_) => Err(format!("no answer of the shards within {} s", ANSWER_TIMEOUT.as_secs())),
    }
}

async fn answer(parts: &Arc<AdminParts>, request: ControlRequest) -> Response {
    let changes =
        matches!(request, ControlRequest::Kick { .. } | ControlRequest::Drain { .. } | ControlRequest::Reload {});
    match ask(parts, move |parts| parts.operator.answer(request)).await {
        // The same JSON as over the control socket, without its name around it.
        Ok(ControlAnswer::Refused(why)) => {
            error(if changes { StatusCode::CONFLICT } else { StatusCode::SERVICE_UNAVAILABLE }, &why)
        }
        Ok(answer) => {
            let told = serde_json::to_value(&answer).expect("answers are plain JSON");
            let inner = told.as_object().and_then(|object| object.values().next()).cloned().unwrap_or(told);
            axum::Json(inner).into_response()
        }
        Err(why) => error(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

fn error(status: StatusCode, why: &str) -> Response {
    (status, axum::Json(json!({ "error": why }))).into_response()
}

fn text(status: StatusCode, text: impl Into<String>) -> Response {
    (status, [(CONTENT_TYPE, "text/plain; charset=utf-8")], text.into()).into_response()
}
