//! What people read, as a whole: changes show up in review.
#![allow(clippy::unwrap_used)]

use hindsight_engine::{Content, Preview, Selection};
use hindsight_format::{OperationKind, ProofKind, RestoreRecord, RestoreState};
use hindsight_jobs::{Captured, Overview};
use insta::assert_snapshot;

use super::examples::*;
use super::listing::Listing;
use super::pitr::Pitr;
use super::plan::{Facts, PlanReport};
use super::removal::RemovalReport;
use super::restores::{RestoreReport, Restores, replaced_or_not, standing, unmended};
use super::snapshot::{SnapshotReport, Taken};
use super::status::{Backups, Cluster, Running, Status};
use crate::exit::{Exit, Failure};
use crate::output::Report;

const NOW: &str = "2021-02-09T12:20:27Z";

fn list(overview: &Overview) -> String {
    Listing::of(overview, None, false, time(NOW), "hindsight").text()
}

#[test]
fn the_list_of_a_cluster_that_is_well() {
    assert_snapshot!(list(&healthy()));
}

#[test]
fn the_list_after_a_gap_and_a_restore() {
    assert_snapshot!(Listing::of(&eventful(), Some(3), true, time("2021-02-10T08:00:02Z"), "pbm").text());
}

#[test]
fn the_list_as_json() {
    let listing = Listing::of(&eventful(), None, true, time("2021-02-10T08:00:02Z"), "hindsight");
    assert_snapshot!(serde_json::to_string_pretty(&listing).unwrap());
}

#[test]
fn what_is_known_of_each_snapshot_is_told_and_what_went_wrong_until_it_is_put_right() {
    let mut overview = healthy();
    let id = overview.history.snapshots[0].id.clone();
    let proof = |at: &str, kind, broken: &[&String]| hindsight_format::ProofRecord {
        format: 1,
        id: at.to_owned(),
        kind,
        passed: broken.is_empty(),
        started_at: time(at),
        finished_at: time(at),
        snapshots: vec![id.clone()],
        broken: broken.iter().map(|id| (*id).clone()).collect(),
        log: kind == ProofKind::Read,
        restore_point: None,
        findings: broken.len() as u64,
        told: broken.iter().map(|id| format!("snapshots/{id}/data/000001.bson.zst: it is missing")).collect(),
        objects: 3,
        bytes: 1 << 30,
        recovery_ms: (kind == ProofKind::Drill).then_some(41_300),
        hashes_compared: None,
        server_version: None,
        host: "db1".to_owned(),
        run_by: "0.1.0".to_owned(),
    };
    let mut told = Vec::new();
    let mut tell = |title: &str, proof| {
        overview.proofs.push(proof);
        told.push(format!("-- {title}\n{}", Listing::of(&overview, None, false, time(NOW), "hindsight").text()));
    };
    tell("read", proof("2021-02-07T10:00:00Z", ProofKind::Read, &[]));
    tell("drilled", proof("2021-02-07T11:00:00Z", ProofKind::Drill, &[]));
    tell("damaged", proof("2021-02-08T10:00:00Z", ProofKind::Read, &[&id]));
    tell("put right", proof("2021-02-09T10:00:00Z", ProofKind::Read, &[]));
    tell("the drill fails", proof("2021-02-09T12:00:00Z", ProofKind::Drill, &[&id]));
    assert_snapshot!(told.join("\n"));
}

