//! `$v: 2` deltas.
//!
//! A document's delta has sections, in this order: `d` (removed fields), `u` (new values), `i` (inserted fields),
//! `b` (binary values rewritten from an offset on, by 7.1 and later in time-series buckets), then one `s<field>` with
//! a delta for each changed subdocument or array. An array's delta is `{a: true, l: <new length>, u<index>, s<index>}`.
//! What they do (document_diff_applier.cpp):
//! - `u` replaces in place, and appends if the field is missing; `i` always appends, after taking away an older one;
//!   appended are the missing ones of `u`, then those of `i`, each in their order;
//! - `s` of a missing field does nothing, and of a value of the wrong type makes it null;
//! - `b` keeps the bytes before its offset; it does nothing to a missing field or one shorter than the offset;
//! - arrays are cut or padded with null to `l`, and padded up to an index beyond their end; there, and on a wrong
//!   type, `s` makes null. Their elements are named anew.

use hashbrown::HashMap;

use super::raw::{Element, Elements, IndexName, MAX_DEPTH, close, kind, open, parse_index, push_element, push_name};
use super::{MAX_DOCUMENT, UpdateError};

/// Up to so many changes in one document are found by looking at each.
const FEW: usize = 16;

/// What a delta says of a field.
#[derive(Clone, Copy)]
pub(super) enum Change<'d> {
    Delete,
    Update(Element<'d>),
    Insert(Element<'d>),
    Binary { offset: usize, data: &'d [u8] },
    Sub(&'d [u8]),
}

pub(super) struct FieldChange<'d> {
    pub(super) name: &'d [u8],
    pub(super) change: Change<'d>,
    /// An [`Change::Update`] found its field, and is not to be appended.
    pub(super) met: bool,
}

/// Appends to `out` what `base` becomes under `diff`.
pub(super) fn apply(base: &[u8], diff: &[u8], out: &mut Vec<u8>) -> Result<(), UpdateError> {
    out.reserve(base.len() + diff.len());
    Applier { changes: Vec::new(), limit: out.len() + MAX_DOCUMENT }.document(base, diff, 0, out)
}

/// Appends to `out`, under `name`, what `old` becomes under a delta of its own.
pub(super) fn apply_sub(
    old: &Element<'_>,
    name: &[u8],
    diff: &[u8],
    depth: usize,
    out: &mut Vec<u8>,
) -> Result<(), UpdateError> {
    Applier { changes: Vec::new(), limit: out.len() + MAX_DOCUMENT }.sub(Some(*old), name, diff, depth, out)
}

struct Applier<'d> {
    /// The changes of the documents being walked, those of the innermost one last: one allocation for all levels.
    changes: Vec<FieldChange<'d>>,
    /// Where the output would be longer than any document. Small deltas can ask for much: it is looked at wherever
    /// something is added that is in neither the base nor, once, in the delta.
    limit: usize,
}

impl<'d> Applier<'d> {
    fn check_size(&self, out: &[u8]) -> Result<(), UpdateError> {
        if out.len() > self.limit { Err(UpdateError::TooLarge) } else { Ok(()) }
    }

    fn document(&mut self, base: &[u8], diff: &'d [u8], depth: usize, out: &mut Vec<u8>) -> Result<(), UpdateError> {
        if depth >= MAX_DEPTH {
            return Err(UpdateError::TooDeep);
        }
        let first = self.changes.len();
        read_document_diff(diff, &mut self.changes)?;
        let index = index_names(self.changes.get(first..).unwrap_or_default())?;

        let at = open(out);
        // Unchanged fields are copied in runs: `copied` is where the next run begins.
        let mut copied = 4;
        let mut elements = Elements::new(base)?;
        while let Some(element) = elements.next()? {
            let found = match &index {
                Some(index) => index.get(element.name).map(|at| first + at),
                None => {
                    self.changes.iter().skip(first).position(|change| change.name == element.name).map(|at| first + at)
                }
            };
            let Some(field) = found.and_then(|at| self.changes.get_mut(at)) else {
                continue;
            };
            out.extend_from_slice(base.get(copied..element.start).unwrap_or_default());
            copied = element.end();
            match field.change {
                Change::Delete | Change::Insert(_) => {}
                Change::Update(new) => {
                    field.met = true;
                    out.extend_from_slice(new.whole);
                }
                Change::Binary { offset, data } => splice(&element, offset, data, out)?,
                Change::Sub(diff) => {
                    self.sub(Some(element), element.name, diff, depth + 1, out)?;
                }
            }
            self.check_size(out)?;
        }
        out.extend_from_slice(base.get(copied..base.len() - 1).unwrap_or_default());
        for field in self.changes.drain(first..) {
            match field.change {
                Change::Update(new) if !field.met => out.extend_from_slice(new.whole),
                Change::Insert(new) => out.extend_from_slice(new.whole),
                _ => {}
            }
        }
        close(out, at)
    }

    /// Appends, under `name`, what `old` becomes under a delta of its own.
    fn sub(
        &mut self,
        old: Option<Element<'_>>,
        name: &[u8],
        diff: &'d [u8],
        depth: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), UpdateError> {
        let for_array = is_array_diff(diff)?;
        match old {
            Some(old) if old.kind == kind::DOCUMENT && !for_array => {
                push_name(out, kind::DOCUMENT, name);
                self.document(old.value, diff, depth, out)
            }
            Some(old) if old.kind == kind::ARRAY && for_array => {
                push_name(out, kind::ARRAY, name);
                self.array(old.value, diff, depth, out)
            }
            _ => {
                push_name(out, kind::NULL, name);
                Ok(())
            }
        }
    }

    fn array(&mut self, base: &[u8], diff: &'d [u8], depth: usize, out: &mut Vec<u8>) -> Result<(), UpdateError> {
        if depth >= MAX_DEPTH {
            return Err(UpdateError::TooDeep);
        }
        let mut changes = ArrayDiff::read(diff)?;
        let resize = changes.resize;
        let mut change = changes.next()?;
        let mut name = IndexName::zero();
        let mut index = 0;

        let at = open(out);
        let mut copied = 4;
        let mut elements = Elements::new(base)?;
        while let Some(element) = elements.next()? {
            if resize.is_some_and(|len| index >= len) {
                out.extend_from_slice(base.get(copied..element.start).unwrap_or_default());
                copied = base.len();
                break;
            }
            let changed = change.as_ref().is_some_and(|next| next.index == index);
            if changed || element.name != name.bytes() {
                out.extend_from_slice(base.get(copied..element.start).unwrap_or_default());
                copied = element.end();
                match change.take_if(|next| next.index == index) {
                    Some(next) => {
                        self.element(Some(element), &next, name.bytes(), depth + 1, out)?;
                        change = changes.next()?;
                    }
                    None => push_element(out, element.kind, name.bytes(), element.value),
                }
                self.check_size(out)?;
            }
            name.advance();
            index += 1;
        }
        out.extend_from_slice(base.get(copied..base.len() - 1).unwrap_or_default());

        while change.is_some() || resize.is_some_and(|len| index < len) {
            match change.take_if(|next| next.index == index) {
                Some(next) => {
                    self.element(None, &next, name.bytes(), depth + 1, out)?;
                    change = changes.next()?;
                }
                None => push_name(out, kind::NULL, name.bytes()),
            }
            self.check_size(out)?;
            name.advance();
            index += 1;
        }
        close(out, at)
    }

    /// Appends one changed element of an array.
    fn element(
        &mut self,
        old: Option<Element<'_>>,
        change: &IndexChange<'d>,
        name: &[u8],
        depth: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), UpdateError> {
        if change.is_update {
            push_element(out, change.new.kind, name, change.new.value);
            Ok(())
        } else {
            self.sub(old, name, change.new.value, depth, out)
        }
    }
}

/// Appends what a binary field becomes when everything from `offset` on is replaced by `data`. A field that is shorter,
/// or (where the server would give up) no longer binary, is newer than the entry and stays as it is.
fn splice(old: &Element<'_>, offset: usize, data: &[u8], out: &mut Vec<u8>) -> Result<(), UpdateError> {
    let kept = match old.value.get(4..) {
        Some([subtype, bytes @ ..]) if old.kind == kind::BINARY => bytes.get(..offset).map(|kept| (*subtype, kept)),
        _ => None,
    };
    let Some((subtype, kept)) = kept else {
        out.extend_from_slice(old.whole);
        return Ok(());
    };
    let len = i32::try_from(kept.len() + data.len()).map_err(|_| UpdateError::TooLarge)?;
    push_name(out, kind::BINARY, old.name);
    out.extend_from_slice(&len.to_le_bytes());
    out.push(subtype);
    out.extend_from_slice(kept);
    out.extend_from_slice(data);
    Ok(())
}

/// Reads the sections of a document's delta into `changes`.
pub(super) fn read_document_diff<'d>(diff: &'d [u8], changes: &mut Vec<FieldChange<'d>>) -> Result<(), UpdateError> {
    let mut last = 0;
    let mut sections = Elements::new(diff)?;
    while let Some(section) = sections.next()? {
        let order = match section.name {
            b"d" => 1,
            b"u" => 2,
            b"i" => 3,
            b"b" => 4,
            [b's', ..] => 5,
            _ => return Err(invalid("unknown section", section.name)),
        };
        if order <= last && order != 5 {
            return Err(invalid("section out of order", section.name));
        }
        if section.kind != kind::DOCUMENT {
            return Err(invalid("section is not a document", section.name));
        }
        last = order;
        if order == 5 {
            changes.push(FieldChange {
                name: section.name.get(1..).unwrap_or_default(),
                change: Change::Sub(section.value),
                met: false,
            });
            continue;
        }
        let mut fields = Elements::new(section.value)?;
        while let Some(field) = fields.next()? {
            changes.push(FieldChange {
                name: field.name,
                change: match order {
                    1 => Change::Delete,
                    2 => Change::Update(field),
                    3 => Change::Insert(field),
                    _ => read_binary(&field)?,
                },
                met: false,
            });
        }
    }
    if last == 0 {
        return Err(invalid("empty diff", b""));
    }
    Ok(())
}

