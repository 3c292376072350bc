//! Thumbnails: small pictures in a directory, named by the number of their document or row.

use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::source::SourceFile;

/// Largest file of a thumbnail.
const MAX_FILE: u64 = 1 << 20;
/// Longest side of a thumbnail, in pixels.
const MAX_SIDE: u32 = 1024;
/// Endings of their names.
const EXTENSIONS: [&str; 3] = ["jpg", "jpeg", "png"];
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// The kind of a picture, by its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaType {
    /// JPEG.
    Jpeg,
    /// PNG.
    Png,
}

impl MediaType {
    /// Its name in HTTP and in data URLs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
        }
    }

    /// The usual ending of a file's name.
    pub(super) fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
        }
    }
}

/// A small picture of the image that a row is, or is part of: what the model saw of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thumbnail {
    /// The file, at most 1 MiB.
    pub bytes: Vec<u8>,
    /// Its kind.
    pub media_type: MediaType,
    /// Width in pixels, at most 1024.
    pub width: u32,
    /// Height in pixels, at most 1024.
    pub height: u32,
}

/// A directory of thumbnails. Nothing of it is in memory.
#[derive(Debug)]
pub(super) struct Thumbnails {
    dir: PathBuf,
}

impl Thumbnails {
    pub(super) fn open(dir: PathBuf) -> Option<Self> {
        dir.is_dir().then_some(Self { dir })
    }

    /// The file of this number, if there is one.
    pub(super) fn path(&self, number: usize) -> Option<PathBuf> {
        let path = |extension| self.dir.join(format!("{number}.{extension}"));
        EXTENSIONS.into_iter().map(path).find(|path| path.is_file())
    }

    pub(super) fn read(&self, number: usize) -> Result<Option<Thumbnail>, DataError> {
        self.path(number).map(|path| read(&path)).transpose()
    }
}

fn read(path: &Path) -> Result<Thumbnail, DataError> {
    let wrong = |reason: String| DataError::unsupported(path, "this thumbnail", reason);
    let file = SourceFile::stat(path)?;
    if file.bytes > MAX_FILE {
        let reason = format!("it has {} bytes; make it smaller than 1 MiB", file.bytes);
        return Err(wrong(reason));
    }
    let bytes = file.open()?.bytes_at("picture", 0, file.bytes)?;
    let (media_type, size) = match bytes.as_slice() {
        [0xff, 0xd8, 0xff, ..] => (MediaType::Jpeg, jpeg_size(&bytes)),
        _ if bytes.starts_with(PNG) => (MediaType::Png, png_size(&bytes)),
        _ => return Err(wrong("save it as JPEG or PNG".into())),
    };
    let Some((width, height)) = size else {
        return Err(wrong("its size is missing; save it again".into()));
    };
    if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
        let reason = format!("it has {width} x {height} pixels; a side has 1 to {MAX_SIDE}");
        return Err(wrong(reason));
    }
    Ok(Thumbnail {
        bytes,
        media_type,
        width,
        height,
    })
}

/// Width and height from the first chunk, which must be the header.
fn png_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let header = bytes.get(PNG.len() + 4..)?.strip_prefix(b"IHDR")?;
    let (width, rest) = header.split_first_chunk()?;
    let (height, _) = rest.split_first_chunk()?;
    Some((u32::from_be_bytes(*width), u32::from_be_bytes(*height)))
}

/// Width and height from the frame header, which follows other segments (ITU-T T.81, annex B).
fn jpeg_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut rest = bytes.get(2..)?;
    loop {
        let &[0xff, marker, high, low, ref segment @ ..] = rest else {
            return None;
        };
        match marker {
            0xff => rest = &rest[1..], // padding
            // start of frame, except tables (DHT, DAC) and an extension (JPG) that have numbers among them
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                let &[_, h1, h0, w1, w0, ..] = segment else {
                    return None;
                };
                let (height, width) = ([h1, h0], [w1, w0]);
                return Some((
                    u16::from_be_bytes(width).into(),
                    u16::from_be_bytes(height).into(),
                ));
            }
            _ => {
                let length = usize::from(u16::from_be_bytes([high, low]));
                rest = segment.get(length.checked_sub(2)?..)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_found_or_missing_but_never_outside() {
        let mut png = PNG.to_vec();
        png.extend([0, 0, 0, 13]);
        png.extend(b"IHDR");
        png.extend([0, 0, 0, 96, 0, 0, 0, 54]);
        assert_eq!(png_size(&png), Some((96, 54)));
        let app = [0xff, 0xd8, 0xff, 0xe0, 0, 4, 9, 9];
        let frame = [0xff, 0xff, 0xc0, 0, 11, 8, 0, 54, 0, 96, 3];
        let jpeg = [&app[..], &frame].concat();
        assert_eq!(jpeg_size(&jpeg), Some((96, 54)));
        for end in 0..png.len() {
            assert_eq!(png_size(&png[..end]), None);
        }
        for end in 2..jpeg.len() - 1 {
            assert_eq!(jpeg_size(&jpeg[..end]), None);
        }
    }
}
