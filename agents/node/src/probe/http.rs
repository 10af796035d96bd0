//! HTTP GET over a connection of its own; 200 to 399 passes. One question and one answer, each second for each component: a whole client
//! spent as much on itself as the kernel on the connection. What the bytes mean is httparse's to say.

use std::io;

use http::{HeaderName, HeaderValue, header, uri::PathAndQuery};
use razar_bus_schema::v1::HttpCheck;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Finding, HOST_DEFAULT, Outcome, RESPONSE_BYTES_MAX, connect};

/// Most bytes of a response's head.
const HEAD_BYTES_MAX: usize = 8192;
/// Most headers in it.
const HEADERS_MAX: usize = 100;
/// Most bytes of a chunk's length.
const CHUNK_HEAD_BYTES_MAX: usize = 1024;
/// What stands behind a chunk, and behind its length.
const LINE_END: &[u8] = b"\r\n";
/// Room for what most servers answer to a probe.
const RESPONSE_BYTES: usize = 1024;
/// Names the asker to the component's access log.
const USER_AGENT: &str = concat!("razar-node/", env!("CARGO_PKG_VERSION"));

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("{0}")]
    Broken(#[from] io::Error),
    #[error("no HTTP: {0}")]
    Head(#[from] httparse::Error),
    #[error("no HTTP: a head of over {HEAD_BYTES_MAX} bytes")]
    Long,
    #[error("no HTTP: a length of the body that is none")]
    Length,
    #[error("the connection ended before the answer did")]
    Short,
}

pub(super) async fn ask(check: &HttpCheck) -> Finding {
    let request = match request(check) {
        Ok(request) => request,
        Err(error) => return Finding::new(Outcome::Failed, format!("http: bad request: {error}")),
    };
    let stream = match connect(&check.host, check.port).await {
        Ok(stream) => stream,
        Err(error) => return Finding::of_error("http", &error),
    };
    match exchange(stream, &request).await {
        Ok((status, _)) => {
            let outcome = if (200..400).contains(&status) { Outcome::Passed } else { Outcome::Failed };
            Finding::new(outcome, format!("http {status}"))
        }
        Err(error) => Finding::new(Outcome::Failed, format!("http: {error}")),
    }
}

/// Status and body of a GET on this machine; none: there is no answer. The body is cut where a probe stops to read.
pub(super) async fn get(port: u32, path: &str) -> Option<(u16, String)> {
    let check = HttpCheck { port, path: path.to_owned(), ..HttpCheck::default() };
    let stream = connect(&check.host, check.port).await.ok()?;
    let (status, body) = exchange(stream, &request(&check).ok()?).await.ok()?;
    Some((status, String::from_utf8_lossy(&body).into_owned()))
}

fn request(check: &HttpCheck) -> Result<Vec<u8>, http::Error> {
    let host = if check.host.is_empty() { HOST_DEFAULT } else { &check.host };
    let path = PathAndQuery::try_from(if check.path.is_empty() { "/" } else { &check.path })?;
    // An IPv6 address stands in brackets.
    let authority = if host.contains(':') { format!("[{host}]:{}", check.port) } else { format!("{host}:{}", check.port) };
    let named = |name: &HeaderName| check.headers.iter().any(|h| h.key.eq_ignore_ascii_case(name.as_str()));
    let mut request = format!("GET {path} HTTP/1.1\r\n").into_bytes();
    let mut put = |name: &HeaderName, value: &HeaderValue| {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            request.extend_from_slice(part);
        }
    };
    for (name, value) in [(header::HOST, authority.as_str()), (header::USER_AGENT, USER_AGENT), (header::ACCEPT, "*/*")] {
        if !named(&name) {
            put(&name, &HeaderValue::try_from(value)?);
        }
    }
    // So that the server does not wait for a next request on a connection that is reset.
    put(&header::CONNECTION, &HeaderValue::from_static("close"));
    for extra in &check.headers {
        put(&HeaderName::try_from(&extra.key)?, &HeaderValue::try_from(&extra.value)?);
    }
    request.extend_from_slice(b"\r\n");
    Ok(request)
}

