//! Secrets stay secret: everything that the program says, stores and starts is looked through for them.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::{Cli, Ran, wait_for};
use bson::{Document, doc};
use hindsight_repository::Identity;
use hindsight_testkit::{ReplicaSet, S3_SECRET_KEY, S3Server};
use secrecy::ExposeSecret;

const PASSWORD: &str = "Kw7-distinctive-password";
const PASSPHRASE: &str = "Kw7-distinctive-passphrase";
const WRONG_KEY: &str = "Kw7-distinctive-wrong-s3-key";

/// What was said and seen, by where.
pub struct Heard {
    secrets: Vec<String>,
    places: usize,
}

impl Heard {
    /// Listens for these.
    pub fn listen(secrets: &[&str]) -> Self {
        Self { secrets: secrets.iter().map(|secret| (*secret).to_owned()).collect(), places: 0 }
    }

    #[track_caller]
    pub fn of(&mut self, place: &str, text: &[u8]) {
        self.places += 1;
        for secret in &self.secrets {
            let text = String::from_utf8_lossy(text);
            assert!(!text.contains(secret.as_str()), "{secret:?} in {place}: {text}");
        }
    }

    #[track_caller]
    pub fn ran(&mut self, ran: Ran) -> Ran {
        self.of(&format!("the output of `{}`", ran.line), ran.out.as_bytes());
        self.of(&format!("the messages of `{}`", ran.line), ran.err.as_bytes());
        ran
    }

    /// All files below a folder, with their names.
    #[track_caller]
    pub fn folder(&mut self, folder: &Path, own: &[&Path]) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            self.of("a name", path.as_os_str().as_encoded_bytes());
            if path.is_symlink() || own.contains(&path.as_path()) {
                continue;
            }
            if path.is_dir() {
                self.folder(&path, own);
            } else if let Ok(bytes) = std::fs::read(&path) {
                self.of(&path.display().to_string(), &bytes);
            }
        }
    }
}

