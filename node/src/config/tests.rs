//! The promises of the configuration: what wins, what is refused, and in which words.

use std::path::PathBuf;

use super::*;

fn no_variables() -> Vec<(String, String)> {
    Vec::new()
}

fn file(dir: &tempfile::TempDir, text: &str) -> PathBuf {
    let path = dir.path().join("quorate.toml");
    std::fs::write(&path, text).unwrap();
    path
}

fn variable(name: &str, text: &str) -> Vec<(String, String)> {
    vec![(name.to_owned(), text.to_owned())]
}

#[test]
fn flags_go_before_variables_before_the_file_before_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "receive_maximum = 10\ninflight_max = 10\ntopic_alias_max = 10\n");
    let variables = vec![
        ("QUORATE_INFLIGHT_MAX".to_owned(), "20".to_owned()),
        ("QUORATE_TOPIC_ALIAS_MAX".to_owned(), "20".to_owned()),
        ("PATH".to_owned(), "/bin".to_owned()),
    ];
    let config = Config::load(Some(&path), variables, [("topic_alias_max", "30".to_owned())]).unwrap();
    assert_eq!((config.receive_maximum, config.inflight_max, config.topic_alias_max), (10, 20, 30));
    assert_eq!(config.keep_alive_s_max, Config::default().keep_alive_s_max);
}

#[test]
fn the_printed_default_reads_back_as_the_default() {
    let text = Config::default().to_toml();
    let mut config = Config { receive_maximum: 7, name: "other".to_owned(), ..Config::default() };
    config.overlay(parse_file(Path::new("default.toml"), &text).unwrap());
    assert_eq!(config, Config::default());
    for (key, _) in Config::default().entries() {
        assert!(text.contains(&format!("\n{} = ", key.name)), "{} is missing", key.name);
    }
}

#[test]
fn the_defaults_pass_their_own_check() {
    Config::default().check().unwrap();
}

#[test]
fn an_unknown_key_is_named_with_its_file_its_line_and_the_nearest_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "name = \"a\"\n\nrecieve_maximum = 5\n");
    let error = Config::load(Some(&path), no_variables(), []).unwrap_err().to_string();
    for part in ["`recieve_maximum`", "quorate.toml", "line 3", "did you mean `receive_maximum`?", "config default"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    let path = file(&dir, "[mqqtt]\nzzzzzzzz = 1\n");
    let error = Config::load(Some(&path), no_variables(), []).unwrap_err().to_string();
    assert!(error.contains("`mqqtt`") && error.contains("did you mean `mqtt`?"), "{error}");
    let path = file(&dir, "zzzzzzzz = 1\n");
    let error = Config::load(Some(&path), no_variables(), []).unwrap_err().to_string();
    assert!(!error.contains("did you mean"), "{error}");
}

#[test]
fn an_unknown_variable_is_refused_but_those_of_kubernetes_and_of_the_clients_are_not() {
    let error = Config::load(None, variable("QUORATE_DATADIR", "/x"), []).unwrap_err().to_string();
    assert!(error.contains("`QUORATE_DATADIR` (did you mean `QUORATE_DATA_DIR`?)"), "{error}");
    for name in [
        "QUORATE_SERVICE_HOST",
        "QUORATE_PORT_1883_TCP",
        "QUORATE_SERVICE_PORT_MQTT",
        "QUORATE_ADMIN_URL",
        "QUORATE_CONFIG",
    ] {
        Config::load(None, variable(name, "x"), []).unwrap();
    }
}

#[test]
fn a_wrong_type_is_shown_where_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "receive_maximum = \"many\"\n");
    let error = Config::load(Some(&path), no_variables(), []).unwrap_err().to_string();
    assert!(error.contains("quorate.toml") && error.contains("line 1"), "{error}");
    let error = Config::load(None, no_variables(), [("receive_maximum", "70000".to_owned())]).unwrap_err().to_string();
    assert_eq!(error, "--receive-maximum: `70000` is not a value for it: expected a whole number from 0 to 65535");
    let error = Config::load(None, variable("QUORATE_MQTT", "1883"), []).unwrap_err().to_string();
    assert!(error.starts_with("QUORATE_MQTT: `1883`"), "{error}");
    let error = Config::load(Some(Path::new("/nowhere.toml")), no_variables(), []).unwrap_err().to_string();
    assert!(error.contains("/nowhere.toml"), "{error}");
}

