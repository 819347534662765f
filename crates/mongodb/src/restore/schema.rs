//! Collections, indexes and views of the target.

use std::collections::{HashMap, HashSet};

use bson::{Bson, Document, doc};
use futures::{StreamExt, TryStreamExt, stream};
use hindsight_engine::{EngineError, FailureKind, Job, Result, Selection};
use mongodb::Client;

use super::data::Definitions;
use super::prepare::release;
use crate::failure::{code, code_of, driver, unsupported};
use crate::fold::{Catalog, Collection, rebuildable};
use crate::namespace::{self, FUNCTIONS, VIEWS};
use crate::oplog::entry::Uuid;
use crate::snapshot::catalog::{is_selected, list_collections};

/// Commands that run at the same time.
const PARALLEL: usize = 4;

/// The largest size that a capped collection may have (MongoDB manual, "Change the Size of a Capped Collection").
const LARGEST: i64 = 1 << 50;

/// A collection that will exist.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) uuid: Uuid,
    /// Where to.
    pub(super) db: String,
    pub(super) name: String,
    /// Buckets of a time-series that is no more: something else may have its name.
    orphaned: bool,
    /// Of the name that such buckets would be seen by: servers change those where this is named (seen with 6.0).
    hidden: bool,
    /// What it was at the restore point.
    source: Collection,
}

impl Target {
    fn new(uuid: Uuid, db: String, name: String, source: Collection) -> Self {
        Self { uuid, db, name, orphaned: false, hidden: false, source }
    }

    pub(super) fn is_capped(&self) -> bool {
        self.source.is_capped()
    }

    /// The name to create and change it by.
    pub(super) fn handle(&self) -> &str {
        if self.orphaned { &self.name } else { namespace::visible(&self.name) }
    }

    /// Whether the server makes the collection from the definition of a time-series.
    fn is_time_series(&self) -> bool {
        !self.orphaned && namespace::time_series_of(&self.name).is_some()
    }

    pub(super) fn is_orphaned(&self) -> bool {
        self.orphaned
    }

    pub(super) fn is_hidden(&self) -> bool {
        self.hidden
    }

    /// Refuses to give documents or indexes to what is hidden: the buckets would get them.
    pub(super) fn check_visible(&self) -> Result<()> {
        if !self.hidden {
            return Ok(());
        }
        let (namespace, buckets) = (self.namespace(), namespace::buckets_of(&self.name));
        Err(unsupported(
            format!(
                "{namespace} cannot be filled: {buckets}, left by a time-series, takes what is written to its name"
            ),
            "restore everything else with --ns, or a moment before those buckets were there",
        ))
    }

    /// Whether it gets its size when it has its documents, on a server where that can be.
    fn is_resized(&self) -> bool {
        self.is_capped() && !self.hidden
    }

    fn is_clustered_and_capped(&self) -> bool {
        self.is_capped() && self.source.options.contains_key("clusteredIndex")
    }

    pub(super) fn namespace(&self) -> String {
        format!("{}.{}", self.db, self.name)
    }
}

/// The collections that will exist, and those whose documents are wanted for another use.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    targets: HashMap<Uuid, Target>,
    /// `system.views` of databases, users and roles: their documents are used, not inserted.
    definitions: HashMap<Uuid, (String, String)>,
}

impl Wanted {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Target> {
        self.targets.values()
    }

