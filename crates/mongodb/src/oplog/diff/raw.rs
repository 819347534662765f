//! Walking raw BSON without decoding it: bounds are checked, values are left alone.
//!
//! Facts: the element layout and the type bytes are those of the BSON specification 1.1.

use super::Malformed;

/// The type bytes this crate looks at.
pub(crate) mod kind {
    pub(crate) const DOUBLE: u8 = 0x01;
    pub(crate) const STRING: u8 = 0x02;
    pub(crate) const DOCUMENT: u8 = 0x03;
    pub(crate) const ARRAY: u8 = 0x04;
    pub(crate) const BINARY: u8 = 0x05;
    pub(crate) const UNDEFINED: u8 = 0x06;
    pub(crate) const OBJECT_ID: u8 = 0x07;
    pub(crate) const BOOL: u8 = 0x08;
    pub(crate) const DATE: u8 = 0x09;
    pub(crate) const NULL: u8 = 0x0A;
    pub(crate) const REGEX: u8 = 0x0B;
    pub(crate) const DB_POINTER: u8 = 0x0C;
    pub(crate) const CODE: u8 = 0x0D;
    pub(crate) const SYMBOL: u8 = 0x0E;
    pub(crate) const CODE_W_SCOPE: u8 = 0x0F;
    pub(crate) const INT32: u8 = 0x10;
    pub(crate) const TIMESTAMP: u8 = 0x11;
    pub(crate) const INT64: u8 = 0x12;
    pub(crate) const DECIMAL: u8 = 0x13;
    pub(crate) const MIN_KEY: u8 = 0xFF;
    pub(crate) const MAX_KEY: u8 = 0x7F;
}

/// Nesting after which documents are refused (the server's default `maxBSONDepth`).
pub(crate) const MAX_DEPTH: usize = 200;

/// One element of a document.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Element<'a> {
    /// Type byte.
    pub(crate) kind: u8,
    /// Field name without its NUL.
    pub(crate) name: &'a [u8],
    /// The bytes of the value.
    pub(crate) value: &'a [u8],
    /// Type byte, name and value, as they stand in the document.
    pub(crate) whole: &'a [u8],
    /// Where `whole` begins in the document.
    pub(crate) start: usize,
}

impl Element<'_> {
    /// Where the next element begins in the document.
    pub(crate) fn end(&self) -> usize {
        self.start + self.whole.len()
    }

    /// The value as an integer, if it is a number that is one.
    pub(crate) fn as_i64(&self) -> Option<i64> {
        match self.kind {
            kind::INT32 => Some(i64::from(i32::from_le_bytes(self.value.try_into().ok()?))),
            kind::INT64 => Some(i64::from_le_bytes(self.value.try_into().ok()?)),
            kind::DOUBLE => {
                let double = f64::from_le_bytes(self.value.try_into().ok()?);
                let whole = double as i64;
                (whole as f64 == double && double.abs() < 9e15).then_some(whole)
            }
            _ => None,
        }
    }
}

/// The elements of one document, in order.
#[derive(Clone)]
pub(crate) struct Elements<'a> {
    /// The document without its final NUL.
    body: &'a [u8],
    pos: usize,
}

impl<'a> Elements<'a> {
    /// Checks the frame of `doc`: its length field and its final NUL.
    #[inline]
    pub(crate) fn new(doc: &'a [u8]) -> Result<Self, Malformed> {
        let (Some(declared), Some((0, body))) = (read_len(doc), doc.split_last()) else {
            return Err(Malformed("document frame"));
        };
        if declared != doc.len() || declared < 5 {
            return Err(Malformed("document length"));
        }
        Ok(Self { body, pos: 4 })
    }

    /// The next element; `None` at the end of the document.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Option<Element<'a>>, Malformed> {
        let Some((&kind, rest)) = self.rest().split_first() else {
            return Ok(None);
        };
        let name_len = cstring_len(rest).ok_or(Malformed("field name"))?;
        self.known(kind, name_len).map(Some)
    }

    /// The first bytes of the next element: its kind, and the beginning of its name.
    #[inline]
    pub(crate) fn peek(&self) -> Option<[u8; 4]> {
        self.rest().first_chunk().copied()
    }

    /// The next element, which is of this kind, with a name of this length.
    #[inline(always)]
    pub(crate) fn known(&mut self, kind: u8, name_len: usize) -> Result<Element<'a>, Malformed> {
        let (start, rest) = (self.pos, self.rest());
        let after = rest.get(name_len + 2..).unwrap_or_default();
        let value_len = value_len(kind, after).ok_or(Malformed("element value"))?;
        let len = 2 + name_len + value_len;
        let (Some(name), Some(value), Some(whole)) = (rest.get(1..=name_len), after.get(..value_len), rest.get(..len))
        else {
            return Err(Malformed("element value"));
        };
        self.pos = start + len;
        Ok(Element { kind, name, value, whole, start })
    }

    #[inline]
    fn rest(&self) -> &'a [u8] {
        self.body.get(self.pos..).unwrap_or_default()
    }
}

