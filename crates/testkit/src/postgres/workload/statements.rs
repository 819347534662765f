//! What the workers say.

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _};

use super::unusual;

/// One worker.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) number: usize,
    pub(super) database: &'static str,
    pub(super) rng: StdRng,
    /// Tablespaces.
    pub(super) spaces: Vec<&'static str>,
    /// Identifiers of its prepared transactions; the last one may be a wish yet.
    pub(super) prepared: Vec<String>,
    /// Names that it has made up.
    pub(super) made: u32,
}

/// A kind of script.
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// How often, compared with the others.
    weight: u32,
    say: fn(&mut Worker) -> String,
}

const PREPARE: &str = "prepare transaction";
const END_PREPARED: &str = "end prepared transaction";
const SPACES: &str = "set tablespace";

const fn kind(name: &'static str, weight: u32, say: fn(&mut Worker) -> String) -> Kind {
    Kind { name, weight, say }
}

pub(super) const KINDS: &[Kind] = &[
    kind("insert", 20, Worker::insert),
    kind("update", 14, Worker::update),
    kind("delete", 8, Worker::delete),
    kind("copy", 5, Worker::copy),
    kind("big row", 3, Worker::big_row),
    kind("transaction", 8, Worker::transaction),
    kind("savepoints", 6, Worker::savepoints),
    kind("abort", 6, Worker::abort),
    kind("truncate", 2, |w| format!("TRUNCATE {} RESTART IDENTITY CASCADE;", w.table())),
    kind("create table", 4, |w| w.foundation()),
    kind("drop table", 1, |w| format!("DROP TABLE {} CASCADE;", w.table())),
    kind("add column", 2, Worker::add_column),
    kind("drop column", 1, |w| format!("ALTER TABLE {} DROP COLUMN {} CASCADE;", w.table(), w.extra())),
    kind("rewrite table", 2, Worker::rewrite),
    kind("rename table", 1, Worker::rename),
    kind("unlogged", 2, Worker::unlogged),
    kind("create index", 3, Worker::create_index),
    kind("create index concurrently", 1, Worker::create_index_concurrently),
    kind("drop index", 1, |w| format!("DROP INDEX {};", w.index())),
    kind("vacuum", 2, |w| format!("VACUUM (ANALYZE) {};", w.table())),
    kind("vacuum full", 2, |w| format!("VACUUM FULL {};", w.table())),
    kind("cluster", 1, |w| {
        let table = w.table();
        format!("CLUSTER {table} USING {table}_pkey;")
    }),
    kind("partitions", 3, Worker::partitions),
    kind("sequences", 4, Worker::sequences),
    kind("large object", 4, Worker::large_object),
    kind("drop large object", 1, |w| format!("SELECT lo_unlink({});", w.large())),
    kind(PREPARE, 4, Worker::prepare),
    kind(END_PREPARED, 4, Worker::end_prepared),
    kind("role", 2, Worker::role),
    kind("view", 2, Worker::view),
    kind("function", 1, Worker::function),
    kind("type", 2, Worker::new_type),
    kind("database", 1, Worker::database),
    kind("checkpoint", 1, |_| "CHECKPOINT;".to_owned()),
    kind("switch of the segment", 1, |_| "SELECT pg_switch_wal();".to_owned()),
    kind("message", 2, Worker::message),
    kind("restore point", 1, Worker::restore_point),
    kind("row locks", 3, Worker::row_locks),
    kind("generated columns", 3, Worker::generated),
    kind("labels", 2, Worker::labels),
    kind("foreign keys", 3, Worker::references),
    kind("exceptions", 2, Worker::exceptions),
    kind("freeze", 1, |w| format!("VACUUM (FREEZE) {};", w.table())),
    kind("reindex", 1, Worker::reindex),
    kind("schema", 1, Worker::schema),
    kind("attach partition", 2, Worker::attach),
    kind("temporary table", 1, Worker::temporary),
    kind(SPACES, 3, Worker::set_tablespace),
];

