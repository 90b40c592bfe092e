use super::*;

const V5: Version = Version::V5;
const V4: Version = Version::V311;

/// The verdict on a frame, given without its Remaining Length.
fn verdict(version: Version, first: u8, body: &[u8]) -> Result<Notes, u8> {
    check(version, first, body).map_err(|reject| reject.reason.0)
}

#[test]
fn a_frame_is_complete_or_waited_for_or_refused() {
    let of = |bytes: &[u8]| frame(bytes, 1000).map_err(|r| r.reason.0);
    assert_eq!(of(b""), Ok(None));
    assert_eq!(of(b"\x30"), Ok(None));
    assert_eq!(of(b"\x30\x80"), Ok(None));
    assert_eq!(of(b"\x30\x05\x00\x01"), Ok(None));
    assert_eq!(of(b"\xC0\x00"), Ok(Some(Frame { first: 0xC0, body: 2, total: 2 })));
    assert_eq!(of(b"\x30\x03\x00\x01axyz"), Ok(Some(Frame { first: 0x30, body: 2, total: 5 })));
    assert_eq!(of(b"\x30\x80\x00"), Err(0x81), "not in its shortest form");
    assert_eq!(of(b"\x30\xFF\xFF\xFF\xFF"), Err(0x81), "five bytes");
    assert_eq!(of(b"\x30\xE5\x07"), Ok(None), "1,000 bytes in all");
    assert_eq!(of(b"\x30\xE6\x07"), Err(0x95), "1,001 bytes in all");
    assert_eq!(of(b"\x30\xFF\xFF\xFF\x7F"), Err(0x95), "known before the rest has come");
}

#[test]
fn types_and_flags() {
    for first in [0x00, 0x01, 0x41, 0x48, 0x60, 0x63, 0x6A, 0x80, 0x83, 0xA0, 0xC1, 0xE8, 0xF1] {
        assert_eq!(verdict(V5, first, b"\x00\x01"), Err(0x81), "{first:02x}");
    }
    for first in [0x20, 0x90, 0xB0, 0xD0] {
        assert_eq!(verdict(V5, first, b"\x00\x00"), Err(0x82), "{first:02x} comes from servers");
    }
    assert_eq!(verdict(V4, 0xF0, b""), Err(0x81), "3.1.1 has no AUTH");
    assert!(verdict(Version::V31, 0x6A, b"\x00\x01").is_ok(), "3.1 sets DUP on a repeated PUBREL");
    assert_eq!(verdict(V4, 0xC0, b"x"), Err(0x81));
    assert_eq!(verdict(V4, 0xE0, b"x"), Err(0x81));
}

#[test]
fn connect_of_5_0() {
    let with = |flags: u8, properties: &[u8], rest: &[u8]| {
        let mut body = b"\x00\x04MQTT\x05".to_vec();
        body.extend_from_slice(&[flags, 0, 60, properties.len() as u8]);
        body.extend_from_slice(properties);
        body.extend_from_slice(b"\x00\x01c");
        body.extend_from_slice(rest);
        verdict(V5, 0x10, &body)
    };
    assert!(with(2, b"", b"").is_ok());
    assert_eq!(with(3, b"", b""), Err(0x81), "reserved flag");
    assert_eq!(with(2, b"", b"junk"), Err(0x81), "bytes after the last field");
    assert_eq!(with(0x0A, b"", b""), Err(0x81), "Will QoS without a will");
    assert_eq!(with(0x22, b"", b""), Err(0x81), "Will Retain without a will");
    assert_eq!(with(0x1E, b"", b"\x00\x00\x01w\x00\x01m"), Err(0x81), "Will QoS 3");
    assert_eq!(with(0x06, b"", b""), Err(0x81), "no will behind the flag");
    assert!(with(0x06, b"", b"\x00\x00\x01w\x00\x01m").is_ok());
    assert_eq!(with(0x06, b"", b"\x00\x00\x03w/#\x00\x01m"), Err(0x90), "wildcard in the Will Topic");
    assert_eq!(with(0x06, b"", b"\x00\x00\x00\x00\x01m"), Err(0x90), "empty Will Topic");
    assert!(with(0x42, b"", b"\x00\x01p").is_ok(), "5.0 allows a password alone");
    for (properties, reason) in [
        (&b"\x21\x00\x00"[..], 0x82),
        (b"\x27\x00\x00\x00\x00", 0x82),
        (b"\x17\x02", 0x82),
        (b"\x16\x00\x01d", 0x82),
        (b"\x21\x00\x05\x21\x00\x05", 0x82),
        (b"\x23\x00\x01", 0x81),
        (b"\x63\x00\x01", 0x81),
        (b"\x26\x00\x01\xFF\x00\x01v", 0x81),
        (b"\x21\x00", 0x81),
    ] {
        assert_eq!(with(2, properties, b""), Err(reason), "{properties:02x?}");
    }
    assert!(with(2, b"\x26\x00\x01k\x00\x01v\x26\x00\x01k\x00\x01v", b"").is_ok(), "User Property may repeat");
}

