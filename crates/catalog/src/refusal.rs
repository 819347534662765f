//! Why a restore is refused, and the way out.

use std::fmt;

use hindsight_format::format_time;
use jiff::Timestamp;
use thiserror::Error;

use crate::history::History;
use crate::timeline::Gap;

/// A state that can be restored, near the one that cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nearest {
    /// Any second up to or from this one.
    Time(Timestamp),
    /// Only what this snapshot holds.
    Snapshot {
        /// Its name.
        id: String,
        /// The time at which it is consistent.
        time: Timestamp,
    },
}

impl Nearest {
    /// When it is.
    pub fn time(&self) -> Timestamp {
        match self {
            Self::Time(time) | Self::Snapshot { time, .. } => *time,
        }
    }
}

impl fmt::Display for Nearest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => f.write_str(&format_time(*time)),
            Self::Snapshot { id, time } => write!(f, "snapshot {id} (the state at {})", format_time(*time)),
        }
    }
}

/// Why a restore, or a removal, is refused. Each says in one line what is the matter; [`Refusal::hint`] says what
/// to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The target is later than now.
    #[error("{} is in the future: it is {} now", format_time(*.target), format_time(*.now))]
    InFuture {
        /// The target.
        target: Timestamp,
        /// Now.
        now: Timestamp,
        /// The last state that can be restored.
        end: Option<Nearest>,
    },
    /// The target is later than all that can be restored.
    #[error("{} cannot be restored: what can be restored ends at {end}", format_time(*.target))]
    AfterEnd {
        /// The target.
        target: Timestamp,
        /// The last state that can be restored.
        end: Nearest,
        /// How far the log is stored, if further: without a snapshot to start from.
        captured: Option<Timestamp>,
    },
    /// The target is earlier than all that can be restored.
    #[error("no base snapshot found before {}: what can be restored begins at {earliest}", format_time(*.target))]
    BeforeFirst {
        /// The target.
        target: Timestamp,
        /// The first state that can be restored.
        earliest: Nearest,
    },
    /// The target lies where the log is broken, or where no snapshot reaches it.
    #[error("{} cannot be restored: {}", format_time(*.target), .gap.cause)]
    InGap {
        /// The target.
        target: Timestamp,
        /// What cannot be restored: from the end of the range before to the start of the one after.
        gap: Box<Gap>,
        /// The last state before it that can be restored.
        before: Option<Nearest>,
        /// The first state after it that can be restored.
        after: Option<Nearest>,
    },
    /// There is nothing to restore.
    #[error("no base snapshot found: nothing can be restored yet")]
    NoSnapshots,
    /// There is no such snapshot.
    #[error("there is no snapshot {name:?}")]
    UnknownSnapshot {
        /// The name given.
        name: String,
        /// The snapshots that come closest, closest first.
        nearest: Vec<String>,
    },
    /// The manifest of a snapshot that is needed, or may be, cannot be read.
    #[error("{what}")]
    Damaged {
        /// Which, and what is wrong with it.
        what: String,
    },
    /// A snapshot to restore and another one as its base were both named.
    #[error("a snapshot is restored from itself: {snapshot} cannot be restored from {base}")]
    TwoBases {
        /// The snapshot to restore.
        snapshot: String,
        /// The other one.
        base: String,
    },
    /// The named base holds what is newer than the target.
    #[error(
        "snapshot's last write is later than the target time. Try to set an earlier snapshot \
         ({name} is at {}, the target is {})", format_time(*.last), format_time(*.target)
    )]
    BaseTooLate {
        /// The base.
        name: String,
        /// Its last write.
        last: Timestamp,
        /// The target.
        target: Timestamp,
        /// The newest snapshot that fits.
        earlier: Option<String>,
    },
    /// No unbroken log leads from the named base to the target.
    #[error("no unbroken log leads from snapshot {name} to {}: it ends at {end}", format_time(*.target))]
    BaseNotConnected {
        /// The base.
        name: String,
        /// The target.
        target: Timestamp,
        /// The last state that can be restored from that base.
        end: Nearest,
        /// The newest snapshot that fits.
        better: Option<String>,
    },
    /// Only a snapshot of some namespaces reaches the target, and such a one is used only by name.
    #[error(
        "only the selective snapshot {name} leads to {}, and it holds nothing but {}",
        format_time(*.target), .namespaces.join(", ")
    )]
    SelectiveBase {
        /// The newest selective snapshot that fits.
        name: String,
        /// What it holds.
        namespaces: Vec<String>,
        /// The target.
        target: Timestamp,
    },
    /// A stretch of log was asked for by something else than two points.
    #[error("a stretch of the log is given by two times or positions")]
    NoStretch,
    /// A stretch that ends before it starts.
    #[error("nothing lies between {} and {}", format_time(*.from), format_time(*.to))]
    Backwards {
        /// Its start.
        from: Timestamp,
        /// Its end.
        to: Timestamp,
    },
    /// Not all of a stretch of log is stored.
    #[error("the log from {} to {} is not stored in one piece", format_time(*.from), format_time(*.to))]
    NotStored {
        /// Its start.
        from: Timestamp,
        /// Its end.
        to: Timestamp,
        /// What is stored in one piece, by epoch.
        stored: Vec<(Timestamp, Timestamp)>,
    },
    /// A snapshot builds upon one that is not there.
    #[error("snapshot {name} cannot be restored: {lacks}")]
    NotWhole {
        /// The snapshot.
        name: String,
        /// What is the matter with the one that it builds upon.
        lacks: String,
    },
    /// There is no snapshot that an incremental one could build upon.
    #[error("there is no snapshot of the present history that an incremental one could build upon")]
    NothingToBuildUpon,
    /// An incremental snapshot was to build upon a selective one.
    #[error("no incremental snapshot can build upon {name}: it holds only a part of the data")]
    OnlyAPart {
        /// The selective one.
        name: String,
    },
    /// The snapshot to delete is one that others build upon.
    #[error("cannot delete snapshot {name}: {} on it", build(.children))]
    HasChildren {
        /// The snapshot.
        name: String,
        /// Those that build upon it, oldest first.
        children: Vec<String>,
    },
    /// The snapshot to delete is what the log that is being captured rests on.
    #[error(
        "cannot delete the last PITR base snapshot while PITR is enabled: no other one than {name} leads to the \
         end of what is captured"
    )]
    LastPitrBase {
        /// The snapshot.
        name: String,
    },
}

