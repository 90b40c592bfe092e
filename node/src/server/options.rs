//! From the configuration to what each part is started with.

use std::time::Duration;

use quorate_http_admin::Limits as AdminLimits;
use quorate_raft::{Limits, LogRetention, Timings};
use quorate_store::ids::QoS;
use quorate_store::log::LogOptions;
use quorate_store::rows::RowsOptions;

use crate::config::Config;
use crate::mqtt::MqttOptions;
use crate::mqtt::options::JwtOptions;

/// Raft's timings.
pub(crate) fn timings(config: &Config) -> Timings {
    Timings {
        heartbeat: Duration::from_millis(config.heartbeat_ms),
        election_min: Duration::from_millis(config.election_ms_min),
        election_max: Duration::from_millis(config.election_ms_max),
        node_timeout: Duration::from_millis(config.node_timeout_ms),
        quorum_grace: Duration::from_millis(config.quorum_grace_ms),
        cold_start_jump_max: Duration::from_secs(config.cold_start_jump_s_max),
    }
}

/// How much log is kept.
pub(crate) fn retention(config: &Config) -> LogRetention {
    LogRetention {
        snapshot_log_bytes: config.snapshot_log_bytes,
        snapshot_interval: Duration::from_millis(config.snapshot_interval_ms),
        keep_bytes: config.log_keep_bytes,
        keep_entries: config.log_keep_entries_max,
    }
}

/// The log's engine.
pub(crate) fn log_engine(config: &Config) -> LogOptions {
    LogOptions {
        engine: config.log_engine.0,
        segment_bytes: config.log_segment_bytes,
        tail_bytes_max: config.log_tail_bytes_max,
        drain_bytes_max: config.log_write_bytes_max,
        write_buffer_bytes: config.log_buffer_bytes,
        ..LogOptions::default()
    }
}

/// The row database.
pub(crate) fn rows(config: &Config) -> RowsOptions {
    RowsOptions {
        write_buffer_bytes: config.rows_buffer_bytes,
        recent_bytes_max: config.rows_recent_bytes_max,
        block_cache_bytes: config.rows_cache_bytes,
        open_files_max: i32::try_from(config.rows_open_files_max).unwrap_or(i32::MAX),
        ..RowsOptions::default()
    }
}

/// Bounds of the node's queues.
pub(crate) fn limits(config: &Config) -> Limits {
    Limits {
        waiting_bytes_max: config.waiting_bytes_max,
        waiting_commands_max: config.waiting_commands_max,
        batch_commands_max: config.batch_commands_max,
        batch_bytes_max: config.batch_bytes_max,
        batches_in_flight_max: config.batches_in_flight_max,
        patience: Duration::from_millis(config.settle_delay_ms),
        unflushed_bytes_max: config.unflushed_bytes_max,
        qos0_bytes_max: config.qos0_bytes_max,
    }
}

/// The MQTT front end.
pub(crate) fn mqtt(config: &Config) -> MqttOptions {
    let workers = match config.mqtt_workers {
        0 => MqttOptions::default().workers,
        workers => workers,
    };
    MqttOptions {
        listen: config.mqtt.0,
        listeners: config.listeners.clone(),
        workers,
        packet_bytes_max: config.packet_bytes_max,
        receive_maximum: config.receive_maximum,
        inflight_max: config.inflight_max,
        topic_alias_max: config.topic_alias_max,
        topic_alias_out_max: config.topic_alias_out_max,
        qos_max: match config.qos_max {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            _ => QoS::ExactlyOnce,
        },
        retain_available: config.retain_available,
        wildcard_available: config.wildcard_available,
        shared_available: config.shared_available,
        subscription_identifiers_available: config.subscription_identifiers_available,
        payload_utf8_check: config.payload_utf8_check,
        topic_levels_max: config.topic_levels_max,
        publish_rate_max: config.publish_rate_max,
        publish_bytes_rate_max: config.publish_bytes_rate_max,
        response_topic_prefix: config.response_topic_prefix.clone(),
        subscribe_filters_max: config.subscribe_filters_max,
        keep_alive_s_max: config.keep_alive_s_max,
        keep_alive_s_min: config.keep_alive_s_min,
        keep_alive_s_implied: config.keep_alive_s_implied,
        connect_timeout: Duration::from_millis(config.connect_timeout_ms),
        connect_deadline: Duration::from_millis(config.connect_deadline_ms),
        connections_max: config.connections_max,
        connections_per_address_max: config.connections_per_address_max,
        connection_rate_max: config.connection_rate_max,
        session_expiry_s: config.session_expiry_s,
        outbound_bytes_max: config.outbound_bytes_max,
        transient_queue_bytes_max: config.transient_queue_bytes_max,
        page_rows_max: config.page_rows_max,
        page_bytes_max: config.page_bytes_max,
        mailbox_bytes_max: config.mailbox_bytes_max,
        // Without an interval there is no `$SYS` at all.
        sys_client_events: config.sys_client_events && config.sys_interval_s > 0,
        allow_anonymous: config.allow_anonymous,
        auth_threads: match config.auth_threads {
            0 => MqttOptions::default().auth_threads,
            n => n,
        },
        auth_waiting_max: config.auth_waiting_max,
        acl_deny_action: config.acl_deny_action,
        jwt: JwtOptions {
            key_file: config.jwt_key_file.clone(),
            algorithms: config.jwt_algorithms.clone(),
            user_claim: config.jwt_user_claim.clone(),
            audience: config.jwt_audience.clone(),
            issuer: config.jwt_issuer.clone(),
            leeway_s: config.jwt_leeway_s,
            stays_after_expiry: config.jwt_stays_after_expiry,
        },
    }
}

/// The administration.
pub(crate) fn admin(config: &Config) -> AdminLimits {
    AdminLimits {
        body_bytes_max: config.admin_body_bytes_max,
        timeout: Duration::from_millis(config.admin_timeout_ms),
        requests_max: config.admin_requests_max,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_parts() {
        let config = Config::default();
        assert_eq!(timings(&config), Timings::default());
        assert_eq!(retention(&config), LogRetention::default());
        assert_eq!(limits(&config), Limits::default());
        assert_eq!(format!("{:?}", log_engine(&config)), format!("{:?}", LogOptions::default()));
        assert_eq!(format!("{:?}", rows(&config)), format!("{:?}", RowsOptions::default()));
        assert_eq!(format!("{:?}", mqtt(&config)), format!("{:?}", MqttOptions::default()));
    }
}