#[test]
fn connect_of_3_1_1() {
    let with = |flags: u8, rest: &[u8]| {
        let mut body = b"\x00\x04MQTT\x04".to_vec();
        body.extend_from_slice(&[flags, 0, 60]);
        body.extend_from_slice(b"\x00\x01c");
        body.extend_from_slice(rest);
        verdict(V4, 0x10, &body)
    };
    assert!(with(2, b"").is_ok());
    assert_eq!(with(0x42, b"\x00\x01p"), Err(0x81), "password without user name");
    assert!(with(0xC2, b"\x00\x01u\x00\x01p").is_ok());
    assert_eq!(with(0x82, b"\x00\x01\xFF"), Err(0x81), "not UTF-8");
    assert_eq!(with(0x82, b"\x00\x01\x00"), Err(0x81), "U+0000");
    assert_eq!(with(0x82, b"\x00\x05u"), Err(0x81), "a field goes beyond its packet");
}

#[test]
fn publish() {
    for (first, body, want) in [
        (0x30, &b"\x00\x01a\x00x"[..], Ok(())),
        (0x36, b"\x00\x01a\x00\x01\x00x", Err(0x81)),
        (0x30, b"\x00\x03a/#\x00x", Err(0x90)),
        (0x30, b"\x00\x01+\x00x", Err(0x90)),
        (0x30, b"\x00\x00\x00x", Err(0x82)),
        (0x30, b"\x00\x00\x03\x23\x00\x01x", Ok(())),
        (0x30, b"\x00\x01a\x03\x23\x00\x00x", Err(0x94)),
        (0x30, b"\x00\x02a\x00\x00x", Err(0x81)),
        (0x32, b"\x00\x01a\x00\x00\x00x", Err(0x82)),
        (0x32, b"\x00\x01a\x00", Err(0x81)),
        (0x30, b"\x00\x10ab", Err(0x81)),
        (0x30, b"", Err(0x81)),
        (0x30, b"\x00\x01a\x7F", Err(0x81)),
        (0x30, b"\x00\x01a", Err(0x81)),
        (0x30, b"\x00\x01a\x02\x0B\x01x", Err(0x82)),
        (0x30, b"\x00\x01a\x02\x01\x02x", Err(0x81)),
        (0x30, b"\x00\x01a\x06\x08\x00\x03a/+x", Err(0x82)),
        (0x30, b"\x00\x01a\x04\x01\x01\x01\x01x", Err(0x82)),
        (0x30, b"\x00\x01a\x80\x00x", Err(0x81)),
        (0x30, b"\x00\x03a\xC0\xAF\x00x", Err(0x81)),
    ] {
        assert_eq!(verdict(V5, first, body).map(drop), want, "{first:02x} {body:02x?}");
    }
    assert!(verdict(V4, 0x30, b"\x00\x01ax").is_ok());
    assert_eq!(verdict(V4, 0x30, b"\x00\x00x"), Err(0x82));
}

#[test]
fn what_the_codec_would_lose_is_noted() {
    let notes = verdict(V5, 0x30, b"\x00\x01a\x07\x01\x00\x02\x00\x00\x00\x00x").unwrap();
    assert_eq!(notes, Notes { zero_expiry: Some(7), is_utf8: Some(false) });
    let notes = verdict(V5, 0x30, b"\x00\x01a\x05\x02\x00\x00\x00\x01x").unwrap();
    assert_eq!(notes, Notes::default());
}

