//! Text from files, made safe for Markdown.
//!
//! A class name, a path or a whole `report.json` may come from anywhere, and reports are read in terminals, in viewers
//! of code hosts and in browsers. Such text must be shown literally: it must not end a cell or a line, start a heading
//! or a list, become a link, an image or HTML, or control the terminal.

/// Longest name that is shown whole, in characters.
const NAME: usize = 200;
/// Longest sentence that is shown whole, in characters.
const PROSE: usize = 2000;

/// A name (of a class, a run, a file, a device), as inline Markdown without line breaks.
pub(super) fn name(text: &str) -> String {
    inline(text, NAME)
}

/// A sentence or a formula, as inline Markdown without line breaks.
pub(super) fn prose(text: &str) -> String {
    inline(text, PROSE)
}

fn inline(text: &str, limit: usize) -> String {
    let mut out = String::with_capacity(text.len().min(limit));
    let mut chars = text.chars().map(visible).enumerate().peekable();
    let mut before = None;
    let mut only_digits = true;
    while let Some((at, c)) = chars.next() {
        if at == limit {
            out.push('…');
            break;
        }
        let after = chars.peek().filter(|(at, _)| *at < limit).map(|(_, c)| *c);
        let ends = |c: Option<char>| c.is_none_or(|c| c == ' ');
        let in_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        match c {
            // an entity stays text even in a viewer that lets HTML through after a backslash
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '|' | '`' | '*' | '[' | ']' | '\\' | '~' | '$' => out.extend(['\\', c]),
            // inside a word it emphasises nothing, and unescaped names of metrics stay readable
            '_' if !(in_word(before) && in_word(after)) => out.push_str("\\_"),
            // at the start these make a heading, a quotation, a list, a rule or the underline of a heading
            '#' | '>' | '-' | '+' | '=' | ':' if before.is_none() => out.extend(['\\', c]),
            '.' | ')' if only_digits && before.is_some() && ends(after) => out.extend(['\\', c]),
            // these end a heading
            '#' if ends(after) || after == Some('#') => out.push_str("\\#"),
            // leading spaces could make a code block
            ' ' if before.is_none() => continue,
            c => out.push(c),
        }
        only_digits &= c.is_ascii_digit();
        before = Some(c);
    }
    out
}

