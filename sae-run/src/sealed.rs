//! Directories that are whole or absent, and whose checksums tell whether they are unchanged.
//!
//! Several files that belong together (a checkpoint, a model) are written into a directory beside the final
//! one. Then the directory is *sealed*: every file is hashed and synced, `BLAKE3SUMS` is written last, and one rename
//! gives the directory its name. A directory under its final name is therefore complete, and every bit of it can be
//! checked.
//!
//! `BLAKE3SUMS` is UTF-8 text with one line per file, sorted by name: 64 hexadecimal digits, two spaces, the file's
//! name, a line feed. `b3sum --check BLAKE3SUMS` understands it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::{atomic_file, read_text};

/// The file of checksums.
pub const SUMS_FILE: &str = "BLAKE3SUMS";
/// Suffix of a directory that has not been sealed yet.
pub const STAGING_SUFFIX: &str = ".tmp";
/// Longer than any `BLAKE3SUMS` of ours.
const MAX_SUMS_BYTES: u64 = 1 << 20;

/// One variant per way a sealed directory can be wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the fields are what the messages say
pub enum SealError {
    #[error("{}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: it has no {SUMS_FILE}", path.display())]
    Unsealed { path: PathBuf },
    #[error("{}: line {line} is not a checksum and a file name", path.display())]
    Sums { path: PathBuf, line: usize },
    #[error("{}: it is missing, though {SUMS_FILE} names it", path.display())]
    Missing { path: PathBuf },
    #[error("{}: its BLAKE3 checksum is {found}, not {expected}: it has been changed or damaged", path.display())]
    Changed {
        path: PathBuf,
        expected: String,
        found: String,
    },
    #[error("{}: {SUMS_FILE} does not name it", path.display())]
    Stranger { path: PathBuf },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> SealError {
    let path = path.to_path_buf();
    move |source| SealError::Io { path, source }
}

/// Makes an empty directory `<target>.tmp` to write into. If a process that died left one, it is removed first.
///
/// # Errors
/// [`SealError::Io`]
pub fn staging(target: &Path) -> Result<PathBuf, SealError> {
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(STAGING_SUFFIX);
    let staging = target.with_file_name(name);
    if staging.exists() {
        fs::remove_dir_all(&staging).map_err(io_error(&staging))?;
    }
    fs::create_dir_all(&staging).map_err(io_error(&staging))?;
    Ok(staging)
}

/// Hashes and syncs the files of `staging` and renames it to `target`. A `target` with the same content is left alone,
/// one with the same names and other content is replaced.
///
/// # Errors
/// [`SealError::Io`]; [`SealError::Stranger`] if `target` has a file that `staging` does not have.
pub fn seal(staging: &Path, target: &Path) -> Result<(), SealError> {
    let mut sums = String::new();
    for name in file_names(staging)? {
        let path = staging.join(&name);
        let sum = File::open(&path)
            .and_then(|file| file.sync_all())
            .and_then(|()| checksum(&path))
            .map_err(io_error(&path))?;
        sums += &format!("{sum}  {name}\n");
    }
    let path = staging.join(SUMS_FILE);
    atomic_file::write(&path, sums.as_bytes()).map_err(io_error(&path))?;
    if target.exists() {
        let same = fs::read_to_string(target.join(SUMS_FILE)).is_ok_and(|theirs| theirs == sums);
        if same && verify(target).is_ok() {
            return fs::remove_dir_all(staging).map_err(io_error(staging));
        }
        let ours = file_names(staging)?;
        let mut theirs = file_names(target)?.into_iter();
        if let Some(name) = theirs.find(|name| !ours.contains(name)) {
            let path = target.join(name);
            return Err(SealError::Stranger { path });
        }
        fs::remove_dir_all(target).map_err(io_error(target))?;
    }
    fs::rename(staging, target).map_err(io_error(target))?;
    atomic_file::sync_parent(target).map_err(io_error(target))
}

/// Checks that `dir` holds exactly the files that were sealed, unchanged.
///
/// # Errors
/// [`SealError`], which names the first wrong file and the reason.
pub fn verify(dir: &Path) -> Result<(), SealError> {
    let path = dir.join(SUMS_FILE);
    let sums = sums(&path).map_err(|error| match error {
        SealError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            SealError::Unsealed { path: dir.into() }
        }
        error => error,
    })?;
    for name in file_names(dir)? {
        if name != SUMS_FILE && !sums.contains_key(&name) {
            let path = dir.join(name);
            return Err(SealError::Stranger { path });
        }
    }
    for (name, expected) in sums {
        let path = dir.join(name);
        if !path.is_file() {
            return Err(SealError::Missing { path });
        }
        let found = checksum(&path).map_err(io_error(&path))?;
        if found != expected {
            return Err(SealError::Changed {
                path,
                expected,
                found,
            });
        }
    }
    Ok(())
}

