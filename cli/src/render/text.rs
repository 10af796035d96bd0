//! Words in lines: escaping, quoting, columns, sizes, nearest names. Nothing here knows what the words mean.

/// Text that cannot move the cursor, ring, colour or reorder what stands beside it.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\t' {
            out.push_str("\\t");
        } else if c == '\n' {
            out.push_str("\\n");
        } else if c == '\r' {
            out.push_str("\\r");
        } else if c.is_control() || is_reordering(c) {
            out.push_str(&format!("\\u{{{:x}}}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

/// Unicode's marks that reorder text, which would make a log line read as another.
fn is_reordering(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

/// A line of the component's own, quoted and escaped.
pub(crate) fn quote(text: &str) -> String {
    format!("\"{}\"", escape(text.trim()))
}

/// `-` for nothing.
pub(crate) fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// Rows as columns, each as wide as its widest cell but the last, which is uncut; empty cells are `-`.
pub(crate) fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> =
        (0..count).map(|at| rows.iter().filter_map(|r| r.get(at)).map(|c| width(or_dash(c))).max().unwrap_or(0)).collect();
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            for (at, cell) in row.iter().enumerate() {
                let cell = or_dash(cell);
                line.push_str(cell);
                if at + 1 < row.len() {
                    let pad = widths.get(at).copied().unwrap_or(0).saturating_sub(width(cell));
                    line.extend(std::iter::repeat_n(' ', pad + 1));
                }
            }
            line
        })
        .collect()
}

/// Width in characters; names are ASCII, so that this is a terminal's cells.
pub(crate) fn width(text: &str) -> usize {
    text.chars().count()
}

/// The first `cells` characters, with `…` where something is cut.
pub(crate) fn cut(text: &str, cells: usize) -> String {
    if width(text) <= cells {
        return text.to_owned();
    }
    let kept: String = text.chars().take(cells.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// Bytes: `812B`, `41KiB`, `1.5MiB`, `4.0GiB`.
pub(crate) fn bytes(n: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, size)| n >= *size) {
        None => format!("{n}B"),
        Some((unit, size)) => {
            let value = n as f64 / *size as f64;
            if value < 10.0 && !n.is_multiple_of(*size) { format!("{value:.1}{unit}") } else { format!("{value:.0}{unit}") }
        }
    }
}

/// A count with its noun: `1 node`, `6 agents`.
pub(crate) fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// The nearest known names, the best first, at most three; nothing that shares little with `name`.
pub(crate) fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Vec<&'n str> {
    /// Below this likeness a suggestion would only mislead.
    const LIKENESS_MIN: f64 = 0.7;
    let mut scored: Vec<_> = known.into_iter().map(|k| (strsim::jaro_winkler(name, k), k)).filter(|(s, _)| *s >= LIKENESS_MIN).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().map(|(_, k)| k).take(3).collect()
}

/// A word as a shell takes it: bare where it is harmless, else in single quotes.
pub(crate) fn shell(word: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(harmless) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_move_the_cursor_is_escaped() {
        assert_eq!(escape("a\x1b[31mb\n\u{202e}c\td"), "a\\u{1b}[31mb\\n\\u{202e}c\\td");
        assert_eq!(quote("  no module named 'torch'\r\n"), "\"no module named 'torch'\"");
        assert_eq!(escape("Ünïcode ok"), "Ünïcode ok");
    }

    #[test]
    fn columns_line_up_and_empty_is_a_dash() {
        let rows = [vec!["a".into(), "long".into(), "x y".into()], vec!["bcd".into(), String::new(), String::new()]];
        assert_eq!(columns(&rows), ["a   long x y", "bcd -    -"]);
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!([0, 812, 41 << 10, 1_572_864, 4 << 30, 512 << 20].map(bytes), ["0B", "812B", "41KiB", "1.5MiB", "4GiB", "512MiB"]);
    }

    #[test]
    fn the_nearest_name_comes_first() {
        assert_eq!(nearest("memroy-store", ["api", "memory-store", "redis"]), ["memory-store"]);
        assert!(nearest("zzz", ["api", "redis"]).is_empty());
    }

    #[test]
    fn words_are_quoted_for_the_shell_only_where_needed() {
        assert_eq!(shell("razar.event.x"), "razar.event.x");
        assert_eq!(shell("it's {x}"), r"'it'\''s {x}'");
    }
}
