//! One entry of the oplog, read without decoding what it carries.

use bson::{Document, RawDocument};
use hindsight_engine::EngineError;

use super::diff::Malformed;
use super::diff::raw::{Element, Elements, check_depth, kind, read_len};
use crate::optime::Optime;

/// A collection's identity, which it keeps through renames.
pub type Uuid = [u8; 16];

/// What an entry does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `i`
    Insert,
    /// `u`
    Update,
    /// `d`
    Delete,
    /// `c`
    Command,
    /// `n`
    Noop,
}

impl Op {
    fn parse(element: &Element<'_>) -> Result<Self, EngineError> {
        // Its length with the NUL, a letter and the NUL.
        let letter = match element.value {
            [2, 0, 0, 0, letter, 0] if element.kind == kind::STRING => Some(letter),
            _ => None,
        };
        Ok(match letter {
            Some(b'i') => Self::Insert,
            Some(b'u') => Self::Update,
            Some(b'd') => Self::Delete,
            Some(b'c') => Self::Command,
            Some(b'n') => Self::Noop,
            _ => {
                let other = text(element);
                return Err(EngineError::damaged(format!("the oplog has an entry of unknown kind {other:?}")).hint(
                    "this server writes something that this version of Hindsight does not know: update Hindsight",
                ));
            }
        })
    }
}

/// The transaction (or retryable write) that an entry is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxnId<'a> {
    /// The session's id document.
    pub lsid: &'a [u8],
    /// Number within the session.
    pub number: i64,
}

/// What a single operation is and carries; also one inside an `applyOps`.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    /// What it does.
    pub op: Op,
    /// `db.collection`, or `db.$cmd`.
    pub ns: &'a str,
    /// The collection.
    pub uuid: Option<Uuid>,
    /// Document, diff, key or command.
    pub o: &'a [u8],
    /// The key of the document that an update changes, and other side information.
    pub o2: Option<&'a [u8]>,
}

/// A whole entry.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Where it is.
    pub at: Optime,
    /// What it does.
    pub operation: Operation<'a>,
    /// Its transaction or retryable write.
    pub txn: Option<TxnId<'a>>,
    /// The entry before it in the same transaction; none for the first.
    pub previous: Option<Optime>,
    /// `applyOps` that stand for themselves though they carry a session (retryable bulk writes).
    pub stands_alone: bool,
}

pub(crate) fn malformed(error: Malformed) -> EngineError {
    EngineError::damaged(format!("an oplog entry cannot be read: {error}"))
}

pub(crate) fn text<'a>(element: &Element<'a>) -> Option<&'a str> {
    if element.kind != kind::STRING {
        return None;
    }
    let (text, _) = element.value.get(4..)?.split_last_chunk::<1>()?;
    std::str::from_utf8(text).ok()
}

pub(crate) fn document<'a>(element: &Element<'a>) -> Option<&'a [u8]> {
    (element.kind == kind::DOCUMENT).then_some(element.value)
}

pub(crate) fn uuid(element: &Element<'_>) -> Option<Uuid> {
    // length 16, subtype 4
    let (head, bytes) = element.value.split_first_chunk::<5>()?;
    (element.kind == kind::BINARY && *head == [16, 0, 0, 0, 4]).then_some(bytes.try_into().ok()?)
}

pub(crate) fn truthy(element: &Element<'_>) -> bool {
    match element.kind {
        kind::BOOL => element.value == [1],
        _ => element.as_i64().is_some_and(|n| n != 0),
    }
}

fn timestamp(element: &Element<'_>) -> Option<(u32, u32)> {
    let (inc, secs) = element.value.split_first_chunk::<4>()?;
    (element.kind == kind::TIMESTAMP).then_some((u32::from_le_bytes(secs.try_into().ok()?), u32::from_le_bytes(*inc)))
}

