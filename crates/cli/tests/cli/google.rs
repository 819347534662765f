//! The program with a bucket of Google's, reached as its environment says.

use bson::{Document, doc};
use hindsight_testkit::{ClusterState, GoogleServer, ReplicaSet};

use crate::support::Cli;

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_of_googles_serves_with_a_key_and_on_a_machine_without_one() {
    let set = ReplicaSet::single().await.unwrap();
    let server = GoogleServer::start("backups").unwrap();
    let repository = ("HINDSIGHT_REPOSITORY", "gs://backups/shop".to_owned());
    let cli = Cli::new(&set.uri()).with(server.env()).with([repository.clone()]);
    let client = set.client().await.unwrap();
    let orders = client.database("shop").collection::<Document>("orders");
    orders.insert_many((0..1000).map(|n| doc! {"_id": n})).await.unwrap();

    cli.run("repository check").ends(0, "The repository can be used.");
    let name = cli.json("backup")["name"].as_str().unwrap().to_owned();
    let expected = ClusterState::read(&client).await.unwrap();
    orders.delete_many(doc! {}).await.unwrap();

    let machine = Cli::new(&set.uri()).with(server.env_of_machine()).with([repository.clone()]);
    machine.ok(&format!("restore {name} -y"));
    let found = ClusterState::read(&client).await.unwrap();
    assert_eq!(expected.diff(&found), Vec::<String>::new());

    // The file of the settings goes before the environment.
    let settings = format!("[google]\nservice_account = {:?}\n", server.key_file());
    let settled = Cli::new(&set.uri()).with([repository.clone(), ("GOOGLE_SERVICE_ACCOUNT_KEY", "{}".to_owned())]);
    std::fs::write(settled.folder().join("hindsight.toml"), settings).unwrap();
    settled.run(&format!("delete-backup {name} -y")).ends(0, "Deleted: 1 snapshot");
}

#[test]
fn what_is_wrong_with_credentials_of_google_is_said_without_them() {
    let server = GoogleServer::start("backups").unwrap();
    let nobody = || "127.0.0.1:1".to_owned();
    for (variables, words) in [
        ([("GCE_METADATA_HOST", nobody()), ("GCE_METADATA_IP", nobody())], "no credentials were found"),
        ([("GOOGLE_APPLICATION_CREDENTIALS", server.key()), ("X", nobody())], "GOOGLE_SERVICE_ACCOUNT_KEY"),
        ([("GOOGLE_SERVICE_ACCOUNT", "/nowhere.json".into()), ("X", nobody())], "taken from GOOGLE_SERVICE_ACCOUNT"),
    ] {
        let repository = ("HINDSIGHT_REPOSITORY", "gs://backups/shop".to_owned());
        let ran = Cli::new("mongodb://127.0.0.1:1").with(variables).with([repository]).run("repository check");
        assert!(ran.code != 0 && format!("{}{}", ran.out, ran.err).contains(words), "{ran}");
        assert!(!format!("{}{}", ran.out, ran.err).contains("PRIVATE KEY"), "{ran}");
    }
}