/// Checksums by file name.
fn sums(path: &Path) -> Result<BTreeMap<String, String>, SealError> {
    let text = read_text(path, MAX_SUMS_BYTES).map_err(io_error(path))?;
    let line = |(i, line): (usize, &str)| {
        let parts = line.split_once("  ").filter(|(sum, name)| {
            let digits = sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit());
            digits && !name.is_empty() && !name.contains(['/', '\\']) && *name != ".."
        });
        let (sum, name) = parts.ok_or(SealError::Sums {
            path: path.into(),
            line: i + 1,
        })?;
        Ok((name.to_string(), sum.to_string()))
    };
    text.lines().enumerate().map(line).collect()
}

/// The sorted names of the entries of `dir`.
fn file_names(dir: &Path) -> Result<Vec<String>, SealError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error(dir))? {
        let name = entry.map_err(io_error(dir))?.file_name();
        names.push(name.to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// BLAKE3 of a file, in hexadecimal.
///
/// # Errors
/// Any error of the file system.
pub fn checksum(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealed(dir: &Path) -> PathBuf {
        let target = dir.join("target");
        let staging = staging(&target).unwrap();
        fs::write(staging.join("a"), b"first").unwrap();
        fs::write(staging.join("b"), b"").unwrap();
        seal(&staging, &target).unwrap();
        assert!(!staging.exists());
        target
    }

    #[test]
    fn sums_are_what_b3sum_writes() {
        let dir = tempfile::tempdir().unwrap();
        let target = sealed(dir.path());
        // from Python's blake3: blake3(b"first"), blake3(b"")
        let expected = "22896bcbc3d1c76a0b90c4c3523dbea532ad63196fafdbd52cced52200d3dae4  a\n\
                        af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262  b\n";
        let text = fs::read_to_string(target.join(SUMS_FILE)).unwrap();
        assert_eq!(text, expected);
        verify(&target).unwrap();
    }

    #[test]
    fn sealing_replaces_other_content() {
        let dir = tempfile::tempdir().unwrap();
        let target = sealed(dir.path());
        let number =
            |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        let first = number(&target);
        sealed(dir.path());
        assert_eq!(number(&target), first, "the same is left alone");
        fs::write(target.join("a"), b"damaged").unwrap();
        sealed(dir.path());
        verify(&target).unwrap();
    }

    #[test]
    fn each_kind_of_damage_is_named() {
        type Damage = fn(&Path);
        let damage: [(&str, Damage, &str); 6] = [
            (
                "changed",
                |d| fs::write(d.join("a"), b"fyrst").unwrap(),
                "changed or damaged",
            ),
            (
                "missing",
                |d| fs::remove_file(d.join("b")).unwrap(),
                "it is missing",
            ),
            (
                "stranger",
                |d| fs::write(d.join("c"), b"").unwrap(),
                "does not name it",
            ),
            (
                "no sums",
                |d| fs::remove_file(d.join(SUMS_FILE)).unwrap(),
                "has no BLAKE3SUMS",
            ),
            (
                "no line",
                |d| fs::write(d.join(SUMS_FILE), b"abc  a\n").unwrap(),
                "line 1",
            ),
            (
                "swapped",
                |d| {
                    fs::rename(d.join("a"), d.join("x")).unwrap();
                    fs::rename(d.join("b"), d.join("a")).unwrap();
                    fs::rename(d.join("x"), d.join("b")).unwrap();
                },
                "changed or damaged",
            ),
        ];
        for (name, damage, expected) in damage {
            let dir = tempfile::tempdir().unwrap();
            let target = sealed(dir.path());
            damage(&target);
            let message = verify(&target).unwrap_err().to_string();
            assert!(message.contains(expected), "{name}: {message}");
        }
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_found(file in 0..2usize, at in 0usize..1000, bit in 0..8u8) {
            let dir = tempfile::tempdir().unwrap();
            let path = sealed(dir.path()).join(["a", SUMS_FILE][file]);
            let mut bytes = fs::read(&path).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            fs::write(&path, bytes).unwrap();
            prop_assert!(verify(&dir.path().join("target")).is_err());
        }
    }
}
