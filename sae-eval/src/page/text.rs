//! Text from files and numbers, as people read them on the page. The templates escape markup; here goes what escaping
//! leaves: characters that are invisible or that turn the direction of text around.

use crate::report::escape::visible;

/// Longest name that is shown whole, in characters.
pub(super) const NAME: usize = 120;

/// Text of at most `limit` characters, without control characters, line breaks or changes of direction.
pub(super) fn clean(text: &str, limit: usize) -> String {
    let mut chars = text.chars().map(visible);
    let mut out: String = chars.by_ref().take(limit).collect();
    if chars.next().is_some() {
        out.push('…');
    }
    out
}

/// A name of a class, a run or a file.
pub(super) fn name(text: &str) -> String {
    clean(text, NAME)
}

/// Lines of text, each cleaned; at most `limit` lines.
pub(super) fn lines(text: &str, limit: usize) -> String {
    let lines: Vec<String> = text.lines().take(limit).map(|l| clean(l, 400)).collect();
    lines.join("\n")
}

/// A number with about four digits: `0.2635`, `41`, `12.3`, `1.20e-5`.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "–".into(),
        v if v.fract() == 0.0 && v < 1e15 => grouped(value as i64),
        v if v < 1e-3 => format!("{value:.2e}"),
        v if v < 10.0 => format!("{value:.4}"),
        v if v < 1000.0 => format!("{value:.1}"),
        v if v < 1e15 => grouped(value.round() as i64),
        _ => format!("{value:.3e}"),
    }
}

/// A number, or a dash.
pub(super) fn maybe(value: Option<f64>) -> String {
    value.map_or("–".into(), number)
}

/// A share as a percentage.
pub(super) fn percent(share: f64) -> String {
    match 100.0 * share {
        p if !p.is_finite() => "–".into(),
        p if p != 0.0 && p.abs() < 0.1 => format!("{p:.3} %"),
        p => format!("{p:.1} %"),
    }
}

/// A count with its digits in groups of three.
pub(super) fn grouped(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if value < 0 { format!("−{out}") } else { out }
}

/// A count and the noun for it.
pub(crate) fn counted(count: usize, one: &str, many: &str) -> String {
    format!(
        "{} {}",
        grouped(count as i64),
        if count == 1 { one } else { many }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_by_hand() {
        let shown = [
            0.0,
            41.0,
            2048.0,
            -1_234_567.0,
            0.26351,
            12.34,
            1234.5,
            1.2e-5,
            f64::NAN,
        ];
        let expected = [
            "0",
            "41",
            "2,048",
            "−1,234,567",
            "0.2635",
            "12.3",
            "1,235",
            "1.20e-5",
            "–",
        ];
        assert_eq!(shown.map(number), expected);
        assert_eq!(
            [0.0, 0.5, 0.0001].map(percent),
            ["0.0 %", "50.0 %", "0.010 %"]
        );
        assert_eq!(
            counted(1, "row", "rows") + &counted(1200, "row", "rows"),
            "1 row1,200 rows"
        );
    }

    #[test]
    fn text_is_cut_and_cleaned() {
        assert_eq!(clean("a\u{202e}b\n\u{0}c", 9), "a\u{fffd}b \u{fffd}c");
        assert_eq!(clean("abcdef", 3), "abc…");
        assert_eq!(lines("a\r\nb\tc\nd", 2), "a\nb c");
    }
}
