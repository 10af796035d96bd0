//! `/healthz`, `/readyz` and `/metrics` on an address of their own. Nothing else is served here, ever: people come by the gateway.

use std::net::SocketAddr;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

use crate::{Health, Metrics};

/// The form of Prometheus's text.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone)]
struct Served {
    health: Health,
    metrics: Metrics,
}

/// Serves until the runtime ends; the bound address.
///
/// # Errors
/// When the address is taken.
pub async fn serve(address: SocketAddr, health: Health, metrics: Metrics) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(text))
        .with_state(Served { health, metrics });
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the health endpoint ended");
        }
    });
    Ok(bound)
}

async fn healthz(State(served): State<Served>) -> impl IntoResponse {
    match served.health.dead() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn readyz(State(served): State<Served>) -> impl IntoResponse {
    let code = if served.health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, [(CONTENT_TYPE, "application/json")], served.health.ready_json())
}

async fn text(State(served): State<Served>) -> impl IntoResponse {
    ([(CONTENT_TYPE, METRICS_TYPE)], served.metrics.text())
}