impl Kind {
    pub(super) fn is_possible(&self, spaces: &[&str]) -> bool {
        self.name != SPACES || !spaces.is_empty()
    }
}

/// Whether an error is what happens when several do as they please under the same names.
pub(super) fn is_legitimate(code: &str) -> bool {
    const CODES: [&str; 36] = [
        // Somebody else was faster: with rows, with locks, with catalogs.
        "40001", "40P01", "55P03", "57014", "XX000", "55006", "55000", "53000",
        // There is none, or there is one already.
        "42P01", "42703", "42704", "42883", "3D000", "3F000", "42P07", "42701", "42710", "42723", "42P04", "42P06",
        // It is not what it was.
        "42809", "42P16", "42804", "2BP01", "0A000", "25P02", "3B001", "42P17", "23505", "23503", "23514", "22003",
        "22P02", "22023", "42830",
        // VACUUM FULL meets a dead row whose large value was vacuumed away already.
        "XX001",
    ];
    CODES.contains(&code)
}

impl Worker {
    /// The next script with its kind.
    pub(super) fn script(&mut self) -> (&'static str, String) {
        loop {
            let possible = || KINDS.iter().filter(|kind| kind.is_possible(&self.spaces));
            let total: u32 = possible().map(|kind| kind.weight).sum();
            let mut drawn = self.rng.random_range(0..total);
            let kind = possible().find(|kind| match drawn.checked_sub(kind.weight) {
                Some(left) => {
                    drawn = left;
                    false
                }
                None => true,
            });
            if let Some(Kind { name, say, .. }) = kind {
                let script = say(self);
                // Nothing to do for those who have nothing prepared, or enough of it.
                if !script.is_empty() {
                    return (name, script);
                }
            }
        }
    }

    /// How the last script went.
    pub(super) fn learn(&mut self, kind: &str, done: bool) {
        if kind == PREPARE && !done {
            self.prepared.pop();
        }
        if kind == END_PREPARED && done {
            self.prepared.remove(0);
        }
    }

    /// What all others need, where it is missing.
    pub(super) fn foundation(&mut self) -> String {
        let columns = "id bigserial PRIMARY KEY, n int DEFAULT 0, t text, j jsonb, b bytea, d numeric(20, 4), \
                       at timestamptz, a int[]";
        let mut script: String = (0..6).map(|n| format!("CREATE TABLE IF NOT EXISTS t{n} ({columns});\n")).collect();
        script.push_str("CREATE TABLE IF NOT EXISTS held (id bigserial PRIMARY KEY, worker int, t text);\n");
        script.push_str(&format!("CREATE UNLOGGED TABLE IF NOT EXISTS u0 ({columns});\n"));
        script.push_str("CREATE TABLE IF NOT EXISTS p (k int, t text) PARTITION BY RANGE (k);\n");
        script.push_str("CREATE TABLE IF NOT EXISTS p_rest PARTITION OF p DEFAULT;\n");
        script.push_str(unusual::FOUNDATION);
        script.push_str("CREATE SEQUENCE IF NOT EXISTS s0 INCREMENT 3;\nCREATE SEQUENCE IF NOT EXISTS s1 CACHE 5;\n");
        script
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.rng.random_range(0..n)
    }

