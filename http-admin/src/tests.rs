//! The promises of the interface, over real sockets and a fake cluster.

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::cluster::{AdminError, LeaderAddress};
use crate::forward::FORWARDED;
use crate::problem::PROBLEM_JSON;
use crate::testkit::{Answer, Fake, serve};

async fn ask(server: &crate::AdminServer, method: Method, path: &str, body: &str) -> (StatusCode, String, Value) {
    let url = format!("http://{}{path}", server.address());
    let answer = Client::new().request(method, url).body(body.to_owned()).send().await.unwrap();
    let status = answer.status();
    let kind = answer.headers().get("content-type").unwrap().to_str().unwrap().to_owned();
    let text = answer.text().await.unwrap();
    (status, kind, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

#[tokio::test]
async fn the_cluster_has_the_shape_that_scripts_rely_on() {
    let server = serve(&Fake::leader()).await;
    let (status, kind, json) = ask(&server, Method::GET, "/api/v1/cluster", "").await;
    assert_eq!((status, kind.as_str()), (StatusCode::OK, "application/json"));
    let mut want = json!({"cluster_id": "c0ffee", "leader": 1, "term": 3, "commit": 120, "nodes": [], "alarms": []});
    for (id, role) in [(1, "leader"), (2, "follower"), (3, "follower"), (4, "learner")] {
        want["nodes"].as_array_mut().unwrap().push(json!({
            "id": id, "name": format!("n{id}"), "role": role, "state": "up",
            "mqtt": format!("127.0.0.1:{}", 1882 + id), "peer": format!("127.0.0.1:{}", 7400 + id),
            "admin": format!("127.0.0.1:{}", 7480 + id), "applied": 120
        }));
    }
    assert_eq!(json, want);
    let (_, _, nodes) = ask(&server, Method::GET, "/api/v1/cluster/nodes", "").await;
    assert_eq!(nodes, want["nodes"]);
}

#[tokio::test]
async fn each_change_reaches_the_cluster() {
    let fake = Fake::leader();
    let server = serve(&fake).await;
    let join = json!({"token": "ab", "name": "e", "mqtt": "h:1", "peer": "h:2", "admin": "h:3"}).to_string();
    let (status, _, joined) = ask(&server, Method::POST, "/api/v1/cluster/nodes", &join).await;
    assert_eq!((status, joined), (StatusCode::CREATED, json!({"id": 5, "cluster_id": "c0ffee"})));
    for (method, path, body) in [
        (Method::POST, "/api/v1/cluster/nodes/4/promote", ""),
        (Method::POST, "/api/v1/cluster/nodes/3/demote", ""),
        (Method::DELETE, "/api/v1/cluster/nodes/2", ""),
        (Method::POST, "/api/v1/cluster/leader", ""),
        (Method::POST, "/api/v1/cluster/leader", "{\"to\": 3}"),
        (Method::GET, "/api/v1/cluster/digest", ""),
    ] {
        let (status, _, json) = ask(&server, method, path, body).await;
        assert_eq!(status, StatusCode::OK, "{path}: {json}");
    }
    assert_eq!(
        fake.asked(),
        ["join ab", "promote 4", "demote 3", "remove 2", "transfer None", "transfer Some(3)", "digest"]
    );
}

#[tokio::test]
async fn a_dry_run_shows_the_quorums_and_does_nothing() {
    let fake = Fake::leader();
    let server = serve(&fake).await;
    let (status, _, plan) = ask(&server, Method::POST, "/api/v1/cluster/nodes/4/promote?dry_run=true", "").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!((&plan["after"]["needed"], &plan["possible"]), (&json!(3), &json!(true)));
    let (status, _, _) = ask(&server, Method::POST, "/api/v1/cluster/nodes/4/promote?dryrun=true", "").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "a misspelt dry run must not become a real one");
    assert!(fake.asked().is_empty());
}

#[tokio::test]
async fn every_error_is_problem_json() {
    let fake = Fake { answer: Answer::Fail(AdminError::UnknownNode(9)), ..Fake::leader() };
    let server = serve(&fake).await;
    let long = "x".repeat(5000);
    for (method, path, body, status, kind) in [
        (Method::GET, "/nowhere", "", 404, "/problems/not-found"),
        (Method::PUT, "/api/v1/cluster", "", 405, "/problems/method-not-allowed"),
        (Method::POST, "/api/v1/cluster/nodes", "{", 400, "/problems/bad-request"),
        (Method::POST, "/api/v1/cluster/nodes", "{\"token\": \"ab\", \"colour\": 1}", 400, "/problems/bad-request"),
        (Method::POST, "/api/v1/cluster/nodes", long.as_str(), 413, "/problems/too-large"),
        (Method::POST, "/api/v1/cluster/nodes/x/promote", "", 400, "/problems/bad-request"),
        (Method::POST, "/api/v1/cluster/nodes/9/promote", "", 404, "/problems/unknown-node"),
        (Method::GET, "/health/ready", "", 503, "/problems/not-ready"),
    ] {
        let (got, content, json) = ask(&server, method, path, body).await;
        assert_eq!((got.as_u16(), content.as_str()), (status, PROBLEM_JSON), "{path}: {json}");
        assert_eq!((&json["type"], &json["status"]), (&json!(kind), &json!(status)), "{path}");
        assert!(json["title"].is_string() && json["detail"].is_string(), "{path}");
    }
}

#[tokio::test]
async fn a_follower_forwards_to_the_leader_and_relays_its_answer() {
    let leader = Fake::leader();
    let leader_server = serve(&leader).await;
    let address = LeaderAddress { id: 1, admin: leader_server.address().to_string() };
    let follower_server = serve(&Fake::follower_of(address)).await;
    let (status, _, json) = ask(&follower_server, Method::POST, "/api/v1/cluster/leader", "{\"to\":3}").await;
    assert_eq!((status, json), (StatusCode::OK, json!({"leader": 3})));
    assert_eq!(leader.asked(), ["transfer Some(3)"]);
}

#[tokio::test]
async fn a_forwarded_request_is_not_forwarded_again() {
    let nobody = LeaderAddress { id: 3, admin: "127.0.0.1:1".to_owned() };
    let server = serve(&Fake::follower_of(nobody)).await;
    let url = format!("http://{}/api/v1/cluster/leader", server.address());
    let answer = Client::new().post(&url).header(FORWARDED, "1").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let json: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!(json["type"], "/problems/leader-moved");
    let (status, _, json) = ask(&server, Method::POST, "/api/v1/cluster/leader", "").await;
    assert_eq!((status, &json["type"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("/problems/leader-unreachable")));
}

#[tokio::test]
async fn a_leader_that_hands_over_first_is_followed_to_the_next() {
    let next = Fake::leader();
    let next_server = serve(&next).await;
    let address = |server: &crate::AdminServer, id| LeaderAddress { id, admin: server.address().to_string() };
    // The former leader says who leads now; the node that was asked goes there.
    let former_server = serve(&Fake::follower_of(address(&next_server, 3))).await;
    let asked_server = serve(&Fake::follower_of(address(&former_server, 1))).await;
    let (status, _, json) = ask(&asked_server, Method::DELETE, "/api/v1/cluster/nodes/1", "").await;
    assert_eq!(status, StatusCode::OK, "{json}");
    assert_eq!(next.asked(), ["remove 1"]);
}

#[tokio::test]
async fn a_request_that_hangs_is_answered_and_health_stays_reachable() {
    let fake = Fake { answer: Answer::Hang, ..Fake::leader() };
    let server = serve(&fake).await;
    let hanging = || ask(&server, Method::GET, "/api/v1/cluster/digest", "");
    let one_more = async {
        while fake.asked().len() < 2 {
            tokio::task::yield_now().await;
        }
        hanging().await
    };
    let (first, second, third) = tokio::join!(hanging(), hanging(), one_more);
    let kinds = [first, second, third].map(|(_, _, json)| json["type"].clone());
    assert_eq!(kinds, ["/problems/timeout", "/problems/timeout", "/problems/overloaded"]);
    let (status, _, _) = ask(&server, Method::GET, "/health/live", "").await;
    assert_eq!(status, StatusCode::OK);
    let (status, _, _) = ask(&server, Method::GET, "/health/leader", "").await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn metrics_and_the_page_are_served() {
    let server = serve(&Fake::leader()).await;
    let (_, kind, text) = ask(&server, Method::GET, "/metrics", "").await;
    let text = text.as_str().unwrap();
    assert!(kind.starts_with("application/openmetrics-text"));
    for line in [
        "quorate_raft_term 3",
        "quorate_raft_applied_index{node=\"4\"} 120",
        "quorate_raft_is_leader 1",
        "quorate_mqtt_connections 7",
        "quorate_mqtt_received_messages_total{qos=\"2\"} 3",
        "quorate_mqtt_closed_connections_total{reason=\"0x8e\"} 4",
        "quorate_mqtt_listener_connections{listener=\"tls://0.0.0.0:8883\"} 5",
        "quorate_mqtt_listener_sockets_total{listener=\"tls://0.0.0.0:8883\"} 9",
        "quorate_mqtt_refused_connections_total{listener=\"tls://0.0.0.0:8883\",limit=\"rate\"} 3",
        "quorate_mqtt_failed_connections_total{listener=\"tls://0.0.0.0:8883\",stage=\"tls\"} 2",
        "quorate_mqtt_acks_before_commit_total 0",
        "quorate_proposals_batches_in_flight 3",
        "quorate_proposals_gaps_total 2",
        "quorate_log_sync_seconds_count 9",
        "quorate_log_sync_seconds_bucket{le=\"+Inf\"} 9",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    let (status, kind, page) = ask(&server, Method::GET, "/", "").await;
    assert_eq!(status, StatusCode::OK);
    assert!(kind.starts_with("text/html") && page.as_str().unwrap().contains("Quorate"));
    server.stop().await;
}

#[tokio::test]
async fn a_web_page_of_another_origin_cannot_change_the_cluster() {
    let fake = Fake::leader();
    let server = serve(&fake).await;
    let url = format!("http://{}/api/v1/cluster/leader", server.address());
    let post = |origin: String| Client::new().post(&url).header("origin", origin).send();
    assert_eq!(post("http://evil.example".to_owned()).await.unwrap().status(), StatusCode::FORBIDDEN);
    assert!(fake.asked().is_empty());
    assert_eq!(post(format!("http://{}", server.address())).await.unwrap().status(), StatusCode::OK);
}
