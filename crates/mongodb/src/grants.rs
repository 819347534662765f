//! The rights that each kind of work needs, as the least that the server's own roles offer
//! (<https://www.mongodb.com/docs/manual/reference/built-in-roles/>).

use hindsight_engine::Grant;
use serde_json::json;

/// What for, name of the user, roles.
const GRANTS: [(&str, &str, &[&str]); 3] = [
    ("backup and capture (`backup`, `agent`)", "hindsight_backup", &["backup", "clusterMonitor"]),
    ("restore (`restore`)", "hindsight_restore", &["restore", "clusterMonitor"]),
    (
        "replay of the log on top of other data (`oplog-replay`)",
        "hindsight_replay",
        &["restore", "clusterMonitor", "readWriteAnyDatabase", "dbAdminAnyDatabase"],
    ),
];

/// The users to create, each with the least rights for its work.
pub(crate) fn grants() -> Vec<Grant> {
    let grant = |&(purpose, user, roles): &(&str, &str, &[&str])| {
        let roles: Vec<_> = roles.iter().map(|role| json!({"role": role, "db": "admin"})).collect();
        // For mongosh, which asks for the password; so none is in a history of commands.
        let command = format!(
            "db.getSiblingDB(\"admin\").createUser({{user: \"{user}\", pwd: passwordPrompt(), roles: {}}})",
            json!(roles)
        );
        Grant {
            purpose: purpose.to_owned(),
            user: user.to_owned(),
            command,
            statement: json!({"createUser": user, "roles": roles}),
        }
    };
    GRANTS.iter().map(grant).collect()
}
