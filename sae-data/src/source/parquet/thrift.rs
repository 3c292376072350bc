//! The parts of Thrift's compact protocol in which Parquet's footer and page headers are written.
//!
//! The crate `parquet` skips unknown fields without a check against the length of the file: one damaged byte can make it
//! skip two billion missing numbers. So its input is walked over here first. Input that two programs could read differently
//! is refused.

/// Nesting of structs: Parquet's own are six deep.
const MAX_DEPTH: usize = 32;

/// Types of fields, as the protocol numbers them.
pub(super) const I32: u8 = 5;
pub(super) const STRUCT: u8 = 12;
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I16: u8 = 4;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const UUID: u8 = 13;

/// Why the walk failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The bytes end too early.
    Short,
    Wrong(&'static str),
}

/// Gets told about each field of a struct that is in no list: the numbers of the fields that lead to it, its type, and its
/// value if it is an integer.
type Visit<'v> = dyn FnMut(&[i16], u8, i64) -> Result<(), Trouble> + 'v;

/// Walks over the struct at the start of `bytes`; returns the number of its bytes.
pub(super) fn walk(bytes: &[u8], visit: &mut Visit<'_>) -> Result<usize, Trouble> {
    let path = Vec::new();
    let mut compact = Compact { bytes, path };
    compact.fields(0, visit)?;
    Ok(bytes.len() - compact.bytes.len())
}

/// A struct that is being walked over.
struct Compact<'a> {
    /// The bytes that follow.
    bytes: &'a [u8],
    path: Vec<i16>,
}

fn byte(bytes: &mut &[u8]) -> Result<u8, Trouble> {
    bytes.split_off_first().copied().ok_or(Trouble::Short)
}

/// Takes an unsigned number off the front of `bytes`.
pub(super) fn varint(bytes: &mut &[u8]) -> Result<u64, Trouble> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = byte(bytes)?;
        if shift == 63 && byte > 1 {
            break;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Trouble::Wrong("a number of more than 64 bits"))
}

fn signed(bytes: &mut &[u8]) -> Result<i32, Trouble> {
    let zigzag = varint(bytes)?;
    let value = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
    i32::try_from(value).map_err(|_| Trouble::Wrong("a number of more than 32 bits"))
}

impl Compact<'_> {
    fn over(&mut self, bytes: u64) -> Result<(), Trouble> {
        let bytes = usize::try_from(bytes).map_err(|_| Trouble::Short)?;
        let over = self.bytes.split_off(..bytes);
        over.map(drop).ok_or(Trouble::Short)
    }

    fn fields(&mut self, depth: usize, visit: &mut Visit<'_>) -> Result<(), Trouble> {
        let mut number: i16 = 0;
        loop {
            let byte = byte(&mut self.bytes)?;
            let kind = byte & 0x0f;
            if kind == 0 {
                return Ok(());
            }
            number = match byte >> 4 {
                0 => signed(&mut self.bytes)?.try_into().ok(),
                step => number.checked_add(i16::from(step)),
            }
            .ok_or(Trouble::Wrong("a field number of more than 16 bits"))?;
            self.path.push(number);
            let value = self.value(kind, depth + 1, visit)?;
            visit(&self.path, kind, value)?;
            self.path.pop();
        }
    }

    /// Walks over a value; returns it if it is an integer of at most 32 bits.
    fn value(&mut self, kind: u8, depth: usize, visit: &mut Visit<'_>) -> Result<i64, Trouble> {
        if depth > MAX_DEPTH {
            return Err(Trouble::Wrong("fields too deep in one another"));
        }
        match kind {
            TRUE | FALSE => {}
            BYTE => self.over(1)?,
            I16 | I32 => return signed(&mut self.bytes).map(i64::from),
            I64 => drop(varint(&mut self.bytes)?),
            DOUBLE => self.over(8)?,
            UUID => self.over(16)?,
            BINARY => {
                let len = varint(&mut self.bytes)?;
                self.over(len)?;
            }
            STRUCT => self.fields(depth, visit)?,
            LIST | SET => self.list(depth)?,
            MAP if varint(&mut self.bytes)? == 0 => {}
            MAP => return Err(Trouble::Wrong("a map")), // Parquet has none
            _ => return Err(Trouble::Wrong("a field of no known type")),
        }
        Ok(0)
    }

    /// Walks over a list, whose elements take at least one byte each.
    fn list(&mut self, depth: usize) -> Result<(), Trouble> {
        let byte = byte(&mut self.bytes)?;
        let (kind, len) = match byte >> 4 {
            15 => (byte & 0x0f, varint(&mut self.bytes)?),
            len => (byte & 0x0f, u64::from(len)),
        };
        if len > self.bytes.len() as u64 {
            return Err(Trouble::Short);
        }
        if len > 0 && matches!(kind, TRUE | FALSE) {
            return Err(Trouble::Wrong("a list of booleans"));
        }
        (0..len).try_for_each(|_| self.value(kind, depth + 1, &mut |_, _, _| Ok(())).map(drop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(bytes: &[u8]) -> Result<(), Trouble> {
        super::walk(bytes, &mut |_, _, _| Ok(())).map(drop)
    }

    #[test]
    fn numbers_at_their_limits() {
        let read = |mut bytes: &[u8]| signed(&mut bytes);
        assert_eq!(read(&[0x01]), Ok(-1));
        assert_eq!(read(&[0xfe, 0xff, 0xff, 0xff, 0x0f]), Ok(i32::MAX));
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Ok(i32::MIN));
        assert!(read(&[0xff, 0xff, 0xff, 0xff, 0x1f]).is_err());
        assert_eq!(read(&[0x80]), Err(Trouble::Short));
        assert!(varint(&mut &[0xff; 12][..]).is_err());
    }

    #[test]
    fn nothing_is_stepped_over_that_is_not_there() {
        // field 1: a list of 2^31 doubles, binaries, booleans
        for kind in [DOUBLE, BINARY, TRUE, FALSE, LIST, STRUCT] {
            let bytes = [0x19, 0xf0 | kind, 0x80, 0x80, 0x80, 0x80, 0x08, 0, 0, 0];
            assert!(walk(&bytes).is_err(), "{kind}");
        }
        assert_eq!(walk(&[0x18, 0xff, 0x7f, 0]), Err(Trouble::Short));
        // lists in lists in lists
        assert!(walk(&[0x19; 100]).is_err());
        assert_eq!(walk(&[0x15, 0x02, 0x19, 0x28, 1, b'a', 1, b'b', 0]), Ok(()));
    }
}
