//! The whole page: nothing in a text becomes markup, and a page of many latents stays small.

use std::io::Read;
use std::time::Instant;

use data_encoding::BASE64;
use html5gum::emitters::default::DefaultEmitter;
use html5gum::{Token, Tokenizer};
use proptest::prelude::*;

use super::decoder::Decoder;
use super::findings::Findings;
use super::rows::Content;
use super::synthetic::{random, synthetic};
use super::tally::{Example, hash};
use super::{SCRIPT, STYLE, render};
use crate::report::Report;
use crate::report::escape::tests::hostile;

/// A report whose every string is `text`.
fn report(text: &str) -> Report {
    let mut json: serde_json::Value =
        serde_json::from_str(include_str!("../report/golden/report_7.json")).unwrap();
    json["criteria"] =
        serde_json::from_str(include_str!("../report/golden/criteria.json")).unwrap();
    json["notes"] = serde_json::json!([text]);
    fill(&mut json, text);
    json["architecture"] = text.into();
    serde_json::from_value(json).unwrap()
}

fn fill(json: &mut serde_json::Value, text: &str) {
    const KEYS: [&str; 14] = [
        "run",
        "device",
        "version",
        "path",
        "format",
        "dtype",
        "formula",
        "owner",
        "equals",
        "source",
        "definition",
        "class",
        "rank_by",
        "n",
    ];
    match json {
        serde_json::Value::Object(fields) => {
            let metric = fields.contains_key("formula");
            for (key, value) in fields.iter_mut() {
                match value {
                    serde_json::Value::String(old)
                        if KEYS.contains(&key.as_str()) || (metric && key == "name") =>
                    {
                        *old = text.into();
                    }
                    value => fill(value, text),
                }
            }
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(|item| fill(item, text)),
        _ => {}
    }
}

/// Tags with their attributes' names, in order; texts and values of attributes; contents of scripts and styles.
#[derive(Default)]
pub(super) struct Scanned {
    pub(super) tags: Vec<String>,
    pub(super) texts: Vec<String>,
    pub(super) raw: Vec<(String, String)>,
}

/// Reads a page as a browser does.
pub(super) fn scan(page: &str) -> Scanned {
    let mut emitter = DefaultEmitter::<()>::default();
    emitter.naively_switch_states(true);
    let mut scanned = Scanned::default();
    let mut inside = None;
    let utf8 = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    for token in Tokenizer::new_with_emitter(page, emitter) {
        match token.unwrap() {
            Token::StartTag(tag) => {
                let name = utf8(&tag.name);
                let keys: Vec<String> = tag.attributes.keys().map(|key| utf8(key)).collect();
                scanned.tags.push(format!("<{name} {}", keys.join(" ")));
                scanned
                    .texts
                    .extend(tag.attributes.values().map(|value| utf8(value)));
                let id = tag
                    .attributes
                    .get(&b"id"[..])
                    .map_or(String::new(), |id| utf8(id));
                inside = ["script", "style"]
                    .contains(&name.as_str())
                    .then(|| format!("{name} {id}"));
            }
            Token::EndTag(tag) => {
                scanned.tags.push(format!("</{}", utf8(&tag.name)));
                inside = None;
            }
            Token::String(text) => match &inside {
                Some(id) => scanned.raw.push((id.clone(), utf8(&text))),
                None => scanned.texts.push(utf8(&text)),
            },
            Token::Comment(comment) => panic!("a comment: {:?}", utf8(&comment)),
            Token::Doctype(_) => {}
            Token::Error(error) => assert!(
                error.value.as_str().contains("noncharacter"),
                "{:?}",
                error.value
            ),
        }
    }
    scanned
}

/// Characters that control, or that turn the direction of text.
pub(super) fn deceives(c: char) -> bool {
    c != '\n' && (c.is_control() || crate::report::escape::visible(c) != c)
}

pub(super) fn unpacked(packed: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let deflated = BASE64.decode(packed.as_bytes()).unwrap();
    flate2::read::DeflateDecoder::new(&deflated[..])
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

pub(super) fn strings(json: &serde_json::Value, visit: &mut impl FnMut(&str)) {
    match json {
        serde_json::Value::String(text) => visit(text),
        serde_json::Value::Array(items) => items.iter().for_each(|item| strings(item, visit)),
        serde_json::Value::Object(fields) => {
            fields.values().for_each(|value| strings(value, visit))
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_text_becomes_markup(text in hostile()) {
        let text = format!("</script><!--<script>\u{2028}\u{202e}\"'`&amp;]]></style></title>{text}");
        let page = |text: &str| render(&report(text), &synthetic(12, 3, 2, |_| text.to_string()));
        let [plain, scanned] = ["x", &text].map(|text| scan(&page(text)));
        prop_assert_eq!(&scanned.tags, &plain.tags);
        for text in &scanned.texts {
            prop_assert!(!text.chars().any(deceives), "{text:?}");
        }
        for (id, content) in &scanned.raw {
            match id.as_str() {
                "style " => prop_assert_eq!(content, STYLE),
                "script " => prop_assert_eq!(content, SCRIPT),
                "script columns" => {}
                _ => {
                    let json = serde_json::from_slice(&unpacked(content)).unwrap();
                    strings(&json, &mut |text| assert!(!text.chars().any(deceives), "{text:?}"));
                }
            }
        }
    }

    #[test]
    fn no_number_breaks_the_page(value in any::<f64>(), count in any::<u64>()) {
        let mut findings = synthetic(6, 2, 1, |_| "x".into());
        for latent in &mut findings.latents {
            (latent.fired, latent.mean, latent.max) = (count, value, value as f32);
            (latent.entropy, latent.best) = (Some(value), Some((1, value)));
            latent.strongest = vec![Example { row: count, value: value as f32 }];
        }
        findings.points.iter_mut().for_each(|point| (point.norm, point.error) = (value as f32, value as f32));
        findings.apart[0].parts[0].share = value;
        findings.decoder.explained = [value, value];
        findings.decoder.plane = vec![[value as f32; 2]; 6];
        scan(&render(&report("x"), &findings));
    }
}

/// Checks that a page allows its own script and style alone, and that nothing in it asks for more.
pub(super) fn assert_closed(page: &str, script: &str) {
    let scanned = scan(page);
    let policy = scanned
        .texts
        .iter()
        .find(|text| text.starts_with("default-src"))
        .unwrap();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'sha256-") && !policy.contains("unsafe"),
        "{policy}"
    );
    for tag in &scanned.tags {
        assert!(
            !tag.contains(" on") && !tag.contains(" style"),
            "the policy forbids it: {tag}"
        );
    }
    let addresses = scanned.texts.iter().filter(|text| text.contains("//"));
    assert_eq!(addresses.count(), 0, "nothing leads out of the page");
    let forbidden = [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "fetch(",
        "XMLHttpRequest",
    ];
    assert!(forbidden.iter().all(|word| !script.contains(word)));
}

#[test]
fn the_page_allows_its_own_script_and_style_alone() {
    let page = render(&report("x"), &synthetic(6, 2, 1, |_| "x".into()));
    assert_closed(&page, SCRIPT);
    assert!(SCRIPT.lines().count() < 400);
}

#[test]
fn a_page_of_nothing_is_a_page() {
    let findings = Findings {
        decoder: Decoder::default(),
        ..Findings::default()
    };
    let page = render(&report("x"), &findings);
    let titles = scan(&page)
        .tags
        .iter()
        .filter(|tag| tag.starts_with("<h2"))
        .count();
    assert!(titles >= 6, "{titles}");
}

/// Prints the size of a page of 24,576 latents with 10 rows each, and the time to make it. `SAE_PAGE` names a file to write.
#[test]
fn a_page_of_many_latents_is_small() {
    let syllables = [
        "an", "ber", "ca", "dor", "el", "fin", "ga", "hu", "is", "jo", "ka", "lem", "mi", "no",
        "or", "pel",
    ];
    let word = |seed: u64| -> String {
        let common = (random(200, seed).powi(3) * 4000.0) as u64;
        (0..2 + common % 2)
            .map(|k| syllables[hash(k as u32 + 300, common) as usize % 16])
            .collect()
    };
    let text = |row: u64| {
        (0..14)
            .map(|k| word(row * 14 + k))
            .collect::<Vec<String>>()
            .join(" ")
    };
    let mut findings = synthetic(24_576, 1000, 5, text);
    for (row, shown) in &mut findings.shown {
        shown.content = Content::Text(text(*row));
    }
    let started = Instant::now();
    let page = render(&report("synthetic"), &findings);
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} rows, {} bytes, {seconds:.1} s",
        findings.shown.len(),
        page.len()
    );
    if let Some(path) = std::env::var_os("SAE_PAGE") {
        std::fs::write(path, &page).unwrap();
    }
    assert!(page.len() < 25 << 20);
}
