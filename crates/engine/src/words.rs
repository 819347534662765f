//! What an engine calls things, where others tell of them.

/// A noun: of one thing, of several.
pub type Noun = (&'static str, &'static str);

/// The words of an engine, in what people read and in the keys of what programs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words {
    /// What holds items (MongoDB: a collection).
    pub container: Noun,
    /// What data are counted in (MongoDB: a document).
    pub item: Noun,
    /// An index, where they are counted.
    pub index: Option<Noun>,
    /// The server's own log (MongoDB: the oplog).
    pub log: &'static str,
    /// What begins a comment in the database's own shell.
    pub comment: &'static str,
}
