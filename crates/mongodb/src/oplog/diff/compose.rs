//! Merging two updates of one document whose base is not known yet.
//!
//! What is said of one field by the older delta and then by the newer one becomes one change of that field. What needs
//! care is where fields are appended: those of the older delta come before those of the newer one, and within one delta
//! those that `u` does not find before those of `i`. Whether `u` will find a field is only known where the older delta
//! wrote it; where it matters and is not known, the two are not merged.

use bson::RawDocument;

use super::raw::{Element, Elements, IndexName, MAX_DEPTH, close, kind, open, push_element, push_name};
use super::v2::{self, ArrayDiff, Change, FieldChange};
use super::{Update, classify};

/// The number of comparisons of names above which keeping both updates is cheaper than merging them.
const MAX_COMPARISONS: usize = 4096;
/// Nor are updates longer than this merged: each time the whole is written anew.
const MAX_LENGTH: usize = 256 << 10;

/// Merges two update entries' `o`, `older` applied first, into one with the same effect on any document, appended to
/// `out`. Possible for most pairs of `$v: 2` deltas; otherwise it returns false and leaves `out` alone.
pub fn compose(older: &[u8], newer: &[u8], out: &mut Vec<u8>) -> bool {
    let before = out.len();
    let merged = Composer { comparisons: MAX_COMPARISONS }.entries(older, newer, out);
    // Arrays that are made longer by a number can grow beyond what both updates take.
    let done = merged.is_some() && out.len() - before <= older.len() + newer.len() + 64;
    if !done {
        out.truncate(before);
    }
    done
}

struct Composer {
    /// How many more names may be compared.
    comparisons: usize,
}

/// What becomes of a field or an array's element.
struct Merged<'d> {
    name: &'d [u8],
    /// The letter of its section.
    section: u8,
    value: Value<'d>,
}

