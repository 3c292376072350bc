//! The keys of a config, written for people: `sae-train --init` and docs/CONFIG.md.

use std::fmt::Write;

use sae_model::loss::{Coefficient, RunSize};
use sae_model::{AnyArchitecture, Architecture, SaeConfig};
use toml::{Table, Value};

use super::complete::flat;
use super::keys::{Default, KEYS, Key, SECTIONS};

/// The run whose defaults are shown, where they depend on one.
const EXAMPLE: RunSize = RunSize {
    steps: 2000,
    n_latents: 4096,
};
/// Width of the activations whose defaults are shown.
const EXAMPLE_WIDTH: usize = 768;

/// A config for this architecture with every key, its meaning and its default; keys that may be left out are comments.
pub(crate) fn commented(architecture: &AnyArchitecture) -> String {
    let mut out = String::from(
        "# Every key that this architecture knows. Those behind a # have the value that stands there if they are left out;\n\
         # where it depends on the run or the data, it is said in words.\n",
    );
    section(&mut out, "", architecture);
    for name in SECTIONS {
        let _ = writeln!(out, "\n[{name}]");
        section(&mut out, name, architecture);
    }
    out
}

fn section(out: &mut String, section: &str, architecture: &AnyArchitecture) {
    let model = usual(architecture);
    let known = KEYS
        .iter()
        .filter(|key| key.section == section && key.is_for(&model));
    for key in known {
        let line = match (key.name, default_of(key, architecture)) {
            ("architecture", _) => format!("architecture = \"{}\"", architecture.name()),
            (name, Shown::Value(value)) => format!("# {name} = {value}"),
            (name, Shown::Words(words)) => format!("# {name}: {words}"),
            (name, Shown::Required(example)) => format!("{name} = {example}"),
        };
        let _ = writeln!(out, "{line}  # {}", key.meaning);
    }
    for own in own_keys(section, architecture) {
        let _ = writeln!(out, "# {} = {}  # {}", own.name, own.default, own.meaning);
    }
}

fn usual(architecture: &AnyArchitecture) -> SaeConfig {
    SaeConfig::new(architecture.clone(), EXAMPLE_WIDTH, EXAMPLE.n_latents)
}

