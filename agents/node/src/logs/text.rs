//! Making lines fit to be shown: secrets and control characters taken out, length bounded; and which line tells of an error.
//! Pure functions. Redaction is a net with known meshes: a secret that looks like nothing passes.

use std::sync::LazyLock;

use regex::{Captures, Regex};

/// What stands where a secret stood.
const MASK: &str = "***";
/// Longest error text in an event.
pub const ERROR_BYTES_MAX: usize = 512;

/// Names in front of a value that is secret, with what stands between; the value is a word or a quoted text.
static NAMED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let names =
        r"[\w.-]*(?:passw(?:or)?d|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credentials?|[_-]key|\bkey)";
    regex(&format!(r#"(?i)({names}["']?\s*(?:=>|[=:])\s*)("[^"]*"|'[^']*'|[^\s"',;&)\]}}]+)"#))
});
static HEADER: LazyLock<Option<Regex>> =
    LazyLock::new(|| regex(r#"(?i)((?:proxy-)?authorization["']?\s*[:=]\s*["']?|(?:set-)?cookie["']?\s*[:=]\s*["']?)[^"'\r\n]+"#));
static BEARER: LazyLock<Option<Regex>> = LazyLock::new(|| regex(r"(?i)\b(bearer\s+|basic\s+)[A-Za-z0-9._~+/=-]{8,}"));
static IN_URL: LazyLock<Option<Regex>> = LazyLock::new(|| regex(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s@:]*:[^/\s@]+@"));
/// Tokens known by their look: model providers, GitHub, Slack, AWS, JSON web tokens, private keys.
static LOOKS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    regex(concat!(
        r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{8,}|\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}|\bhf_[A-Za-z0-9]{16,}",
        r"|\bxox[a-z]-[A-Za-z0-9-]{8,}|\bAKIA[0-9A-Z]{12,}|\beyJ[\w-]{8,}\.[\w-]{4,}\.[\w-]*",
        r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*"
    ))
});
/// Words that begin or name an error in the languages that stacks are written in.
static ERROR: LazyLock<Option<Regex>> = LazyLock::new(|| {
    regex(concat!(
        r"(?i)\b(?:error|fatal|panic(?:ked)?|exception|critical|failed|failure|fail|abort(?:ed)?|denied|refused|segfault|",
        r"cannot|could not|unable to|not found|no such|out of memory|oom|killed)\b|\w(?:Error|Exception)\b|\bE\d{4}\b"
    ))
});
static COLOUR: LazyLock<Option<Regex>> = LazyLock::new(|| regex(r"\x1b\[[0-9;?]*[ -/]*[@-~]"));

/// The patterns are constants, and a test compiles each; one that could not be compiled would mask nothing.
fn regex(pattern: &str) -> Option<Regex> {
    Regex::new(pattern).ok()
}

/// The text without what looks like a secret: `key=…`, `token: …`, passwords (in URLs too), `Authorization`, `sk-…` and the like.
#[must_use]
pub fn redact(text: &str) -> String {
    let mut text = text.to_owned();
    for pattern in [&HEADER, &BEARER, &NAMED] {
        replace(&mut text, pattern, |found| format!("{}{MASK}", found.get(1).map_or("", |m| m.as_str())));
    }
    replace(&mut text, &IN_URL, |found| format!("{}{MASK}@", found.get(1).map_or("", |m| m.as_str())));
    replace(&mut text, &LOOKS, |_| MASK.to_owned());
    text
}

