//! The data of a small shop, what happens to them in business, and what happens to them in the disaster.

use std::time::{Duration, Instant};

use anyhow::Result;
use bson::{DateTime, Decimal128, Document, doc};
use jiff::Timestamp;
use mongodb::{Client, ClientSession, Collection, Database};
use tokio::time::sleep;

/// The shop's database.
pub const DATABASE: &str = "shop";

const CUSTOMERS: i32 = 2_000;
const PRODUCTS: i32 = 60;
const ORDERS: i32 = 6_000;

const FIRST_NAMES: [&str; 8] = ["Ada", "Boris", "Chidi", "Dilek", "Emi", "Farid", "Greta", "Hugo"];
const LAST_NAMES: [&str; 9] = ["Adeyemi", "Berg", "Costa", "Demir", "Eriksen", "Fischer", "Garcia", "Haddad", "Ito"];
const CITIES: [&str; 7] = ["Bergen", "Coimbra", "Graz", "Lagos", "Leiden", "Osaka", "Valparaíso"];

/// The shop, by its database.
pub struct Shop {
    client: Client,
    database: Database,
    next_order: std::cell::Cell<i32>,
}

impl Shop {
    /// Makes its collections and fills them.
    pub async fn open(client: &Client) -> Result<Self> {
        let database = client.database(DATABASE);
        let shop = Self { client: client.clone(), database, next_order: (ORDERS + 1).into() };
        shop.index("customers", doc! {"email": 1}, true).await?;
        shop.index("orders", doc! {"customer": 1, "placed": -1}, false).await?;
        shop.customers().insert_many((1..=CUSTOMERS).map(customer)).await?;
        shop.products().insert_many((1..=PRODUCTS).map(product)).await?;
        shop.orders().insert_many((1..=ORDERS).map(order)).await?;
        Ok(shop)
    }

    /// Business for a while: orders are placed, each in a transaction that also takes from the stock, and customers move.
    pub async fn trade(&self, time: Duration) -> Result<()> {
        let begun = Instant::now();
        let mut session = self.client.start_session().await?;
        while begun.elapsed() < time {
            let number = self.next_order.replace(self.next_order.get() + 1);
            session.start_transaction().await?;
            self.place_order(&mut session, number).await?;
            session.commit_transaction().await?;
            let city = pick(&CITIES, number / 3);
            let moves = doc! {"$set": {"address.city": city, "moved": DateTime::now()}};
            self.customers().update_one(doc! {"_id": number * 7 % CUSTOMERS + 1}, moves).await?;
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn place_order(&self, session: &mut ClientSession, number: i32) -> Result<()> {
        self.orders().insert_one(order(number)).session(&mut *session).await?;
        let product = doc! {"_id": number % PRODUCTS + 1};
        self.products().update_one(product, doc! {"$inc": {"stock": -1, "sold": 1}}).session(session).await?;
        Ok(())
    }

    /// Deletes the customers, drops the orders. Gives the second in which it began.
    pub async fn disaster(&self) -> Result<i64> {
        let at = Timestamp::now().as_second();
        self.customers().delete_many(doc! {}).await?;
        self.orders().drop().await?;
        Ok(at)
    }

    /// Those who do not know yet go on: new orders make a new collection without indexes, another one appears that never
    /// was.
    pub async fn go_on_in_the_ruins(&self) -> Result<()> {
        let first = self.next_order.get();
        self.orders().insert_many((first..first + 25).map(order)).await?;
        let complaint = doc! {"text": "I cannot log in any more", "at": DateTime::now()};
        self.database.collection::<Document>("complaints").insert_one(complaint).await?;
        Ok(())
    }

    /// How many documents each collection has, in one line.
    pub async fn counts(&self) -> Result<String> {
        let mut names = self.database.list_collection_names().await?;
        names.sort();
        let mut counts = Vec::new();
        for name in names {
            let count = self.database.collection::<Document>(&name).count_documents(doc! {}).await?;
            counts.push(format!("{name} {count}"));
        }
        Ok(format!("{DATABASE}: {}", counts.join(", ")))
    }

    async fn index(&self, collection: &str, key: Document, unique: bool) -> Result<()> {
        let name = key.keys().cloned().collect::<Vec<_>>().join("_");
        let index = doc! {"key": key, "name": name, "unique": unique};
        self.database.run_command(doc! {"createIndexes": collection, "indexes": [index]}).await?;
        Ok(())
    }

    fn customers(&self) -> Collection<Document> {
        self.database.collection("customers")
    }

    fn products(&self) -> Collection<Document> {
        self.database.collection("products")
    }

    fn orders(&self) -> Collection<Document> {
        self.database.collection("orders")
    }
}

fn customer(number: i32) -> Document {
    let (first, last) = (pick(&FIRST_NAMES, number), pick(&LAST_NAMES, number));
    let email = format!("{}.{}{number}@example.org", first.to_lowercase(), last.to_lowercase());
    let street = format!("{} {}", pick(&["Harbour Road", "Mill Lane", "Station Square"], number), number % 90 + 1);
    doc! {
        "_id": number, "name": format!("{first} {last}"), "email": email,
        "address": {"street": street, "city": pick(&CITIES, number)},
    }
}

fn product(number: i32) -> Document {
    let name = format!("{} no. {number}", pick(&["Kettle", "Lamp", "Notebook", "Chair", "Teapot"], number));
    doc! {"_id": number, "name": name, "price": price(number), "stock": 100_000, "sold": 0}
}

fn order(number: i32) -> Document {
    let line =
        |n: i32| doc! {"product": (number + n) % PRODUCTS + 1, "quantity": number % 3 + 1, "price": price(number + n)};
    let lines: Vec<Document> = (0..=number % 4).map(line).collect();
    doc! {
        "_id": number, "customer": number * 31 % CUSTOMERS + 1, "lines": lines, "placed": DateTime::now(),
        "status": pick(&["open", "paid", "sent"], number),
    }
}

/// Money is exact.
fn price(number: i32) -> Decimal128 {
    let cents = i64::from(number) * 137 % 20_000 + 199;
    format!("{}.{:02}", cents / 100, cents % 100).parse().unwrap_or(Decimal128::from_bytes([0; 16]))
}

fn pick<'a>(from: &[&'a str], number: i32) -> &'a str {
    let index = usize::try_from(number).unwrap_or(0) % from.len().max(1);
    from.get(index).copied().unwrap_or_default()
}
