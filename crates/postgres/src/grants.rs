//! The role that protecting a server needs
//! (<https://www.postgresql.org/docs/current/role-attributes.html>, <https://www.postgresql.org/docs/current/predefined-roles.html>).

use hindsight_engine::Grant;

const USER: &str = "hindsight";

/// The role to create: `REPLICATION` for backups, the log and its slot, and `pg_monitor` to see where the data lie, and the
/// standbys. A restore makes a server of its own.
pub fn grants() -> Vec<Grant> {
    let statement = format!("CREATE ROLE {USER} LOGIN REPLICATION IN ROLE pg_monitor");
    vec![Grant {
        purpose: "backup and capture (`backup`, `agent`)".to_owned(),
        user: USER.to_owned(),
        // For psql, which asks for the password; so none is in a history of commands.
        command: format!("{statement};\n\\password {USER}"),
        statement: statement.into(),
    }]
}
