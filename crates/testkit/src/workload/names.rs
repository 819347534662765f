//! The few databases and collections that the workload works on: few, so that names are made, dropped and reused often.

use std::fmt;
use std::sync::LazyLock;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

/// Longest database name, in bytes.
const DATABASE_BYTES: usize = 63;
/// Longest namespace (database, dot, collection), in bytes, since 4.4.
const NAMESPACE_BYTES: usize = 255;

/// The databases of the workload besides `admin`. Servers refuse ` `, `"`, `$`, `.`, `/`, `\` and NUL in their names.
pub(super) static DATABASES: LazyLock<[String; 3]> = LazyLock::new(|| {
    ["torture".to_owned(), "Ünï🦀%2e+@'()~&=?*:|<>".to_owned(), "long-".repeat(13)[..DATABASE_BYTES].to_owned()]
});

/// Names mostly used for ordinary collections; none is the longest name that the database leaves room for. Servers
/// refuse `$`, a leading dot and `system.` in them (4.4 to 6.0, tried).
const PLAIN: [Option<&str>; 8] = [
    Some("a"),
    Some("A"),
    Some("b"),
    Some("with space"),
    Some("ünï🦀"),
    Some("dots..and."),
    Some("per%2F/..\\\"'\n*?"),
    None,
];
/// Names that are mostly free, for renames to go to.
const SPARE: [Option<&str>; 3] = [Some("moved"), Some("Moved"), Some("moved again")];
const CAPPED: [Option<&str>; 2] = [Some("capped"), Some("capped by size")];
const TIME_SERIES: [Option<&str>; 2] = [Some("weather"), Some("weäther.5")];
const VIEWS: [Option<&str>; 2] = [Some("view"), Some("view.of view")];
const CLUSTERED: [Option<&str>; 1] = [Some("clustered")];
const COLLATED: [Option<&str>; 2] = [Some("collated"), Some("COLLATED")];
const VALIDATED: [Option<&str>; 1] = [Some("validated")];

/// Kinds of collections. Each has names of its own, but any kind may come to have any name, by renames and by
/// [`Kind::any`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    Spare,
    Capped,
    TimeSeries,
    View,
    Clustered,
    Collated,
    Validated,
}

impl Kind {
    const ALL: &[Self] = &[
        Self::Plain,
        Self::Spare,
        Self::Capped,
        Self::TimeSeries,
        Self::View,
        Self::Clustered,
        Self::Collated,
        Self::Validated,
    ];

    /// A random kind.
    pub(super) fn any(rng: &mut StdRng) -> Self {
        *Self::ALL.choose(rng).unwrap_or(&Self::Plain)
    }

    /// What may have the name of another kind, and is then written as that. Capped collections must not before 6.0: in 4.4
    /// an `_id` that is inserted into one again ends the secondaries (they make room each at their own time, and fail to
    /// apply the insert as an update of another size; tried with 4.4.2); in 5.0 documents may grow until there are more
    /// than its size allows, which servers before 6.0 cannot take back.
    pub(super) fn movable(self, version: (u32, u32)) -> bool {
        self != Self::Capped || version >= (6, 0)
    }

    /// A random kind whose documents may be written in any way.
    pub(super) fn writable(rng: &mut StdRng, version: (u32, u32)) -> Self {
        let kind = match rng.random_range(0..20) {
            0 => Self::Collated,
            1 => Self::Clustered,
            2 => Self::Validated,
            3 => Self::Capped,
            4 => Self::Spare,
            _ => Self::Plain,
        };
        if kind.movable(version) { kind } else { Self::Plain }
    }

    fn names(self) -> &'static [Option<&'static str>] {
        match self {
            Self::Plain => &PLAIN,
            Self::Spare => &SPARE,
            Self::Capped => &CAPPED,
            Self::TimeSeries => &TIME_SERIES,
            Self::View => &VIEWS,
            Self::Clustered => &CLUSTERED,
            Self::Collated => &COLLATED,
            Self::Validated => &VALIDATED,
        }
    }
}

/// A collection by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Namespace {
    pub(super) database: &'static str,
    pub(super) collection: String,
}

impl Namespace {
    /// A random one, of a name that collections of this kind mostly have.
    pub(super) fn random(rng: &mut StdRng, kind: Kind) -> Self {
        let database = database(rng);
        Self::within(rng, database, kind)
    }

    /// The same in a given database.
    pub(super) fn within(rng: &mut StdRng, database: &'static str, kind: Kind) -> Self {
        // The first ones more often, for collections that live long enough to have something to change.
        let names = kind.names();
        let index = rng.random_range(0..names.len()).min(rng.random_range(0..names.len()));
        let collection = match names.get(index) {
            Some(Some(name)) => (*name).to_owned(),
            _ => "L".repeat(NAMESPACE_BYTES - 1 - database.len()),
        };
        Self { database, collection }
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.database, self.collection)
    }
}

/// A random database, the first one most often.
pub(super) fn database(rng: &mut StdRng) -> &'static str {
    let [first, second, third] = &*DATABASES;
    match rng.random_range(0..10) {
        0..6 => first,
        6..8 => second,
        _ => third,
    }
}

/// The random numbers of one worker.
pub(super) fn rng(seed: u64, worker: usize) -> StdRng {
    StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(worker as u64))
}
