//! What is a PROXY header and what is not, byte by byte.

use proptest::prelude::*;

use super::*;

fn source(bytes: &[u8]) -> Result<Option<SocketAddr>, BadProxyHeader> {
    parse(bytes, ProxyHeader::Any).map(|header| header.expect("whole").source)
}

fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = V2_START.to_vec();
    bytes.extend_from_slice(&[command, family]);
    bytes.extend_from_slice(&(body.len() as u16).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

const IPV4: [u8; 12] = [192, 0, 2, 1, 10, 0, 0, 1, 0x1F, 0x90, 7, 0x5B];

#[test]
fn version_1_says_the_address_of_the_client() {
    for (line, want) in [
        ("PROXY TCP4 192.0.2.1 10.0.0.1 8080 1883\r\n", Some("192.0.2.1:8080")),
        ("PROXY TCP6 2001:db8::1 ::1 65535 1\r\n", Some("[2001:db8::1]:65535")),
        ("PROXY UNKNOWN\r\n", None),
        ("PROXY UNKNOWN ffff::1 whatever 1 2\r\n", None),
    ] {
        assert_eq!(source(line.as_bytes()), Ok(want.map(|text| text.parse().unwrap())), "{line}");
        let header = parse(format!("{line}\x10\x0c").as_bytes(), ProxyHeader::V1).unwrap().unwrap();
        assert_eq!(header.bytes, line.len(), "what follows is the connection");
    }
}

#[test]
fn a_line_that_is_not_exactly_right_is_no_header() {
    for line in [
        "PROXY TCP4 192.0.2.1 10.0.0.1 8080 1883\n",
        "PROXY TCP4 192.0.2.1 10.0.0.1 8080\r\n",
        "PROXY TCP4 192.0.2.1 10.0.0.1 8080 1883 1\r\n",
        "PROXY TCP4  192.0.2.1 10.0.0.1 8080 1883\r\n",
        "PROXY TCP4 192.0.2.1 10.0.0.1 08080 1883\r\n",
        "PROXY TCP4 192.0.2.1 10.0.0.1 +80 1883\r\n",
        "PROXY TCP4 192.0.2.1 10.0.0.1 80 65536\r\n",
        "PROXY TCP4 192.0.2.01 10.0.0.1 80 1883\r\n",
        "PROXY TCP4 ::1 ::1 80 1883\r\n",
        "PROXY TCP4 192.0.2.1 ::1 80 1883\r\n",
        "PROXY TCP6 192.0.2.1 ::1 80 1883\r\n",
        "PROXY TCP6 fe80::1%eth0 ::1 80 1883\r\n",
        "PROXY UDP4 192.0.2.1 10.0.0.1 80 1883\r\n",
        "PROXY \r\n",
        "PROXY TCP4\r\n",
    ] {
        assert!(matches!(parse(line.as_bytes(), ProxyHeader::Any), Err(BadProxyHeader::Malformed(_))), "{line:?}");
    }
    assert_eq!(
        parse(b"PROXY UNKNOWN \xff\r\n", ProxyHeader::V1),
        Err(BadProxyHeader::Malformed("its line is no text"))
    );
}

#[test]
fn version_2_says_the_address_of_the_client() {
    assert_eq!(source(&v2(0x21, 0x11, &IPV4)), Ok("192.0.2.1:8080".parse().ok()));
    let mut ipv6 = Ipv6Addr::from_bits(0x2001_0db8 << 96 | 1).octets().to_vec();
    ipv6.extend_from_slice(&Ipv6Addr::LOCALHOST.octets());
    ipv6.extend_from_slice(&[0x1F, 0x90, 7, 0x5B]);
    assert_eq!(source(&v2(0x21, 0x21, &ipv6)), Ok("[2001:db8::1]:8080".parse().ok()));
    assert_eq!(source(&v2(0x21, 0x31, &[0; 216])), Ok(None));
    assert_eq!(source(&v2(0x21, 0x00, &[])), Ok(None));
    // LOCAL: the proxy speaks for itself, whatever else it says.
    assert_eq!(source(&v2(0x20, 0x11, &IPV4)), Ok(None));
    assert_eq!(source(&v2(0x20, 0xFF, &[1, 2, 3])), Ok(None));
    let mut with_tlvs = IPV4.to_vec();
    with_tlvs.extend_from_slice(&[0x04, 0, 3, 0, 0, 0, 0x02, 0, 0]);
    assert_eq!(source(&v2(0x21, 0x11, &with_tlvs)), Ok("192.0.2.1:8080".parse().ok()));
}

#[test]
fn a_block_that_is_not_exactly_right_is_no_header() {
    let malformed = |bytes: &[u8]| matches!(parse(bytes, ProxyHeader::Any), Err(BadProxyHeader::Malformed(_)));
    assert!(malformed(&v2(0x11, 0x11, &IPV4)), "version 1 in the block of version 2");
    assert!(malformed(&v2(0x22, 0x11, &IPV4)), "an unknown command");
    assert!(malformed(&v2(0x21, 0x12, &IPV4)), "datagrams");
    assert!(malformed(&v2(0x21, 0x41, &IPV4)), "an unknown family");
    assert!(malformed(&v2(0x21, 0x11, &IPV4[..11])), "too short for IPv4");
    assert!(malformed(&v2(0x21, 0x21, &[0; 35])), "too short for IPv6");
    assert!(malformed(&v2(0x21, 0x31, &[0; 215])), "too short for a Unix socket");
    let mut bad_tlv = IPV4.to_vec();
    bad_tlv.extend_from_slice(&[0x04, 0, 4, 0]);
    assert!(malformed(&v2(0x21, 0x11, &bad_tlv)), "a value that is longer than the header");
    assert!(malformed(&v2(0x21, 0x11, &[&IPV4[..], &[4, 0]].concat())), "half a value");
}

#[test]
fn a_header_is_bounded() {
    let line = format!("PROXY UNKNOWN {}", "x".repeat(200));
    assert_eq!(parse(line.as_bytes(), ProxyHeader::Any), Err(BadProxyHeader::TooLong));
    assert_eq!(parse(&line.as_bytes()[..106], ProxyHeader::Any), Ok(None));
    let longest = v2(0x20, 0, &[0; 520]);
    assert_eq!(parse(&longest, ProxyHeader::Any), Ok(Some(Header { bytes: 536, source: None })));
    assert_eq!(parse(&v2(0x20, 0, &[0; 521])[..16], ProxyHeader::Any), Err(BadProxyHeader::TooLong));
}

#[test]
fn only_the_wanted_version_is_taken() {
    let (line, block) = (b"PROXY UNKNOWN\r\n".to_vec(), v2(0x20, 0, &[]));
    let connect = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00";
    for (wanted, takes_v1, takes_v2) in
        [(ProxyHeader::V1, true, false), (ProxyHeader::V2, false, true), (ProxyHeader::Any, true, true)]
    {
        assert_eq!(parse(&line, wanted).is_ok(), takes_v1);
        assert_eq!(parse(&block, wanted).is_ok(), takes_v2);
        assert_eq!(parse(connect, wanted), Err(BadProxyHeader::Missing));
        assert_eq!(parse(b"", wanted), Ok(None));
    }
}

fn headers() -> impl Strategy<Value = Vec<u8>> {
    let v4 = (any::<[u8; 4]>(), any::<u16>())
        .prop_map(|(ip, port)| format!("PROXY TCP4 {} 10.0.0.1 {port} 1883\r\n", Ipv4Addr::from(ip)).into_bytes());
    let v6 = (any::<u128>(), any::<u16>())
        .prop_map(|(ip, port)| format!("PROXY TCP6 {} ::1 {port} 1883\r\n", Ipv6Addr::from_bits(ip)).into_bytes());
    let block = (
        0x1F_u8..0x23,
        prop::sample::select(vec![0, 0x11, 0x21, 0x31, 0x12]),
        prop::collection::vec(any::<u8>(), 0..300),
    )
        .prop_map(|(command, family, body)| v2(command, family, &body));
    prop_oneof![v4, v6, block, prop::collection::vec(any::<u8>(), 0..600)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever comes in whatever pieces: the answer is that of the whole, and no more is taken than the header.
    #[test]
    fn pieces_say_what_the_whole_says(bytes in headers(), behind in prop::collection::vec(any::<u8>(), 0..20)) {
        let all = [bytes, behind].concat();
        let whole = parse(&all, ProxyHeader::Any);
        if let Ok(Some(header)) = whole {
            prop_assert!((15..=V2_BYTES_MAX).contains(&header.bytes) && header.bytes <= all.len());
        }
        for end in 0..all.len() {
            match parse(&all[..end], ProxyHeader::Any) {
                Ok(None) => {}
                early => prop_assert_eq!(early, whole),
            }
        }
    }

    /// What a proxy writes is what we read.
    #[test]
    fn an_address_comes_through(ip in any::<u128>(), is_v4 in any::<bool>(), port in any::<u16>()) {
        let address = if is_v4 { IpAddr::V4(Ipv4Addr::from_bits(ip as u32)) } else { IpAddr::V6(Ipv6Addr::from_bits(ip)) };
        let family = if is_v4 { "TCP4" } else { "TCP6" };
        let line = format!("PROXY {family} {address} {address} {port} 1\r\n");
        prop_assert_eq!(source(line.as_bytes()), Ok(Some(SocketAddr::new(address, port))));
        let octets = match address { IpAddr::V4(v4) => v4.octets().to_vec(), IpAddr::V6(v6) => v6.octets().to_vec() };
        let body = [&octets[..], &octets[..], &port.to_be_bytes(), &[0, 1]].concat();
        let block = v2(0x21, if is_v4 { 0x11 } else { 0x21 }, &body);
        prop_assert_eq!(source(&block), Ok(Some(SocketAddr::new(address, port))));
    }
}
