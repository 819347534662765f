//! The collections, as the log changes them.
//!
//! Collections are known by UUID; a name is just a property. Every command here may come again on
//! a catalog that already has its effect (the base is read while the log goes on), and must then
//! lead to the same end.

use std::collections::{BTreeMap, HashMap};

use bson::{Bson, Document, doc};
use hindsight_engine::EngineError;

use crate::namespace;
use crate::oplog::entry::{Operation, Uuid, decode};

/// A collection at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Collection {
    /// Database.
    pub(crate) db: String,
    /// Name in it.
    pub(crate) name: String,
    /// Options, as `listCollections` gives them.
    pub(crate) options: Document,
    /// Indexes by name, without the one on `_id`.
    pub(crate) indexes: BTreeMap<String, Document>,
}

impl Collection {
    /// `db.name`.
    pub(crate) fn namespace(&self) -> String {
        format!("{}.{}", self.db, self.name)
    }

    /// Whether its documents define views, users or roles.
    pub(crate) fn is_definitions(&self) -> bool {
        self.name == namespace::VIEWS || namespace::is_users_or_roles(&self.db, &self.name)
    }

    /// Whether documents keep the order in which they came.
    pub(crate) fn is_capped(&self) -> bool {
        self.options.get_bool("capped").unwrap_or(false)
    }
}

/// All collections at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalog {
    collections: HashMap<Uuid, Collection>,
    emptied: Option<Uuid>,
}

impl Catalog {
    /// Adds a collection.
    pub(crate) fn insert(&mut self, uuid: Uuid, collection: Collection) {
        self.collections.insert(uuid, collection);
    }

    /// Whether it exists.
    pub(crate) fn contains(&self, uuid: &Uuid) -> bool {
        self.collections.contains_key(uuid)
    }

    /// A collection.
    pub(crate) fn get(&self, uuid: &Uuid) -> Option<&Collection> {
        self.collections.get(uuid)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Uuid, &Collection)> {
        self.collections.iter()
    }

    /// The collection that is called `ns` now. For the few entries that do not carry a UUID.
    pub(crate) fn find(&self, ns: &str) -> Option<Uuid> {
        let (db, name) = namespace::split(ns);
        self.collections.iter().find(|(_, c)| c.db == db && c.name == name).map(|(uuid, _)| *uuid)
    }

    /// The collection that the last command emptied, once.
    pub(crate) fn take_emptied(&mut self) -> Option<Uuid> {
        self.emptied.take()
    }

    /// No two collections may have one name in the end.
    pub(crate) fn check_names(&self) -> Result<(), EngineError> {
        let mut names = HashMap::new();
        for (uuid, collection) in &self.collections {
            if let Some(other) = names.insert((&collection.db, &collection.name), uuid) {
                return Err(EngineError::damaged(format!(
                    "two collections are called {} at the restore point ({} and {})",
                    collection.namespace(),
                    hex(uuid),
                    hex(other)
                ))
                .hint("this is a defect: restore to another moment, and report it"));
            }
        }
        Ok(())
    }