#[test]
fn senseless_values_are_refused_with_a_remedy() {
    for (flags, key) in [
        (vec![("bootstrap", "true"), ("join", "127.0.0.1:7480")], "bootstrap"),
        (vec![("mqtt", "0.0.0.0:1883")], "mqtt"),
        (vec![("peer", "0.0.0.0:7400"), ("allow_anonymous", "true")], "peer_advertise"),
        (vec![("peer_advertise", "nowhere")], "peer_advertise"),
        (vec![("join", "nowhere")], "join"),
        (vec![("join_token", "xyz")], "join_token"),
        (vec![("election_ms_min", "300")], "election_ms_min"),
        (vec![("election_ms_max", "800")], "election_ms_max"),
        (vec![("quorum_grace_ms", "60000")], "quorum_grace_ms"),
        (vec![("node_timeout_ms", "1000"), ("quorum_grace_ms", "500")], "node_timeout_ms"),
        (vec![("packet_bytes_max", "10")], "packet_bytes_max"),
        (vec![("inflight_max", "0")], "inflight_max"),
        (vec![("connections_max", "0")], "connections_max"),
        (vec![("packet_bytes_max", "62914561")], "packet_bytes_max"),
        (vec![("subscribe_filters_max", "0")], "subscribe_filters_max"),
        (vec![("subscribe_filters_max", "1025")], "subscribe_filters_max"),
        (vec![("transient_queue_bytes_max", "0")], "transient_queue_bytes_max"),
        (vec![("mailbox_bytes_max", "0")], "mailbox_bytes_max"),
        (vec![("qos0_bytes_max", "0")], "qos0_bytes_max"),
        (vec![("page_rows_max", "0")], "page_rows_max"),
        (vec![("page_bytes_max", "0")], "page_bytes_max"),
        (vec![("connect_timeout_ms", "0")], "connect_timeout_ms"),
        (vec![("connect_deadline_ms", "0")], "connect_deadline_ms"),
        (vec![("admin_timeout_ms", "0")], "admin_timeout_ms"),
        (vec![("admin_body_bytes_max", "0")], "admin_body_bytes_max"),
        (vec![("mqtt_workers", "1025")], "mqtt_workers"),
        (vec![("qos_max", "3")], "qos_max"),
        (vec![("topic_levels_max", "0")], "topic_levels_max"),
        (vec![("topic_levels_max", "129")], "topic_levels_max"),
        (vec![("topic_alias_out_max", "1025")], "topic_alias_out_max"),
        (vec![("keep_alive_s_min", "11"), ("keep_alive_s_max", "10")], "keep_alive_s_min"),
        (vec![("response_topic_prefix", "replies/#")], "response_topic_prefix"),
    ] {
        let flags = flags.into_iter().map(|(k, v)| (k, v.to_owned()));
        match Config::load(None, no_variables(), flags) {
            Err(ConfigError::Refused { key: refused, remedy, .. }) => {
                assert_eq!(refused, key);
                assert!(!remedy.is_empty());
            }
            other => panic!("{key}: {other:?}"),
        }
    }
}

#[test]
fn lists_and_addresses_are_taken_as_they_are_written() {
    let config = Config::load(
        None,
        variable("QUORATE_JOIN", "a:7480,b:7480"),
        [("mqtt_advertise", "mqtt.example:1883".to_owned())],
    )
    .unwrap();
    assert_eq!(config.join, ["a:7480", "b:7480"]);
    assert_eq!(config.mqtt_public(), "mqtt.example:1883");
    assert_eq!(config.admin_public(), "127.0.0.1:7480");
    let flags = [("admin", "0.0.0.0:7480"), ("allow_anonymous", "true"), ("peer_advertise", "a.example:7401")];
    let config = Config::load(None, no_variables(), flags.map(|(key, text)| (key, text.to_owned()))).unwrap();
    assert_eq!(
        (config.admin_public(), config.mqtt_public()),
        ("a.example:7480".to_owned(), "127.0.0.1:1883".to_owned())
    );
}