    pub(super) fn one_of<'a>(&mut self, of: &[&'a str]) -> &'a str {
        let index = self.rng.random_range(0..of.len().max(1));
        of.get(index).copied().unwrap_or_default()
    }

    pub(super) fn table(&mut self) -> String {
        format!("t{}", self.below(6))
    }

    pub(super) fn index(&mut self) -> String {
        format!("i{}", self.below(8))
    }

    fn extra(&mut self) -> String {
        format!("c{}", self.below(3))
    }

    fn large(&mut self) -> u64 {
        900_000 + self.below(12)
    }

    /// A name that is nobody else's.
    pub(super) fn name(&mut self, what: &str) -> String {
        self.made += 1;
        format!("{what}_{}_{}", self.number, self.made)
    }

    /// Rows for a table of [`Worker::foundation`], as an `INSERT` of `n` rows.
    pub(super) fn rows(&mut self, table: &str, n: u64) -> String {
        let salt = self.rng.next_u32();
        format!(
            "INSERT INTO {table} (n, t, j, b, d, at, a) SELECT g, md5(g || '{salt}'), \
             jsonb_build_object('g', g, 'salt', '{salt}', 'null', NULL), decode(md5(g || 'b{salt}'), 'hex'), g / 7.0, \
             timestamptz '2026-01-01' + g * interval '1 hour', ARRAY[g, NULL, {salt}::bigint % 1000] \
             FROM generate_series(1, {n}) AS g;"
        )
    }

    fn changes(&mut self, table: &str) -> String {
        let (of, part, salt) = (self.rng.random_range(2..12), self.below(2), self.rng.next_u32());
        match self.below(3) {
            0 => format!("UPDATE {table} SET n = n + 1, t = md5(t || '{salt}') WHERE id % {of} = {part};"),
            1 => format!(
                "UPDATE {table} SET j = j || '{{\"more\": {salt}}}', b = b || b'1'::text::bytea WHERE id % {of} = {part};"
            ),
            _ => format!("DELETE FROM {table} WHERE id % {of} = {part};"),
        }
    }

    fn insert(&mut self) -> String {
        let (table, n) = (self.table(), self.rng.random_range(1..60));
        self.rows(&table, n)
    }

    fn update(&mut self) -> String {
        let table = self.table();
        self.changes(&table)
    }

    /// Also bounds what there is.
    fn delete(&mut self) -> String {
        let (table, kept) = (self.table(), self.rng.random_range(200..900));
        format!("DELETE FROM {table} WHERE id NOT IN (SELECT id FROM {table} ORDER BY id DESC LIMIT {kept});")
    }

    /// Into a table that is always there: without it the rows would be taken for statements.
    fn copy(&mut self) -> String {
        let (n, salt) = (self.rng.random_range(5..200), self.rng.next_u32());
        let rows: String = (0..n).map(|row| format!("-1\t{salt} \\\\ \\t {row}\n")).collect();
        format!("COPY held (worker, t) FROM STDIN;\n{rows}\\.\n")
    }

    fn big_row(&mut self) -> String {
        let (table, parts, salt) = (self.table(), self.rng.random_range(2_000..60_000), self.rng.next_u32());
        format!(
            "INSERT INTO {table} (n, t) SELECT 1, string_agg(md5(g || '{salt}'), '') FROM generate_series(1, {parts}) g;\n\
             DELETE FROM {table} WHERE length(t) > 1000 AND id < (SELECT max(id) FROM {table}) - 40;"
        )
    }

    fn transaction(&mut self) -> String {
        let mut script = "BEGIN;\n".to_owned();
        for _ in 0..self.rng.random_range(2..6) {
            let (table, n) = (self.table(), self.rng.random_range(1..30));
            script.push_str(&self.rows(&table, n));
            script.push_str(&self.changes(&table));
        }
        // Asynchronous ones are durable a moment later: a quiet moment waits for that.
        let local = self.one_of(&["", "SET LOCAL synchronous_commit = off;"]);
        format!("{script}\n{local}COMMIT;")
    }

    fn savepoints(&mut self) -> String {
        let (table, kept) = (self.table(), self.rng.random_range(2..90));
        let mut script = "BEGIN;\n".to_owned();
        // More than 64 of them no longer fit into what a backend keeps of its subtransactions.
        for n in 0..kept {
            let end = self.one_of(&["RELEASE", "RELEASE", "ROLLBACK TO"]);
            script.push_str(&format!("SAVEPOINT a{n};INSERT INTO {table} (n, t) VALUES ({n}, 'sub');{end} a{n};\n"));
        }
        let end = self.one_of(&["COMMIT", "COMMIT", "ROLLBACK"]);
        format!("{script}{end};")
    }

    fn abort(&mut self) -> String {
        let (table, new, large) = (self.table(), self.name("gone"), self.large());
        let (rows, changes) = (self.rows(&table, 200), self.changes(&table));
        format!(
            "BEGIN;CREATE TABLE {new} AS SELECT g FROM generate_series(1, 500) g;{rows}{changes}\
             TRUNCATE {table} CASCADE;SELECT lo_put({large}, 0, 'never');ROLLBACK;"
        )
    }

    fn add_column(&mut self) -> String {
        let (table, column) = (self.table(), self.extra());
        let what =
            self.one_of(&["int", "text DEFAULT 'x'", "timestamptz DEFAULT clock_timestamp()", "int[] DEFAULT '{1,2}'"]);
        format!("ALTER TABLE {table} ADD COLUMN {column} {what};")
    }

    fn rewrite(&mut self) -> String {
        let table = self.table();
        let what = self.one_of(&[
            "d TYPE numeric(24, 5)",
            "d TYPE numeric(20, 4)",
            "n TYPE bigint",
            "n TYPE int USING (n % 1000000)::int",
        ]);
        format!("ALTER TABLE {table} ALTER COLUMN {what};")
    }

    fn rename(&mut self) -> String {
        let (table, name) = (self.table(), self.name("was"));
        format!("ALTER TABLE {table} RENAME TO {name};\nDROP TABLE {name} CASCADE;")
    }

    fn unlogged(&mut self) -> String {
        let rows = self.rows("u0", 20);
        match self.below(4) {
            0 => "ALTER TABLE u0 SET LOGGED;".to_owned(),
            1 => "ALTER TABLE u0 SET UNLOGGED;".to_owned(),
            2 => "TRUNCATE u0;".to_owned(),
            _ => rows,
        }
    }

    fn indexed(&mut self) -> String {
        let table = self.table();
        let what = self.one_of(&[
            "(n)",
            "USING hash (t)",
            "USING gin (j)",
            "USING brin (at)",
            "((n % 10), d) WHERE n > 5",
            "USING gin (a)",
            "USING gist (int4range(n, n + 5))",
            "USING spgist (int4range(n, n + 5))",
        ]);
        format!("{table} {what}")
    }

    fn create_index(&mut self) -> String {
        let (index, on) = (self.index(), self.indexed());
        format!("CREATE INDEX {index} ON {on};")
    }

    fn create_index_concurrently(&mut self) -> String {
        let (index, on) = (self.index(), self.indexed());
        format!("CREATE INDEX CONCURRENTLY {index} ON {on};")
    }

    fn partitions(&mut self) -> String {
        let (from, rows) = (self.below(6) * 100, self.rng.random_range(1..80));
        let name = format!("p_{from}");
        match self.below(4) {
            0 => format!("CREATE TABLE {name} PARTITION OF p FOR VALUES FROM ({from}) TO ({from} + 100);"),
            1 => format!("DROP TABLE {name};"),
            _ => format!("INSERT INTO p SELECT {from} + g % 100, 'row ' || g FROM generate_series(1, {rows}) g;"),
        }
    }

    fn sequences(&mut self) -> String {
        let (sequence, n) = (format!("s{}", self.below(2)), self.rng.random_range(1..50));
        match self.below(4) {
            0 => format!("SELECT setval('{sequence}', {n}000, {});", n % 2 == 0),
            1 => format!("ALTER SEQUENCE {sequence} RESTART;"),
            _ => format!("SELECT count(nextval('{sequence}')) FROM generate_series(1, {n});"),
        }
    }

    fn large_object(&mut self) -> String {
        let (object, size, salt) = (self.large(), self.rng.random_range(1..2_000), self.rng.next_u32());
        let offset = self.below(5_000);
        let made = format!(
            "SELECT lo_create({object}) WHERE NOT EXISTS (SELECT FROM pg_largeobject_metadata WHERE oid = {object});"
        );
        let put = format!(
            "SELECT lo_put({object}, {offset}, (SELECT string_agg(decode(md5(g || '{salt}'), 'hex'), '') \
             FROM generate_series(1, {size}) g));"
        );
        format!("BEGIN;{made}{put}COMMIT;")
    }

    /// Of rows that nobody else changes: what is locked stays so for long.
    fn prepare(&mut self) -> String {
        if self.prepared.len() >= 2 {
            return String::new();
        }
        let (gid, number, n) = (self.name("tx"), self.number, self.rng.random_range(1..20));
        self.prepared.push(gid.clone());
        format!(
            "BEGIN;INSERT INTO held (worker, t) SELECT {number}, '{gid} ' || g FROM generate_series(1, {n}) g;\
             SAVEPOINT s;DELETE FROM held WHERE id IN (SELECT id FROM held WHERE worker = {number} ORDER BY id LIMIT 3 \
             FOR UPDATE SKIP LOCKED);RELEASE s;PREPARE TRANSACTION '{gid}';"
        )
    }

    fn end_prepared(&mut self) -> String {
        let end = self.one_of(&["COMMIT", "COMMIT", "ROLLBACK"]);
        self.prepared.first().map(|gid| format!("{end} PREPARED '{gid}';")).unwrap_or_default()
    }

    fn role(&mut self) -> String {
        let (role, table) = (format!("role_{}", self.below(4)), self.table());
        match self.below(4) {
            0 => format!("CREATE ROLE {role} LOGIN PASSWORD '{}' CONNECTION LIMIT {};", self.made, self.number),
            1 => format!("ALTER ROLE {role} PASSWORD 'new' VALID UNTIL '2030-01-01';"),
            2 => format!("DROP OWNED BY {role};DROP ROLE {role};"),
            _ => format!("GRANT SELECT, UPDATE ON {table} TO {role};GRANT pg_monitor TO {role};"),
        }
    }

    fn view(&mut self) -> String {
        let (table, n) = (self.table(), self.below(3));
        match self.below(4) {
            0 => format!(
                "CREATE VIEW v{n} AS SELECT id, t FROM {table} WHERE n > {n};COMMENT ON VIEW v{n} IS 'of {table}';"
            ),
            1 => format!("CREATE MATERIALIZED VIEW m{n} AS SELECT n, count(*) FROM {table} GROUP BY n;"),
            2 => format!("REFRESH MATERIALIZED VIEW m{n};"),
            _ => format!("DROP VIEW v{n};"),
        }
    }

    fn function(&mut self) -> String {
        let (n, salt) = (self.below(3), self.rng.next_u32());
        let body = self.one_of(&["SELECT 1", "SELECT x", "SELECT x + 1"]);
        format!("CREATE OR REPLACE FUNCTION f{n}(x int) RETURNS int LANGUAGE sql AS '{body} /* {salt} */';")
    }

    fn new_type(&mut self) -> String {
        let value = self.name("value");
        match self.below(3) {
            0 => format!("CREATE TYPE kinds AS ENUM ('first');CREATE DOMAIN {value} AS int CHECK (VALUE > 0);"),
            1 => format!("ALTER TYPE kinds ADD VALUE '{value}';"),
            _ => {
                format!("CREATE TYPE {value} AS (a int, b text);COMMENT ON TYPE {value} IS 'made by {}';", self.number)
            }
        }
    }

    fn database(&mut self) -> String {
        let (name, strategy) = (format!("extra_{}", self.number), self.one_of(&["wal_log", "file_copy"]));
        match self.below(3) {
            0 => format!("DROP DATABASE {name};"),
            _ => format!("CREATE DATABASE {name} STRATEGY {strategy} CONNECTION LIMIT 7;"),
        }
    }

    fn message(&mut self) -> String {
        let size = self.rng.random_range(1..40_000);
        format!("SELECT pg_logical_emit_message(false, 'test', repeat('m', {size}));")
    }

    fn restore_point(&mut self) -> String {
        format!("SELECT pg_create_restore_point('{}');", self.name("point"))
    }
}