#[derive(Clone, Copy)]
enum Value<'d> {
    None,
    /// This element.
    Is(Element<'d>),
    /// What this element becomes under a delta.
    Becomes(Element<'d>, &'d [u8]),
    /// It is changed by this delta.
    Changes(&'d [u8]),
    /// It is changed by two deltas, one after the other.
    ChangesTwice(&'d [u8], &'d [u8]),
}

impl Composer {
    fn entries(&mut self, older: &[u8], newer: &[u8], out: &mut Vec<u8>) -> Option<()> {
        if older.len() + newer.len() > MAX_LENGTH {
            return None;
        }
        let (older, entry) = (delta(older)?, newer);
        let newer = delta(newer)?;
        if covers(older, newer, 0) {
            out.extend_from_slice(entry);
            return Some(());
        }
        let entry = open(out);
        push_element(out, kind::INT32, b"$v", &2_i32.to_le_bytes());
        push_name(out, kind::DOCUMENT, b"diff");
        self.document(older, newer, 0, out)?;
        close(out, entry).ok()
    }

    fn document(&mut self, older: &[u8], newer: &[u8], depth: usize, out: &mut Vec<u8>) -> Option<()> {
        let merged = self.fields(older, newer)?;
        let whole = open(out);
        for section in [b'd', b'u', b'i'] {
            let mut opened = None;
            for field in merged.iter().filter(|field| field.section == section) {
                opened.get_or_insert_with(|| {
                    push_name(out, kind::DOCUMENT, &[section]);
                    open(out)
                });
                match field.value {
                    Value::Is(element) => out.extend_from_slice(element.whole),
                    Value::Becomes(element, diff) => v2::apply_sub(&element, field.name, diff, depth, out).ok()?,
                    _ => push_element(out, kind::BOOL, field.name, &[0]),
                }
            }
            opened.map_or(Ok(()), |at| close(out, at)).ok()?;
        }
        for field in merged.iter().filter(|field| field.section == b's') {
            out.extend_from_slice(&[kind::DOCUMENT, b's']);
            out.extend_from_slice(field.name);
            out.push(0);
            self.delta(field.value, depth + 1, out)?;
        }
        close(out, whole).ok()
    }

    /// What the two say of all fields, in the order of each section; never nothing.
    fn fields<'d>(&mut self, older: &'d [u8], newer: &'d [u8]) -> Option<Vec<Merged<'d>>> {
        let (older, mut newer) = (changes(older)?, changes(newer)?);
        self.comparisons = self.comparisons.checked_sub(older.len() * newer.len())?;
        let mut merged = Vec::with_capacity(older.len() + newer.len());
        // Whether something is appended after all that `u` may append.
        let mut inserts = false;
        for FieldChange { name, change: old, .. } in &older {
            inserts |= matches!(old, Change::Insert(_));
            let newer = newer.iter_mut().find(|newer| newer.name == *name);
            let (section, value) = match (*old, newer.as_ref().map(|newer| newer.change)) {
                // These take the place of the newer one.
                (Change::Delete, Some(Change::Update(new))) => {
                    newer?.change = Change::Insert(new);
                    inserts = true;
                    continue;
                }
                (_, Some(Change::Insert(_))) | (Change::Sub(_), Some(Change::Update(_))) => continue,
                (old, None) => plain(old)?,
                (_, Some(Change::Delete)) | (Change::Delete, Some(Change::Sub(_))) => (b'd', Value::None),
                (Change::Update(_), Some(Change::Update(new))) => (b'u', Value::Is(new)),
                (Change::Insert(_), Some(Change::Update(new))) => (b'i', Value::Is(new)),
                (Change::Update(old), Some(Change::Sub(diff))) => (b'u', Value::Becomes(old, diff)),
                (Change::Insert(old), Some(Change::Sub(diff))) => (b'i', Value::Becomes(old, diff)),
                (Change::Sub(old), Some(Change::Sub(new))) => (b's', Value::ChangesTwice(old, new)),
                (Change::Binary { .. }, _) | (_, Some(Change::Binary { .. })) => return None,
            };
            if let Some(newer) = newer {
                newer.met = true;
            }
            merged.push(Merged { name, section, value });
        }
        for FieldChange { name, change, .. } in newer.into_iter().filter(|newer| !newer.met) {
            if inserts && matches!(change, Change::Update(_)) {
                return None;
            }
            let (section, value) = plain(change)?;
            merged.push(Merged { name, section, value });
        }
        (!merged.is_empty()).then_some(merged)
    }

    /// A field's own delta.
    fn delta(&mut self, value: Value<'_>, depth: usize, out: &mut Vec<u8>) -> Option<()> {
        let (older, newer) = match value {
            Value::Changes(diff) => {
                out.extend_from_slice(diff);
                return Some(());
            }
            Value::ChangesTwice(older, newer) if depth < MAX_DEPTH => (older, newer),
            _ => return None,
        };
        match (v2::is_array_diff(older).ok()?, v2::is_array_diff(newer).ok()?) {
            (false, false) => self.document(older, newer, depth, out),
            (true, true) => self.array(older, newer, depth, out),
            // Whatever was there becomes null, which no single delta says.
            _ => None,
        }
    }

    fn array(&mut self, older: &[u8], newer: &[u8], depth: usize, out: &mut Vec<u8>) -> Option<()> {
        let (mut older, mut newer) = (ArrayDiff::read(older).ok()?, ArrayDiff::read(newer).ok()?);
        let (cut, resize) = (older.resize, newer.resize);
        let whole = open(out);
        push_element(out, kind::BOOL, b"a", &[1]);
        // The length is not known yet where both cut and append.
        let length = cut.or(resize).map(|_| {
            push_name(out, kind::INT32, b"l");
            out.extend_from_slice(&[0; 4]);
            out.len() - 4
        });
        let mut end = cut.unwrap_or(0);
        let (mut old, mut new) = (older.next().ok()?, newer.next().ok()?);
        while let Some(index) = [&old, &new].into_iter().flatten().map(|change| change.index).min() {
            self.comparisons = self.comparisons.checked_sub(1)?;
            let before = old.take_if(|old| old.index == index);
            let after = new.take_if(|new| new.index == index);
            if before.is_some() {
                old = older.next().ok()?;
            }
            if after.is_some() {
                new = newer.next().ok()?;
            }
            // Beyond where the older one cut, only what the newer one puts there is known.
            if cut.is_some() && index >= end {
                if index > end || !after.as_ref().is_some_and(|after| after.is_update) {
                    return None;
                }
                end = index.checked_add(1)?;
            }
            if resize.is_some_and(|resize| index >= resize) {
                continue;
            }
            let (section, value) = match (before, after) {
                (_, Some(after)) if after.is_update => (b'u', Value::Is(after.new)),
                (Some(before), None) if before.is_update => (b'u', Value::Is(before.new)),
                (Some(before), Some(after)) if before.is_update => (b'u', Value::Becomes(before.new, after.new.value)),
                (Some(before), Some(after)) => (b's', Value::ChangesTwice(before.new.value, after.new.value)),
                (Some(only), None) | (None, Some(only)) => (b's', Value::Changes(only.new.value)),
                (None, None) => return None,
            };
            let name = [&[section], IndexName::of(index).bytes()].concat();
            match value {
                Value::Is(element) => push_element(out, element.kind, &name, element.value),
                Value::Becomes(element, diff) => v2::apply_sub(&element, &name, diff, depth, out).ok()?,
                delta => {
                    push_name(out, kind::DOCUMENT, &name);
                    self.delta(delta, depth + 1, out)?;
                }
            }
        }
        // Where the newer one makes longer what the older one cut, there would be nulls in between.
        if cut.is_some() && resize.is_some_and(|resize| resize > end) {
            return None;
        }
        if let Some(at) = length {
            let length = i32::try_from(resize.unwrap_or(end)).ok()?;
            out.get_mut(at..at + 4)?.copy_from_slice(&length.to_le_bytes());
        }
        close(out, whole).ok()
    }
}

/// Whether the newer delta says something of exactly the fields of which the older one does, in the same order, as the same
/// update does when it is made again. Then it is all that counts.
fn covers(older: &[u8], newer: &[u8], depth: usize) -> bool {
    same(older, newer, |old, new| match old.name {
        b"d" | b"u" | b"i" => same(old.value, new.value, |_, _| true),
        b"a" => true,
        [b's', ..] => depth < MAX_DEPTH && covers(old.value, new.value, depth + 1),
        // An element of an array. What is left are binary values, and new lengths of arrays.
        [b'u', ..] => true,
        _ => false,
    })
}

/// Whether two documents have the same fields in the same order, and this is true of each.
fn same(older: &[u8], newer: &[u8], each: impl Fn(Element<'_>, Element<'_>) -> bool) -> bool {
    let (Ok(mut older), Ok(mut newer)) = (Elements::new(older), Elements::new(newer)) else { return false };
    loop {
        match (older.next(), newer.next()) {
            (Ok(Some(old)), Ok(Some(new))) if old.name == new.name && each(old, new) => {}
            (Ok(None), Ok(None)) => return true,
            _ => return false,
        }
    }
}

/// The `diff` of an entry that is a `$v: 2` delta.
fn delta(o: &[u8]) -> Option<&[u8]> {
    match classify(RawDocument::from_bytes(o).ok()?) {
        Ok(Update::DiffV2(diff)) => Some(diff.as_bytes()),
        _ => None,
    }
}

/// The changes of a document's delta; none when they do not hold together.
fn changes(diff: &[u8]) -> Option<Vec<FieldChange<'_>>> {
    let mut changes = Vec::with_capacity(8);
    v2::read_document_diff(diff, &mut changes).ok()?;
    v2::index_names(&changes).ok()?;
    Some(changes)
}

fn plain(change: Change<'_>) -> Option<(u8, Value<'_>)> {
    Some(match change {
        Change::Delete => (b'd', Value::None),
        Change::Update(new) => (b'u', Value::Is(new)),
        Change::Insert(new) => (b'i', Value::Is(new)),
        Change::Sub(diff) => (b's', Value::Changes(diff)),
        Change::Binary { .. } => return None,
    })
}