/// A field of the `b` section: `{o: <offset>, d: <bytes>}`.
fn read_binary<'d>(field: &Element<'d>) -> Result<Change<'d>, UpdateError> {
    let wrong = || invalid("binary section holds no {o, d}", field.name);
    if field.kind != kind::DOCUMENT {
        return Err(wrong());
    }
    let (mut offset, mut data) = (None, None);
    let mut parts = Elements::new(field.value)?;
    while let Some(part) = parts.next()? {
        match part.name {
            b"o" => offset = part.as_i64().and_then(|offset| usize::try_from(offset).ok()),
            b"d" if part.kind == kind::BINARY => data = part.value.get(5..),
            _ => {}
        }
    }
    let offset = offset.ok_or_else(wrong)?;
    let data = data.ok_or_else(wrong)?;
    Ok(Change::Binary { offset, data })
}

/// Refuses a field that is named twice, as the server does. Many changes also get an index by name.
pub(super) fn index_names<'d>(changes: &[FieldChange<'d>]) -> Result<Option<HashMap<&'d [u8], usize>>, UpdateError> {
    if changes.len() <= FEW {
        for (at, change) in changes.iter().enumerate() {
            if changes.iter().take(at).any(|other| other.name == change.name) {
                return Err(invalid("field named twice", change.name));
            }
        }
        return Ok(None);
    }
    let mut index = HashMap::with_capacity(changes.len());
    for (at, change) in changes.iter().enumerate() {
        if index.insert(change.name, at).is_some() {
            return Err(invalid("field named twice", change.name));
        }
    }
    Ok(Some(index))
}