/// The children of a process, by what `/proc` tells of them.
pub fn children(parent: u32) -> Vec<std::path::PathBuf> {
    let status = |path: &Path| std::fs::read_to_string(path.join("status")).unwrap_or_default();
    let wanted = format!("PPid:\t{parent}\n");
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    processes.filter(|path| status(path).contains(&wanted)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_said_stored_or_handed_on() {
    let set = ReplicaSet::builder().auth().start().await.unwrap();
    let client = set.client().await.unwrap();
    let roles = ["backup", "restore", "clusterMonitor"].map(|role| doc! {"role": role, "db": "admin"}).to_vec();
    let user = doc! {"createUser": "keeper", "pwd": PASSWORD, "roles": roles};
    client.database("admin").run_command(user).await.unwrap();
    let orders = client.database("shop").collection::<Document>("orders");
    orders.insert_many((0..200).map(|n| doc! {"_id": n})).await.unwrap();

    let server = S3Server::start("vault").unwrap();
    let identity = Identity::generate();
    let mut cli = Cli::new(&set.uri_as("keeper", PASSWORD)).with(server.env());
    let (key, temporary) = (cli.folder().join("key.txt"), cli.folder().join("tmp"));
    std::fs::create_dir(&temporary).unwrap();
    let private = identity.expose().expose_secret().trim().to_owned();
    std::fs::write(&key, &private).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mongod = hindsight_testkit::mongod_binary().unwrap().display().to_string();
    cli = cli.with([
        ("HINDSIGHT_REPOSITORY", "s3://vault/safe".to_owned()),
        ("HINDSIGHT_IDENTITY", key.display().to_string()),
        ("HINDSIGHT_MONGOD", mongod),
        ("TMPDIR", temporary.display().to_string()),
        ("RUST_LOG", "trace".to_owned()),
        ("RUST_BACKTRACE", "1".to_owned()),
    ]);
    let secrets = [PASSWORD, PASSPHRASE, WRONG_KEY, S3_SECRET_KEY, private.rsplit('\n').next().unwrap()];
    let mut heard = Heard::listen(&secrets);

    // What goes well.
    heard.ran(cli.run(&format!("repository init --recipient {}", identity.recipients()[0])).ends(0, "sealed"));
    let log = cli.folder().join("agent.log");
    let agent = cli.start_logged("agent --log-level trace --log-format json", &log);
    heard.ran(cli.run("config --set pitr.enabled=true --set pitr.uploadIntervalSec=1 --log-level trace").ends(0, ""));
    heard.ran(cli.run("backup --log-level trace").ends(0, ""));
    orders.insert_one(doc! {"_id": "late"}).await.unwrap();
    let list = wait_for("the range", || {
        let list = cli.json("list");
        list["pitr"]["ranges"].get(0).is_some().then_some(list)
    });
    let name = list["snapshots"][0]["name"].as_str().unwrap().to_owned();
    let drill = cli.start(&format!("verify {name} --drill --log-level trace"));
    let mut seen = 0;
    let process = drill.id();
    let watched = tokio::task::spawn_blocking(move || drill.ended());
    while !watched.is_finished() {
        for child in children(process) {
            let (Ok(line), Ok(environment)) =
                (std::fs::read(child.join("cmdline")), std::fs::read(child.join("environ")))
            else {
                continue;
            };
            seen += usize::from(String::from_utf8_lossy(&line).contains("--dbpath"));
            // Before it becomes another program it is a copy of its parent.
            if String::from_utf8_lossy(&line).contains("--dbpath") {
                heard.of("the command line of a child", &line);
                heard.of("the environment of a child", &environment);
            }
        }
        heard.folder(&temporary, &[]);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    heard.ran(watched.await.unwrap().ends(0, ""));
    assert!(seen > 0, "the server of the drill was not seen");
    for line in [
        "list --log-level trace".to_owned(),
        "status --log-level trace -o json".to_owned(),
        format!("describe-backup {name} --with-collections --log-level trace"),
        "config --list".to_owned(),
        "repository check --log-level trace".to_owned(),
        "repository recipients".to_owned(),
        "roles".to_owned(),
        "verify --log-level trace".to_owned(),
        "cleanup --older-than 1970-01-01 -y --log-level trace".to_owned(),
        format!("restore {name} -y --log-level trace"),
        "list --restore -o json".to_owned(),
        "logs -t 0".to_owned(),
        "logs -t 0 -o json".to_owned(),
    ] {
        let ran = heard.ran(cli.run(&line));
        assert!(ran.code == 0, "{ran}");
    }
    agent.end("TERM");

    // What does not.
    let uri = set.uri_as("keeper", PASSWORD);
    let passphrase = format!("tls=true&tlsCertificateKeyFilePassword={PASSPHRASE}");
    for line in [
        format!("backup --uri {}-not --log-level trace", uri.replace("rs0", "rs9")),
        format!("status --uri mongodb://u:{PASSWORD}@127.0.0.1:1/?serverSelectionTimeoutMS=300 --log-level trace"),
        format!("backup --uri mongodb://u:{PASSWORD}@127.0.0.1:1/?serverSelectionTimeoutMS=300&{passphrase}"),
        format!("backup --uri mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=300&{passphrase} --log-level trace"),
        format!("backup mongodb://127.0.0.1:1/?{passphrase}"),
        format!("list --nope={uri}"),
        format!("list --uri {uri}&nonsense={PASSWORD}x"),
        format!("list --uri u:{PASSWORD}@h"),
        format!("list --uri postgres://u:{PASSWORD}@h/db"),
        format!("list --repository s3://u:{PASSWORD}@vault/safe"),
        format!("list --repository s3://vault/safe?secret={PASSWORD}"),
        format!("repository init --recipient {}", private.lines().last().unwrap()),
    ] {
        for more in ["", " -o json"] {
            heard.ran(cli.run(&format!("{line}{more}")).unsaid());
        }
    }
    let cli = cli.with([("AWS_SECRET_ACCESS_KEY", WRONG_KEY.to_owned())]);
    heard.ran(cli.run("list --log-level trace").ends(7, "secret access key"));
    std::fs::write(cli.folder().join("bad.txt"), format!("{private}x")).unwrap();
    heard.ran(cli.run(&format!("list --identity {}", cli.folder().join("bad.txt").display())));

    // Nor is it anywhere in what was left.
    heard.folder(server.file("vault", "").as_path(), &[]);
    heard.folder(cli.folder(), &[&key, &cli.folder().join("bad.txt")]);
    assert!(heard.places > 100, "{}", heard.places);
}
