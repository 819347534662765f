//! The data of a small shop, what happens to them in business, and what happens to them in the disaster.

use std::time::Duration;

use anyhow::Result;
use hindsight_testkit::Postgres;
use jiff::Timestamp;

/// The shop's database.
pub const DATABASE: &str = "shop";

const OPEN: &str = "
    CREATE TABLE customers (id serial PRIMARY KEY, name text NOT NULL, email text UNIQUE, city text, moved timestamptz);
    CREATE TABLE products (id serial PRIMARY KEY, name text, price numeric(10, 2), stock int CHECK (stock >= 0), sold int);
    CREATE TABLE orders (id bigserial PRIMARY KEY, customer int REFERENCES customers, product int REFERENCES products,
        quantity int, placed timestamptz DEFAULT now(), status text);
    CREATE INDEX ON orders (customer, placed);
    INSERT INTO customers (name, email, city)
        SELECT (ARRAY['Ada', 'Boris', 'Chidi', 'Dilek', 'Emi'])[g % 5 + 1] || ' ' || (ARRAY['Berg', 'Costa', 'Ito'])[g % 3 + 1],
            'customer' || g || '@example.org', (ARRAY['Bergen', 'Graz', 'Lagos', 'Osaka'])[g % 4 + 1]
        FROM generate_series(1, 2000) g;
    INSERT INTO products (name, price, stock, sold)
        SELECT (ARRAY['Kettle', 'Lamp', 'Notebook', 'Chair'])[g % 4 + 1] || ' no. ' || g, 1.99 + g * 1.37 % 200, 1000000, 0
        FROM generate_series(1, 60) g;
    INSERT INTO orders (customer, product, quantity, status)
        SELECT g * 31 % 2000 + 1, g % 60 + 1, g % 3 + 1, (ARRAY['open', 'paid', 'sent'])[g % 3 + 1]
        FROM generate_series(1, 6000) g;";

const TRADE: &str = "\\set customer random(1, 2000)
\\set product random(1, 60)
BEGIN;
INSERT INTO orders (customer, product, quantity, status) VALUES (:customer, :product, 1, 'open');
UPDATE products SET stock = stock - 1, sold = sold + 1 WHERE id = :product;
COMMIT;
UPDATE customers SET city = 'Leiden', moved = now() WHERE id = :customer;
";

/// The shop, on its server.
pub struct Shop<'a>(&'a Postgres);

impl<'a> Shop<'a> {
    /// Makes its database and tables, and fills them.
    pub async fn open(server: &'a Postgres) -> Result<Self> {
        server.sql(&format!("CREATE DATABASE {DATABASE}")).await?;
        let shop = Self(server);
        shop.sql(OPEN).await?;
        Ok(shop)
    }

    /// Business for a while: orders are placed, each in a transaction that also takes from the stock, and customers move.
    pub async fn trade(&self, time: Duration) -> Result<()> {
        let script = tempfile::NamedTempFile::new()?;
        std::fs::write(script.path(), TRADE)?;
        let (path, seconds) = (script.path().display().to_string(), time.as_secs().to_string());
        self.0.pgbench(&["-n", "-f", &path, "-c", "2", "-R", "150", "-T", &seconds, DATABASE]).await?;
        Ok(())
    }

    /// Deletes the customers, drops the orders. Gives the second in which it began.
    pub async fn disaster(&self) -> Result<i64> {
        let at = Timestamp::now().as_second();
        self.sql("DROP TABLE orders; DELETE FROM customers").await?;
        Ok(at)
    }

    /// Those who do not know yet go on: new orders make a new table, another one appears that never was.
    pub async fn go_on_in_the_ruins(&self) -> Result<()> {
        let ruins = "CREATE TABLE orders AS SELECT g AS id, g % 60 AS product FROM generate_series(1, 25) g;
                     CREATE TABLE complaints AS SELECT 'I cannot log in any more' AS text, now() AS at";
        self.sql(ruins).await
    }

    /// How many rows each table has, in one line, on the server of a connection string.
    pub async fn counts(uri: &str) -> Result<String> {
        let state = hindsight_testkit::PgState::read(uri).await?;
        let tables = state.databases.get(DATABASE).map(|shop| &shop.tables).into_iter().flatten();
        let count = |(name, rows): (&String, &String)| {
            format!("{} {}", name.trim_start_matches("public."), rows.split(' ').next().unwrap_or_default())
        };
        Ok(format!("{DATABASE}: {}", tables.map(count).collect::<Vec<_>>().join(", ")))
    }

    async fn sql(&self, statements: &str) -> Result<()> {
        self.0.sql_in(DATABASE, statements).await.map(drop)
    }
}
