//! Something that a verification has to tell.

use hindsight_format::StoredSlice;
use serde::Serialize;

/// Something that a verification has to tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// The object; or the folder, where it is about several or about what is not there.
    pub key: String,
    /// What is the matter with it.
    pub what: String,
    /// What follows from that.
    pub means: String,
    /// What else is affected.
    #[serde(skip)]
    pub(crate) about: About,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Something that was stored is not what it was.
    Damage,
    /// Nothing is lost; it should be known.
    Note,
}

/// What a finding is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum About {
    /// A record, or nothing that others rest on.
    Itself,
    /// A part of this snapshot.
    Snapshot(String),
    /// A captured slice.
    Slice(Box<StoredSlice>),
}

impl Finding {
    pub(crate) fn damage(key: impl Into<String>, what: impl Into<String>, about: About) -> Self {
        Self { level: Level::Damage, key: key.into(), what: what.into(), means: String::new(), about }
    }

    pub(crate) fn note(key: impl Into<String>, what: impl Into<String>, means: impl Into<String>) -> Self {
        Self { level: Level::Note, key: key.into(), what: what.into(), means: means.into(), about: About::Itself }
    }

    #[must_use]
    pub(crate) fn means(mut self, means: impl Into<String>) -> Self {
        self.means = means.into();
        self
    }

    /// Whether it is about a folder rather than one object in it.
    pub(crate) fn is_of_a_whole(&self) -> bool {
        self.key.ends_with('/')
    }
}
