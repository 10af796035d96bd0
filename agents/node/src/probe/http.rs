//! HTTP GET over a connection of its own; 200 to 399 passes.

use std::{
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use futures::future::{Either, select};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Bytes};
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use razar_bus_schema::v1::HttpCheck;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{Finding, HOST_DEFAULT, Outcome, RESPONSE_BYTES_MAX, connect};

/// Most bytes of a response's head, hyper's smallest allowed.
const HEAD_BYTES_MAX: usize = 8192;
/// Names the asker to the component's access log.
const USER_AGENT: &str = concat!("razar-node/", env!("CARGO_PKG_VERSION"));

pub(super) async fn ask(check: &HttpCheck) -> Finding {
    let request = match request(check) {
        Ok(request) => request,
        Err(error) => return Finding::new(Outcome::Failed, format!("http: bad request: {error}")),
    };
    let stream = match connect(&check.host, check.port).await {
        Ok(stream) => stream,
        Err(error) => return Finding::of_error("http", &error),
    };
    match exchange(TokioIo::new(Abrupt(stream)), request).await {
        Ok((status, _)) => {
            let outcome = if (200..400).contains(&status) { Outcome::Passed } else { Outcome::Failed };
            Finding::new(outcome, format!("http {status}"))
        }
        Err(error) => Finding::new(Outcome::Failed, format!("http: {}", with_source(&error))),
    }
}

/// Status and body of a GET on this machine; none: there is no answer. The body is cut where a probe stops to read.
pub(super) async fn get(port: u32, path: &str) -> Option<(u16, String)> {
    let check = HttpCheck { port, path: path.to_owned(), ..HttpCheck::default() };
    let stream = connect(&check.host, check.port).await.ok()?;
    let (status, body) = exchange(TokioIo::new(Abrupt(stream)), request(&check).ok()?).await.ok()?;
    Some((status, String::from_utf8_lossy(&body).into_owned()))
}

fn request(check: &HttpCheck) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    let host = if check.host.is_empty() { HOST_DEFAULT } else { &check.host };
    let path = if check.path.is_empty() { "/" } else { &check.path };
    // An IPv6 address stands in brackets.
    let authority = if host.contains(':') { format!("[{host}]:{}", check.port) } else { format!("{host}:{}", check.port) };
    let named = |name: &header::HeaderName| check.headers.iter().any(|h| h.key.eq_ignore_ascii_case(name.as_str()));
    let mut request = Request::get(path);
    for (name, value) in [(header::HOST, authority.as_str()), (header::USER_AGENT, USER_AGENT), (header::ACCEPT, "*/*")] {
        if !named(&name) {
            request = request.header(name, value);
        }
    }
    // So that the server does not wait for a next request on a connection that is reset.
    request = request.header(header::CONNECTION, "close");
    for extra in &check.headers {
        request = request.header(&extra.key, &extra.value);
    }
    request.body(Empty::new())
}

/// The response's status, once its body has come too, and as much of that as is read.
async fn exchange(io: TokioIo<Abrupt>, request: Request<Empty<Bytes>>) -> hyper::Result<(u16, Vec<u8>)> {
    let (mut sender, connection) =
        hyper::client::conn::http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake::<_, Empty<Bytes>>(io).await?;
    // The connection is driven here, so that dropping this future closes it: no task is left behind.
    let talk = pin!(async move {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        let mut read = Vec::new();
        while !body.is_end_stream() && read.len() < RESPONSE_BYTES_MAX {
            let Some(frame) = body.frame().await else { break };
            if let Some(data) = frame?.data_ref() {
                read.extend_from_slice(data);
            }
        }
        Ok((status, read))
    });
    let connection = pin!(connection);
    match select(talk, connection).await {
        Either::Left((answer, _)) => answer,
        // The connection has ended: what was read of it is still to be taken.
        Either::Right((_, talk)) => talk.await,
    }
}

/// A connection that ends by its reset alone, once it is dropped: an orderly end before it costs both sides a round more, each second
/// for each probe, and leaves nothing that the reset does not clear away.
struct Abrupt(TcpStream);

impl AsyncRead for Abrupt {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Abrupt {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn with_source(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
