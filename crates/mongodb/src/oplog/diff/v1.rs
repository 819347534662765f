//! `$v: 1` updates: `$set` and `$unset` of dotted paths, which 4.4 and older write.
//!
//! What the server does when it applies them from the oplog (update_object_node.cpp, path_support.cpp,
//! modifier_node.cpp, set_node.cpp, unset_node.cpp):
//! - all paths of both modifiers are applied in the order of their components' bytes (4.4; "10" before "9"), which is
//!   the order in which missing fields are appended;
//! - missing parents are created as documents, even if a component is a number; only `$set` creates;
//! - in an array a component is an index: `$set` beyond the end pads with null, `$unset` leaves a null;
//! - a path that leads through any other value, or through an array by a name, is passed over.

use super::raw::{Element, Elements, IndexName, MAX_DEPTH, close, kind, open, parse_index, push_element, push_name};
use super::{MAX_DOCUMENT, UpdateError};

/// How many nulls one path may add to an array (`kMaxPaddingAllowed`).
const MAX_PADDING: usize = 1_500_000;

/// One path and its new value; `None` removes it.
#[derive(Clone, Copy)]
struct Leaf<'d> {
    path: &'d [u8],
    value: Option<Element<'d>>,
}

/// The leaves that share the next component of their paths: one leaf that ends there, or several that go on.
#[derive(Clone, Copy)]
struct Child<'l, 'd> {
    name: &'d [u8],
    leaves: &'l [Leaf<'d>],
    /// Bytes of the paths up to and with `name`.
    depth: usize,
    ends: bool,
}

/// Appends to `out` what `base` becomes under the two modifiers.
pub(super) fn apply(
    base: &[u8],
    set: Option<&[u8]>,
    unset: Option<&[u8]>,
    out: &mut Vec<u8>,
) -> Result<(), UpdateError> {
    let mut leaves = Vec::new();
    for (modifier, keeps) in [(set, true), (unset, false)] {
        let Some(modifier) = modifier else { continue };
        let mut paths = Elements::new(modifier)?;
        while let Some(element) = paths.next()? {
            check_path(element.name)?;
            leaves.push(Leaf { path: element.name, value: keeps.then_some(element) });
        }
    }
    leaves.sort_by(|a, b| sort_key(a.path).cmp(sort_key(b.path)));
    for pair in leaves.windows(2) {
        if let [a, b] = pair
            && let Some(rest) = b.path.strip_prefix(a.path)
            && (rest.is_empty() || rest.starts_with(b"."))
        {
            return Err(invalid("conflicting paths", b.path));
        }
    }
    document(base, &leaves, 0, 0, out)
}

/// Orders whole components: the dot that ends one counts as less than any byte that would go on with it.
fn sort_key(path: &[u8]) -> impl Iterator<Item = u8> + '_ {
    path.iter().map(|byte| if *byte == b'.' { 0 } else { *byte })
}

fn check_path(path: &[u8]) -> Result<(), UpdateError> {
    for component in path.split(|byte| *byte == b'.') {
        if component.is_empty() || component == b"$" || component.starts_with(b"$[") {
            return Err(invalid("unusable path", path));
        }
    }
    Ok(())
}

/// Splits `leaves` by their next component, `from` bytes into their paths.
fn children<'l, 'd>(mut leaves: &'l [Leaf<'d>], from: usize) -> Vec<Child<'l, 'd>> {
    let component = |leaf: &Leaf<'d>| {
        let rest = leaf.path.get(from..).unwrap_or_default();
        rest.split(|byte| *byte == b'.').next().unwrap_or_default()
    };
    let mut children = Vec::new();
    while let Some(first) = leaves.first() {
        let name = component(first);
        let same = leaves.iter().take_while(|leaf| component(leaf) == name);
        let (group, rest) = leaves.split_at(same.count());
        let depth = from + name.len();
        children.push(Child { name, leaves: group, depth, ends: first.path.len() == depth });
        leaves = rest;
    }
    children
}

impl<'d> Child<'_, 'd> {
    /// The value to set, if the path ends here and sets.
    fn value(&self) -> Option<&Element<'d>> {
        self.leaves.first()?.value.as_ref().filter(|_| self.ends)
    }

    /// Whether this makes anything where there is nothing.
    fn creates(&self) -> bool {
        self.leaves.iter().any(|leaf| leaf.value.is_some())
    }

    /// Where the next component begins in the paths.
    fn next(&self) -> usize {
        self.depth + 1
    }

    /// Appends what this makes, under `name`, where there is nothing.
    fn create(&self, name: &[u8], level: usize, out: &mut Vec<u8>) -> Result<(), UpdateError> {
        if level >= MAX_DEPTH {
            return Err(UpdateError::TooDeep);
        }
        if let Some(value) = self.value() {
            push_element(out, value.kind, name, value.value);
        } else if self.creates() {
            push_name(out, kind::DOCUMENT, name);
            let at = open(out);
            for child in children(self.leaves, self.next()) {
                child.create(child.name, level + 1, out)?;
            }
            close(out, at)?;
        }
        Ok(())
    }

    /// Appends what becomes of `old`, through which the paths go on, under `name`.
    fn descend(&self, old: &Element<'_>, name: &[u8], level: usize, out: &mut Vec<u8>) -> Result<(), UpdateError> {
        push_name(out, old.kind, name);
        match old.kind {
            kind::DOCUMENT => document(old.value, self.leaves, self.next(), level, out),
            kind::ARRAY => array(old.value, self.leaves, self.next(), level, out),
            _ => {
                out.extend_from_slice(old.value);
                Ok(())
            }
        }
    }
}

