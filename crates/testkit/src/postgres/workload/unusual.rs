//! What workers do more rarely.

use rand::RngExt as _;

use super::statements::Worker;

/// What it is done to.
pub(super) const FOUNDATION: &str = "\
    DO $$BEGIN CREATE TYPE mood AS ENUM ('l0', 'l1'); EXCEPTION WHEN duplicate_object THEN NULL; END$$;\n\
    CREATE TABLE IF NOT EXISTS g0 (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int, m mood DEFAULT 'l0', \
    twice bigint GENERATED ALWAYS AS (n * 2::bigint) STORED);\n\
    CREATE TABLE IF NOT EXISTS parents (id int PRIMARY KEY, t text);\n\
    CREATE TABLE IF NOT EXISTS children (id bigserial PRIMARY KEY, \
    parent int REFERENCES parents ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED);\n";

impl Worker {
    /// Rows that are locked in one transaction and changed in its part: they are locked by both.
    pub(super) fn row_locks(&mut self) -> String {
        let (table, end) = (self.table(), self.one_of(&["RELEASE", "ROLLBACK TO"]));
        let how = self.one_of(&["KEY SHARE", "SHARE", "NO KEY UPDATE"]);
        let some = format!("SELECT id FROM {table} ORDER BY id LIMIT");
        format!(
            "BEGIN;SELECT count(*) FROM ({some} 30 FOR {how}) AS locked;SAVEPOINT a;\
             UPDATE {table} SET d = -d WHERE id IN ({some} 10);{end} a;COMMIT;"
        )
    }

    pub(super) fn generated(&mut self) -> String {
        let (rows, of) = (self.rng.random_range(1..60), self.rng.random_range(2..9));
        match self.below(5) {
            0 => format!("UPDATE g0 SET n = n + 1 WHERE id % {of} = 0;"),
            1 => "ALTER TABLE g0 DROP COLUMN twice;".to_owned(),
            2 => "ALTER TABLE g0 ADD COLUMN twice bigint GENERATED ALWAYS AS (n * 2::bigint) STORED;".to_owned(),
            3 => "DELETE FROM g0 WHERE id < (SELECT max(id) FROM g0) - 500;".to_owned(),
            _ => format!("INSERT INTO g0 (n, m) SELECT g, 'l0' FROM generate_series(1, {rows}) AS g;"),
        }
    }

    /// Labels of an enumerated type, and rows with them.
    pub(super) fn labels(&mut self) -> String {
        let (label, other) = (self.below(8), self.below(8));
        match self.below(4) {
            0 => format!("ALTER TYPE mood ADD VALUE 'l{label}' BEFORE 'l{other}';"),
            1 => format!("ALTER TYPE mood RENAME VALUE 'l{label}' TO 'l{other}';"),
            2 => format!("UPDATE g0 SET m = 'l{label}' WHERE id % 3 = 0;"),
            _ => format!("INSERT INTO g0 (n, m) VALUES ({other}, 'l{label}');"),
        }
    }

    /// Children before their parents, and parents that take their children with them.
    pub(super) fn references(&mut self) -> String {
        let (parent, children) = (self.below(200), self.rng.random_range(1..40));
        match self.below(3) {
            0 => format!("DELETE FROM parents WHERE id % 10 = {};", parent % 10),
            _ => format!(
                "BEGIN;INSERT INTO children (parent) SELECT {parent} FROM generate_series(1, {children});\
                 INSERT INTO parents VALUES ({parent}, 'p') ON CONFLICT (id) DO UPDATE SET t = parents.t || '.';COMMIT;"
            ),
        }
    }

    /// Parts of a transaction that fail, within those that do not.
    pub(super) fn exceptions(&mut self) -> String {
        let (table, turns, of) = (self.table(), self.rng.random_range(3..100), self.rng.random_range(2..5));
        format!(
            "DO $$BEGIN FOR turn IN 1..{turns} LOOP BEGIN INSERT INTO {table} (n, t) VALUES (turn, 'part'); \
             IF turn % {of} = 0 THEN RAISE division_by_zero; END IF; \
             EXCEPTION WHEN division_by_zero THEN INSERT INTO {table} (n) VALUES (-turn); END; END LOOP; END$$;"
        )
    }

    pub(super) fn reindex(&mut self) -> String {
        let (table, index) = (self.table(), self.index());
        match self.below(3) {
            0 => format!("REINDEX TABLE {table};"),
            1 => format!("REINDEX TABLE CONCURRENTLY {table};"),
            _ => format!("REINDEX INDEX {index};"),
        }
    }

    pub(super) fn schema(&mut self) -> String {
        let schema = format!("apart_{}", self.below(3));
        match self.below(2) {
            0 => format!("DROP SCHEMA {schema} CASCADE;"),
            _ => format!(
                "CREATE SCHEMA {schema} CREATE TABLE inner_one (id bigserial, t text) CREATE VIEW outer_one AS SELECT 1;\
                 INSERT INTO {schema}.inner_one (t) SELECT 'inner' FROM generate_series(1, 50);"
            ),
        }
    }

    /// Partitions that were tables, and the other way round.
    pub(super) fn attach(&mut self) -> String {
        let from = 1000 + self.below(3) * 100;
        let (name, rows) = (format!("p_{from}"), self.rng.random_range(1..80));
        match self.below(4) {
            0 => format!("ALTER TABLE p DETACH PARTITION {name};"),
            1 => format!("ALTER TABLE p ATTACH PARTITION {name} FOR VALUES FROM ({from}) TO ({from} + 100);"),
            2 => format!("TRUNCATE {name};DROP TABLE {name};"),
            _ => format!(
                "CREATE TABLE {name} (k int, t text);INSERT INTO {name} SELECT {from} + g, 'row' FROM generate_series(1, {rows}) g;\
                 ALTER TABLE p ATTACH PARTITION {name} FOR VALUES FROM ({from}) TO ({from} + 100);"
            ),
        }
    }

    /// Of which nothing comes back, but what was made of it.
    pub(super) fn temporary(&mut self) -> String {
        let (name, table, rows) = (self.name("passing"), self.table(), self.rng.random_range(1..200));
        format!(
            "CREATE TEMPORARY TABLE {name} AS SELECT g FROM generate_series(1, {rows}) AS g;CREATE INDEX ON {name} (g);\
             INSERT INTO {table} (n, t) SELECT g, 'passed' FROM {name} WHERE g % 5 = 0;DROP TABLE {name};"
        )
    }

    pub(super) fn set_tablespace(&mut self) -> String {
        let spaces: Vec<&str> = self.spaces.iter().copied().chain(["pg_default"]).collect();
        let (table, index, space) = (self.table(), self.index(), self.one_of(&spaces));
        let database = format!("extra_{}", self.number);
        match self.below(5) {
            0 => format!("ALTER INDEX {index} SET TABLESPACE {space};"),
            1 => format!("ALTER DATABASE {database} SET TABLESPACE {space};"),
            2 => format!("CREATE DATABASE {database} TABLESPACE {space} CONNECTION LIMIT 7;"),
            _ => format!("ALTER TABLE {table} SET TABLESPACE {space};"),
        }
    }
}
