//! An axum backend that pushes: axum answers HTTP on one address, pushring holds the WebSockets on another.
//!
//! ```sh
//! cargo run --example axum_backend
//! curl -d 'it works' http://127.0.0.1:8080/publish     # after some `new WebSocket("ws://127.0.0.1:8081/news")`
//! ```
//!
//! says `sent to 2 channels, waits for 0`. A client that does not read keeps neither the handler nor the others
//! waiting.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use pushring::{Broker, Event, Message, ProcessHandle};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// State shared by handlers.
#[derive(Clone)]
struct App {
    news: ProcessHandle,
    channels: Arc<AtomicUsize>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let broker = Broker::builder().listen("127.0.0.1:8081").start()?;
    let mut news = broker.process("news")?;
    news.bind_at("/news")?;

    let app = App { news: news.handle().clone(), channels: Arc::default() };
    let channels = app.channels.clone();
    tokio::spawn(async move {
        while let Ok(event) = news.recv().await {
            match event {
                Event::Opened(_) => channels.fetch_add(1, Ordering::Relaxed),
                Event::Closed(_) => channels.fetch_sub(1, Ordering::Relaxed),
                _ => continue,
            };
        }
    });

    let routes = Router::new().route("/publish", post(publish)).route("/channels", get(channels_open)).with_state(app);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    println!("POST to http://127.0.0.1:8080/publish; clients at ws://127.0.0.1:8081/news");
    Ok(axum::serve(listener, routes).await?)
}

/// Pushes the body to every client, and says what became of it.
async fn publish(State(app): State<App>, text: String) -> Result<String, StatusCode> {
    let ticket = app.news.broadcast(Message::text(text)).ask().await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    let outcome = ticket.await;
    Ok(format!("sent to {} channels, waits for {}\n", outcome.sent, outcome.queued))
}

async fn channels_open(State(app): State<App>) -> Json<usize> {
    Json(app.channels.load(Ordering::Relaxed))
}