fn document(base: &[u8], leaves: &[Leaf<'_>], from: usize, level: usize, out: &mut Vec<u8>) -> Result<(), UpdateError> {
    if level >= MAX_DEPTH {
        return Err(UpdateError::TooDeep);
    }
    let mut pending: Vec<Option<Child<'_, '_>>> = children(leaves, from).into_iter().map(Some).collect();
    let at = open(out);
    let mut copied = 4;
    let mut elements = Elements::new(base)?;
    while let Some(element) = elements.next()? {
        // Taken when met: of several fields of one name the server changes the first.
        let found = pending.iter_mut().find_map(|slot| slot.take_if(|child| child.name == element.name));
        let Some(child) = found else { continue };
        out.extend_from_slice(base.get(copied..element.start).unwrap_or_default());
        copied = element.end();
        if !child.ends {
            child.descend(&element, element.name, level + 1, out)?;
        } else if let Some(value) = child.value() {
            push_element(out, value.kind, element.name, value.value);
        }
    }
    out.extend_from_slice(base.get(copied..base.len() - 1).unwrap_or_default());
    for child in pending.into_iter().flatten() {
        child.create(child.name, level + 1, out)?;
    }
    close(out, at)
}

/// What becomes of one element of an array.
#[derive(Clone, Copy)]
enum Slot<'l, 'd> {
    Null,
    Child(Child<'l, 'd>),
}

fn array(base: &[u8], leaves: &[Leaf<'_>], from: usize, level: usize, out: &mut Vec<u8>) -> Result<(), UpdateError> {
    if level >= MAX_DEPTH {
        return Err(UpdateError::TooDeep);
    }
    let mut len = 0;
    let mut elements = Elements::new(base)?;
    while elements.next()?.is_some() {
        len += 1;
    }
    let (changed, added) = plan(&children(leaves, from), len)?;

    let at = open(out);
    let mut name = IndexName::zero();
    let mut elements = Elements::new(base)?;
    let mut index = 0;
    while let Some(element) = elements.next()? {
        let change = changed.iter().find(|(at, _)| *at == index);
        match change.map(|(_, child)| (child, child.value())) {
            None => push_element(out, element.kind, name.bytes(), element.value),
            Some((child, _)) if !child.ends => {
                child.descend(&element, name.bytes(), level + 1, out)?;
            }
            Some((_, Some(value))) => push_element(out, value.kind, name.bytes(), value.value),
            Some((_, None)) => push_name(out, kind::NULL, name.bytes()),
        }
        name.advance();
        index += 1;
    }
    for slot in added {
        match slot {
            Slot::Null => push_name(out, kind::NULL, name.bytes()),
            Slot::Child(child) => child.create(name.bytes(), level + 1, out)?,
        }
        if out.len() - at > MAX_DOCUMENT {
            return Err(UpdateError::TooLarge);
        }
        name.advance();
    }
    close(out, at)
}

/// The elements that are there and change, by index, and those that come behind them.
type Plan<'l, 'd> = (Vec<(usize, Child<'l, 'd>)>, Vec<Slot<'l, 'd>>);

/// Plays the children through on an array of `len` elements. Their order matters: the padding that "10" makes is there,
/// as null, when "9" comes.
fn plan<'l, 'd>(children: &[Child<'l, 'd>], len: usize) -> Result<Plan<'l, 'd>, UpdateError> {
    let mut changed: Vec<(usize, Child<'l, 'd>)> = Vec::new();
    let mut added = Vec::new();
    for child in children {
        let Some(index) = parse_index(child.name) else {
            continue;
        };
        let Some(place) = index.checked_sub(len) else {
            if changed.iter().any(|(other, _)| *other == index) {
                return Err(invalid("one array index, written in two ways", child.name));
            }
            changed.push((index, *child));
            continue;
        };
        match added.get_mut(place) {
            Some(slot) if child.ends => {
                *slot = child.value().map_or(Slot::Null, |_| Slot::Child(*child));
            }
            Some(Slot::Null) => {}
            Some(Slot::Child(_)) => {
                return Err(invalid("one array index, written in two ways", child.name));
            }
            None if child.creates() => {
                if place - added.len() > MAX_PADDING {
                    return Err(UpdateError::TooLarge);
                }
                added.resize(place, Slot::Null);
                added.push(Slot::Child(*child));
            }
            None => {}
        }
    }
    Ok((changed, added))
}

fn invalid(what: &str, path: &[u8]) -> UpdateError {
    UpdateError::InvalidModifiers(format!("{what} ({:?})", String::from_utf8_lossy(path)))
}
