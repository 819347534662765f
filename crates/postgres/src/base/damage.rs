//! What is wrong with a base, for people.

use hindsight_engine::EngineError;

use super::tar::TarError;
use super::verify::{Finding, Report, Wrong};

/// Files that are named; more are only counted.
const NAMED: usize = 20;
/// What to do where nothing is wrong with the server's own files.
const ON_THEIR_WAY: &str =
    "start the backup again; if it ends alike, look for what changes data on their way: memory, network, a proxy";
/// The same within one line.
const NAMED_IN_A_LINE: usize = 3;

/// What is wrong, a line for each file.
pub(super) fn lines(report: &Report) -> Vec<String> {
    told(&report.findings, NAMED)
}

/// The same as a failure of a backup.
pub(super) fn damaged(report: &Report) -> EngineError {
    let what = format!("the backup is not what it should be: {}", told(&report.findings, NAMED_IN_A_LINE).join("; "));
    let page = report.findings.iter().find(|finding| matches!(finding.what, Wrong::Page(_)));
    let hint = match page {
        Some(Finding { path, .. }) => format!(
            "find the relation (SELECT oid::regclass FROM pg_class WHERE pg_relation_filepath(oid) = '{}', in the database with \
             the OID in that path), rebuild or restore it, and check the server's disks and memory",
            relation(&String::from_utf8_lossy(path))
        ),
        None => ON_THEIR_WAY.to_owned(),
    };
    EngineError::damaged(what).hint(hint)
}

/// The first file of a relation, by any of its files (`GetRelationPath` in relpath.c): further ones have a number at their end, and
/// forks a name.
fn relation(path: &str) -> &str {
    let path = path.rsplit_once('.').map_or(path, |(first, _)| first);
    ["_fsm", "_vm", "_init"].iter().find_map(|fork| path.strip_suffix(fork)).unwrap_or(path)
}

/// An archive that the server has sent, and that cannot be read.
pub(super) fn in_archive(folder: &str, error: &TarError) -> EngineError {
    EngineError::damaged(format!("{folder} as the server sends it: {error}")).hint(ON_THEIR_WAY)
}

fn told(findings: &[Finding], named: usize) -> Vec<String> {
    // They are in the order of their paths.
    let files: Vec<_> = findings.chunk_by(|a, b| a.path == b.path).collect();
    let mut lines: Vec<_> = files.iter().take(named).filter_map(|file| line(file)).collect();
    if files.len() > named {
        let left = files.len() - named;
        lines.push(format!("{left} more {}", if left == 1 { "file" } else { "files" }));
    }
    lines
}

/// The first finding of a file, and how many there are like it.
fn line(file: &[Finding]) -> Option<String> {
    let first = file.first()?;
    Some(match file.len() {
        1 => first.to_string(),
        2 => format!("{first}, and one more finding in it"),
        all => format!("{first}, and {} more findings in it", all - 1),
    })
}

#[cfg(test)]
mod tests {
    use hindsight_engine::FailureKind;

    use super::super::page::PageProblem;
    use super::*;

    fn page(path: &str, block: u32) -> Finding {
        Finding { path: path.into(), what: Wrong::Page(PageProblem { block, stored: 0x12, computed: 0xAB }) }
    }

    fn of(findings: Vec<Finding>) -> Report {
        Report { findings, ..Report::default() }
    }

    #[test]
    fn a_file_is_told_once() {
        let report = of(vec![page("base/5/16384.2", 7), page("base/5/16384.2", 9), page("base/5/2", 1)]);
        assert_eq!(
            lines(&report),
            [
                "\"base/5/16384.2\" is damaged in page 7: its checksum is 00AB, and should be 0012, and one more \
                 finding in it",
                "\"base/5/2\" is damaged in page 1: its checksum is 00AB, and should be 0012",
            ]
        );
        let error = damaged(&report);
        assert_eq!(error.kind, FailureKind::Damaged);
        assert_eq!(relation("pg_tblspc/7/PG_15_202209061/5/16384_vm.1"), "pg_tblspc/7/PG_15_202209061/5/16384");
        assert!(error.what.contains("page 7") && error.hint.is_some_and(|hint| hint.contains("= 'base/5/16384'")));
    }

    #[test]
    fn of_many_some_are_named() {
        let missing = |n: u32| Finding { path: format!("base/5/{n:04}").into_bytes(), what: Wrong::Missing };
        let report = of((0..300).map(missing).collect());
        assert_eq!((lines(&report).len(), lines(&report)[20].as_str()), (21, "280 more files"));
        let what = damaged(&report).what;
        assert!(what.contains("\"base/5/0002\"") && what.ends_with("; 297 more files"), "{what}");
        assert!(!what.contains('\n') && !what.contains("0003"));
    }
}