    /// Finds out which buckets have no time-series any more, and what is hidden by those. A drop and another creation at
    /// the same time can leave such.
    pub(super) fn find_orphans(&mut self, definitions: &Definitions) {
        let views = definitions.values().flatten();
        let series: HashSet<(&str, &str)> = views
            .filter_map(|view| Some((namespace::split(view.get_str("_id").ok()?).0, view.get_str("viewOn").ok()?)))
            .collect();
        for target in
            self.targets.values_mut().filter(|target| namespace::time_series_of(&target.source.name).is_some())
        {
            target.orphaned = !series.contains(&(target.source.db.as_str(), target.source.name.as_str()));
        }
        let orphans: HashSet<_> = self.iter().filter(|target| target.orphaned).map(Target::namespace).collect();
        for target in self.targets.values_mut() {
            target.hidden = orphans.contains(&format!("{}.{}", target.db, namespace::buckets_of(&target.name)));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.targets.len()
    }

    pub(super) fn target(&self, uuid: &Uuid) -> Option<&Target> {
        self.targets.get(uuid)
    }

    /// The collection's own database and name, when its documents are definitions.
    pub(super) fn definitions(&self, uuid: &Uuid) -> Option<&(String, String)> {
        self.definitions.get(uuid)
    }
}

/// What is wanted of everything that existed at the restore point.
pub(super) fn wanted(catalog: &Catalog, selection: &Selection) -> Wanted {
    let mut wanted = Wanted::default();
    for (uuid, collection) in catalog.iter() {
        let (db, name) = (&collection.db, &collection.name);
        if !is_selected(selection, db, name) || !namespace::is_protected(db, name) {
            continue;
        }
        if collection.is_definitions() {
            wanted.definitions.insert(*uuid, (db.clone(), name.clone()));
            continue;
        }
        let (db, visible) = selection.target(db, namespace::visible(name));
        let name = match namespace::time_series_of(name) {
            Some(_) => namespace::buckets_of(&visible),
            None => visible,
        };
        wanted.targets.insert(*uuid, Target::new(*uuid, db, name, collection.clone()));
    }
    wanted
}

/// Refuses indexes of a kind that the target's version does not build any more: geoHaystack, which ended with 4.4
/// (<https://www.mongodb.com/docs/v5.0/release-notes/5.0-compatibility/>).
pub(super) fn check_kinds(wanted: &Wanted, version: &str) -> Result<()> {
    if release(version) < Some((5, 0)) {
        return Ok(());
    }
    let haystack = |spec: &&Document| {
        let key = spec.get_document("key").ok();
        key.is_some_and(|key| key.values().any(|kind| kind.as_str() == Some("geoHaystack")))
    };
    let found = wanted.iter().find_map(|target| Some((target, target.source.indexes.values().find(haystack)?)));
    let Some((target, spec)) = found else { return Ok(()) };
    let (namespace, name) = (target.namespace(), spec.get_str("name").unwrap_or_default());
    Err(unsupported(
        format!("the index {name:?} of {namespace} is of the kind geoHaystack, which MongoDB {version} does not have"),
        "restore into 4.4 and drop it there, or leave its collection out with --ns",
    ))
}

/// Whether capped collections of this server can be given another size. They may hold more than that: documents grow (since
/// 5.0), and a new size counts from the next insert on. So they get their size when they have their documents.
pub(super) fn can_be_resized(version: &str, compatibility_version: Option<&str>) -> bool {
    let since = |version| release(version) >= Some((6, 0));
    since(version) && compatibility_version.is_none_or(since)
}

/// Something of the target that is there now.
#[derive(Clone, Debug)]
pub(super) struct Existing {
    pub(super) db: String,
    pub(super) name: String,
    pub(super) kind: String,
}

/// What the restore replaces or drops: everything selected. Under another name nothing is.
pub(super) async fn existing(client: &Client, selection: &Selection) -> Result<Vec<Existing>> {
    let mut found = Vec::new();
    let databases = client.list_database_names().await.map_err(|e| driver("listing databases", e))?;
    for db in databases.into_iter().filter(|db| db != "local" && db != "config") {
        let listing = list_collections(&client.database(&db)).await?;
        let series = |name: &str| {
            let is = |info: &&Document, field, value: &str| info.get_str(field).is_ok_and(|found| found == value);
            listing.iter().any(|info| is(&info, "type", "timeseries") && is(&info, "name", name))
        };
        for info in &listing {
            let name = info.get_str("name").unwrap_or_default().to_owned();
            let kind = info.get_str("type").unwrap_or("collection").to_owned();
            let own = name == VIEWS || namespace::time_series_of(&name).is_some_and(series);
            if !own
                && namespace::is_protected(&db, &name)
                && !namespace::is_users_or_roles(&db, &name)
                && selection.contains(&db, namespace::visible(&name))
            {
                found.push(Existing { db: db.clone(), name, kind });
            }
        }
    }
    // Views first: what they look at may go then.
    found.sort_by_key(|e| e.kind != "view");
    Ok(found)
}

/// Drops what is replaced.
pub(super) async fn clear(client: &Client, selection: &Selection) -> Result<()> {
    if selection.renaming().is_some() {
        return Ok(());
    }
    let existing = existing(client, selection).await?;
    // Server-side functions cannot be dropped but with their database.
    let mut dropped = HashSet::new();
    for Existing { db, .. } in existing.iter().filter(|e| e.name == FUNCTIONS && selection.contains(&e.db, "*")) {
        match client.database(db).drop().await {
            Ok(()) => drop(dropped.insert(db)),
            // The built-in role `restore` does not allow it.
            Err(error) if code_of(&error) == Some(code::UNAUTHORIZED) => {}
            Err(error) => return Err(driver(&format!("dropping the database {db}"), error)),
        }
    }
    for Existing { db, name, .. } in existing.iter().filter(|e| !dropped.contains(&e.db)) {
        let database = client.database(db);
        let gone = match name.as_str() {
            FUNCTIONS => database.run_command(doc! {"delete": name, "deletes": [{"q": {}, "limit": 0}]}).await,
            _ => database.run_command(doc! {"drop": name}).await,
        };
        if let Err(error) = gone
            && code_of(&error) != Some(code::NAMESPACE_NOT_FOUND)
        {
            return Err(driver(&format!("dropping {db}.{name}"), error));
        }
    }
    Ok(())
}

/// Creates a collection by itself, with all its options.
pub(crate) async fn create_alone(client: &Client, collection: Collection) -> mongodb::error::Result<()> {
    let (db, name, expiry) =
        (collection.db.clone(), collection.name.clone(), collection.options.get("expireAfterSeconds").cloned());
    let target = Target::new(Uuid::default(), db, name, collection);
    let mut command = create_command(&target);
    command.extend(expiry.map(|expiry| ("expireAfterSeconds".to_owned(), expiry)));
    run_create(client, &target, command).await
}

/// `create` refuses what `convertToCapped` makes of a clustered collection, so it is made the same way.
async fn run_create(client: &Client, target: &Target, mut command: Document) -> mongodb::error::Result<()> {
    let database = client.database(&target.db);
    if !target.is_clustered_and_capped() {
        return database.run_command(command).await.map(drop);
    }
    let size = command.get("size").cloned();
    ["capped", "size", "max"].iter().for_each(|option| drop(command.remove(option)));
    database.run_command(command).await?;
    database.run_command(doc! {"convertToCapped": &target.name, "size": size}).await.map(drop)
}

/// The command that creates a collection, without what must not act before all documents are
/// there.
fn create_command(target: &Target) -> Document {
    let mut command = doc! {"create": target.handle()};
    let time_series = target.is_time_series();
    for (option, value) in &target.source.options {
        match option.as_str() {
            // Expiry comes last; see `finish`.
            "expireAfterSeconds" => {}
            // The server makes these itself for the buckets of a time-series.
            "validator" | "clusteredIndex" if time_series => {}
            "validationLevel" | "validationAction" if time_series => {}
            // The span follows from the granularity, and cannot be said beside it.
            "timeseries" if time_series => {
                let mut options = value.as_document().cloned().unwrap_or_default();
                if options.contains_key("granularity") && !options.contains_key("bucketRoundingSeconds") {
                    options.remove("bucketMaxSpanSeconds");
                }
                command.insert(option, options);
            }
            // Validators that were set to nothing.
            "validator" if value.as_document().is_some_and(Document::is_empty) => {}
            _ => drop(command.insert(option, value.clone())),
        }
    }
    command
}

/// Creates the collections, empty and without indexes. `roomy`: capped ones larger than anything, until [`finish`], but for
/// those that cannot be changed then, as something else hides them.
pub(super) async fn create(client: &Client, wanted: &Wanted, roomy: bool) -> Result<()> {
    let create = |target: Target| {
        let client = client.clone();
        async move {
            let mut command = create_command(&target);
            if roomy && target.is_resized() {
                command.insert("size", LARGEST);
                command.remove("max");
            }
            match run_create(&client, &target, command).await {
                // It was emptied instead of dropped.
                Err(error) if code_of(&error) == Some(code::NAMESPACE_EXISTS) && target.name == FUNCTIONS => Ok(()),
                created => created.map_err(|e| driver(&format!("creating {}", target.namespace()), e)),
            }
        }
    };
    stream::iter(wanted.iter().cloned().map(create)).buffer_unordered(PARALLEL).try_collect().await
}

/// Builds all indexes; returns how many.
pub(super) async fn build_indexes(client: &Client, job: &Job, wanted: &Wanted) -> Result<u64> {
    let build = |target: Target| {
        let client = client.clone();
        async move {
            job.check()?;
            let specs: Vec<Document> =
                target.source.indexes.values().map(|spec| rebuildable(spec, &target.source)).collect();
            let count = specs.len() as u64;
            if !specs.is_empty() {
                target.check_visible()?;
                let command = doc! {"createIndexes": &target.name, "indexes": specs, "commitQuorum": "majority"};
                let built = client.database(&target.db).run_command(command).await;
                built.map_err(|e| driver(&format!("building the indexes of {}", target.namespace()), e))?;
            }
            Ok::<_, EngineError>(count)
        }
    };
    stream::iter(wanted.iter().cloned().map(build))
        .buffer_unordered(PARALLEL)
        .try_fold(0, |sum, count| async move { Ok(sum + count) })
        .await
}

/// Switches on what acts on documents: sizes of capped collections, expiry of time-series and clustered ones.
pub(super) async fn finish(client: &Client, wanted: &Wanted, roomy: bool) -> Result<()> {
    for target in wanted.iter().filter(|target| roomy && target.is_resized()) {
        let mut command = doc! {"collMod": &target.name};
        for (option, field) in [("size", "cappedSize"), ("max", "cappedMax")] {
            command.extend(target.source.options.get(option).map(|value| (field.to_owned(), value.clone())));
        }
        let done = client.database(&target.db).run_command(command).await;
        done.map_err(|e| driver(&format!("setting the size of {}", target.namespace()), e))?;
    }
    for target in wanted.iter() {
        let Some(seconds) = target.source.options.get("expireAfterSeconds") else { continue };
        let command = doc! {"collMod": target.handle(), "expireAfterSeconds": seconds.clone()};
        let done = client.database(&target.db).run_command(command).await;
        done.map_err(|e| driver(&format!("setting the expiry of {}", target.namespace()), e))?;
    }
    Ok(())
}

/// Creates the views, before there is anything to look at: a view that fits no more with what it looks
/// at can exist, but could not be created then. For the same reason those that others look at come
/// last. Time-series make theirs themselves.
pub(super) async fn create_views(client: &Client, selection: &Selection, definitions: &Definitions) -> Result<()> {
    for ((db, name), views) in definitions {
        if name != VIEWS {
            continue;
        }
        for view in dependents_first(db, views) {
            let Some((db, name)) = view.get_str("_id").ok().map(namespace::split) else { continue };
            let buckets = view.get_str("viewOn").is_ok_and(|on| namespace::time_series_of(on).is_some());
            if buckets || !selection.contains(db, name) {
                continue;
            }
            let (db, name) = selection.target(db, name);
            let mut command = doc! {"create": &name};
            command.extend(view.clone().into_iter().filter(|(field, _)| field != "_id"));
            let created = client.database(&db).run_command(command).await;
            created.map_err(|e| driver(&format!("creating the view {db}.{name}"), e))?;
        }
    }
    Ok(())
}

/// Views in such an order that none comes after one that it looks at.
fn dependents_first<'a>(db: &str, views: &'a [Document]) -> Vec<&'a Document> {
    let name = |view: &'a Document| {
        let id = view.get_str("_id").unwrap_or_default();
        id.strip_prefix(db).and_then(|rest| rest.strip_prefix('.')).unwrap_or(id)
    };
    let places: HashMap<&str, usize> = views.iter().enumerate().map(|(place, view)| (name(view), place)).collect();
    // What each looks at, and by how many of those that are left it is looked at.
    let mut looks_at: Vec<HashSet<usize>> = Vec::with_capacity(views.len());
    let mut lookers = vec![0_usize; views.len()];
    for (place, view) in views.iter().enumerate() {
        let mut seen: HashSet<usize> = HashSet::new();
        for value in view.values() {
            mentioned(value, &mut |text| {
                seen.extend(places.get(text).copied().filter(|other| *other != place));
            });
        }
        for other in &seen {
            if let Some(count) = lookers.get_mut(*other) {
                *count += 1;
            }
        }
        looks_at.push(seen);
    }
    let mut free: Vec<usize> = (0..views.len()).filter(|place| lookers.get(*place) == Some(&0)).collect();
    let mut order = Vec::with_capacity(views.len());
    let mut taken = vec![false; views.len()];
    while let Some(place) = free.pop() {
        order.extend(views.get(place));
        taken.iter_mut().skip(place).take(1).for_each(|taken| *taken = true);
        for other in looks_at.get(place).into_iter().flatten() {
            if let Some(count) = lookers.get_mut(*other) {
                *count -= 1;
                free.extend((*count == 0).then_some(*other));
            }
        }
    }
    // There are no cycles; should there be one after all, any order is as good.
    order.extend(views.iter().zip(taken).filter(|(_, taken)| !taken).map(|(view, _)| view));
    order
}

