//! Users and rules through the command line and REST of three real processes: replicated, ordered, kept, and without
//! a secret in any answer, log line or error.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use quorate_jepsen::harness::http;
use serde_json::{Value, json};
use testkit::{SOON, System, eventually, three_nodes};

/// In no answer, and in no log.
const SECRETS: [&str; 3] = ["first-pa55word", "second-pa55word", "argon2"];

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a command on a node, with this on its standard input.
fn quorate_with(system: &System, place: usize, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(arguments).args(["--admin", &system.admin(place).to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that needs no password may have ended already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    for secret in SECRETS {
        assert!(!text(&output).contains(secret), "{arguments:?} prints {secret}: {}", text(&output));
    }
    output
}

/// One that succeeds; what it prints.
fn quorate(system: &System, place: usize, arguments: &[&str], input: &str) -> String {
    let output = quorate_with(system, place, arguments, input);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn get(system: &System, place: usize, path: &str) -> Value {
    let answer = http::get(system.admin(place), path).unwrap();
    for secret in SECRETS {
        assert!(!answer.body.contains(secret), "{path} shows {secret}: {}", answer.body);
    }
    serde_json::from_str(&answer.body).unwrap()
}

/// Waits until every node shows this.
async fn everywhere(system: &System, path: &str, shown: &Value) {
    for place in 0..system.cluster.nodes.len() {
        eventually(&format!("node {place} shows {path} as {shown}"), SOON, || {
            (get(system, place, path) == *shown).then_some(())
        })
        .await;
    }
}

/// On each node, who may do what, asked as `quorate acl test` does.
async fn decided_everywhere(system: &System, query: &str, allowed: bool, number: Option<u32>) {
    for place in 0..system.cluster.nodes.len() {
        eventually(&format!("node {place} decides {query} by {number:?}"), SOON, || {
            let checked = get(system, place, &format!("/api/v1/acls/check?{query}"));
            (checked["allowed"] == json!(allowed) && checked["rule"]["number"] == json!(number)).then_some(())
        })
        .await;
    }
}

fn user(name: &str, scram: bool, superuser: bool) -> Value {
    json!({"name": name, "password": true, "scram": scram, "superuser": superuser})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_rules_set_at_one_node_hold_on_all_and_outlive_the_whole_cluster() {
    let mut system = three_nodes();
    let (leader, follower) = (system.leader(), system.follower());

    // Through a node that does not lead, then changed through the one that does.
    quorate(&system, follower, &["user", "add", "ann", "--scram"], "first-pa55word\n");
    // Who reads the answer finds the change on that node at once.
    assert_eq!(get(&system, follower, "/api/v1/users/ann"), user("ann", true, false));
    everywhere(&system, "/api/v1/users", &json!({"users": [user("ann", true, false)], "next": null})).await;
    quorate(&system, leader, &["user", "add", "root", "--superuser"], "first-pa55word\n");
    let said = quorate(&system, leader, &["user", "passwd", "ann"], "second-pa55word\n");
    assert!(said.contains("ann") && said.contains("SCRAM"), "{said}");
    let mistyped = quorate_with(&system, leader, &["user", "passwd", "anne"], "second-pa55word\n");
    assert_eq!(mistyped.status.code(), Some(1), "{}", text(&mistyped));
    let users = json!({"users": [user("ann", true, false), user("root", false, true)], "next": null});
    everywhere(&system, "/api/v1/users", &users).await;
    let listed = quorate(&system, follower, &["user", "list"], "");
    assert!(listed.contains("ann ") && listed.contains("password, SCRAM") && listed.contains("superuser"), "{listed}");

    // The order is that of the numbers, not that of the commands.
    quorate(&system, leader, &["acl", "add", "20", "deny", "all", "all", "plant/#"], "");
    let own = ["acl", "add", "10", "allow", "user:ann", "publish", "plant/%u/#", "--qos-max", "1", "--retain", "false"];
    quorate(&system, follower, &own, "");
    for (query, allowed, number) in [
        ("user=ann&action=publish&topic=plant/ann/x", true, Some(10)),
        ("user=ann&action=publish&topic=plant/ann/x&qos=2", false, Some(20)),
        ("user=ann&action=publish&topic=plant/bob/x", false, Some(20)),
        ("user=root&action=publish&topic=plant/bob/x", true, None),
        ("action=subscribe&topic=%23", false, Some(20)),
        ("action=subscribe&topic=else/%23", true, None),
    ] {
        decided_everywhere(&system, query, allowed, number).await;
    }
    quorate(&system, follower, &["acl", "otherwise", "deny"], "");
    decided_everywhere(&system, "action=subscribe&topic=else/%23", false, None).await;
    let said = quorate(&system, leader, &["acl", "test", "--user", "ann", "publish", "plant/ann/x"], "");
    assert!(said.starts_with("allowed: by rule 10 allow user:ann publish plant/%u/#"), "{said}");
    let rules = get(&system, leader, "/api/v1/acls");
    let numbers: Vec<_> = rules["rules"].as_array().unwrap().iter().map(|rule| rule["number"].clone()).collect();
    assert_eq!((numbers, &rules["otherwise"]), (vec![json!(10), json!(20)], &json!("deny")));
    let listed = quorate(&system, follower, &["acl", "list"], "");
    assert!(listed.find("10 ").unwrap() < listed.find("20 ").unwrap() && listed.ends_with("otherwise: deny\n"));

    // Power fails everywhere.
    (0..3).for_each(|place| system.kill(place));
    (0..3).for_each(|place| system.restart(place));
    system.wait_whole();
    everywhere(&system, "/api/v1/users", &users).await;
    everywhere(&system, "/api/v1/acls", &rules).await;
    system.assert_same_digest();

    quorate(&system, follower, &["acl", "delete", "20"], "");
    quorate(&system, follower, &["user", "delete", "root"], "");
    everywhere(&system, "/api/v1/users", &json!({"users": [user("ann", true, false)], "next": null})).await;
    let again = quorate_with(&system, leader, &["user", "delete", "root"], "");
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again).contains("there is no user `root`"), "{}", text(&again));

    for node in &system.cluster.nodes {
        let log = node.log();
        assert!(log.contains("starting"), "the log is not where it was looked for");
        for secret in SECRETS {
            assert!(!log.contains(secret), "{secret} is in the log of {}", node.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_changes_and_the_answer_says_why() {
    let mut system = three_nodes();
    let leader = system.leader();
    let others: Vec<usize> = (0..3).filter(|place| *place != leader).collect();
    quorate(&system, leader, &["acl", "add", "1", "deny", "anonymous", "all"], "");
    others.iter().for_each(|place| system.kill(*place));
    let put = r#"{"permission": "allow", "who": "all", "action": "all"}"#;
    let answer = http::request(system.admin(leader), "PUT", "/api/v1/acls/2", Some(put)).unwrap();
    assert_eq!(answer.status, 503, "{}", answer.body);
    let problem: Value = serde_json::from_str(&answer.body).unwrap();
    assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{problem}");
    // What is there is still shown, and still decides.
    assert_eq!(get(&system, leader, "/api/v1/acls")["rules"].as_array().unwrap().len(), 1);
}
