//! The oracle for PostgreSQL: everything that a recovery must bring back, in a form that can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Seek as _, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::postgres_programs;

/// Lines of a schema that are told of before the rest is only counted.
const TOLD: usize = 8;

/// How values are written: not as a database or a user may want it.
const OPTIONS: &str = "-c datestyle=ISO -c intervalstyle=postgres -c timezone=UTC -c bytea_output=hex \
                       -c extra_float_digits=3 -c search_path=pg_catalog -c xmloption=content";

/// All databases, roles and prepared transactions of a cluster at one moment. Two clusters are equal if
/// [`PgState::differences`] says nothing.
///
/// Schemas are compared as `pg_dump` writes them, roles and tablespaces as `pg_dumpall` does (with the hashes of
/// passwords, without folders); the rows of each table and materialized view by a hash of their texts, in whatever order
/// they lie. Of what is unlogged there is the schema alone: its rows don't survive a recovery. A sequence is known by the
/// value up to which it was logged, as what lies between that and its last value is skipped by a recovery.
///
/// The source must be quiet while it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgState {
    /// Roles, memberships and tablespaces, as statements.
    pub globals: Vec<String>,
    /// Identifiers of prepared transactions, with their database and owner.
    pub prepared: BTreeSet<String>,
    /// Databases of which a `DROP DATABASE` was cut off: nobody can connect to them.
    pub dropped: BTreeSet<String>,
    /// Database name to what is in it.
    pub databases: BTreeMap<String, PgDatabase>,
}

/// One database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PgDatabase {
    /// Its schema, as statements.
    pub schema: Vec<String>,
    /// Table to the number of its rows and their hash.
    pub tables: BTreeMap<String, String>,
    /// Sequence to the value up to which it is logged, and whether it was used.
    pub sequences: BTreeMap<String, String>,
    /// Large object to the hash of its bytes.
    pub large_objects: BTreeMap<String, String>,
}

impl PgState {
    /// Reads the state as the superuser of a connection string.
    ///
    /// # Errors
    /// There are no programs of PostgreSQL, or one of them fails.
    pub async fn read(uri: &str) -> Result<Self> {
        let uri = uri.to_owned();
        tokio::task::spawn_blocking(move || Self::read_now(&uri)).await?
    }

    fn read_now(uri: &str) -> Result<Self> {
        let globals = statements(&run("pg_dumpall", uri, &["--globals-only"], "")?);
        let prepared = "SELECT gid || ' in ' || database || ' of ' || owner FROM pg_prepared_xacts";
        let prepared = psql(uri, prepared)?.lines().map(str::to_owned).collect();
        let dropped = psql(uri, "SELECT datname FROM pg_database WHERE datconnlimit = -2 ORDER BY 1")?;
        let dropped = dropped.lines().map(str::to_owned).collect();
        let names = psql(uri, "SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY 1")?;
        let read = |name: &str| Ok((name.to_owned(), PgDatabase::read(&with_database(uri, name))?));
        let databases = names.lines().map(read).collect::<Result<_>>()?;
        Ok(Self { globals, prepared, dropped, databases })
    }

    /// What differs between this state (the expected one) and `found`, one line each; nothing if they are equal.
    pub fn differences(&self, found: &Self) -> Vec<String> {
        let mut lines = compare_schemas("roles and tablespaces", &self.globals, &found.globals);
        lines.extend(self.prepared.difference(&found.prepared).map(|gid| format!("prepared {gid}: is missing")));
        lines.extend(found.prepared.difference(&self.prepared).map(|gid| format!("prepared {gid}: should not exist")));
        lines.extend(
            self.dropped.symmetric_difference(&found.dropped).map(|name| format!("{name}: dropped in one alone")),
        );
        for name in self.databases.keys().chain(found.databases.keys()).collect::<BTreeSet<_>>() {
            match (self.databases.get(name), found.databases.get(name)) {
                (Some(expected), Some(found)) => {
                    lines.extend(compare_schemas(name, &expected.schema, &found.schema));
                    lines.extend(compare(&format!("{name}: table"), &expected.tables, &found.tables));
                    lines.extend(compare(&format!("{name}: sequence"), &expected.sequences, &found.sequences));
                    let (expected, found) = (&expected.large_objects, &found.large_objects);
                    lines.extend(compare(&format!("{name}: large object"), expected, found));
                }
                (Some(_), _) => lines.push(format!("{name}: database is missing")),
                _ => lines.push(format!("{name}: database should not exist")),
            }
        }
        lines
    }
}