/// Reads `{ts, t}`; the null optime, which ends a chain, gives none.
fn optime(doc: &[u8]) -> Result<Option<Optime>, EngineError> {
    let mut elements = Elements::new(doc).map_err(malformed)?;
    let (mut ts, mut term) = (None, -1);
    while let Some(element) = elements.next().map_err(malformed)? {
        match element.name {
            b"ts" => ts = timestamp(&element),
            b"t" => term = element.as_i64().unwrap_or(-1),
            _ => {}
        }
    }
    Ok(ts.filter(|ts| *ts != (0, 0)).map(|(secs, inc)| Optime { secs, inc, term }))
}

#[derive(Default)]
struct Parts<'a> {
    op: Option<Op>,
    ns: Option<&'a str>,
    uuid: Option<Uuid>,
    o: Option<&'a [u8]>,
    o2: Option<&'a [u8]>,
}

impl<'a> Parts<'a> {
    /// Takes the element if it is one of the fields that every operation has.
    #[inline]
    fn take(&mut self, element: &Element<'a>) -> Result<(), EngineError> {
        // Letter by letter, as comparing is most of what is done with an entry.
        match *element.name {
            [b'o', b'p'] => self.op = Some(Op::parse(element)?),
            [b'n', b's'] => self.ns = text(element),
            [b'u', b'i'] => self.uuid = uuid(element),
            [b'o'] => self.o = document(element),
            [b'o', b'2'] => self.o2 = document(element),
            _ => {}
        }
        Ok(())
    }

    /// Whether every operation has no more than this; some have a key beside it, which may come later.
    fn are_all(&self) -> bool {
        self.op.is_some() && self.ns.is_some() && self.o.is_some()
    }

    fn finish(self) -> Result<Operation<'a>, EngineError> {
        let (Some(op), Some(ns), Some(o)) = (self.op, self.ns, self.o) else {
            return Err(malformed(Malformed("op, ns and o are missing")));
        };
        Ok(Operation { op, ns, uuid: self.uuid, o, o2: self.o2 })
    }
}

impl<'a> Operation<'a> {
    /// One element of the array of an `applyOps`.
    pub fn parse_inner(doc: &'a [u8]) -> Result<Self, EngineError> {
        let mut parts = Parts::default();
        let mut elements = Elements::new(doc).map_err(malformed)?;
        while let Some(element) = elements.next().map_err(malformed)? {
            parts.take(&element)?;
        }
        parts.finish()
    }

    /// The name of a command, which is its first field, with that field.
    pub(crate) fn command(&self) -> Result<Element<'a>, EngineError> {
        let mut elements = Elements::new(self.o).map_err(malformed)?;
        elements.next().map_err(malformed)?.ok_or_else(|| malformed(Malformed("empty command")))
    }

    /// The database.
    pub fn database(&self) -> &'a str {
        self.ns.split_once('.').map_or(self.ns, |(db, _)| db)
    }
}

/// What has to be known of an entry that is handed on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'a> {
    /// Where it is.
    pub(crate) at: Optime,
    /// What it does.
    pub(crate) operation: Operation<'a>,
}

