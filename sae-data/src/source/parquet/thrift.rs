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

/// Walks over structs in `bytes`.
pub(super) struct Compact<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Compact<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Number of bytes walked over.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    fn byte(&mut self) -> Result<u8, Trouble> {
        let byte = self.bytes.get(self.at).ok_or(Trouble::Short)?;
        self.at += 1;
        Ok(*byte)
    }

    fn unsigned(&mut self) -> Result<u64, Trouble> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        match self.byte()? {
            last @ (0 | 1) => Ok(value | u64::from(last) << 63),
            _ => Err(Trouble::Wrong("a number of more than 64 bits")),
        }
    }

    pub(super) fn i32(&mut self) -> Result<i32, Trouble> {
        let zigzag = self.unsigned()?;
        let value = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
        i32::try_from(value).map_err(|_| Trouble::Wrong("a number of more than 32 bits"))
    }

    fn over(&mut self, bytes: u64) -> Result<(), Trouble> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(bytes) {
            Ok(bytes) if bytes <= left => {
                self.at += bytes;
                Ok(())
            }
            _ => Err(Trouble::Short),
        }
    }

    /// Walks over a struct. `visit` gets number and type of each field, and returns whether it has read the field.
    pub(super) fn fields(
        &mut self,
        mut visit: impl FnMut(&mut Self, i16, u8) -> Result<bool, Trouble>,
    ) -> Result<(), Trouble> {
        self.fields_at(0, &mut visit)
    }

    fn fields_at(
        &mut self,
        depth: usize,
        visit: &mut dyn FnMut(&mut Self, i16, u8) -> Result<bool, Trouble>,
    ) -> Result<(), Trouble> {
        let mut number: i16 = 0;
        loop {
            let byte = self.byte()?;
            let kind = byte & 0x0f;
            if kind == 0 {
                return Ok(());
            }
            number = match byte >> 4 {
                0 => self.i32()?.try_into().ok(),
                step => number.checked_add(i16::from(step)),
            }
            .ok_or(Trouble::Wrong("a field number of more than 16 bits"))?;
            if !visit(self, number, kind)? {
                self.skip(kind, depth + 1)?;
            }
        }
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Result<(), Trouble> {
        if depth > MAX_DEPTH {
            return Err(Trouble::Wrong("fields too deep in one another"));
        }
        match kind {
            TRUE | FALSE => Ok(()),
            BYTE => self.over(1),
            I16 | I32 | I64 => self.unsigned().map(drop),
            DOUBLE => self.over(8),
            UUID => self.over(16),
            BINARY => {
                let len = self.unsigned()?;
                self.over(len)
            }
            STRUCT => self.fields_at(depth, &mut |_, _, _| Ok(false)),
            LIST | SET => self.skip_list(depth),
            MAP => {
                let len = self.unsigned()?;
                match len {
                    0 => Ok(()),
                    _ => Err(Trouble::Wrong("a map")), // Parquet has none
                }
            }
            _ => Err(Trouble::Wrong("a field of no known type")),
        }
    }

    /// Skips a list, whose elements take at least one byte each.
    fn skip_list(&mut self, depth: usize) -> Result<(), Trouble> {
        let byte = self.byte()?;
        let (kind, len) = match byte >> 4 {
            15 => (byte & 0x0f, self.unsigned()?),
            len => (byte & 0x0f, u64::from(len)),
        };
        if len > (self.bytes.len() - self.at) as u64 {
            return Err(Trouble::Short);
        }
        if len > 0 && matches!(kind, TRUE | FALSE) {
            return Err(Trouble::Wrong("a list of booleans"));
        }
        (0..len).try_for_each(|_| self.skip(kind, depth + 1))
    }
}

/// Walks over the struct at the start of `bytes`.
pub(super) fn walk(bytes: &[u8]) -> Result<(), Trouble> {
    Compact::new(bytes).fields(|_, _, _| Ok(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_at_their_limits() {
        let read = |bytes: &[u8]| Compact::new(bytes).i32();
        assert_eq!(read(&[0x01]), Ok(-1));
        assert_eq!(read(&[0xfe, 0xff, 0xff, 0xff, 0x0f]), Ok(i32::MAX));
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Ok(i32::MIN));
        assert!(read(&[0xff, 0xff, 0xff, 0xff, 0x1f]).is_err());
        assert_eq!(read(&[0x80]), Err(Trouble::Short));
        assert!(Compact::new(&[0xff; 12]).unsigned().is_err());
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
