//! Bulk data inside the page: deflated, in base64, in script elements that no browser runs. The page's script unpacks
//! one when it needs it.

use std::io::Write;

use data_encoding::BASE64;
use flate2::Compression;
use flate2::write::DeflateEncoder;
use maud::{Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

/// The media type of packed data.
const PACKED: &str = "application/octet-stream;base64";

/// Level of compression: level 7 takes three times as long for a page that is 2 to 3 % smaller.
const LEVEL: u32 = 5;

/// Bytes, deflated and in base64.
pub(super) fn packed(bytes: &[u8]) -> String {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(LEVEL));
    let deflated = encoder.write_all(bytes).and_then(|()| encoder.finish());
    BASE64.encode(&deflated.expect("a vector takes all bytes"))
}

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
    use std::io::Read;

    #[test]
    fn what_is_packed_comes_back() {
        let bytes: Vec<u8> = (0..10_000u32)
            .flat_map(|i| (i % 97).to_le_bytes())
            .collect();
        let deflated = BASE64.decode(packed(&bytes).as_bytes()).unwrap();
        let mut back = Vec::new();
        flate2::read::DeflateDecoder::new(&deflated[..])
            .read_to_end(&mut back)
            .unwrap();
        assert_eq!(back, bytes);
        assert!(deflated.len() < bytes.len() / 4);
    }

    #[test]
    fn the_hash_of_nothing_is_known() {
        assert_eq!(
            policy_hash(""),
            "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
        );
    }
}
