//! The promises of users and rules over HTTP.

use quorate_store::access::AccessError;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::cluster::AdminError;
use crate::problem::PROBLEM_JSON;
use crate::testkit::{Answer, Fake, serve};
use crate::{AdminServer, password};

async fn ask(server: &AdminServer, method: Method, path: &str, body: &Value) -> (StatusCode, Value) {
    let url = format!("http://{}/api/v1{path}", server.address());
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = Client::new().request(method, url).body(body).send().await.unwrap();
    let status = answer.status();
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    assert_eq!(kind, if status.is_success() { "application/json" } else { PROBLEM_JSON }, "{path}");
    (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap())
}

async fn get(server: &AdminServer, path: &str) -> Value {
    let (status, json) = ask(server, Method::GET, path, &Value::Null).await;
    assert_eq!(status, StatusCode::OK, "{path}: {json}");
    json
}

#[tokio::test]
async fn a_user_is_set_once_changed_in_part_and_deleted() {
    let fake = Fake::leader();
    let server = serve(&fake).await;
    let put = |body: Value| {
        let server = &server;
        async move { ask(server, Method::PUT, "/users/ann%2F1", &body).await }
    };
    let (status, user) = put(json!({"password": "pa55", "superuser": true})).await;
    let shown = json!({"name": "ann/1", "password": true, "scram": false, "superuser": true});
    assert_eq!((status, &user), (StatusCode::CREATED, &shown));
    let hash = || fake.access.lock().unwrap().users.get("ann/1").unwrap().password_hash.clone().unwrap();
    let first = hash();
    assert!(password::verify(&first, b"pa55"));

    // The same again, whole or in part: nothing is proposed.
    for same in
        [json!({"password": "pa55", "superuser": true}), json!({"superuser": true}), json!({"password": "pa55"})]
    {
        assert_eq!(put(same).await, (StatusCode::OK, shown.clone()));
    }
    assert_eq!((fake.asked().len(), hash()), (1, first.clone()));

    let (_, user) = put(json!({"password": "pa55", "scram": true, "superuser": false})).await;
    assert_eq!((&user["scram"], &user["superuser"]), (&json!(true), &json!(false)));
    let (_, user) = put(json!({"password": "other"})).await;
    assert_eq!((&user["scram"], &user["superuser"]), (&json!(true), &json!(false)), "the rest stays as it was");
    assert!(password::verify(&hash(), b"other") && !password::verify(&hash(), b"pa55"));
    let (_, user) = put(json!({"password": null})).await;
    assert_eq!((&user["password"], &user["scram"]), (&json!(false), &json!(false)));

    let (status, answer) = ask(&server, Method::DELETE, "/users/ann%2F1", &Value::Null).await;
    assert_eq!((status, answer), (StatusCode::OK, json!({"deleted": "ann/1"})));
    let (status, problem) = ask(&server, Method::DELETE, "/users/ann%2F1", &Value::Null).await;
    assert_eq!((status, &problem["type"]), (StatusCode::NOT_FOUND, &json!("/problems/unknown-user")));
}

