//! Connections with TLS, and logging in with a password or a certificate.

use anyhow::Result;
use bson::doc;
use hindsight_catalog::Target;
use hindsight_engine::{EngineError, FailureKind, Selection};
use hindsight_testkit::{CLIENT_SUBJECT, Certificates, ClusterState, ReplicaSet};

use crate::support::{Store, logging, same};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_and_restore_over_tls_with_password_and_certificate() -> Result<()> {
    logging();
    let certificates = Certificates::new()?;
    let set = ReplicaSet::builder().auth().members(2).tls(&certificates).start().await?;
    let client = set.client().await?;
    let roles = ["backup", "restore", "clusterMonitor"].map(|role| doc! {"role": role, "db": "admin"}).to_vec();
    let external = client.database("$external");
    external.run_command(doc! {"createUser": CLIENT_SUBJECT, "roles": &roles}).await?;
    let admin = client.database("admin");
    admin
        .run_command(doc! {"createUser": "saver", "pwd": "pw", "roles": &roles, "mechanisms": ["SCRAM-SHA-256"]})
        .await?;
    let things = client.database("app").collection("things");
    things.insert_many((0..100).map(|n| doc! {"_id": n})).await?;
    let expected = ClusterState::read(&client).await?;

    let tls = format!("&tls=true&tlsCAFile={}", certificates.authority().display());
    let hosts = set.members().iter().map(|member| member.address()).collect::<Vec<_>>().join(",");
    let password = format!("{}&authMechanism=SCRAM-SHA-256{tls}", set.uri_as("saver", "pw"));
    let certificate = format!(
        "mongodb://{hosts}/?replicaSet=rs0&authMechanism=MONGODB-X509&authSource=$external{tls}&tlsCertificateKeyFile={}",
        certificates.client().display()
    );
    let store = Store::new().await?;
    for uri in [&password, &certificate] {
        let here = store.protect(uri, None).await?;
        let manifest = here.backup().await?;
        things.delete_many(doc! {}).await?;
        here.restore_into(&here, Target::Snapshot(manifest.id), Selection::default()).await?;
        same(&client, &expected).await?;
    }

    // Servers that another authority vouches for are not talked to.
    let others = Certificates::new()?;
    let wrong =
        password.replace(&certificates.authority().display().to_string(), &others.authority().display().to_string());
    let error = store.protect(&wrong, None).await.err().expect("refused").downcast::<EngineError>()?;
    assert_eq!(error.kind, FailureKind::Unreachable, "{error}");
    assert!(error.to_string().to_lowercase().contains("certificate"), "{error}");
    // A certificate that belongs to no user does not let anybody in.
    external.run_command(doc! {"dropUser": CLIENT_SUBJECT}).await?;
    let error = store.protect(&certificate, None).await.err().expect("refused").downcast::<EngineError>()?;
    assert_eq!(error.kind, FailureKind::Authentication, "{error}");
    Ok(())
}