impl<'a> Head<'a> {
    /// Reads an entry no further than it has to be.
    ///
    /// # Errors
    /// It is malformed there, or of a kind not known here.
    pub(crate) fn parse(raw: &'a [u8]) -> Result<Self, EngineError> {
        let mut parts = Parts::default();
        let (mut ts, mut term) = (None, None);
        let mut elements = Elements::new(raw).map_err(malformed)?;
        loop {
            // As servers write them: then there are no ends of names to look for.
            let first = elements.peek();
            let mut known = |kind, name_len| elements.known(kind, name_len).map_err(malformed);
            match first {
                Some([kind::STRING, b'o', b'p', 0]) => parts.op = Some(Op::parse(&known(kind::STRING, 2)?)?),
                Some([kind::STRING, b'n', b's', 0]) => parts.ns = text(&known(kind::STRING, 2)?),
                Some([kind::BINARY, b'u', b'i', 0]) => parts.uuid = uuid(&known(kind::BINARY, 2)?),
                Some([kind::DOCUMENT, b'o', 0, _]) => parts.o = document(&known(kind::DOCUMENT, 1)?),
                Some([kind::DOCUMENT, b'o', b'2', 0]) => parts.o2 = document(&known(kind::DOCUMENT, 2)?),
                Some([kind::TIMESTAMP, b't', b's', 0]) => ts = timestamp(&known(kind::TIMESTAMP, 2)?),
                Some([kind::INT64, b't', 0, _]) => term = known(kind::INT64, 1)?.as_i64(),
                _ => {
                    let Some(element) = elements.next().map_err(malformed)? else { break };
                    match *element.name {
                        [b't', b's'] => ts = timestamp(&element),
                        [b't'] => term = element.as_i64(),
                        _ => parts.take(&element)?,
                    }
                }
            }
            if ts.is_some() && term.is_some() && parts.are_all() {
                break;
            }
        }
        Ok(Self { at: at(ts, term)?, operation: parts.finish()? })
    }
}

fn at(ts: Option<(u32, u32)>, term: Option<i64>) -> Result<Optime, EngineError> {
    let Some((secs, inc)) = ts else {
        return Err(malformed(Malformed("ts is missing")));
    };
    // The entries that initiate a set come before its first election, and have no term.
    Ok(Optime { secs, inc, term: term.unwrap_or(0).max(0) })
}

impl<'a> Entry<'a> {
    /// Reads an entry.
    ///
    /// # Errors
    /// It is malformed, or of a kind not known here.
    pub fn parse(raw: &'a [u8]) -> Result<Self, EngineError> {
        let mut parts = Parts::default();
        let (mut ts, mut term) = (None, None);
        let (mut lsid, mut number, mut previous, mut stands_alone) = (None, None, None, false);
        let mut elements = Elements::new(raw).map_err(malformed)?;
        while let Some(element) = elements.next().map_err(malformed)? {
            match *element.name {
                [b't', b's'] => ts = timestamp(&element),
                [b't'] => term = element.as_i64(),
                [_] | [_, _] => parts.take(&element)?,
                _ => match element.name {
                    b"lsid" => lsid = document(&element),
                    b"txnNumber" => number = element.as_i64(),
                    b"prevOpTime" => previous = document(&element).map(optime).transpose()?.flatten(),
                    b"multiOpType" => stands_alone = element.as_i64().is_some_and(|n| n != 0),
                    _ => {}
                },
            }
        }
        Ok(Self {
            at: at(ts, term)?,
            operation: parts.finish()?,
            txn: lsid.zip(number).map(|(lsid, number)| TxnId { lsid, number }),
            previous,
            stands_alone,
        })
    }

    /// The part of it that is enough to hand it on.
    pub(crate) fn head(&self) -> Head<'a> {
        Head { at: self.at, operation: self.operation }
    }
}

/// Decodes a document, for what has to be looked at closely. One that is nested deeper than a server allows is refused:
/// decoding goes down into it by recursion.
pub(crate) fn decode(doc: &[u8]) -> Result<Document, EngineError> {
    check_depth(doc).map_err(malformed)?;
    let unreadable = |e: bson::error::Error| EngineError::damaged(format!("a document cannot be read: {e}"));
    Document::try_from(RawDocument::from_bytes(doc).map_err(unreadable)?).map_err(unreadable)
}

/// Cuts the next document off a run of documents; none at its end.
pub(crate) fn next_document<'a>(run: &mut &'a [u8]) -> Result<Option<&'a [u8]>, EngineError> {
    if run.is_empty() {
        return Ok(None);
    }
    let len = read_len(run).filter(|len| *len >= 5 && *len <= run.len());
    let Some((document, rest)) = len.and_then(|len| run.split_at_checked(len)) else {
        return Err(malformed(Malformed("document length")));
    };
    *run = rest;
    Ok(Some(document))
}
