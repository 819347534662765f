//! Putting transactions together: their operations count where they commit, or not at all.
//!
//! In the oplog a transaction is one `applyOps`; or a chain of them linked by `prevOpTime`, all but
//! the last marked `partialTxn`; or either of them with `prepare`, which a later
//! `commitTransaction` or `abortTransaction` decides.
//! Source: mongo/src/mongo/db/repl/README.md, "Transactions".

use std::collections::HashMap;
use std::io::{Read, Seek, Write};
use std::path::PathBuf;

use hindsight_engine::EngineError;
use tempfile::SpooledTempFile;

use super::diff::Malformed;
use super::diff::raw::{Elements, MAX_DEPTH, kind};
use super::entry::{Entry, Op, Operation, malformed, truthy};
use crate::optime::Optime;

/// Parts of one transaction are kept in memory up to this size, then in a file.
const IN_MEMORY: usize = 4 << 20;

/// Receives operations in the order in which they count, each with the optime at which it does.
pub(crate) trait Sink {
    fn operation(&mut self, operation: &Operation<'_>, at: Optime) -> Result<(), EngineError>;
}

/// Transactions whose end was not seen yet.
pub(crate) struct Transactions {
    /// By session: a session has one transaction at a time.
    open: HashMap<Box<[u8]>, Pending>,
    /// What commits up to here is in the data already, so that it may have begun before the log.
    complete_from: Optime,
    scratch: PathBuf,
}

struct Pending {
    number: i64,
    last: Optime,
    /// Its beginning lies before the log that is read.
    beheaded: bool,
    parts: SpooledTempFile,
}

/// What the command document of an `applyOps` says besides its operations.
struct ApplyOps<'a> {
    operations: &'a [u8],
    partial: bool,
    prepare: bool,
}

impl<'a> ApplyOps<'a> {
    fn parse(o: &'a [u8]) -> Result<Self, EngineError> {
        let mut found = Self { operations: &[], partial: false, prepare: false };
        let mut elements = Elements::new(o).map_err(malformed)?;
        while let Some(element) = elements.next().map_err(malformed)? {
            match element.name {
                b"applyOps" if element.kind == kind::ARRAY => found.operations = element.value,
                b"partialTxn" => found.partial = truthy(&element),
                b"prepare" => found.prepare = truthy(&element),
                _ => {}
            }
        }
        Ok(found)
    }
}

/// Hands on every operation of an `applyOps`, also of those inside it.
fn expand(o: &[u8], at: Optime, sink: &mut impl Sink) -> Result<(), EngineError> {
    expand_inner(o, at, 0, sink)
}

fn expand_inner(o: &[u8], at: Optime, level: usize, sink: &mut impl Sink) -> Result<(), EngineError> {
    if level > MAX_DEPTH {
        return Err(malformed(Malformed("nested too deep")));
    }
    let mut operations = Elements::new(ApplyOps::parse(o)?.operations).map_err(malformed)?;
    while let Some(element) = operations.next().map_err(malformed)? {
        let operation = Operation::parse_inner(element.value)?;
        if operation.op == Op::Command && operation.command()?.name == b"applyOps" {
            expand_inner(operation.o, at, level + 1, sink)?;
        } else if operation.op != Op::Noop {
            sink.operation(&operation, at)?;
        }
    }
    Ok(())
}

impl Transactions {
    /// None open. `complete_from`: see [`Transactions::complete_from`]; `scratch` takes what does
    /// not fit in memory.
    pub(crate) fn new(complete_from: Optime, scratch: PathBuf) -> Self {
        Self { open: HashMap::new(), complete_from, scratch }
    }

    /// Takes one entry, and hands on what counts now.
    pub(crate) fn feed(&mut self, entry: &Entry<'_>, sink: &mut impl Sink) -> Result<(), EngineError> {
        let operation = &entry.operation;
        match operation.op {
            Op::Noop => return Ok(()),
            Op::Insert | Op::Update | Op::Delete => return sink.operation(operation, entry.at),
            Op::Command => {}
        }
        let command = operation.command()?.name;
        match (command, entry.txn) {
            (b"applyOps", Some(txn)) if !entry.stands_alone => {
                let flags = ApplyOps::parse(operation.o)?;
                let mut pending = self.take_chain(entry, txn.lsid, txn.number)?;
                if flags.partial || flags.prepare {
                    pending.parts.write_all(operation.o)?;
                    pending.last = entry.at;
                    self.open.insert(txn.lsid.into(), pending);
                    return Ok(());
                }
                if !self.replay(pending, entry.at, sink)? {
                    return Ok(());
                }
                expand(operation.o, entry.at, sink)
            }
            (b"applyOps", _) => expand(operation.o, entry.at, sink),
            (b"commitTransaction", Some(txn)) => {
                let pending = self.take_chain(entry, txn.lsid, txn.number)?;
                self.replay(pending, entry.at, sink).map(|_| ())
            }
            (b"abortTransaction", Some(txn)) => {
                self.open.remove(txn.lsid);
                Ok(())
            }
            _ => sink.operation(operation, entry.at),
        }
    }