    /// Carries out a command. Returns the collections that are gone with it.
    ///
    /// # Errors
    /// The command is not known: nothing is ever skipped silently.
    pub(crate) fn apply(&mut self, operation: &Operation<'_>) -> Result<Vec<Uuid>, EngineError> {
        let command = operation.command()?;
        let db = operation.database();
        let decode = || decode(operation.o);
        match command.name {
            b"create" => {
                let o = decode()?;
                let name = first_text(&o, "create")?;
                let Some(uuid) = operation.uuid else {
                    return Err(EngineError::damaged(format!("the creation of {db}.{name} names no UUID")));
                };
                if namespace::is_protected(db, name) {
                    self.create(uuid, db, name, &o);
                }
            }
            b"drop" => {
                let gone = operation
                    .uuid
                    .or_else(|| self.find(&format!("{db}.{}", first_text(&decode().ok()?, "drop").ok()?)));
                gone.iter().for_each(|uuid| drop(self.collections.remove(uuid)));
                return Ok(gone.into_iter().collect());
            }
            b"renameCollection" => return self.rename(operation, &decode()?),
            b"createIndexes" => {
                let mut spec = decode()?;
                spec.remove("createIndexes");
                let spec = spec.get_document("spec").cloned().unwrap_or(spec);
                self.add_index(operation, spec)?;
            }
            b"commitIndexBuild" => {
                for spec in decode()?.get_array("indexes").map_err(|e| unreadable(operation, &e))? {
                    let spec = spec.as_document().cloned().unwrap_or_default();
                    self.add_index(operation, spec)?;
                }
            }
            b"dropIndexes" | b"deleteIndexes" | b"dropIndex" | b"deleteIndex" => {
                let o = decode()?;
                let index = o.get_str("index").map_err(|e| unreadable(operation, &e))?;
                if let Some(collection) = self.target(operation) {
                    match index {
                        "*" => collection.indexes.clear(),
                        name => drop(collection.indexes.remove(name)),
                    }
                }
            }
            b"collMod" => {
                let o = decode()?;
                if let Some(collection) = self.target(operation) {
                    collection.modify(&o)?;
                }
            }
            b"emptycapped" => {
                self.emptied = operation.uuid.or_else(|| self.find(operation.ns));
            }
            // The collections of a dropped database are dropped one by one before it.
            b"dropDatabase" | b"startIndexBuild" | b"abortIndexBuild" => {}
            // The server's own bookkeeping, outside of what is protected.
            _ if db == "config" || db == "local" => {}
            other => {
                let name = String::from_utf8_lossy(other);
                return Err(EngineError::damaged(format!(
                    "the log has the command {name:?}, which this version of Hindsight does not know: {:?}",
                    decode()?
                ))
                .hint("restore to a moment before it, or update Hindsight"));
            }
        }
        Ok(Vec::new())
    }

    fn create(&mut self, uuid: Uuid, db: &str, name: &str, o: &Document) {
        let mut options = o.clone();
        for side in ["create", "idIndex", "uuid", "temp"] {
            options.remove(side);
        }
        let indexes = self.collections.remove(&uuid).map(|known| known.indexes).unwrap_or_default();
        let collection = Collection { db: db.to_owned(), name: name.to_owned(), options, indexes };
        self.collections.insert(uuid, collection);
    }

    fn rename(&mut self, operation: &Operation<'_>, o: &Document) -> Result<Vec<Uuid>, EngineError> {
        let to = first_text(o, "to")?;
        let (db, name) = namespace::split(to);
        let mut gone = Vec::new();
        if let Some(Bson::Binary(target)) = o.get("dropTarget")
            && let Ok(uuid) = Uuid::try_from(target.bytes.as_slice())
            && operation.uuid != Some(uuid)
        {
            self.collections.remove(&uuid);
            gone.push(uuid);
        }
        if let Some(collection) = operation.uuid.and_then(|uuid| self.collections.get_mut(&uuid)) {
            collection.db = db.to_owned();
            collection.name = name.to_owned();
        }
        Ok(gone)
    }

    fn target(&mut self, operation: &Operation<'_>) -> Option<&mut Collection> {
        self.collections.get_mut(&operation.uuid?)
    }

    fn add_index(&mut self, operation: &Operation<'_>, spec: Document) -> Result<(), EngineError> {
        let name = spec.get_str("name").map_err(|e| unreadable(operation, &e))?.to_owned();
        if let Some(collection) = self.target(operation).filter(|_| name != "_id_") {
            collection.indexes.insert(name, spec);
        }
        Ok(())
    }
}

