//! Documents that show a generated table: it stands between `<!-- results: NAME -->` and `<!-- end of results -->`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::files::At;

const END: &str = "<!-- end of results -->";

/// Puts a table into its place in a document.
pub(super) fn replace(path: &Path, name: &str, table: &str) -> Result<()> {
    let text = fs::read_to_string(path).at(path)?;
    let new = replaced(&text, name, table)
        .with_context(|| format!("{}: no place for the table {name}", path.display()))?;
    if new != text {
        fs::write(path, new).at(path)?;
    }
    Ok(())
}

fn replaced(text: &str, name: &str, table: &str) -> Option<String> {
    let begin = format!("<!-- results: {name} -->");
    let start = text.find(&begin)? + begin.len();
    let end = start + text[start..].find(END)?;
    Some(format!(
        "{}\n{}\n{}",
        &text[..start],
        table.trim_end(),
        &text[end..]
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_comments_changes() {
        let text = "a\n<!-- results: x -->\nold\n<!-- end of results -->\nb <!-- results: y --> <!-- end of results -->\n";
        let new = replaced(text, "x", "| 1 |\n").unwrap();
        assert_eq!(new, text.replace("old", "| 1 |"));
        assert_eq!(replaced(&new, "x", "| 1 |\n").unwrap(), new);
        assert_eq!(replaced(text, "z", ""), None);
    }
}
