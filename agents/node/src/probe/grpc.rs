//! The gRPC health protocol over a connection of its own; SERVING passes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use razar_bus_schema::v1::GrpcCheck;
use tokio::net::TcpStream;
use tonic::codegen::{Service, http::Uri};
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{Finding, HOST_DEFAULT, Outcome, RESPONSE_BYTES_MAX, connect};

pub(super) async fn ask(check: &GrpcCheck) -> Finding {
    // Connected here and not by the channel, so that a refusal is seen as one.
    let stream = match connect(&check.host, check.port).await {
        Ok(stream) => stream,
        Err(error) => return Finding::of_error("grpc", &error),
    };
    if let Err(error) = stream.set_nodelay(true) {
        return Finding::of_error("grpc", &error);
    }
    let host = if check.host.is_empty() { HOST_DEFAULT } else { &check.host };
    let authority = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let endpoint = match Endpoint::from_shared(format!("http://{authority}:{}", check.port)) {
        Ok(endpoint) => endpoint,
        Err(error) => return Finding::new(Outcome::Failed, format!("grpc: bad address: {error}")),
    };
    let channel = match endpoint.connect_with_connector(Once { stream: Some(stream) }).await {
        Ok(channel) => channel,
        Err(error) => return Finding::new(Outcome::Failed, format!("grpc: {error}")),
    };
    let mut client = HealthClient::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX);
    match client.check(HealthCheckRequest { service: check.service.clone() }).await {
        Ok(answer) => match answer.into_inner().status() {
            ServingStatus::Serving => Finding::new(Outcome::Passed, "grpc SERVING"),
            other @ (ServingStatus::Unknown | ServingStatus::NotServing | ServingStatus::ServiceUnknown) => {
                Finding::new(Outcome::Failed, format!("grpc {}", other.as_str_name()))
            }
        },
        Err(status) => Finding::new(Outcome::Failed, format!("grpc {:?}: {}", status.code(), status.message())),
    }
}

/// Gives the channel its one connection.
struct Once {
    stream: Option<TcpStream>,
}

impl Service<Uri> for Once {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let stream = self.stream.take().map(TokioIo::new).ok_or_else(|| io::ErrorKind::NotConnected.into());
        Box::pin(std::future::ready(stream))
    }
}