impl Collection {
    /// Carries out a `collMod`.
    fn modify(&mut self, o: &Document) -> Result<(), EngineError> {
        // Servers before 6.0 switch it off with each `collMod` that does not name it (tried with 5.0.4).
        self.options.remove("recordPreImages");
        for (field, value) in o {
            match (field.as_str(), value) {
                ("collMod", _) => {}
                ("index", Bson::Document(index)) => self.modify_index(index),
                // `off` takes the expiry of a time-series or clustered collection away.
                ("expireAfterSeconds", Bson::String(off)) if off == "off" => drop(self.options.remove(field)),
                ("timeseries", Bson::Document(changes)) => {
                    let mut present = self.options.get_document("timeseries").cloned().unwrap_or_default();
                    // A new granularity brings its own span
                    // (mongo/src/mongo/db/timeseries/timeseries_options.cpp).
                    let span = changes.get_str("granularity").ok().and_then(|granularity| match granularity {
                        "seconds" => Some(3_600),
                        "minutes" => Some(86_400),
                        "hours" => Some(2_592_000),
                        _ => None,
                    });
                    present.extend(span.map(|span: i32| ("bucketMaxSpanSeconds".to_owned(), Bson::Int32(span))));
                    present.extend(changes.clone());
                    self.options.insert("timeseries", present);
                }
                ("cappedSize", size) => drop(self.options.insert("size", size.clone())),
                ("cappedMax", max) => drop(self.options.insert("max", max.clone())),
                (
                    "expireAfterSeconds" | "viewOn" | "pipeline" | "changeStreamPreAndPostImages" | "recordPreImages",
                    value,
                ) => drop(self.options.insert(field, value.clone())),
                ("validator" | "validationLevel" | "validationAction", value) => self.modify_validation(field, value),
                // Without effect on what is kept.
                ("$db" | "lsid" | "writeConcern" | "comment" | "dryRun" | "bypassDocumentValidation", _) => {}
                _ => {
                    return Err(EngineError::damaged(format!(
                        "collMod of {} has the option {field:?}, which this version of Hindsight does not know",
                        self.namespace()
                    ))
                    .hint("restore to a moment before it, or update Hindsight"));
                }
            }
        }
        Ok(())
    }

    /// Whichever of the three is changed, the server stores level and action with it, and no empty
    /// validator (mongo/src/mongo/db/catalog/collection_impl.cpp, `updateValidator`).
    fn modify_validation(&mut self, field: &str, value: &Bson) {
        self.options.insert(field, value.clone());
        if self.options.get_document("validator").is_ok_and(Document::is_empty) {
            self.options.remove("validator");
        }
        for (field, default) in [("validationLevel", "strict"), ("validationAction", "error")] {
            if !self.options.contains_key(field) {
                self.options.insert(field, default);
            }
        }
    }

    fn modify_index(&mut self, change: &Document) {
        let wanted = change.get_str("name").ok();
        let pattern = change.get_document("keyPattern").ok();
        let found = self.indexes.iter_mut().find(|(name, spec)| {
            wanted == Some(name) || (pattern.is_some() && spec.get_document("key").ok() == pattern)
        });
        let Some((_, spec)) = found else { return };
        for (field, value) in change {
            match (field.as_str(), value) {
                ("name" | "keyPattern", _) => {}
                ("hidden" | "prepareUnique", Bson::Boolean(false)) => drop(spec.remove(field)),
                // Making an index unique ends its preparation for that.
                ("unique", Bson::Boolean(true)) => {
                    spec.remove("prepareUnique");
                    spec.insert("unique", true);
                }
                _ => drop(spec.insert(field, value.clone())),
            }
        }
    }
}

fn first_text<'a>(o: &'a Document, field: &str) -> Result<&'a str, EngineError> {
    o.get_str(field).map_err(|e| EngineError::damaged(format!("a command of the log without {field:?}: {e}")))
}

fn unreadable(operation: &Operation<'_>, error: &dyn std::fmt::Display) -> EngineError {
    EngineError::damaged(format!("a command on {} cannot be read: {error}", operation.ns))
}

fn hex(uuid: &Uuid) -> String {
    uuid.iter().map(|b| format!("{b:02x}")).collect()
}

/// The definition of an index such that building it anew gives the same index: what `listIndexes`
/// leaves out because it is simple must be said where the collection's default is not.
pub(crate) fn rebuildable(spec: &Document, collection: &Collection) -> Document {
    let mut spec = spec.clone();
    for stale in ["ns", "background", "buildUUID"] {
        spec.remove(stale);
    }
    if collection.options.contains_key("collation") && !spec.contains_key("collation") {
        spec.insert("collation", doc! {"locale": "simple"});
    }
    spec
}
