//! An OTLP collector in the test's own process.

use anyhow::Result;
use axum::{Router, body::Bytes, extract::State, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::Span,
};
use prost::Message;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::broker::free_port;

/// A collector, and what it gets: (service name of the resource, span).
pub(crate) struct Collector {
    pub(crate) endpoint: String,
    pub(crate) received: mpsc::Receiver<Vec<(String, Span)>>,
}

fn spans(request: ExportTraceServiceRequest) -> Vec<(String, Span)> {
    let mut all = Vec::new();
    for resource in request.resource_spans {
        let attributes = resource.resource.map(|r| r.attributes).unwrap_or_default();
        let service = attributes.into_iter().find(|a| a.key == "service.name").and_then(|a| a.value?.value);
        let service = match service {
            Some(Value::StringValue(name)) => name,
            _ => String::new(),
        };
        all.extend(resource.scope_spans.into_iter().flat_map(|s| s.spans).map(|span| (service.clone(), span)));
    }
    all
}

struct Grpc(mpsc::Sender<Vec<(String, Span)>>);

#[tonic::async_trait]
impl TraceService for Grpc {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let _ = self.0.send(spans(request.into_inner())).await;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

pub(crate) async fn grpc() -> Result<Collector> {
    let (sender, received) = mpsc::channel(64);
    let port = free_port()?;
    let serving = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Grpc(sender)));
    tokio::spawn(serving.serve(([127, 0, 0, 1], port).into()));
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        tokio::task::yield_now().await;
    }
    Ok(Collector { endpoint: format!("http://127.0.0.1:{port}"), received })
}

async fn take(State(sender): State<mpsc::Sender<Vec<(String, Span)>>>, body: Bytes) -> Vec<u8> {
    if let Ok(request) = ExportTraceServiceRequest::decode(body) {
        let _ = sender.send(spans(request)).await;
    }
    ExportTraceServiceResponse::default().encode_to_vec()
}

pub(crate) async fn http() -> Result<Collector> {
    let (sender, received) = mpsc::channel(64);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let router = Router::new().route("/v1/traces", post(take)).with_state(sender);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(Collector { endpoint, received })
}
