//! Commits that wait until they are in the repository: `synchronous_standby_names`
//! (<https://www.postgresql.org/docs/current/runtime-config-replication.html>).
//!
//! With `pitr.synchronous` the capture goes by a name of its own, tells a server that something is safe only once it is in the
//! repository, and stores it at once. Whether commits wait for that is the server's to say.

use hindsight_engine::{Result, Synchronous, Wait};
use hindsight_repository::ClusterRepository;

use crate::wire::{Connection, Replication, quote_text};
use crate::{Address, members, slot};

/// What the capture of a cluster is called by servers whose commits are to wait for it (`application_name`).
pub(crate) fn name(cluster: &ClusterRepository) -> String {
    slot::of_cluster(cluster.name())
}

/// Whether the commits of the server that is followed wait for the capture, and what to set that they do.
///
/// # Errors
/// It cannot be reached or refuses.
pub async fn look(address: &Address, cluster: &ClusterRepository) -> Result<Synchronous> {
    let leader = members::leader(address).await?.address;
    let mut connection = Connection::connect(&leader, Replication::Physical).await?;
    let names = connection.show("synchronous_standby_names").await?;
    connection.close().await;
    Ok(told(&names, &name(cluster)))
}

/// What comes of a setting for who is called `name`.
fn told(names: &str, name: &str) -> Synchronous {
    let list = List::read(names);
    let wait = list.wait(name);
    let to_wait = |list: &List| {
        let line = set(&list.with(name));
        format!("to make them wait, on every member: {line}")
    };
    let told = match wait {
        Wait::Always => {
            format!("commits wait until they are in the repository (synchronous_standby_names is {names:?})")
        }
        Wait::Sometimes => format!(
            "commits need not wait for the capture, as others can take its place (synchronous_standby_names is {names:?}); {}",
            to_wait(&list)
        ),
        Wait::Never => format!("commits do not wait for the capture yet; {}", to_wait(&list)),
    };
    let release = format!("on every member: {}", set(&list.without(name)));
    Synchronous { wait, told, release }
}

fn set(names: &str) -> String {
    format!("ALTER SYSTEM SET synchronous_standby_names = {}; SELECT pg_reload_conf()", quote_text(names))
}

/// Whether commits can wait for who is called so: `synchronous_standby_names` lists names, or has `*` for all of them.
pub(crate) fn waits_for(names: &str, name: &str) -> bool {
    List::read(names).wait(name) != Wait::Never
}

/// A value of `synchronous_standby_names`.
#[derive(Debug)]
struct List {
    /// Whether any of them will do (`ANY`).
    any: bool,
    /// How many commits wait for.
    count: usize,
    /// As they stand there.
    names: Vec<String>,
}

impl List {
    fn read(text: &str) -> Self {
        let (head, names) = match text.split_once('(') {
            Some((head, rest)) => (head, rest.trim_end().trim_end_matches(')')),
            None => ("", text),
        };
        let mut head = head.split_whitespace();
        let first = head.next().unwrap_or_default();
        let count = head.next().unwrap_or(first).parse().unwrap_or(1);
        let names = names.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
        Self { any: first.eq_ignore_ascii_case("any"), count, names }
    }

    fn is(entry: &str, name: &str) -> bool {
        entry.trim_matches('"').eq_ignore_ascii_case(name)
    }

    fn wait(&self, name: &str) -> Wait {
        let all = self.names.iter().any(|entry| entry == "*");
        match self.names.iter().any(|entry| Self::is(entry, name)) {
            true if !all && self.count >= self.names.len() => Wait::Always,
            true => Wait::Sometimes,
            false if all => Wait::Sometimes,
            false => Wait::Never,
        }
    }

    /// This one, and of those that stand there as many as there are. Several standbys may go by one name: who is first counts first.
    fn with(&self, name: &str) -> String {
        let others = self.others(name);
        match others.as_slice() {
            [] => name.to_owned(),
            others => format!("FIRST {} ({name}, {})", others.len() + 1, others.join(", ")),
        }
    }

    fn without(&self, name: &str) -> String {
        let others = self.others(name);
        let how = if self.any { "ANY" } else { "FIRST" };
        match others.len() {
            0 => String::new(),
            all => format!("{how} {} ({})", self.count.clamp(1, all), others.join(", ")),
        }
    }

    /// The others. `*` stands for no one in particular.
    fn others(&self, name: &str) -> Vec<&str> {
        self.names.iter().map(String::as_str).filter(|entry| *entry != "*" && !Self::is(entry, name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_waited_for_is_listed_or_anybody() {
        use Wait::{Always, Never, Sometimes};
        for (names, wait) in [
            ("", Never),
            ("*", Sometimes),
            ("a, b", Never),
            ("Hindsight", Always),
            ("a, hindsight", Sometimes),
            ("FIRST 2 (a, Hindsight)", Always),
            ("FIRST 1 (hindsight, a)", Sometimes),
            ("ANY 1 (a,\"hindsight\")", Sometimes),
            ("any 2 (a,\"hindsight\")", Always),
            ("2 (a, b , hindsight)", Sometimes),
            ("3(a, b , hindsight)", Always),
            ("2 (*)", Sometimes),
            ("2 (hindsight, *)", Sometimes),
            ("hindsight_two", Never),
        ] {
            assert_eq!(List::read(names).wait("hindsight"), wait, "{names}");
        }
    }

    #[test]
    fn the_line_to_set_keeps_the_others() {
        for (names, with, without) in [
            ("", "h", ""),
            ("*", "h", ""),
            ("h", "h", ""),
            ("\"s 1\"", "FIRST 2 (h, \"s 1\")", "FIRST 1 (\"s 1\")"),
            ("FIRST 1 (a, b)", "FIRST 3 (h, a, b)", "FIRST 1 (a, b)"),
            ("ANY 2 (a, h, b)", "FIRST 3 (h, a, b)", "ANY 2 (a, b)"),
            ("FIRST 2 (a, h)", "FIRST 2 (h, a)", "FIRST 1 (a)"),
        ] {
            let list = List::read(names);
            assert_eq!((list.with("h").as_str(), list.without("h").as_str()), (with, without), "{names}");
        }
        let said = told("ANY 1 (a)", "h");
        assert!(said.told.contains("'FIRST 2 (h, a)'; SELECT pg_reload_conf()"), "{}", said.told);
        assert!(said.release.contains("'ANY 1 (a)'"), "{}", said.release);
        assert!(told("h", "h").told.starts_with("commits wait until"));
    }
}
