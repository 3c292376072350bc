//! Bulk data inside the page: deflated, in base64, in script elements that no browser runs. The page's script unpacks
//! one when it needs it.

use data_encoding::BASE64;
use maud::{Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

pub(super) use crate::packed::packed;

/// The media type of packed data.
const PACKED: &str = "application/octet-stream;base64";

/// An element with this id that holds packed data. Base64 has no character that means something to HTML.
pub(super) fn element(id: &str, packed: &str) -> Markup {
    html! { script type=(PACKED) id=(id) { (PreEscaped(packed)) } }
}

/// The source expression of a script or a style in a Content-Security-Policy.
pub(super) fn policy_hash(text: &str) -> String {
    format!("'sha256-{}'", BASE64.encode(&Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_nothing_is_known() {
        assert_eq!(
            policy_hash(""),
            "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
        );
    }
}