#[test]
fn the_capture_is_told_in_one_line_with_what_is_wrong() {
    let mut told = Vec::new();
    let mut tell = |title: &str, overview: &Overview| {
        told.push(format!("-- {title}\n{}", Pitr::of(overview, false, time(NOW), "hindsight").text()));
    };

    tell("no agent", &Overview { capture: Captured::Idle(None), ..healthy() });

    let gone = || Captured::Idle(Some(lease(OperationKind::Capture, "rs0", "")));
    tell("the agent has just let go", &Overview { capture: gone(), ..healthy() });
    let mut overview = Overview { capture: gone(), ..healthy() };
    if let Captured::Idle(Some(lease)) = &mut overview.capture {
        lease.renewed_at = time("2021-02-09T10:00:00Z");
    }
    tell("the agent is gone", &overview);

    let mut overview = Overview { capture: Captured::Idle(None), ..healthy() };
    overview.config.pitr.enabled = false;
    tell("switched off", &overview);

    overview = healthy();
    overview.history.slices.clear();
    overview.timeline = hindsight_catalog::timeline(&overview.history);
    tell("just begun", &overview);

    overview = healthy();
    overview.history.snapshots.clear();
    overview.timeline = hindsight_catalog::timeline(&overview.history);
    tell("no base", &overview);

    overview = healthy();
    overview.history.slices.pop();
    overview.timeline = hindsight_catalog::timeline(&overview.history);
    tell("far behind", &overview);

    overview = Overview { capture: Captured::Idle(None), ..healthy() };
    overview.operation = Some(lease(OperationKind::Restore, "2021-02-09T12:00:00Z", "copying documents"));
    overview.restoring = vec!["2021-02-09T12:00:00Z".to_owned()];
    tell("a restore is running", &overview);

    overview = Overview { capture: Captured::Idle(None), epoch: 2, ..healthy() };
    overview.restores = vec![restored("2021-02-09T12:00:00Z", RestoreState::InProgress, true)];
    tell("a restore was cut off", &overview);

    overview.restores = vec![restored("2021-02-09T12:00:00Z", RestoreState::Error, true)];
    overview.restores[0].namespaces = vec!["shop.orders".to_owned()];
    tell("a restore has failed", &overview);

    assert_snapshot!(told.join("\n"));
}

#[test]
fn the_status_of_a_cluster() {
    let overview = eventful();
    let lease = lease(OperationKind::Backup, "2021-02-09T12:00:00Z", "copying documents");
    let status = Status {
        cluster: Some(Cluster::of(Some("rs0"), Ok(&probe()), Some(jiff::SignedDuration::from_mins(30)))),
        pitr: Some(Pitr::of(&overview, false, time("2021-02-10T08:00:02Z"), "hindsight")),
        running: Some(Running::of(Some(&lease), time(NOW))),
        backups: Some(Backups::of(&overview, "s3://backups/shop", None, time(NOW), "hindsight")),
    };
    assert_snapshot!(status.text());
}

#[test]
fn a_log_that_is_kept_for_the_capture_is_told_in_bytes() {
    let room = hindsight_engine::LogRoom { used: 3 << 30, capacity: 10 << 30, kept_secs: 0 };
    let probe = hindsight_engine::Probe { log_start: None, log_room: Some(room), ..probe() };
    let cluster = Some(Cluster::of(Some("rs0"), Ok(&probe), Some(jiff::SignedDuration::from_mins(30))));
    let status = Status { cluster, pitr: None, running: None, backups: None };
    let said = "  it keeps 3.0 GiB of oplog for the capture; the capture may stand still for 30m";
    assert!(status.text().contains(said), "{}", status.text());
}

#[test]
fn the_status_of_a_cluster_that_is_away() {
    let failure =
        Failure::new(Exit::Unreachable, "no answer from the database while connecting").hint("check the network");
    let mut overview = healthy();
    overview.restores = vec![restored("2021-02-09T12:00:00Z", RestoreState::InProgress, true)];
    let status = Status {
        cluster: Some(Cluster::of(Some("rs0"), Err(&failure), None)),
        pitr: None,
        running: Some(Running::of(None, time(NOW))),
        backups: Some(Backups::of(&overview, "file:///backups", Some(3 << 30), time(NOW), "hindsight")),
    };
    assert_snapshot!(status.text());
}

#[test]
fn the_history_of_restores() {
    let mut overview = healthy();
    overview.restoring = vec!["2021-02-09T12:00:00Z".to_owned()];
    overview.restores = vec![
        restored("2021-02-07T03:10:00Z", RestoreState::Error, false),
        restored("2021-02-08T03:10:00Z", RestoreState::InProgress, true),
        restored("2021-02-08T04:10:00Z", RestoreState::Success, true),
        restored("2021-02-09T12:00:00Z", RestoreState::InProgress, false),
    ];
    overview.restores[2].namespaces = vec!["shop.orders".to_owned()];
    assert_snapshot!(Restores::of(&overview, None).text());
    assert_eq!(standing(&overview.restores[3], &overview.restoring), "in_progress");
    let words = &hindsight_mongodb::WORDS;
    let described = RestoreReport::of(&overview.restores[1], &overview.restoring, words);
    assert_snapshot!("a_restore_that_was_cut_off", described.text());
    assert_snapshot!("a_restore_that_went_well", RestoreReport::of(&overview.restores[2], &[], words).text());
}