#[test]
fn acknowledgements() {
    for first in [0x40, 0x50, 0x62, 0x70] {
        assert!(verdict(V4, first, b"\x00\x01").is_ok());
        assert_eq!(verdict(V4, first, b"\x00\x01\x00"), Err(0x81), "too long for 3.1.1");
        assert_eq!(verdict(V5, first, b"\x00"), Err(0x81));
        assert_eq!(verdict(V5, first, b"\x00\x00"), Err(0x82));
        assert!(verdict(V5, first, b"\x00\x01\x00\x00").is_ok());
        assert!(verdict(V5, first, b"\x00\x01\x10\x04\x1F\x00\x01r").is_ok());
        assert_eq!(verdict(V5, first, b"\x00\x01\x10\x08\x1F\x00\x01r\x1F\x00\x01r"), Err(0x82));
        assert_eq!(verdict(V5, first, b"\x00\x01\x10\x02\x01\x00"), Err(0x81));
    }
}

#[test]
fn subscriptions() {
    for (first, body, want) in [
        (0x82, &b"\x00\x01\x00\x00\x01a\x00"[..], Ok(())),
        (0x82, b"\x00\x01\x00\x00\x01a\x2E", Ok(())),
        (0x82, b"\x00\x01\x00", Err(0x82)),
        (0x82, b"\x00\x00\x00\x00\x01a\x00", Err(0x82)),
        (0x82, b"\x00\x01\x00\x00\x01a", Err(0x81)),
        (0x82, b"\x00\x01\x00\x00\x01a\x03", Err(0x82)),
        (0x82, b"\x00\x01\x00\x00\x01a\x40", Err(0x81)),
        (0x82, b"\x00\x01\x00\x00\x01a\x30", Err(0x82)),
        (0x82, b"\x00\x01\x02\x0B\x00\x00\x01a\x00", Err(0x82)),
        (0x82, b"\x00\x01\x04\x0B\x01\x0B\x02\x00\x01a\x00", Err(0x82)),
        (0x82, b"\x00\x01\x06\x0B\xFF\xFF\xFF\xFF\x01\x00\x01a\x00", Err(0x81)),
        (0x82, b"\x00\x01\x00\x00\x0A$share/g/a\x04", Err(0x82)),
        (0x82, b"\x00\x01\x00\x00\x02a\x00\x00", Err(0x81)),
        (0xA2, b"\x00\x01\x00\x00\x01a", Ok(())),
        (0xA2, b"\x00\x01\x00", Err(0x82)),
        (0xA2, b"\x00\x01\x02\x0B\x01\x00\x01a", Err(0x81)),
        (0xA2, b"\x00\x01\x00\x00\x09a", Err(0x81)),
    ] {
        assert_eq!(verdict(V5, first, body).map(drop), want, "{first:02x} {body:02x?}");
    }
    assert_eq!(verdict(V4, 0x82, b"\x00\x01\x00\x01a\x04"), Err(0x81), "reserved bits of 3.1.1");
    assert!(verdict(V4, 0x82, b"\x00\x01\x00\x01a\x02\x00\x01b\x00").is_ok());
}

#[test]
fn disconnect_and_auth() {
    assert!(verdict(V5, 0xE0, b"").is_ok());
    assert!(verdict(V5, 0xE0, b"\x04").is_ok());
    assert!(verdict(V5, 0xE0, b"\x00\x05\x11\x00\x00\x00\x01").is_ok());
    assert_eq!(verdict(V5, 0xE0, b"\x55"), Err(0x81));
    assert_eq!(verdict(V5, 0xE0, b"\x8E"), Err(0x81), "only servers say that");
    assert_eq!(verdict(V5, 0xE0, b"\x00\x04\x1C\x00\x01x"), Err(0x81), "only servers refer elsewhere");
    assert!(verdict(V5, 0xF0, b"").is_ok(), "whether AUTH is allowed is the session's business");
    assert_eq!(verdict(V5, 0xF0, b"\x55\x00"), Err(0x81));
}

#[test]
fn a_known_topic_is_not_looked_at_again_but_any_other_is() {
    let publish = |topic: &[u8]| [&[0, topic.len() as u8], topic, &[0], b"x"].concat();
    let check = |topic: &[u8], known: &[u8]| check_knowing(Version::V5, 0x30, &publish(topic), known).is_ok();
    assert!(check(b"a/b", b"a/b") && check(b"a/b", b"c") && check(b"a/b", b""));
    for bad in [&b"a/#"[..], b"a\0", b"\xFF", b""] {
        assert!(!check(bad, b"a/b") && !check(bad, b""), "{bad:?}");
    }
}
