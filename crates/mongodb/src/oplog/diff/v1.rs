//! `$v: 1` updates: `$set` and `$unset` of dotted paths, which 4.4 and older write.
//!
//! What the server does when it applies them from the oplog (update_object_node.cpp, path_support.cpp,
//! modifier_node.cpp, set_node.cpp, unset_node.cpp):
//! - all paths of both modifiers are applied in the order of their components' bytes (4.4; "10" before "9"), which is
//!   the order in which missing fields are appended;
//! - missing parents are created as documents, even if a component is a number; only `$set` creates;
//! - in an array a component is an index: `$set` beyond the end pads with null, `$unset` leaves a null;
//! - a path that leads through any other value, or through an array by a name, is passed over.

use hashbrown::HashMap;

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

/// How deep it goes, and where the output would be longer than any document: a few paths can ask for much padding.
#[derive(Clone, Copy)]
struct Bounds {
    level: usize,
    limit: usize,
}

impl Bounds {
    fn check(self, out: &[u8]) -> Result<(), UpdateError> {
        if self.level >= MAX_DEPTH {
            return Err(UpdateError::TooDeep);
        }
        if out.len() > self.limit { Err(UpdateError::TooLarge) } else { Ok(()) }
    }

    fn deeper(self) -> Self {
        Self { level: self.level + 1, ..self }
    }
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
    document(base, &leaves, 0, Bounds { level: 0, limit: out.len() + MAX_DOCUMENT }, out)
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
    fn create(&self, name: &[u8], bounds: Bounds, out: &mut Vec<u8>) -> Result<(), UpdateError> {
        bounds.check(out)?;
        if let Some(value) = self.value() {
            push_element(out, value.kind, name, value.value);
        } else if self.creates() {
            push_name(out, kind::DOCUMENT, name);
            let at = open(out);
            for child in children(self.leaves, self.next()) {
                child.create(child.name, bounds.deeper(), out)?;
            }
            close(out, at)?;
        }
        Ok(())
    }

    /// Appends what becomes of `old`, through which the paths go on, under `name`.
    fn descend(&self, old: &Element<'_>, name: &[u8], bounds: Bounds, out: &mut Vec<u8>) -> Result<(), UpdateError> {
        push_name(out, old.kind, name);
        match old.kind {
            kind::DOCUMENT => document(old.value, self.leaves, self.next(), bounds, out),
            kind::ARRAY => array(old.value, self.leaves, self.next(), bounds, out),
            _ => {
                out.extend_from_slice(old.value);
                Ok(())
            }
        }
    }
}

fn document(
    base: &[u8],
    leaves: &[Leaf<'_>],
    from: usize,
    bounds: Bounds,
    out: &mut Vec<u8>,
) -> Result<(), UpdateError> {
    bounds.check(out)?;
    let mut pending: Vec<Option<Child<'_, '_>>> = children(leaves, from).into_iter().map(Some).collect();
    let places: HashMap<&[u8], usize> =
        pending.iter().flatten().enumerate().map(|(place, child)| (child.name, place)).collect();
    let at = open(out);
    let mut copied = 4;
    let mut elements = Elements::new(base)?;
    while let Some(element) = elements.next()? {
        // Taken when met: of several fields of one name the server changes the first.
        let place = places.get(element.name).and_then(|place| pending.get_mut(*place));
        let Some(child) = place.and_then(Option::take) else { continue };
        out.extend_from_slice(base.get(copied..element.start).unwrap_or_default());
        copied = element.end();
        if !child.ends {
            child.descend(&element, element.name, bounds.deeper(), out)?;
        } else if let Some(value) = child.value() {
            push_element(out, value.kind, element.name, value.value);
        }
    }
    out.extend_from_slice(base.get(copied..base.len() - 1).unwrap_or_default());
    for child in pending.into_iter().flatten() {
        child.create(child.name, bounds.deeper(), out)?;
    }
    close(out, at)
}

fn array(base: &[u8], leaves: &[Leaf<'_>], from: usize, bounds: Bounds, out: &mut Vec<u8>) -> Result<(), UpdateError> {
    bounds.check(out)?;
    let mut len = 0;
    let mut elements = Elements::new(base)?;
    while elements.next()?.is_some() {
        len += 1;
    }
    let Plan { changed, end } = plan(&children(leaves, from), len)?;

    let at = open(out);
    let mut name = IndexName::zero();
    let mut elements = Elements::new(base)?;
    let mut index = 0;
    while let Some(element) = elements.next()? {
        match changed.get(&index).map(|child| (child, child.value())) {
            None => push_element(out, element.kind, name.bytes(), element.value),
            Some((child, _)) if !child.ends => {
                child.descend(&element, name.bytes(), bounds.deeper(), out)?;
            }
            Some((_, Some(value))) => push_element(out, value.kind, name.bytes(), value.value),
            Some((_, None)) => push_name(out, kind::NULL, name.bytes()),
        }
        name.advance();
        index += 1;
    }
    while index < end {
        match changed.get(&index).filter(|child| child.creates()) {
            None => push_name(out, kind::NULL, name.bytes()),
            Some(child) => child.create(name.bytes(), bounds.deeper(), out)?,
        }
        bounds.check(out)?;
        name.advance();
        index += 1;
    }
    close(out, at)
}

/// What becomes of an array.
struct Plan<'l, 'd> {
    /// The elements that change or come behind those that are there, by index.
    changed: HashMap<usize, Child<'l, 'd>>,
    /// The new length; what is not in `changed` behind the old one is null.
    end: usize,
}

/// Plays the children through on an array of `len` elements. Their order matters: the padding that "10" makes is there,
/// as null, when "9" comes.
fn plan<'l, 'd>(children: &[Child<'l, 'd>], len: usize) -> Result<Plan<'l, 'd>, UpdateError> {
    let mut changed: HashMap<usize, Child<'l, 'd>> = HashMap::new();
    let mut end = len;
    for child in children {
        let Some(index) = parse_index(child.name) else {
            continue;
        };
        let known = changed.contains_key(&index);
        if index < len {
            if known {
                return Err(invalid("one array index, written in two ways", child.name));
            }
            changed.insert(index, *child);
        } else if index < end {
            if child.ends {
                changed.insert(index, *child);
            } else if known && changed.get(&index).is_some_and(Child::creates) {
                return Err(invalid("one array index, written in two ways", child.name));
            }
        } else if child.creates() {
            if index - end > MAX_PADDING {
                return Err(UpdateError::TooLarge);
            }
            end = index + 1;
            changed.insert(index, *child);
        }
    }
    Ok(Plan { changed, end })
}

fn invalid(what: &str, path: &[u8]) -> UpdateError {
    UpdateError::InvalidModifiers(format!("{what} ({:?})", String::from_utf8_lossy(path)))
}
