//! A NATS client of a few lines, as anybody might write one: blocking, one connection, no library of the mesh's. With it the tests
//! send what no honest client would, and delete what nobody should.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// How long the broker may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// A connection.
#[derive(Debug)]
pub struct Raw {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

/// Inboxes of all connections: two that are used at once must not hear each other's answers.
static INBOXES: AtomicU64 = AtomicU64::new(0);

impl Raw {
    /// Connects to the broker on a port of the loopback.
    ///
    /// # Errors
    /// When nobody answers as a broker does.
    pub fn connect(port: u16) -> Result<Self> {
        let writer = TcpStream::connect(("127.0.0.1", port))?;
        writer.set_read_timeout(Some(ANSWER))?;
        let mut raw = Self { reader: BufReader::new(writer.try_clone()?), writer };
        let info = raw.line()?;
        ensure!(info.starts_with("INFO "), "a broker says INFO first, not {info}");
        raw.send(b"CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\nPING\r\n")?;
        while raw.line()? != "PONG" {}
        Ok(raw)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.writer.write_all(bytes)?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.reader.read_line(&mut line)? > 0, "the broker closed the connection");
        Ok(line.trim_end().to_owned())
    }

    /// Sends, and makes sure that the broker has it.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn publish(&mut self, subject: &str, payload: &[u8]) -> Result<()> {
        let mut bytes = format!("PUB {subject} {}\r\n", payload.len()).into_bytes();
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(b"\r\nPING\r\n");
        self.send(&bytes)?;
        loop {
            match self.line()?.as_str() {
                "PONG" => return Ok(()),
                "PING" => self.send(b"PONG\r\n")?,
                refused if refused.starts_with("-ERR") => bail!("{refused}"),
                _ => {}
            }
        }
    }

    /// Sends a request; the first answer.
    ///
    /// # Errors
    /// When nobody answers in time, or nobody listens there.
    pub fn request(&mut self, subject: &str, payload: &[u8]) -> Result<Vec<u8>> {
        let number = INBOXES.fetch_add(1, Ordering::Relaxed) + 1;
        let inbox = format!("_INBOX.e2e.{}.{number}", std::process::id());
        let head = format!("SUB {inbox} {number}\r\nUNSUB {number} 1\r\nPUB {subject} {inbox} {}\r\n", payload.len());
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(b"\r\n");
        self.send(&bytes)?;
        let until = Instant::now() + ANSWER;
        while Instant::now() < until {
            let line = self.line().with_context(|| format!("no answer from {subject}"))?;
            match line.split(' ').collect::<Vec<_>>().as_slice() {
                ["PING"] => self.send(b"PONG\r\n")?,
                ["MSG", to, .., size] => {
                    let body = self.body(size)?;
                    if *to == inbox {
                        return Ok(body);
                    }
                }
                ["HMSG", to, .., head, size] => {
                    let whole = self.body(size)?;
                    let (head, body) = whole.split_at_checked(head.parse()?).context("a head longer than its message")?;
                    if *to == inbox {
                        ensure!(!head.starts_with(b"NATS/1.0 503"), "nobody listens on {subject}");
                        return Ok(body.to_vec());
                    }
                }
                [refused, ..] if *refused == "-ERR" => bail!("{line}"),
                _ => {}
            }
        }
        bail!("no answer from {subject} in {ANSWER:?}")
    }

    fn body(&mut self, size: &str) -> Result<Vec<u8>> {
        let mut body = vec![0; size.parse::<usize>()? + 2];
        self.reader.read_exact(&mut body)?;
        body.truncate(body.len().saturating_sub(2));
        Ok(body)
    }

    /// Asks JetStream's API; an error in the answer is one here.
    ///
    /// # Errors
    /// As [`Raw::request`], or what the answer says.
    pub fn jetstream(&mut self, verb: &str, request: &str) -> Result<Value> {
        let answer: Value = serde_json::from_slice(&self.request(&format!("$JS.API.{verb}"), request.as_bytes())?)?;
        ensure!(answer.get("error").is_none(), "{verb}: {answer}");
        Ok(answer)
    }

    /// The newest message of `stream` under `subject`.
    ///
    /// # Errors
    /// As [`Raw::jetstream`]; there is none.
    pub fn newest(&mut self, stream: &str, subject: &str) -> Result<Vec<u8>> {
        let answer = self.jetstream(&format!("STREAM.MSG.GET.{stream}"), &format!(r#"{{"last_by_subj":"{subject}"}}"#))?;
        base64(answer.pointer("/message/data").and_then(Value::as_str).context("data")?)
    }
}

fn base64(text: &str) -> Result<Vec<u8>> {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for digit in text.trim_end_matches('=').bytes() {
        bits = bits << 6 | u32::try_from(digits.iter().position(|d| *d == digit).context("a digit of base64")?)?;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held & 0xff)?);
        }
    }
    Ok(bytes)
}