/// The response's status, once its body has come too, and as much of that as is read. The connection ends by its reset alone: an orderly
/// end before it costs both sides a round more, and leaves nothing that the reset does not clear away.
async fn exchange(mut stream: TcpStream, request: &[u8]) -> Result<(u16, Vec<u8>), NoAnswer> {
    stream.write_all(request).await?;
    let mut read = Vec::with_capacity(RESPONSE_BYTES);
    let head = loop {
        match Head::of(&read)? {
            // What comes before the answer itself.
            Some(head) if matches!(head.status, 100 | 102..200) => drop(read.drain(..head.bytes)),
            Some(head) => break head,
            None if read.len() >= HEAD_BYTES_MAX => return Err(NoAnswer::Long),
            None if stream.read_buf(&mut read).await? == 0 => return Err(NoAnswer::Short),
            None => {}
        }
    };
    let mut raw = read.split_off(head.bytes);
    let (status, mut body) = (head.status, head.body);
    while !body.is_whole(&raw)? && raw.len() < RESPONSE_BYTES_MAX {
        if stream.read_buf(&mut raw).await? == 0 {
            if matches!(body, Body::ToTheEnd) {
                break;
            }
            return Err(NoAnswer::Short);
        }
    }
    Ok((status, body.of(raw)))
}

/// What matters of a response's head.
struct Head {
    bytes: usize,
    status: u16,
    body: Body,
}

/// Where the body ends.
enum Body {
    Length(usize),
    /// The next chunk begins there; what those before it say.
    Chunks(usize, Vec<u8>),
    ToTheEnd,
}

impl Head {
    /// The head at the beginning of `read`; none: it has not come as a whole.
    fn of(read: &[u8]) -> Result<Option<Self>, NoAnswer> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(bytes) = response.parse(read)? else { return Ok(None) };
        let status = response.code.unwrap_or_default();
        let body = match (values(response.headers, &header::TRANSFER_ENCODING).last(), length(response.headers)?) {
            _ if matches!(status, 100..200 | 204 | 304) => Body::Length(0),
            (Some(last), _) if last.eq_ignore_ascii_case(b"chunked") => Body::Chunks(0, Vec::new()),
            (None, Some(length)) => Body::Length(length),
            (Some(_), _) | (None, None) => Body::ToTheEnd,
        };
        Ok(Some(Self { bytes, status, body }))
    }
}

/// What the headers of this name say, item by item.
fn values<'h>(headers: &'h [httparse::Header<'h>], name: &HeaderName) -> impl Iterator<Item = &'h [u8]> {
    let named = headers.iter().filter(move |h| h.name.eq_ignore_ascii_case(name.as_str()));
    named.flat_map(|h| h.value.split(|b| *b == b',')).map(<[u8]>::trim_ascii)
}

/// How long the body is said to be; who says so more than once says the same.
fn length(headers: &[httparse::Header<'_>]) -> Result<Option<usize>, NoAnswer> {
    let mut told = None;
    for value in values(headers, &header::CONTENT_LENGTH) {
        let digits = std::str::from_utf8(value).ok().filter(|v| v.bytes().all(|b| b.is_ascii_digit()));
        let length: usize = digits.and_then(|v| v.parse().ok()).ok_or(NoAnswer::Length)?;
        if *told.get_or_insert(length) != length {
            return Err(NoAnswer::Length);
        }
    }
    Ok(told)
}

impl Body {
    /// Whether it has come as a whole, with what came of it so far.
    fn is_whole(&mut self, raw: &[u8]) -> Result<bool, NoAnswer> {
        let (next, text) = match self {
            Self::Length(length) => return Ok(raw.len() >= *length),
            Self::ToTheEnd => return Ok(false),
            Self::Chunks(next, text) => (next, text),
        };
        loop {
            let rest = raw.get(*next..).unwrap_or_default();
            let (at, size) = match httparse::parse_chunk_size(rest) {
                Ok(httparse::Status::Complete(found)) => found,
                Ok(httparse::Status::Partial) if rest.len() < CHUNK_HEAD_BYTES_MAX => return Ok(false),
                Ok(httparse::Status::Partial) | Err(_) => return Err(NoAnswer::Length),
            };
            // A length is a digit at least.
            if at <= LINE_END.len() {
                return Err(NoAnswer::Length);
            }
            if size == 0 {
                return Ok(true);
            }
            let end = usize::try_from(size).ok().and_then(|size| at.checked_add(size)?.checked_add(LINE_END.len()));
            let Some(chunk) = rest.get(at..end.ok_or(NoAnswer::Length)?) else { return Ok(false) };
            text.extend_from_slice(chunk.strip_suffix(LINE_END).ok_or(NoAnswer::Length)?);
            *next += at + chunk.len();
        }
    }

    /// What `raw` says.
    fn of(self, mut raw: Vec<u8>) -> Vec<u8> {
        match self {
            Self::Length(length) => raw.truncate(length),
            Self::Chunks(_, text) => return text,
            Self::ToTheEnd => {}
        }
        raw
    }
}