/// `X builds`, `X and Y build`.
fn build(children: &[String]) -> String {
    match children {
        [only] => format!("{only} builds"),
        all => format!("{} build", all.join(" and ")),
    }
}

impl Refusal {
    /// The same where snapshots cannot be read, one of which may have led to the target.
    pub(crate) fn beside_damage(self, history: &History) -> Self {
        let lacks_base = matches!(
            self,
            Self::NoSnapshots
                | Self::AfterEnd { .. }
                | Self::BeforeFirst { .. }
                | Self::InGap { .. }
                | Self::SelectiveBase { .. }
        );
        let damaged = history.damaged.iter().filter(|record| record.snapshot().is_some());
        let damaged: Vec<_> = damaged.map(ToString::to_string).collect();
        if !lacks_base || damaged.is_empty() {
            return self;
        }
        Self::Damaged { what: format!("{self}; {}", damaged.join("; ")) }
    }

    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::InFuture { .. } => "in-future",
            Self::AfterEnd { .. } => "after-end",
            Self::BeforeFirst { .. } => "before-first",
            Self::InGap { .. } => "in-gap",
            Self::NoSnapshots => "no-snapshots",
            Self::UnknownSnapshot { .. } => "unknown-snapshot",
            Self::Damaged { .. } => "damaged",
            Self::TwoBases { .. } => "two-bases",
            Self::BaseTooLate { .. } => "base-too-late",
            Self::BaseNotConnected { .. } => "base-not-connected",
            Self::SelectiveBase { .. } => "selective-base",
            Self::NoStretch => "no-stretch",
            Self::Backwards { .. } => "backwards",
            Self::NotStored { .. } => "not-stored",
            Self::NotWhole { .. } => "not-whole",
            Self::NothingToBuildUpon => "nothing-to-build-upon",
            Self::OnlyAPart { .. } => "only-a-part",
            Self::HasChildren { .. } => "has-children",
            Self::LastPitrBase { .. } => "last-pitr-base",
        }
    }

    /// What to do about it, in one line.
    pub fn hint(&self) -> String {
        match self {
            Self::InFuture { end: Some(end), .. } => format!("the latest that can be restored is {end}"),
            Self::InFuture { end: None, .. } | Self::NoSnapshots => "take a snapshot with `backup` first".to_owned(),
            Self::AfterEnd { end, captured: Some(captured), .. } => format!(
                "restore to {end}; the log is stored until {}, but no snapshot leads into it: take one",
                format_time(*captured)
            ),
            Self::AfterEnd { end, captured: None, .. } => {
                format!("restore to {end}, or wait until more of the log is captured")
            }
            Self::BeforeFirst { earliest, .. } => format!("restore to {earliest} or later"),
            Self::InGap { before: Some(before), after: Some(after), .. } => {
                format!("the nearest that can be restored are {before} and {after}")
            }
            Self::InGap { before: Some(near), .. } | Self::InGap { after: Some(near), .. } => {
                format!("the nearest that can be restored is {near}")
            }
            Self::InGap { .. } => "see `list` for what can be restored".to_owned(),
            Self::UnknownSnapshot { nearest, .. } if nearest.is_empty() => {
                "there are no snapshots; take one with `backup`".to_owned()
            }
            Self::UnknownSnapshot { nearest, .. } => format!("did you mean {}?", nearest.join(" or ")),
            Self::Damaged { .. } => {
                "put the record right from a copy of the repository; other snapshots can be restored, see `list`"
                    .to_owned()
            }
            Self::TwoBases { .. } => "name only one of the two, or give a time".to_owned(),
            Self::BaseTooLate { earlier: Some(name), .. } => format!("snapshot {name} fits"),
            Self::BaseTooLate { earlier: None, .. } => "no earlier snapshot reaches that time; see `list`".to_owned(),
            Self::BaseNotConnected { better: Some(name), .. } => format!("snapshot {name} fits"),
            Self::BaseNotConnected { end, .. } => format!("restore to {end} at the latest"),
            Self::SelectiveBase { name, .. } => {
                format!("name it with `--base-snapshot {name}` to restore only what it holds")
            }
            Self::NoStretch => "write 2021-02-07T02:59:59Z, or a position".to_owned(),
            Self::Backwards { .. } => "the end has to be later than the start".to_owned(),
            Self::NotStored { stored, .. } if stored.is_empty() => "no log is stored: is PITR on?".to_owned(),
            Self::NotStored { stored, .. } => {
                let pieces = stored.iter().map(|(from, to)| format!("{} - {}", format_time(*from), format_time(*to)));
                format!("stored in one piece: {}", pieces.collect::<Vec<_>>().join(", "))
            }
            Self::NotWhole { .. } => {
                "restore from another snapshot, see `list`; a new chain begins with a full backup".to_owned()
            }
            Self::NothingToBuildUpon => "take a full one first, with `backup`".to_owned(),
            Self::OnlyAPart { .. } => "name a full one, or leave it out to take the newest".to_owned(),
            Self::HasChildren { children, .. } => match children.as_slice() {
                [child] => format!("delete {child} first: it cannot be restored without it"),
                children => format!(
                    "delete those first, the newest ({}) before the others: they cannot be restored without it",
                    children.last().map_or("", String::as_str)
                ),
            },
            Self::LastPitrBase { .. } => {
                "take a `backup` first, or switch PITR off with `config --set pitr.enabled=false`".to_owned()
            }
        }
    }
}