fn replace(text: &mut String, pattern: &LazyLock<Option<Regex>>, with: impl Fn(&Captures<'_>) -> String) {
    let replaced = match &**pattern {
        Some(pattern) if pattern.is_match(text) => pattern.replace_all(text, |found: &Captures<'_>| with(found)).into_owned(),
        _ => return,
    };
    *text = replaced;
}

/// One line for people and the bus: colours gone, secrets masked, control characters escaped, at most `bytes_max` bytes.
#[must_use]
pub fn clean(bytes: &[u8], bytes_max: usize) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    replace(&mut text, &COLOUR, |_| String::new());
    let text = redact(text.trim_end());
    let mut shown = String::with_capacity(text.len().min(bytes_max));
    for c in text.chars() {
        let start = shown.len();
        if c.is_control() && c != '\t' {
            shown.extend(c.escape_default());
        } else {
            shown.push(if c == '\t' { ' ' } else { c });
        }
        if shown.len() > bytes_max {
            shown.truncate(start);
            break;
        }
    }
    shown
}

/// Whether the line may look like an error once it is cleaned: a quick look at what was written.
#[must_use]
pub(super) fn may_be_error(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    if !bytes.contains(&0x1b) {
        return is_error(&text);
    }
    COLOUR.as_ref().is_none_or(|pattern| is_error(&pattern.replace_all(&text, "")))
}

/// Whether the line looks like an error.
#[must_use]
pub fn is_error(line: &str) -> bool {
    ERROR.as_ref().is_some_and(|pattern| pattern.is_match(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_patterns_compile() {
        for pattern in [&NAMED, &HEADER, &BEARER, &IN_URL, &LOOKS, &ERROR, &COLOUR] {
            assert!(pattern.is_some());
        }
    }

    #[test]
    fn secrets_do_not_pass() {
        for (line, secret) in [
            ("connect postgres://user:hunter22@db:5432/x failed", "hunter22"),
            ("redis://:hunter22@cache:6379", "hunter22"),
            ("OPENAI_API_KEY=abcd1234efgh missing", "abcd1234efgh"),
            ("api_key: abcd1234efgh", "abcd1234efgh"),
            (r#"{"token":"abcd1234efgh","a":1}"#, "abcd1234efgh"),
            (r#"{"password": "abcd 1234"}"#, "1234"),
            ("--password=hunter22 --port 1", "hunter22"),
            ("?key=hunter22&x=1", "hunter22"),
            ("Authorization: Bearer abcdefgh.ijkl", "abcdefgh"),
            ("authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
            ("using sk-proj-0123456789abcdef", "0123456789"),
            ("ghp_0123456789abcdef0123456789abcdef0123", "0123456789"),
            ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sig-nature", "eyJzdWIi"),
            ("AKIAIOSFODNN7EXAMPLE", "IOSFODNN7"),
            ("Cookie: session=abcdef", "abcdef"),
            ("PGPASSWORD='hunter 22'", "hunter"),
        ] {
            let shown = clean(line.as_bytes(), 512);
            assert!(!shown.contains(secret), "{line} became {shown}");
            assert!(shown.contains(MASK), "{line} became {shown}");
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for line in [
            "KeyError: 'user'",
            "ModuleNotFoundError: No module named 'torch'",
            "listening on http://127.0.0.1:8080/health",
            "error: cannot open /etc/keys: No such file",
            "monkey business as usual",
        ] {
            assert_eq!(clean(line.as_bytes(), 512), line);
        }
    }

    #[test]
    fn control_characters_and_length_are_bounded() {
        assert_eq!(clean(b"\x1b[31merror\x1b[0m: a\x00b\x07\r\n", 512), "error: a\\u{0}b\\u{7}");
        assert_eq!(clean("ü".repeat(400).as_bytes(), 511), "ü".repeat(255));
        assert_eq!(clean(&[0xff; 4], 512), "\u{fffd}".repeat(4));
    }

    #[test]
    fn errors_are_told_from_chatter() {
        for line in ["ValueError: x", "thread 'main' panicked at src/a.rs", "bind: address already in use (error)", "FATAL: no pg_hba"] {
            assert!(is_error(line), "{line}");
        }
        for line in ["listening on 80", "    at Module._load (node:internal)", "Node.js v18.19.0"] {
            assert!(!is_error(line), "{line}");
        }
    }
}