/// A default, as it is shown.
enum Shown {
    Value(String),
    Words(&'static str),
    Required(&'static str),
}

/// The default of a key with this architecture.
fn default_of(key: &Key, architecture: &AnyArchitecture) -> Shown {
    match key.default {
        Default::Required(example) => Shown::Required(example),
        Default::Is(value) => Shown::Value(value.into()),
        Default::Follows(words) => Shown::Words(words),
        Default::Recipe => match of_recipe(key.name, architecture) {
            Some(value) => Shown::Value(value.to_string()),
            None => Shown::Words("none"),
        },
    }
}

/// The value that the recipe or the usual model of an architecture has for a key.
fn of_recipe(name: &str, architecture: &AnyArchitecture) -> Option<Value> {
    let mut recipe = architecture.recipe(EXAMPLE.steps, EXAMPLE_WIDTH);
    recipe.lr = (recipe.lr * 1e6).round() / 1e6;
    let mut all = flat(&usual(architecture));
    all.extend(flat(&recipe));
    all.remove(name)
}

/// A key that belongs to one architecture.
struct Own {
    name: &'static str,
    default: String,
    meaning: &'static str,
}

fn own_keys(section: &str, architecture: &AnyArchitecture) -> Vec<Own> {
    match section {
        "model" => switches(architecture),
        "training" => architecture
            .coefficients()
            .iter()
            .map(coefficient)
            .collect(),
        _ => Vec::new(),
    }
}

fn switches(architecture: &AnyArchitecture) -> Vec<Own> {
    let values = Table::try_from(architecture.switches()).unwrap_or_default();
    let own = |(name, meaning): &(&'static str, &'static str)| Own {
        name,
        default: values.get(*name).map_or_else(String::new, Value::to_string),
        meaning,
    };
    architecture.meanings().iter().map(own).collect()
}

fn coefficient(coefficient: &Coefficient) -> Own {
    let value = (coefficient.default)(&EXAMPLE);
    Own {
        name: coefficient.name,
        default: match coefficient.is_count {
            true => (value as u64).to_string(),
            false => Value::Float(value).to_string(),
        },
        meaning: coefficient.meaning,
    }
}

/// docs/CONFIG.md.
#[cfg(test)]
fn reference() -> String {
    let mut out = format!(
        "# Every key of a config\n\n\
         Made from the table in `sae-train/src/config/keys.rs` and the files in `sae-model/src/architectures`; a test compares \
         them. `sae-train --init ARCHITECTURE` writes a config with the keys of one architecture.\n\n\
         Defaults of the recipe are those of `attention` at {} steps, {} latents and width {EXAMPLE_WIDTH}.\n\n\
         A config may also have tables `[[sweep]]`, of keys of `[model]` and `[training]`, `seed` and `data.layer` with several values \
         each: [SWEEPS.md](SWEEPS.md).\n",
        EXAMPLE.steps, EXAMPLE.n_latents
    );
    let attention = AnyArchitecture::default();
    for name in ["", "data", "model", "training", "eval.tail"] {
        let title = match name {
            "" => "The top".to_string(),
            name => format!("`[{name}]`"),
        };
        let _ = writeln!(
            out,
            "\n## {title}\n\n| key | default | meaning |\n|---|---|---|"
        );
        for key in KEYS.iter().filter(|key| key.section == name) {
            let default = match default_of(key, &attention) {
                Shown::Value(value) => format!("`{value}`"),
                Shown::Words(words) => words.into(),
                Shown::Required(_) => "must be there".into(),
            };
            let _ = writeln!(
                out,
                "| `{}` | {default} | {} |",
                key.name,
                cell(key.meaning)
            );
        }
    }
    for architecture in AnyArchitecture::all() {
        of_architecture(&mut out, &architecture);
    }
    out
}

/// The section of one architecture.
#[cfg(test)]
fn of_architecture(out: &mut String, architecture: &AnyArchitecture) {
    let _ = writeln!(
        out,
        "\n## `{}`\n\n{}.",
        architecture.name(),
        architecture.source()
    );
    let own = ["model", "training"].map(|section| (section, own_keys(section, architecture)));
    if own.iter().all(|(_, keys)| keys.is_empty()) {
        return;
    }
    let _ = writeln!(out, "\n| key | default | meaning |\n|---|---|---|");
    for (section, keys) in own {
        for Own {
            name,
            default,
            meaning,
        } in keys
        {
            let _ = writeln!(
                out,
                "| `{section}.{name}` | `{default}` | {} |",
                cell(meaning)
            );
        }
    }
}

/// Text of a cell of a Markdown table.
#[cfg(test)]
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// `SAE_UPDATE_DOCS=1 cargo test -p sae-train config_md` writes the file.
    #[test]
    fn config_md_is_what_the_tables_say() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/CONFIG.md");
        let expected = reference();
        if std::env::var_os("SAE_UPDATE_DOCS").is_some() {
            std::fs::write(&path, &expected).expect("docs/CONFIG.md can be written");
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == expected,
            "docs/CONFIG.md: run this test with SAE_UPDATE_DOCS=1"
        );
    }

    #[test]
    fn what_init_writes_is_a_config_with_and_without_its_comments() {
        for architecture in AnyArchitecture::all() {
            let text = commented(&architecture);
            let all: String = text
                .lines()
                .map(|line| match line.strip_prefix("# ") {
                    Some(rest) if rest.contains(" = ") => rest,
                    _ => line,
                })
                .flat_map(|line| [line, "\n"])
                .collect();
            for text in [text.clone(), all] {
                let dir = tempfile::tempdir().expect("a directory");
                let path = dir.path().join("made.toml");
                std::fs::write(&path, &text).expect("written");
                let config = crate::config::Config::load(&path, &[], None);
                let config = config.unwrap_or_else(|error| panic!("{error}\n{text}"));
                assert_eq!(config.model.architecture, architecture.name());
            }
        }
    }
}