/// Turns line breaks and tabs into spaces. Other control characters, and characters that reverse the direction of text
/// so that it reads differently, become the replacement character.
pub(crate) fn visible(c: char) -> char {
    match c {
        '\n' | '\r' | '\t' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}' => ' ',
        '\u{61c}' | '\u{200e}' | '\u{200f}' => char::REPLACEMENT_CHARACTER,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => char::REPLACEMENT_CHARACTER,
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Text of pieces that mean something to Markdown, HTML or terminals or deceive the eye, mixed with arbitrary
    /// characters.
    pub(crate) fn hostile() -> impl Strategy<Value = String> {
        let pieces = prop::sample::select(vec![
            "|",
            "||",
            "\\",
            "\\|",
            "`",
            "```",
            "~~~",
            "~",
            "<",
            ">",
            "<script>alert(1)</script>",
            "<!--",
            "-->",
            "&lt;",
            "&#124;",
            "&",
            "[x](javascript:alert(1))",
            "![x](y)",
            "[x]: y",
            "*",
            "**",
            "_",
            "__",
            "_a_",
            "#",
            "# ",
            "## a",
            "-",
            "- ",
            "---",
            "=",
            "===",
            "+ ",
            "1. ",
            "1) ",
            ":--",
            "> ",
            "$",
            "$$",
            " ",
            "    ",
            "\t",
            "\n",
            "\r\n",
            "\u{b}",
            "\u{85}",
            "\u{2028}",
            "\u{0}",
            "\u{1b}[31m",
            "\u{7f}",
            "\u{202e}",
            "\u{2066}",
            "\u{200f}",
            "a",
            "é",
            "名",
            "0",
            "\u{301}",
        ]);
        let piece = prop_oneof![4 => pieces.prop_map(String::from), 1 => any::<char>().prop_map(String::from)];
        prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    /// The Markdown with a dot in place of every character that a backslash makes literal.
    fn unescaped(markdown: &str) -> String {
        let mut out = String::new();
        let mut chars = markdown.chars();
        while let Some(c) = chars.next() {
            match c {
                '\\' => {
                    assert!(chars.next().is_some_and(|c| c.is_ascii_punctuation()));
                    out.push('·');
                }
                c => out.push(c),
            }
        }
        out
    }

    /// The text that a viewer shows: without backslashes and entities.
    fn shown(markdown: &str) -> String {
        let mut out = String::new();
        let mut chars = markdown.chars();
        while let Some(c) = chars.next() {
            out.push(if c == '\\' {
                chars.next().unwrap_or('?')
            } else {
                c
            });
        }
        out.replace("&lt;", "<").replace("&amp;", "&")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn nothing_is_markup(text in hostile()) {
            let escaped = name(&text);
            let bare = unescaped(&escaped);
            prop_assert!(!bare.contains(['|', '<', '`', '*', '[', ']', '~', '$']), "{escaped}");
            let mut rest = bare.as_str();
            while let Some(at) = rest.find('&') {
                rest = &rest[at + 1..];
                prop_assert!(rest.starts_with("lt;") || rest.starts_with("amp;"), "{}", escaped);
            }
            prop_assert!(!escaped.contains('<'), "a viewer may not know backslashes: {escaped}");
            prop_assert!(!bare.starts_with(['#', '>', '-', '+', '=', ':', ' ']), "{escaped}");
            prop_assert!(!bare.contains("# ") && !bare.ends_with('#'), "{escaped}");
            let after_digits = bare.trim_start_matches(|c: char| c.is_ascii_digit());
            if after_digits != bare && let Some(rest) = after_digits.strip_prefix(['.', ')']) {
                prop_assert!(!rest.is_empty() && !rest.starts_with(' '), "{}", escaped);
            }
            prop_assert!(!escaped.chars().any(|c| c.is_control() || visible(c) != c), "{escaped:?}");
            for (i, _) in bare.match_indices('_') {
                let word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
                prop_assert!(word(bare[..i].chars().next_back()) && word(bare[i + 1..].chars().next()), "{escaped}");
            }
        }

        #[test]
        fn what_is_shown_is_the_text(text in hostile()) {
            let clean: String = text.chars().map(visible).collect();
            let start = clean.len() - clean.trim_start_matches(' ').len();
            let expected: String = if clean.chars().count() > NAME {
                clean.chars().take(NAME).skip(start).chain(['…']).collect()
            } else {
                clean[start..].to_string()
            };
            prop_assert_eq!(shown(&name(&text)), expected);
        }
    }

    #[test]
    fn names_by_hand() {
        for (text, expected) in [
            ("a|b", r"a\|b"),
            (r"a\|b", r"a\\\|b"),
            ("<script>", "&lt;script>"),
            ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
            ("[x](javascript:alert(1))", r"\[x\](javascript:alert(1))"),
            ("nmse_uncentred", "nmse_uncentred"),
            ("_init_", r"\_init\_"),
            ("# a\n# b", r"\# a \# b"),
            ("--- x", r"\--- x"),
            ("12. x", r"12\. x"),
            ("0.1.0", "0.1.0"),
            ("12.", r"12\."),
            ("a #", r"a \#"),
            ("mean of #{ j : a_j > 0 }", "mean of #{ j : a_j > 0 }"),
            ("> x", r"\> x"),
            ("x 12.", "x 12."),
            ("\u{1b}[2Ja\u{202e}b", "\u{fffd}\\[2Ja\u{fffd}b"),
            ("", ""),
        ] {
            assert_eq!(name(text), expected);
        }
    }

    #[test]
    fn a_long_name_ends_in_an_ellipsis() {
        let long = "é".repeat(1 << 20);
        assert_eq!(name(&long).chars().count(), NAME + 1);
        assert!(name(&long).ends_with('…'));
        assert_eq!(name(&"x".repeat(NAME)), "x".repeat(NAME));
        assert_eq!(prose(&long).chars().count(), PROSE + 1);
    }
}
