//! One GET to an agent's health endpoint on this machine. Not a client for anything else: no redirects, no TLS, a small body.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A health answer is a few hundred bytes; more is none.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// An agent on this machine answers in a millisecond, or hangs.
const LIMIT: Duration = Duration::from_secs(2);

/// Status and body of `GET http://<address><path>`.
///
/// # Errors
/// When nobody answers in time, or not in HTTP.
pub(crate) async fn get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let asked = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(LIMIT, asked).await.map_err(|_| std::io::ErrorKind::TimedOut)??;
    parse(&String::from_utf8_lossy(&answer)).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ").or_else(|| head.strip_prefix("HTTP/1.0 "))?.get(..3)?.parse().ok()?;
    let chunked = head.lines().any(|l| l.eq_ignore_ascii_case("transfer-encoding: chunked"));
    let body = if chunked { dechunk(body)? } else { body.to_owned() };
    Some((status, body))
}

fn dechunk(mut body: &str) -> Option<String> {
    let mut out = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n")?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some(out);
        }
        out.push_str(rest.get(..size)?);
        body = rest.get(size..)?.strip_prefix("\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_or_in_chunks() {
        assert_eq!(parse("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}"), Some((503, "{}".to_owned())));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(chunked), Some((200, "abcde".to_owned())));
        assert_eq!(parse("SSH-2.0-x\r\n\r\n"), None);
    }
}