/// Refuses a document with anything malformed in it, or nested deeper than [`MAX_DEPTH`]. Takes no stack.
pub(crate) fn check_depth(doc: &[u8]) -> Result<(), Malformed> {
    let mut open = vec![Elements::new(doc)?];
    while let Some(innermost) = open.last_mut() {
        let Some(element) = innermost.next()? else {
            open.pop();
            continue;
        };
        let inner = match element.kind {
            kind::DOCUMENT | kind::ARRAY => element.value,
            kind::CODE_W_SCOPE => scope(element.value).ok_or(Malformed("code with scope"))?,
            _ => continue,
        };
        if open.len() >= MAX_DEPTH {
            return Err(Malformed("nested too deep"));
        }
        open.push(Elements::new(inner)?);
    }
    Ok(())
}

/// The scope of a value of code with scope.
fn scope(value: &[u8]) -> Option<&[u8]> {
    let code = value.get(4..)?;
    code.get(read_len(code)?.checked_add(4)?..)
}

/// Length of the NUL-terminated string at the start of `bytes`, without the NUL.
#[inline]
pub(crate) fn cstring_len(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == 0)
}

/// The little-endian length field at the start of `bytes`.
#[inline]
pub(crate) fn read_len(bytes: &[u8]) -> Option<usize> {
    let field = bytes.first_chunk::<4>()?;
    usize::try_from(i32::from_le_bytes(*field)).ok()
}

/// How many bytes the value of type `kind` at the start of `bytes` takes; `None` if the type is
/// unknown or its length field is nonsense. The caller checks that so many bytes are there.
#[inline]
fn value_len(kind: u8, bytes: &[u8]) -> Option<usize> {
    Some(match kind {
        kind::NULL | kind::UNDEFINED | kind::MIN_KEY | kind::MAX_KEY => 0,
        kind::BOOL => 1,
        kind::INT32 => 4,
        kind::DOUBLE | kind::DATE | kind::TIMESTAMP | kind::INT64 => 8,
        kind::OBJECT_ID => 12,
        kind::DECIMAL => 16,
        kind::STRING | kind::CODE | kind::SYMBOL => 4 + at_least(1, read_len(bytes)?)?,
        kind::DOCUMENT | kind::ARRAY => at_least(5, read_len(bytes)?)?,
        kind::BINARY => 5 + read_len(bytes)?,
        kind::DB_POINTER => 16 + at_least(1, read_len(bytes)?)?,
        kind::CODE_W_SCOPE => at_least(14, read_len(bytes)?)?,
        kind::REGEX => {
            let pattern = cstring_len(bytes)?;
            let flags = cstring_len(bytes.get(pattern + 1..)?)?;
            pattern + flags + 2
        }
        _ => return None,
    })
}

fn at_least(least: usize, len: usize) -> Option<usize> {
    (len >= least).then_some(len)
}

/// The decimal name of an array index, counting up without formatting it anew each time.
pub(crate) struct IndexName {
    digits: [u8; 20],
    from: usize,
}

impl IndexName {
    /// `"0"`.
    pub(crate) fn zero() -> Self {
        Self { digits: [b'0'; 20], from: 19 }
    }

    /// That of `index`.
    pub(crate) fn of(mut index: usize) -> Self {
        let mut name = Self::zero();
        for (at, digit) in name.digits.iter_mut().enumerate().rev() {
            *digit = b'0' + (index % 10) as u8;
            index /= 10;
            if index == 0 {
                name.from = at;
                break;
            }
        }
        name
    }

    /// The name.
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        self.digits.get(self.from..).unwrap_or_default()
    }

    /// On to the next index.
    #[inline]
    pub(crate) fn advance(&mut self) {
        for (at, digit) in self.digits.iter_mut().enumerate().rev() {
            if at < self.from {
                self.from = at;
            }
            if *digit < b'9' {
                *digit += 1;
                return;
            }
            *digit = b'0';
        }
    }
}

/// A number written in decimal digits only, as the server's `parseUnsignedBase10Integer` takes it.
pub(crate) fn parse_index(name: &[u8]) -> Option<usize> {
    if name.is_empty() || !name.iter().all(u8::is_ascii_digit) {
        return None;
    }
    name.iter().try_fold(0_usize, |value, digit| value.checked_mul(10)?.checked_add(usize::from(digit - b'0')))
}

/// Appends one element.
#[inline]
pub(crate) fn push_element(out: &mut Vec<u8>, kind: u8, name: &[u8], value: &[u8]) {
    push_name(out, kind, name);
    out.extend_from_slice(value);
}

/// Appends type byte and name; the value is to follow.
#[inline]
pub(crate) fn push_name(out: &mut Vec<u8>, kind: u8, name: &[u8]) {
    out.push(kind);
    out.extend_from_slice(name);
    out.push(0);
}

/// Opens a document whose length is not known yet; [`close`] it with what this returns.
#[inline]
pub(crate) fn open(out: &mut Vec<u8>) -> usize {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    at
}

/// Ends the document that was opened at `at`.
#[inline]
pub(crate) fn close(out: &mut Vec<u8>, at: usize) -> Result<(), super::UpdateError> {
    out.push(0);
    let len = out.len() - at;
    let field = i32::try_from(len).ok().filter(|_| len <= super::MAX_DOCUMENT).ok_or(super::UpdateError::TooLarge)?;
    if let Some(place) = out.get_mut(at..at + 4) {
        place.copy_from_slice(&field.to_le_bytes());
    }
    Ok(())
}