#[test]
fn a_restore_that_did_not_end_well_is_mended_by_one_that_covers_it() {
    let broken = |overview: &Overview| unmended(overview).map(|record| record.id.clone());
    let mut overview = healthy();
    let (first, second) = ("2021-02-08T03:10:00Z", "2021-02-08T04:10:00Z");
    overview.restores = vec![restored(first, RestoreState::InProgress, true)];
    assert_eq!(broken(&overview).as_deref(), Some(first));
    overview.restoring = vec![first.to_owned()];
    assert_eq!(broken(&overview), None);
    overview.restoring.clear();
    overview.restores.push(restored(second, RestoreState::Success, true));
    assert_eq!(broken(&overview), None);
    overview.restores[1].namespaces = vec!["shop.orders".to_owned()];
    assert_eq!(broken(&overview).as_deref(), Some(first));
    overview.restores[0].namespaces = vec!["shop.orders".to_owned()];
    assert_eq!(broken(&overview), None);
    overview.restores[0].touched = false;
    overview.restores.pop();
    assert_eq!(broken(&overview), None);
    overview.restores[0].touched = true;
    overview.restores[0].into.id = "another".to_owned();
    assert_eq!(broken(&overview), None);
}

#[test]
fn a_cluster_that_is_replaced_in_one_step_is_never_half_restored() {
    let mut overview = healthy();
    let told = |overview: &Overview| replaced_or_not(overview, "hindsight");
    let mut record = restored("2021-02-08T03:10:00Z", RestoreState::InProgress, false);
    (record.new_epoch, record.kept) = (Some(2), Some("/srv/main.before-20210208T030900Z".to_owned()));
    overview.restores = vec![record];
    overview.epoch = 2;
    assert_eq!(unmended(&overview), None);
    let said = told(&overview).unwrap();
    assert!(said.contains("in place was cut off while copying documents; the data are whole"), "{said}");
    assert!(said.contains("if /srv/main.before-20210208T030900Z is there, they are what was restored"), "{said}");
    // Another attempt that did not come as far says nothing of it.
    overview.restores.push(restored("2021-02-08T04:10:00Z", RestoreState::Error, false));
    assert_eq!(told(&overview), Some(said));
    // It runs, has ended well, was undone, or is another's.
    overview.restoring = vec!["2021-02-08T03:10:00Z".to_owned()];
    assert_eq!(told(&overview), None);
    overview.restoring.clear();
    for change in [
        |record: &mut RestoreRecord| record.state = RestoreState::Success,
        |record: &mut RestoreRecord| record.kept = None,
        |record: &mut RestoreRecord| record.into.id = "another".to_owned(),
    ] {
        let record = overview.restores[0].clone();
        change(&mut overview.restores[0]);
        assert_eq!(told(&overview), None);
        overview.restores[0] = record;
    }
    // Whatever is there, it is captured or was backed up.
    overview.history.snapshots[0].epoch = 2;
    assert_eq!(told(&overview), None);
}