/// All texts in a definition, among them what it looks at: as `viewOn`, or in a stage of its pipeline.
fn mentioned<'a>(value: &'a Bson, each: &mut impl FnMut(&'a str)) {
    match value {
        Bson::String(text) => each(text),
        Bson::Array(values) => values.iter().for_each(|value| mentioned(value, each)),
        Bson::Document(fields) => fields.values().for_each(|value| mentioned(value, each)),
        _ => {}
    }
}

/// Refuses to restore onto what exists already, when another name was asked for.
pub(super) async fn check_new_name(client: &Client, selection: &Selection) -> Result<()> {
    let Some(renaming) = selection.renaming() else { return Ok(()) };
    let (db, name) = namespace::split(&renaming.to);
    let there = list_collections(&client.database(db)).await?;
    let taken = there.iter().find(|info| {
        let found = info.get_str("name").unwrap_or_default();
        (name == "*" && !found.starts_with("system.")) || found == name
    });
    match taken.and_then(|info| info.get("name")) {
        Some(Bson::String(taken)) => {
            Err(EngineError::new(FailureKind::Unsupported, format!("{db}.{taken} exists already in the target"))
                .hint("choose another --ns-to, or drop it first"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn views_come_before_what_they_look_at_however_many() {
        let on = |n: i32, on: String| doc! {"_id": format!("db.v{n}"), "viewOn": on, "pipeline": []};
        let mut views: Vec<Document> = (0..5_000).map(|n| on(n, format!("v{}", n + 1))).rev().collect();
        views.push(doc! {"_id": "db.join", "viewOn": "c", "pipeline": [{"$lookup": {"from": "v0", "as": "x"}}]});
        // A cycle, which no server makes.
        views.extend([on(-1, "v-2".to_owned()), on(-2, "v-1".to_owned())]);
        let order: Vec<&str> = dependents_first("db", &views).iter().map(|view| view.get_str("_id").unwrap()).collect();
        assert_eq!(order.len(), views.len());
        let expected = std::iter::once("db.join".to_owned()).chain((0..5_000).map(|n| format!("db.v{n}")));
        assert!(order.iter().copied().take(5_001).eq(expected), "{:?}", order.get(..5));
    }
}
