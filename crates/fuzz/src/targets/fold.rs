//! Stored catalogs and checkpoints, and the fold over one with any documents and any log.

use hindsight_mongodb::fuzzing::{Attempt, catalog_again, checkpoint_again, next_document};

use crate::SEPARATOR;
use crate::oracle::{MAX_DEPTH, depth};

/// A byte of flags; then catalog (or a checkpoint), base and log, with [`SEPARATOR`]s between.
pub(crate) fn fold(input: &[u8]) {
    let Some((flags, rest)) = input.split_first() else { return };
    let (catalog, rest) = part(rest);
    if let Ok(again) = catalog_again(catalog) {
        assert_eq!(catalog_again(&again).ok(), Some(again), "what is written is read");
    }
    if let Ok(again) = checkpoint_again(catalog) {
        assert_eq!(checkpoint_again(&again).ok(), Some(again), "what is written is read");
    }
    let (base, log) = part(rest);
    let attempt = |memory, times| Attempt {
        catalog,
        base,
        log,
        consistent_after: [0, 3, 60, u32::MAX][usize::from(flags & 3)],
        selective: flags & 4 != 0,
        memory,
        times,
    };
    let once = attempt(64 << 20, 1).run();
    let twice = attempt(64 << 20, 2).run();
    match (&once, &twice) {
        (Ok(once), Ok(twice)) => assert!(once == twice, "an entry that comes twice counts once"),
        (once, twice) => assert_eq!(once.is_ok(), twice.is_ok(), "an entry that comes twice counts once"),
    }
    let Ok(once) = once else { return };
    if sound(base) && sound(log) {
        for document in once.documents.values().flatten() {
            assert!(depth(document).is_some(), "well formed in, well formed out");
        }
    }
    // Every spill makes 128 files.
    if flags & 8 != 0 {
        let _ = attempt(1 << 10, 1).run();
    }
}

/// The documents up to the next separator, and what comes after it.
fn part(run: &[u8]) -> (&[u8], &[u8]) {
    let mut rest = run;
    loop {
        let at = run.len() - rest.len();
        match next_document(&mut rest) {
            Ok(Some(document)) if document == SEPARATOR => return (&run[..at], rest),
            Ok(Some(_)) => {}
            _ => return (run, &[]),
        }
    }
}

fn sound(mut run: &[u8]) -> bool {
    while let Ok(Some(document)) = next_document(&mut run) {
        if depth(document).is_none_or(|depth| depth > MAX_DEPTH) {
            return false;
        }
    }
    run.is_empty()
}