fn planned(selection: Selection, preview: &Preview, change: impl FnOnce(&mut Facts<'_>)) -> PlanReport {
    let (plan, request) = (plan(), request(selection));
    let lease = lease(OperationKind::Capture, "rs0", "");
    let mut facts = Facts {
        source: "rs0",
        repository: "s3://backups/shop",
        request: &request,
        plan: &plan,
        preview,
        words: &hindsight_mongodb::WORDS,
        target: Some("rs0"),
        capture: Some(&lease),
        captures_afterwards: true,
        restore_point: "just before 2021-02-07T02:59:59Z".to_owned(),
        clamped: None,
        taken_as_utc: Some("2021-02-07T02:59:59"),
        program: "hindsight",
    };
    change(&mut facts);
    PlanReport::told(&facts)
}

#[test]
fn the_plan_of_a_restore_in_place() {
    let plan = planned(Selection::default(), &preview(6), |_| {});
    assert_snapshot!(format!("{}\n{}", plan.text(), plan.question()));
}

#[test]
fn the_plan_of_a_restore_of_many_collections_while_pitr_is_off() {
    let plan = planned(Selection::default(), &preview(1030), |facts| {
        facts.capture = None;
        facts.captures_afterwards = false;
        facts.taken_as_utc = None;
    });
    assert_snapshot!(plan.text());
}

#[test]
fn the_plan_of_a_restore_under_another_name_into_another_cluster() {
    let mut into = preview(0);
    into.in_place = false;
    let selection = Selection::renamed("shop.orders", "shop.orders_then").unwrap();
    let plan = planned(selection, &into, |facts| {
        facts.target = None;
        facts.capture = None;
        facts.captures_afterwards = false;
    });
    assert_snapshot!(format!("{}\n{}", plan.text(), plan.question()));
}

#[test]
fn the_plan_of_a_restore_into_a_directory() {
    let directory = hindsight_engine::Directory::new("/srv/new");
    let request = hindsight_jobs::RestoreRequest {
        destination: hindsight_engine::Destination::Directory(directory),
        ..request(Selection::default())
    };
    let reached = hindsight_engine::Reached {
        point: point("2021-02-07T02:59:57Z"),
        through: None,
        last_commit: Some(time("2021-02-07T02:59:56Z")),
        left_out: Some(time("2021-02-07T02:59:59Z")),
    };
    let preview = Preview { in_place: false, reaches: Some(reached), estimated_secs: None, ..preview(0) };
    let plan = PlanReport::told(&Facts {
        source: "rs0",
        repository: "s3://backups/shop",
        request: &request,
        plan: &plan(),
        preview: &preview,
        words: &hindsight_mongodb::WORDS,
        target: None,
        capture: None,
        captures_afterwards: false,
        restore_point: "just before 2021-02-07T02:59:59Z".to_owned(),
        clamped: None,
        taken_as_utc: None,
        program: "hindsight",
    });
    let text = plan.text();
    let reaches = "2021-02-07T02:59:57Z (1612666797.0000000001-1), the last commit in it is of 2021-02-07T02:59:56Z, the \
                   first that is not of 2021-02-07T02:59:59Z";
    assert!(text.contains(reaches) && text.contains("a new cluster\n"), "{text}");
    assert!(!text.contains("Will take"), "{text}");
}

#[test]
fn the_plan_as_json() {
    let plan = planned(Selection::new(vec!["shop.*".to_owned()]).unwrap(), &preview(3), |_| {});
    assert_snapshot!(serde_json::to_string_pretty(&plan).unwrap());
}

#[test]
fn a_snapshot_described_and_just_taken() {
    let path = "s3://backups/shop/clusters/rs0/snapshots/2021-02-03T08:08:29Z".to_owned();
    let words = &hindsight_mongodb::WORDS;
    let collection = |name: &str| Content { name: name.to_owned(), items: 5, bytes: 1234, indexes: 2 };
    let collections = vec![collection("crm.customers"), collection("shop.orders")];
    let report = SnapshotReport::of(&snapshot("2021-02-03T08:08:35Z", 1), path.clone(), Some(collections), words);
    assert_snapshot!("a_snapshot_described", report.text());
    let report = SnapshotReport::of(&snapshot("2021-02-03T08:08:35Z", 1), path, None, words);
    assert_snapshot!("a_snapshot_just_taken", Taken::of(report, Vec::new(), Some("PITR is off.".to_owned())).text());
}

#[test]
fn the_plan_of_a_cleanup() {
    use hindsight_catalog::{Wish, removal};
    use hindsight_format::UnfinishedSnapshot;

    let history = eventful().history;
    let left = UnfinishedSnapshot {
        id: "2021-02-04T00:00:00Z".to_owned(),
        objects: 12,
        stored_bytes: 5 << 20,
        resumable: true,
    };
    let before = time("2021-02-10T07:45:00Z");
    let plan = removal(&history, &[left], &Wish::Everything { before }, Some(2)).unwrap();
    let report = RemovalReport::of(&plan, false);
    assert_snapshot!(report.text());
    assert_snapshot!("a_cleanup_as_json", serde_json::to_string_pretty(&report).unwrap());
    let all = removal(&history, &[], &Wish::Everything { before: time("2022-01-01T00:00:00Z") }, None).unwrap();
    assert!(RemovalReport::of(&all, false).text().contains("NOTHING can be restored afterwards."));
    assert_snapshot!("a_cleanup_that_was_done", RemovalReport::of(&all, true).text());
    let none = removal(&history, &[], &Wish::Everything { before: time("2020-01-01T00:00:00Z") }, None).unwrap();
    assert_eq!(RemovalReport::of(&none, false).text(), "nothing to delete\n");
}
