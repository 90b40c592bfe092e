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

/// Nothing can switch a seeded bug on in it: not even the variable is known.
#[cfg(not(feature = "seeded-bugs"))]
#[test]
fn an_ordinary_build_knows_no_seeded_bugs() {
    let name = quorate_store::seeded_bug::VARIABLE;
    let error = Config::load(None, variable(name, "acked-before-commit"), []).unwrap_err().to_string();
    assert!(error.contains(&format!("unknown environment variable `{name}`")), "{error}");
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
        (vec![("settle_delay_ms", "1001")], "settle_delay_ms"),
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

fn with_listeners(flags: &[(&'static str, &str)]) -> Result<Config, ConfigError> {
    Config::load(None, no_variables(), flags.iter().map(|(key, text)| (*key, (*text).to_owned())))
}

#[test]
fn the_main_listener_can_be_turned_off_when_there_is_another() {
    let config = with_listeners(&[("mqtt", ""), ("listeners", "unix:///a.sock,ws://127.0.0.1:8083")]).unwrap();
    assert_eq!((config.mqtt.0, config.listeners.len()), (None, 2));
    assert_eq!(config.mqtt_public(), "127.0.0.1:8083");
    let error = with_listeners(&[("mqtt", "")]).unwrap_err().to_string();
    assert_eq!(error, "mqtt = \"\": no client could connect\n  give an address, or at least one of `listeners`");
}

#[test]
fn listeners_are_one_text_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let urls = ["tcp://127.0.0.1:1884?auth=password,scram", "unix:///run/q.sock?mode=0600"];
    let path = file(&dir, &format!("mqtt = \"\"\nlisteners = {urls:?}\n"));
    let from_file = Config::load(Some(&path), no_variables(), []).unwrap();
    let from_flag = with_listeners(&[("mqtt", ""), ("listeners", &urls.join(","))]).unwrap();
    let variables = vec![("QUORATE_MQTT".to_owned(), String::new()), ("QUORATE_LISTENERS".to_owned(), urls.join(" "))];
    assert_eq!(from_file, from_flag);
    assert_eq!(from_file, Config::load(None, variables, []).unwrap());
    let mut again = Config::default();
    again.overlay(parse_file(Path::new("again.toml"), &from_file.to_toml()).unwrap());
    assert_eq!(again, from_file);
    let path = file(&dir, "name = \"a\"\nlisteners = [\"tcp://127.0.0.1:1?prxy=v1\"]\n");
    let error = Config::load(Some(&path), no_variables(), []).unwrap_err().to_string();
    assert!(error.contains("line 2") && error.contains("no parameter `prxy` (did you mean `proxy`?)"), "{error}");
}

#[test]
fn a_listener_off_loopback_lets_nobody_in_unknown_unless_all_may() {
    for (url, is_fine) in [
        ("tcp://0.0.0.0:1884", false),
        ("tcp://0.0.0.0:1884?auth=anonymous", false),
        ("tcp://0.0.0.0:1884?auth=password,anonymous", false),
        ("ws://192.0.2.1:1884?auth=scram", true),
        ("tcp://127.0.0.1:1884", true),
        ("tcp://[::1]:1884?auth=anonymous", true),
        ("unix:///run/q.sock", true),
    ] {
        let loaded = with_listeners(&[("listeners", url)]);
        assert_eq!(loaded.is_ok(), is_fine, "{url}");
        if let Err(error) = loaded {
            let error = error.to_string();
            assert!(error.starts_with(&format!("listeners = {url}: whoever reaches this address")), "{error}");
            assert!(error.contains("auth=password") && error.contains("allow_anonymous = true"), "{error}");
        }
        assert!(with_listeners(&[("listeners", url), ("allow_anonymous", "true")]).is_ok(), "{url}");
    }
    let error = with_listeners(&[("listeners", "tcp://127.0.0.1:1884?auth=jwt")]).unwrap_err().to_string();
    assert!(error.contains("no key to verify tokens") && error.contains("jwt_key_file"), "{error}");
    let error = with_listeners(&[("listeners", "unix:///a,unix:///a")]).unwrap_err().to_string();
    assert!(error.contains("two listeners have this name") && error.contains("name="), "{error}");
}

#[test]
fn the_files_of_a_listener_are_looked_at_before_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let issue = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (one, other) = (issue(), issue());
    let cert = write("cert.pem", &one.cert.pem());
    let key = write("key.pem", &one.signing_key.serialize_pem());
    let foreign = write("foreign.pem", &other.signing_key.serialize_pem());
    let empty = write("empty.pem", "nothing\n");
    let missing = dir.path().join("missing.pem").display().to_string();
    let check = |cert: &str, key: &str, more: &str| {
        with_listeners(&[("listeners", &format!("tls://127.0.0.1:8883?cert={cert}&key={key}{more}"))])
    };
    check(&cert, &key, "").unwrap();
    check(&cert, &key, &format!("&client_ca={cert}&tls_min=1.3")).unwrap();
    for (cert, key, more, want) in [
        (&missing, &key, String::new(), format!("cannot read {missing}: there is no such file")),
        (&cert, &missing, String::new(), format!("cannot read {missing}: there is no such file")),
        (&empty, &key, String::new(), format!("{empty} holds no certificate in PEM form")),
        (&cert, &empty, String::new(), format!("{empty} holds no private key in PEM form")),
        (&cert, &cert, String::new(), format!("{cert} holds no private key in PEM form")),
        (&cert, &foreign, String::new(), format!("{cert} and {foreign} cannot be used")),
        (&cert, &key, format!("&client_ca={missing}"), format!("cannot read {missing}")),
        (&cert, &key, format!("&client_ca={empty}"), format!("{empty} holds no certificate")),
    ] {
        let error = check(cert, key, &more).unwrap_err().to_string();
        assert!(
            error.starts_with("listeners = tls://127.0.0.1:8883?cert=") && error.contains(&want),
            "{want}: {error}"
        );
        assert!(error.contains("write them absolute"), "{error}");
    }
}