    /// What is known so far of the transaction that `entry` goes on with.
    fn take_chain(&mut self, entry: &Entry<'_>, lsid: &[u8], number: i64) -> Result<Pending, EngineError> {
        let known = self.open.remove(lsid).filter(|pending| pending.number == number);
        let fresh = |beheaded| Pending {
            number,
            last: entry.at,
            beheaded,
            parts: tempfile::spooled_tempfile_in(IN_MEMORY, &self.scratch),
        };
        Ok(match (entry.previous, known) {
            (None, _) => fresh(false),
            (Some(previous), Some(known)) if known.last == previous => known,
            _ => fresh(true),
        })
    }

    /// Hands on the operations of the earlier parts; false when they are to be left out.
    fn replay(&self, mut pending: Pending, at: Optime, sink: &mut impl Sink) -> Result<bool, EngineError> {
        if pending.beheaded {
            if at <= self.complete_from {
                return Ok(false);
            }
            return Err(EngineError::damaged(format!(
                "the transaction that commits at {at} began before the log that is kept"
            ))
            .hint("restore from an earlier or a later snapshot"));
        }
        pending.parts.rewind()?;
        let mut part = Vec::new();
        loop {
            part.clear();
            part.extend_from_slice(&[0; 4]);
            match pending.parts.read_exact(&mut part) {
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(true),
                other => other?,
            }
            let len = super::diff::raw::read_len(&part).unwrap_or_default().max(4);
            part.resize(len, 0);
            pending.parts.read_exact(part.get_mut(4..).unwrap_or_default())?;
            expand(&part, at, sink)?;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bson::{Document, Timestamp, doc};

    #[derive(Default)]
    struct Seen(Vec<(String, u32)>);

    impl Sink for Seen {
        fn operation(&mut self, operation: &Operation<'_>, at: Optime) -> Result<(), EngineError> {
            self.0.push((format!("{:?} {}", operation.op, operation.ns), at.secs));
            Ok(())
        }
    }

    fn optime(secs: u32) -> Document {
        doc! {"ts": Timestamp { time: secs, increment: 1 }, "t": 1_i64}
    }

    fn entry(secs: u32, previous: u32, o: Document) -> Document {
        let mut entry = doc! {"lsid": {"id": 1}, "txnNumber": 7_i64, "op": "c", "ns": "admin.$cmd", "o": o};
        entry.extend(optime(secs));
        entry.insert("prevOpTime", optime(previous));
        if previous == 0 {
            entry.insert("prevOpTime", doc! {"ts": Timestamp { time: 0, increment: 0 }, "t": -1_i64});
        }
        entry
    }

    fn ops(ns: &str, partial: bool, prepare: bool) -> Document {
        let mut o = doc! {"applyOps": [{"op": "i", "ns": ns, "o": {"_id": 1}}]};
        if partial {
            o.insert("partialTxn", true);
        }
        if prepare {
            o.insert("prepare", true);
        }
        o
    }

    fn run(entries: &[Document], complete_from: u32) -> Result<Vec<(String, u32)>, EngineError> {
        let start = Optime { secs: complete_from, inc: 1, term: 1 };
        let (mut seen, mut transactions) = (Seen::default(), Transactions::new(start, std::env::temp_dir()));
        for entry in entries {
            let raw = bson::RawDocumentBuf::try_from(entry).unwrap();
            transactions.feed(&Entry::parse(raw.as_bytes())?, &mut seen)?;
        }
        Ok(seen.0)
    }

    #[test]
    fn a_chain_counts_where_it_commits() {
        let entries = [
            entry(10, 0, ops("a.1", true, false)),
            entry(11, 10, ops("a.2", true, false)),
            entry(12, 11, ops("a.3", false, false)),
        ];
        let seen = run(&entries, 0).unwrap();
        assert_eq!(seen, [("Insert a.1".into(), 12), ("Insert a.2".into(), 12), ("Insert a.3".into(), 12)]);
        assert!(run(&entries[..2], 0).unwrap().is_empty());
    }

    #[test]
    fn prepared_ones_wait_for_their_decision() {
        let commit = doc! {"commitTransaction": 1};
        let abort = doc! {"abortTransaction": 1};
        let prepared = entry(10, 0, ops("a.1", false, true));
        assert!(run(std::slice::from_ref(&prepared), 0).unwrap().is_empty());
        assert_eq!(run(&[prepared.clone(), entry(20, 10, commit.clone())], 0).unwrap(), [("Insert a.1".into(), 20)]);
        assert!(run(&[prepared, entry(20, 10, abort), entry(21, 20, commit)], 30).unwrap().is_empty());
    }

    #[test]
    fn a_chain_without_its_beginning_is_an_error_unless_the_data_have_it() {
        let tail = [entry(11, 10, ops("a.2", true, false)), entry(12, 11, ops("a.3", false, false))];
        assert!(run(&tail, 12).unwrap().is_empty());
        assert!(run(&tail, 11).unwrap_err().to_string().contains("began before"));
    }

    #[test]
    fn a_new_transaction_of_the_session_replaces_one_that_never_ended() {
        let mut second = entry(20, 0, ops("a.9", false, false));
        second.insert("txnNumber", 8_i64);
        assert_eq!(run(&[entry(10, 0, ops("a.1", true, false)), second], 0).unwrap(), [("Insert a.9".into(), 20)]);
    }
}
