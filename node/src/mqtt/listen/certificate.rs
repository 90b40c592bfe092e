//! Whom a client certificate names.
//!
//! A walk over the DER of a certificate that rustls has verified already, to the two places where a name may stand:
//! the subject and its alternative names (RFC 5280 §4.1.2.6, §4.2.1.6). The parsers on the registry bring derive
//! macros whose features would have RocksDB's bindings built anew for every target; this needs six tags.

use super::options::CertificateUser;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const BOOLEAN: u8 = 0x01;
const OCTET_STRING: u8 = 0x04;
const UTF8_STRING: u8 = 0x0C;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
/// `[0]` of a TBSCertificate: its version.
const VERSION: u8 = 0xA0;
/// `[3]` of a TBSCertificate: its extensions.
const EXTENSIONS: u8 = 0xA3;
/// Of a GeneralName.
const RFC822_NAME: u8 = 0x81;
const DNS_NAME: u8 = 0x82;
const URI: u8 = 0x86;

/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// 2.5.29.17
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1D, 0x11];

/// Longest name that is taken.
const NAME_BYTES_MAX: usize = 1024;

/// The user name in a certificate; `None` when it has no such name, or one that is no user name.
pub(super) fn user(der: &[u8], which: CertificateUser) -> Option<Box<str>> {
    let (certificate, _) = expect(der, SEQUENCE)?;
    let (tbs, _) = expect(certificate, SEQUENCE)?;
    let rest = expect(tbs, VERSION).map_or(tbs, |(_, rest)| rest);
    let mut rest = rest;
    for _ in ["serial number", "signature", "issuer", "validity"] {
        rest = element(rest)?.rest;
    }
    let (subject, rest) = expect(rest, SEQUENCE)?;
    let name = match which {
        CertificateUser::CommonName => common_name(subject)?,
        CertificateUser::Dns => alternative(rest, DNS_NAME)?,
        CertificateUser::Email => alternative(rest, RFC822_NAME)?,
        CertificateUser::Uri => alternative(rest, URI)?,
    };
    let name = std::str::from_utf8(name).ok()?;
    let is_name = !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control);
    is_name.then(|| name.into())
}

fn common_name(subject: &[u8]) -> Option<&[u8]> {
    elements(subject).filter(|set| set.tag == SET).flat_map(|set| elements(set.value)).find_map(|attribute| {
        let (oid, rest) = expect(attribute.value, OID)?;
        let value = element(rest)?;
        let is_text = matches!(value.tag, UTF8_STRING | PRINTABLE_STRING | IA5_STRING);
        (oid == COMMON_NAME && is_text).then_some(value.value)
    })
}

/// The first alternative name of a kind; `rest` is what follows the subject.
fn alternative(rest: &[u8], kind: u8) -> Option<&[u8]> {
    let extensions = elements(rest).find(|element| element.tag == EXTENSIONS)?;
    let (extensions, _) = expect(extensions.value, SEQUENCE)?;
    let names = elements(extensions).find_map(|extension| {
        let (oid, rest) = expect(extension.value, OID)?;
        let rest = expect(rest, BOOLEAN).map_or(rest, |(_, rest)| rest);
        let (value, _) = expect(rest, OCTET_STRING)?;
        (oid == SUBJECT_ALT_NAME).then_some(value)
    })?;
    let (names, _) = expect(names, SEQUENCE)?;
    elements(names).find(|name| name.tag == kind).map(|name| name.value)
}

struct Element<'a> {
    tag: u8,
    value: &'a [u8],
    rest: &'a [u8],
}

/// The element at the beginning, with a definite length as DER has it.
fn element(bytes: &[u8]) -> Option<Element<'_>> {
    let (&[tag, first], rest) = bytes.split_first_chunk()?;
    let (len, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (len, rest) =
            rest.split_at_checked(usize::from(first & 0x7F)).filter(|(len, _)| (1..=4).contains(&len.len()))?;
        (len.iter().fold(0, |n, byte| n << 8 | usize::from(*byte)), rest)
    };
    let (value, rest) = rest.split_at_checked(len)?;
    Some(Element { tag, value, rest })
}

/// The value of the element at the beginning, if it has this tag, and what follows it.
fn expect(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    element(bytes).filter(|element| element.tag == tag).map(|element| (element.value, element.rest))
}

fn elements(mut bytes: &[u8]) -> impl Iterator<Item = Element<'_>> {
    std::iter::from_fn(move || {
        let element = element(bytes)?;
        bytes = element.rest;
        Some(element)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(common_name: Option<&str>, alternatives: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        if let Some(name) = common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.subject_alt_names = alternatives;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn alternatives() -> Vec<SanType> {
        vec![
            SanType::IpAddress([127, 0, 0, 1].into()),
            SanType::URI("urn:device:7".try_into().unwrap()),
            SanType::DnsName("device7.example".try_into().unwrap()),
            SanType::DnsName("second.example".try_into().unwrap()),
            SanType::Rfc822Name("device7@example.com".try_into().unwrap()),
        ]
    }

    #[test]
    fn each_name_of_a_certificate_can_be_the_user_name() {
        let der = certificate(Some("Gerät 7"), alternatives());
        for (which, want) in [
            (CertificateUser::CommonName, "Gerät 7"),
            (CertificateUser::Dns, "device7.example"),
            (CertificateUser::Email, "device7@example.com"),
            (CertificateUser::Uri, "urn:device:7"),
        ] {
            assert_eq!(user(&der, which).as_deref(), Some(want), "{which:?}");
        }
    }

    #[test]
    fn a_certificate_without_the_name_names_nobody() {
        let der = certificate(None, Vec::new());
        for which in [CertificateUser::CommonName, CertificateUser::Dns, CertificateUser::Email, CertificateUser::Uri] {
            assert_eq!(user(&der, which), None, "{which:?}");
        }
        assert_eq!(user(&certificate(Some("with\0zero"), Vec::new()), CertificateUser::CommonName), None);
        assert_eq!(user(&certificate(Some(""), Vec::new()), CertificateUser::CommonName), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// rustls has verified what comes here; all the same nothing of it is trusted.
        #[test]
        fn damaged_certificates_are_read_without_harm(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut der = certificate(Some("device"), alternatives());
            let place = at.index(der.len());
            der[place] = byte;
            der.truncate(cut.index(der.len()) + 1);
            for which in [CertificateUser::CommonName, CertificateUser::Dns, CertificateUser::Uri] {
                let _ = user(&der, which);
            }
        }
    }
}