impl PgDatabase {
    fn read(uri: &str) -> Result<Self> {
        // Each row gives a statement that gives a name and what is to be compared.
        let tables = "SELECT format('SELECT %L, count(*) || '' rows, '' || coalesce(md5(string_agg(h, '''' ORDER BY h)), \
                      ''none'') FROM (SELECT md5(x::text) AS h FROM ONLY %I.%I AS x) AS hashes', \
                      nspname || '.' || relname, nspname, relname) \
                      FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace \
                      WHERE relkind IN ('r', 'm') AND relpersistence = 'p' AND relispopulated \
                      AND nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') ORDER BY nspname, relname";
        let sequences = "SELECT format('SELECT %L, (last_value::numeric + log_cnt * %s) || '', '' || is_called FROM %I.%I', \
                         nspname || '.' || relname, seqincrement, nspname, relname) \
                         FROM pg_sequence JOIN pg_class c ON c.oid = seqrelid JOIN pg_namespace n ON n.oid = relnamespace \
                         WHERE relpersistence = 'p' ORDER BY nspname, relname";
        let large_objects = "SELECT oid, length(lo_get(oid)) || ' bytes, ' || md5(lo_get(oid)) \
                             FROM pg_largeobject_metadata ORDER BY oid";
        Ok(Self {
            schema: statements(&run("pg_dump", uri, &["--schema-only", "--create"], "")?),
            tables: pairs(&psql(uri, &each(&psql(uri, tables)?))?),
            sequences: pairs(&psql(uri, &each(&psql(uri, sequences)?))?),
            large_objects: pairs(&psql(uri, large_objects)?),
        })
    }
}

/// Statements out of lines.
fn each(lines: &str) -> String {
    lines.lines().map(|line| format!("{line};\n")).collect()
}

fn pairs(text: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| line.rsplit_once('\t').map(|(name, value)| (name.to_owned(), value.to_owned()));
    text.lines().filter_map(pair).collect()
}

/// What a dump says, without what is another in every dump or on every machine.
fn statements(dump: &str) -> Vec<String> {
    let said = |line: &&str| !(line.is_empty() || line.starts_with("--") || line.contains("restrict "));
    let folderless = |line: &str| match line.split_once(" LOCATION ") {
        Some((tablespace, _)) if line.starts_with("CREATE TABLESPACE ") => tablespace.to_owned(),
        _ => line.to_owned(),
    };
    dump.lines().filter(said).map(folderless).collect()
}

fn compare(what: &str, expected: &BTreeMap<String, String>, found: &BTreeMap<String, String>) -> Vec<String> {
    let names: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let line = |name: &String| match (expected.get(name), found.get(name)) {
        (Some(expected), Some(found)) if expected == found => None,
        (Some(expected), Some(found)) => Some(format!("{what} {name}: expected {expected}, found {found}")),
        (Some(expected), None) => Some(format!("{what} {name} ({expected}) is missing")),
        (None, found) => Some(format!("{what} {name} ({}) should not exist", found.map_or("", |found| found))),
    };
    names.into_iter().filter_map(line).collect()
}

fn compare_schemas(what: &str, expected: &[String], found: &[String]) -> Vec<String> {
    if expected == found {
        return Vec::new();
    }
    // How often each line is there more than it should.
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    found.iter().for_each(|line| *counts.entry(line).or_default() += 1);
    expected.iter().for_each(|line| *counts.entry(line).or_default() -= 1);
    let told = |(line, count): (&str, i64)| match count {
        0 => None,
        1.. => Some(format!("{what}: schema should not have {line:?}")),
        _ => Some(format!("{what}: schema is missing {line:?}")),
    };
    let mut lines: Vec<_> = counts.into_iter().filter_map(told).collect();
    if lines.is_empty() {
        lines.push(format!("{what}: schema has another order"));
    }
    if lines.len() > TOLD {
        let more = lines.split_off(TOLD).len();
        lines.push(format!("{what}: schema differs in {more} more lines"));
    }
    lines
}

/// The same connection string for another database.
pub(crate) fn with_database(uri: &str, name: &str) -> String {
    let (address, options) = uri.split_once('?').map_or((uri, None), |(address, options)| (address, Some(options)));
    let start = address.find("://").map_or(0, |at| at + 3);
    let (authority, _) = address.get(start..).unwrap_or_default().split_once('/').unwrap_or((&address[start..], ""));
    let name: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let options = options.map(|options| format!("?{options}")).unwrap_or_default();
    format!("{}{authority}/{name}{options}", &address[..start])
}

/// What statements give: rows of fields with tabs in between.
fn psql(uri: &str, statements: &str) -> Result<String> {
    run("psql", uri, &["-X", "-A", "-t", "-q", "-F", "\t", "-v", "ON_ERROR_STOP=1"], statements)
}

fn run(program: &str, uri: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new(postgres_programs()?.join(program));
    command.args(arguments).arg("-d").arg(uri).env("PGOPTIONS", OPTIONS);
    match input {
        "" => command.stdin(Stdio::null()),
        text => {
            let mut file = tempfile::tempfile()?;
            file.write_all(text.as_bytes())?;
            file.rewind()?;
            command.stdin(file)
        }
    };
    let output = command.output().with_context(|| program.to_owned())?;
    if !output.status.success() {
        bail!("{program} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| program.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_strings_get_another_database() {
        for (uri, other) in [
            ("postgresql://postgres@%2Ftmp:5/postgres", "postgresql://postgres@%2Ftmp:5/%61%20%C3%BC"),
            ("postgresql://h", "postgresql://h/%61%20%C3%BC"),
            ("postgresql://h/?host=/x/y", "postgresql://h/%61%20%C3%BC?host=/x/y"),
        ] {
            assert_eq!(with_database(uri, "a ü"), other);
        }
    }
}