#[tokio::test]
async fn nothing_that_verifies_a_password_ever_comes_out() {
    let fake = Fake::leader();
    let server = serve(&fake).await;
    let (_, user) = ask(&server, Method::PUT, "/users/ann", &json!({"password": "pa55word", "scram": true})).await;
    let (_, bob) = ask(&server, Method::PUT, "/users/bob", &json!({})).await;
    let list = get(&server, "/users").await;
    assert_eq!(list, json!({"users": [user, bob], "next": null}));
    let one = get(&server, "/users/ann").await;
    let page = get(&server, "/users?limit=1&after=ann").await;
    assert_eq!(page, json!({"users": [bob], "next": null}));
    // Neither in the answer to a body that is not understood, whatever is wrong with it.
    let mut answers = vec![list, one, page, user];
    for wrong in [r#"{"password": 55550123}"#, r#"{"pass": "pa55word"}"#, r#"{"password": "pa55word" "x"}"#, "pa55word"]
    {
        let url = format!("http://{}/api/v1/users/ann", server.address());
        let answer = Client::new().put(url).body(wrong).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{wrong}");
        answers.push(Value::String(answer.text().await.unwrap()));
    }
    for answer in answers {
        let text = answer.to_string();
        for secret in ["pa55", "55550123", "argon2", "salt", "key"] {
            assert!(!text.replace("a key that is", "").contains(secret), "{secret} is in {text}");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_a_user_or_a_rule_is_refused_and_says_why() {
    let fake = Fake::leader();
    let server = serve(&fake).await;
    let rule = |more: Value| {
        let mut rule = json!({"permission": "allow", "who": "all", "action": "all"});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        rule
    };
    let name = "x".repeat(257);
    for (path, body, why) in [
        (format!("/users/{name}"), json!({"password": "x"}), "256"),
        ("/users/a%0Ab".into(), json!({}), "control character"),
        ("/users/%C2%AA".into(), json!({}), "SASLprep"),
        ("/users/ann".into(), json!({"password": ""}), "empty"),
        ("/users/ann".into(), json!({"password": "a\u{1}"}), "SASLprep"),
        ("/users/ann".into(), json!({"scram": true}), "send `password`"),
        ("/users/ann".into(), json!({"scram": true, "password": null}), "SCRAM needs a password"),
        ("/acls/x".into(), rule(json!({})), "no rule number"),
        ("/acls/1".into(), rule(json!({"filters": ["a/#/b"]})), "# for all levels"),
        ("/acls/1".into(), rule(json!({"filters": ["$share/g/a"]})), "leave `$share/GROUP/` out"),
        ("/acls/1".into(), rule(json!({"filters": ["$exclusive/a"]})), "leave `$exclusive/` out"),
        ("/acls/1".into(), rule(json!({"filters": ["b", "$delayed/5/a"]})), "leave `$delayed/SECONDS/` out"),
        ("/acls/1".into(), rule(json!({"filters": vec!["a"; 65]})), "64"),
        ("/acls/1".into(), rule(json!({"qos_max": 3})), "QoS 3"),
        ("/acls/1".into(), rule(json!({"who": {"user": ""}})), "user name"),
        ("/acls/1".into(), rule(json!({"who": "everybody"})), "everybody"),
        ("/acls/1".into(), rule(json!({"colour": 1})), "colour"),
        ("/acls/otherwise".into(), json!({"permission": "maybe"}), "maybe"),
    ] {
        let (status, problem) = ask(&server, Method::PUT, &path, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {body}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(why), "{path} {body}: {problem}");
    }
    assert!(fake.asked().is_empty());
    for path in ["/users?limit=0", "/users?limit=1001", "/acls?limt=1", "/acls/check?action=publish&topic=a/%23"] {
        let (status, problem) = ask(&server, Method::GET, path, &Value::Null).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {problem}");
    }
}

#[tokio::test]
async fn rules_are_listed_in_their_order_and_say_which_of_them_decides() {
    let fake = Fake::leader();
    let server = serve(&fake).await;
    let deny = json!({"permission": "deny", "who": "all", "action": "all", "filters": ["plant/#"], "qos_max": 2,
        "retain": null});
    let own = json!({"permission": "allow", "who": {"user": "ann"}, "action": "publish", "filters": ["plant/%u/#"],
        "qos_max": 1, "retain": false});
    let numbered = |number: u32, rule: &Value| {
        let mut rule = rule.clone();
        rule["number"] = json!(number);
        rule
    };
    for (number, rule, status) in [(20, &deny, 201), (10, &own, 201), (10, &own, 200)] {
        let (got, answer) = ask(&server, Method::PUT, &format!("/acls/{number}"), rule).await;
        assert_eq!((got.as_u16(), answer), (status, numbered(number, rule)));
    }
    assert_eq!(fake.asked().len(), 2, "the same again is not proposed");
    let all = json!({"otherwise": "allow", "rules": [numbered(10, &own), numbered(20, &deny)], "next": null});
    assert_eq!(get(&server, "/acls").await, all);
    assert_eq!(get(&server, "/acls?limit=1").await["next"], json!(10));
    assert_eq!(get(&server, "/acls?limit=1&after=10").await["rules"], json!([numbered(20, &deny)]));
    assert_eq!(get(&server, "/acls/20").await, numbered(20, &deny));

    for (query, allowed, decided_by, number) in [
        ("user=ann&action=publish&topic=plant/ann/x&qos=1", true, "rule", json!(10)),
        ("user=ann&action=publish&topic=plant/ann/x&qos=2", false, "rule", json!(20)),
        ("user=ann&action=publish&topic=plant/ann/x&retain=true", false, "rule", json!(20)),
        ("client=c&action=subscribe&topic=%23&qos=1", false, "rule", json!(20)),
        // What is reached in the end is judged, as the broker does.
        ("user=ann&action=publish&topic=$delayed/5/plant/ann/x&qos=1", true, "rule", json!(10)),
        ("client=c&action=subscribe&topic=$share/g/%23&qos=1", false, "rule", json!(20)),
        ("client=c&action=subscribe&topic=$exclusive/plant/x&qos=1", false, "rule", json!(20)),
        ("client=c&action=subscribe&topic=else/%2B&qos=1", true, "otherwise", json!(null)),
    ] {
        let checked = get(&server, &format!("/acls/check?{query}")).await;
        let got = (&checked["allowed"], &checked["decided_by"], &checked["rule"]["number"]);
        assert_eq!(got, (&json!(allowed), &json!(decided_by), &number), "{query}");
    }
    let (_, set) = ask(&server, Method::PUT, "/acls/otherwise", &json!({"permission": "deny"})).await;
    assert_eq!(set, json!({"permission": "deny"}));
    let (_, deleted) = ask(&server, Method::DELETE, "/acls/20", &Value::Null).await;
    assert_eq!(deleted, json!({"deleted": 20}));
    let left = json!({"otherwise": "deny", "rules": [numbered(10, &own)], "next": null});
    assert_eq!(get(&server, "/acls").await, left);
    let (status, problem) = ask(&server, Method::DELETE, "/acls/20", &Value::Null).await;
    assert_eq!((status, &problem["type"]), (StatusCode::NOT_FOUND, &json!("/problems/unknown-rule")));
}

#[tokio::test]
async fn a_dry_run_says_what_would_be_and_proposes_nothing() {
    let fake = Fake::leader();
    let server = serve(&fake).await;
    let rule = json!({"permission": "deny", "who": "anonymous", "action": "subscribe"});
    for (method, path, body, status) in [
        (Method::PUT, "/users/ann?dry_run=true", &json!({"password": "x"}), 200),
        (Method::PUT, "/acls/1?dry_run=true", &rule, 200),
        (Method::PUT, "/acls/otherwise?dry_run=true", &json!({"permission": "deny"}), 200),
        (Method::DELETE, "/users/ann?dry_run=true", &Value::Null, 404),
        (Method::PUT, "/users/ann?dryrun=true", &json!({"password": "x"}), 400),
    ] {
        let (got, answer) = ask(&server, method, path, body).await;
        assert_eq!(got.as_u16(), status, "{path}: {answer}");
    }
    assert!(fake.asked().is_empty());
}

#[tokio::test]
async fn a_limit_or_a_lost_majority_is_answered_with_what_to_do() {
    let rule = json!({"permission": "deny", "who": "all", "action": "all"});
    for (error, status, kind) in [
        (AdminError::Access(AccessError::TooManyRules), 409, "/problems/limit"),
        (AdminError::Unavailable("no majority".into()), 503, "/problems/unavailable"),
    ] {
        let server = serve(&Fake { answer: Answer::FailChanges(error), ..Fake::leader() }).await;
        let (got, problem) = ask(&server, Method::PUT, "/acls/1", &rule).await;
        assert_eq!((got.as_u16(), &problem["type"]), (status, &json!(kind)), "{problem}");
    }
}

#[tokio::test]
async fn groups_are_listed_and_get_a_strategy_that_can_be() {
    let fake = Fake::leader();
    let server = serve(&fake).await;
    let shares = get(&server, "/shares").await;
    assert_eq!(
        (&shares["shares"][0]["strategy"], &shares["shares"][0]["waiting_messages"]),
        (&json!("round-robin"), &json!(3))
    );
    let put = json!({"name": "g", "filter": "a/#", "strategy": "sticky"});
    assert_eq!(ask(&server, Method::PUT, "/shares/strategy", &put).await, (StatusCode::OK, put));
    assert_eq!(fake.asked().last().map(String::as_str), Some("g a/# StickyTopic"));
    for bad in [
        json!({"name": "g/h", "filter": "a", "strategy": "local"}),
        json!({"name": "g", "filter": "a#", "strategy": "local"}),
        json!({"name": "g", "filter": "a", "strategy": "loudest"}),
    ] {
        assert_eq!(ask(&server, Method::PUT, "/shares/strategy", &bad).await.0, StatusCode::BAD_REQUEST, "{bad}");
    }
}