/// An array's delta is told by its first field.
pub(super) fn is_array_diff(diff: &[u8]) -> Result<bool, UpdateError> {
    match Elements::new(diff)?.next()? {
        Some(first) => Ok(first.name == b"a"),
        None => Err(invalid("empty diff", b"")),
    }
}

pub(super) struct IndexChange<'d> {
    pub(super) index: usize,
    pub(super) is_update: bool,
    pub(super) new: Element<'d>,
}

/// The changes in an array's delta, by rising index.
pub(super) struct ArrayDiff<'d> {
    elements: Elements<'d>,
    pending: Option<Element<'d>>,
    pub(super) resize: Option<usize>,
    least: usize,
}

impl<'d> ArrayDiff<'d> {
    pub(super) fn read(diff: &'d [u8]) -> Result<Self, UpdateError> {
        let mut elements = Elements::new(diff)?;
        let header = elements.next()?;
        if !header.is_some_and(|a| a.kind == kind::BOOL && a.value == [1]) {
            return Err(invalid("array header", b"a"));
        }
        let mut pending = elements.next()?;
        let mut resize = None;
        if let Some(l) = pending.take_if(|next| next.name == b"l") {
            let len = l.as_i64().filter(|_| l.kind == kind::INT32);
            let len = len.and_then(|len| usize::try_from(len).ok());
            resize = Some(len.ok_or_else(|| invalid("array length", l.name))?);
            pending = elements.next()?;
        }
        Ok(Self { elements, pending, resize, least: 0 })
    }

    pub(super) fn next(&mut self) -> Result<Option<IndexChange<'d>>, UpdateError> {
        let Some(new) = self.pending else {
            return Ok(None);
        };
        self.pending = self.elements.next()?;
        let (is_update, digits) = match new.name {
            [b'u', digits @ ..] => (true, digits),
            [b's', digits @ ..] if new.kind == kind::DOCUMENT => (false, digits),
            _ => return Err(invalid("unknown array change", new.name)),
        };
        // The server never ends, or aborts, on an index out of order or beyond the new length.
        let index = parse_index(digits)
            .filter(|index| *index >= self.least && self.resize.is_none_or(|len| *index < len))
            .ok_or_else(|| invalid("array index", new.name))?;
        self.least = index.saturating_add(1);
        Ok(Some(IndexChange { index, is_update, new }))
    }
}

fn invalid(what: &str, name: &[u8]) -> UpdateError {
    UpdateError::InvalidDiff(format!("{what} ({:?})", String::from_utf8_lossy(name)))
}
