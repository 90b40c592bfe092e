//! The URL of a listener: `SCHEME://ADDRESS/PATH?PARAMETER=VALUE&…`, read strictly. What it names in the file system
//! is looked at elsewhere.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use thiserror::Error;

use super::options::{
    AuthMethod, CertificateUser, ClientCertificate, Endpoint, ListenerOptions, ProxyHeader, TlsOptions,
};
use crate::nearest::{did_you_mean, nearest};

/// Path of a WebSocket that has none in its URL.
const WEBSOCKET_PATH: &str = "/mqtt";
/// Permissions of a Unix socket: its owner and group.
const UNIX_MODE: u32 = 0o660;

/// Why a text is no listener.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UrlError {
    /// No URL, or one of another kind.
    #[error(
        "a listener is a URL: tcp://ADDRESS:PORT, tls://ADDRESS:PORT, ws://ADDRESS:PORT/mqtt, wss://ADDRESS:PORT/mqtt or unix:///PATH{}",
        did_you_mean(.0.as_deref())
    )]
    Scheme(Option<String>),
    /// Not an address.
    #[error("`{0}` is no IP address with a port: write it like 0.0.0.0:8883 or [::]:8883")]
    Address(String),
    /// A path where there is none, or none where there must be one.
    #[error("{0}")]
    Path(&'static str),
    /// A parameter that does not exist.
    #[error("there is no parameter `{name}`{}", did_you_mean(.nearest.as_deref()))]
    Unknown {
        /// Its name.
        name: String,
        /// What was meant, perhaps.
        nearest: Option<String>,
    },
    /// A parameter of other listeners.
    #[error("`{name}` is for {schemes} listeners only")]
    NotHere {
        /// Its name.
        name: String,
        /// Where it belongs.
        schemes: &'static str,
    },
    /// Twice the same.
    #[error("`{0}` is given twice: say it once, with commas between its values")]
    Twice(String),
    /// A parameter's value.
    #[error("{name}={value}: expected {expected}")]
    Value {
        /// Its name.
        name: String,
        /// What it is.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// Parameters that do not go together.
    #[error("{0}")]
    Together(&'static str),
}

/// Each parameter, and the schemes that have it.
const PARAMETERS: [(&str, &str); 15] = [
    ("auth", "all"),
    ("cert", "tls and wss"),
    ("cert_user", "tls and wss"),
    ("client_ca", "tls and wss"),
    ("client_cert", "tls and wss"),
    ("connection_rate_max", "all"),
    ("connections_max", "all"),
    ("connections_per_address_max", "all"),
    ("key", "tls and wss"),
    ("mode", "unix"),
    ("origin", "ws and wss"),
    ("proxy", "all"),
    ("proxy_from", "tcp, tls, ws and wss"),
    ("tls_min", "tls and wss"),
    ("name", "all"),
];

const SCHEMES: [&str; 5] = ["tcp", "tls", "unix", "ws", "wss"];

impl FromStr for ListenerOptions {
    type Err = UrlError;

    fn from_str(url: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = url.split_once("://").ok_or(UrlError::Scheme(None))?;
        if !SCHEMES.contains(&scheme) {
            return Err(UrlError::Scheme(nearest(scheme, SCHEMES.into_iter()).map(str::to_owned)));
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = place.split_at(place.find('/').unwrap_or(place.len()));
        let endpoint = if scheme == "unix" {
            if !authority.is_empty() || path.len() < 2 {
                return Err(UrlError::Path("a Unix socket has an absolute path: unix:///run/quorate/mqtt.sock"));
            }
            Endpoint::Unix { path: PathBuf::from(decode("unix", path)?), mode: UNIX_MODE }
        } else {
            let address: SocketAddr = authority.parse().map_err(|_| UrlError::Address(authority.to_owned()))?;
            Endpoint::Tcp(address)
        };
        let name = url.split_once('?').map_or(url, |(name, _)| name);
        let mut listener = Self { url: url.to_owned(), ..Self::new(name, endpoint) };
        match scheme {
            "ws" | "wss" if matches!(path, "" | "/") => listener.websocket = Some(WEBSOCKET_PATH.to_owned()),
            "ws" | "wss" => listener.websocket = Some(path.to_owned()),
            "tcp" | "tls" if !matches!(path, "" | "/") => {
                return Err(UrlError::Path("only ws, wss and unix listeners have a path"));
            }
            _ => {}
        }
        let mut query = Query::parse(scheme, query)?;
        query.fill(&mut listener)?;
        if matches!(scheme, "tls" | "wss") {
            listener.tls = Some(query.tls()?);
        }
        let shows_certificates = listener.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        if listener.auth.contains(&AuthMethod::Certificate) && !shows_certificates {
            return Err(UrlError::Together("auth=certificate needs client_ca: the file with who signs certificates"));
        }
        Ok(listener)
    }
}

/// The parameters of one URL, taken out one by one.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(scheme: &str, query: &str) -> Result<Self, UrlError> {
        let mut all: Vec<(String, String)> = Vec::new();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let Some((_, schemes)) = PARAMETERS.iter().find(|(known, _)| *known == name) else {
                let nearest = nearest(name, PARAMETERS.iter().map(|(known, _)| *known)).map(str::to_owned);
                return Err(UrlError::Unknown { name: name.to_owned(), nearest });
            };
            if *schemes != "all" && !schemes.split([',', ' ']).any(|of| of == scheme) {
                return Err(UrlError::NotHere { name: name.to_owned(), schemes });
            }
            if all.iter().any(|(other, _)| other == name) {
                return Err(UrlError::Twice(name.to_owned()));
            }
            all.push((name.to_owned(), decode(name, value)?));
        }
        Ok(Self(all))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// A value that is one of a few words.
    fn word<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Result<Option<T>, UrlError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        one_of(name, &value, words).map(Some)
    }

    fn number<T: FromStr + Default>(&mut self, name: &str) -> Result<T, UrlError> {
        let Some(value) = self.take(name) else { return Ok(T::default()) };
        let expected = || "a whole number (0: no bound of its own)".to_owned();
        value.replace('_', "").parse().map_err(|_| UrlError::Value {
            name: name.to_owned(),
            value,
            expected: expected(),
        })
    }

    fn list(&mut self, name: &str) -> Vec<String> {
        let value = self.take(name).unwrap_or_default();
        value.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
    }

    /// What listeners of every kind have.
    fn fill(&mut self, listener: &mut ListenerOptions) -> Result<(), UrlError> {
        if let Some(name) = self.take("name") {
            if name.is_empty() || name.chars().any(char::is_control) {
                let expected = "a word for logs and metrics".to_owned();
                return Err(UrlError::Value { name: "name".to_owned(), value: name, expected });
            }
            listener.name = name;
        }
        if let (Some(text), Endpoint::Unix { mode, .. }) = (self.take("mode"), &mut listener.endpoint) {
            *mode =
                u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(|| UrlError::Value {
                    name: "mode".to_owned(),
                    value: text,
                    expected: "octal permissions such as 0660".to_owned(),
                })?;
        }
        for word in self.list("auth") {
            let method = one_of("auth", &word, &AuthMethod::ALL)?;
            if listener.auth.contains(&method) {
                return Err(UrlError::Together("auth names a method twice"));
            }
            listener.auth.push(method);
        }
        listener.origins = self.list("origin");
        let proxies =
            [("none", ProxyHeader::None), ("v1", ProxyHeader::V1), ("v2", ProxyHeader::V2), ("any", ProxyHeader::Any)];
        listener.proxy = self.word("proxy", &proxies)?.unwrap_or_default();
        for text in self.list("proxy_from") {
            let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            let expected = || "addresses or networks such as 10.0.0.0/8,::1".to_owned();
            let network = network.map_err(|_| UrlError::Value {
                name: "proxy_from".to_owned(),
                value: text,
                expected: expected(),
            })?;
            listener.proxy_from.push(network);
        }
        if !listener.proxy_from.is_empty() && listener.proxy == ProxyHeader::None {
            return Err(UrlError::Together("proxy_from is of no use without proxy=v1, v2 or any"));
        }
        listener.connections_max = self.number("connections_max")?;
        listener.connections_per_address_max = self.number("connections_per_address_max")?;
        listener.connection_rate_max = self.number("connection_rate_max")?;
        Ok(())
    }

    fn tls(&mut self) -> Result<TlsOptions, UrlError> {
        let file = |text: Option<String>| text.filter(|text| !text.is_empty()).map(PathBuf::from);
        let (cert, key) = (file(self.take("cert")), file(self.take("key")));
        let (Some(cert), Some(key)) = (cert, key) else {
            return Err(UrlError::Together("TLS needs cert=FILE and key=FILE, both PEM"));
        };
        let client_ca = file(self.take("client_ca"));
        let asks = [
            ("none", ClientCertificate::None),
            ("optional", ClientCertificate::Optional),
            ("required", ClientCertificate::Required),
        ];
        let client_cert = self.word("client_cert", &asks)?;
        let client_cert = match (&client_ca, client_cert) {
            (None, Some(ClientCertificate::Optional | ClientCertificate::Required)) => {
                return Err(UrlError::Together("client_cert needs client_ca: the file with who signs certificates"));
            }
            (Some(_), Some(ClientCertificate::None)) => {
                return Err(UrlError::Together("client_ca is of no use with client_cert=none: leave one of them out"));
            }
            (Some(_), None) => ClientCertificate::Required,
            (_, asked) => asked.unwrap_or_default(),
        };
        let users = [
            ("cn", CertificateUser::CommonName),
            ("san-dns", CertificateUser::Dns),
            ("san-email", CertificateUser::Email),
            ("san-uri", CertificateUser::Uri),
        ];
        let cert_user = self.word("cert_user", &users)?;
        if cert_user.is_some() && client_ca.is_none() {
            return Err(UrlError::Together("cert_user is of no use without client_ca"));
        }
        let only_tls13 = self.word("tls_min", &[("1.2", false), ("1.3", true)])?.unwrap_or(false);
        Ok(TlsOptions { cert, key, client_ca, client_cert, cert_user: cert_user.unwrap_or_default(), only_tls13 })
    }
}

fn one_of<T: Copy>(name: &str, value: &str, words: &[(&str, T)]) -> Result<T, UrlError> {
    words.iter().find(|(word, _)| *word == value).map(|(_, meant)| *meant).ok_or_else(|| UrlError::Value {
        name: name.to_owned(),
        value: value.to_owned(),
        expected: format!("one of: {}", words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ")),
    })
}

/// Replaces `%41` by `A`.
fn decode(name: &str, text: &str) -> Result<String, UrlError> {
    let wrong = || UrlError::Value {
        name: name.to_owned(),
        value: text.to_owned(),
        expected: "two hexadecimal digits behind each % (a percent sign itself is %25)".to_owned(),
    };
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).ok_or_else(wrong)?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<ListenerOptions, UrlError> {
        url.parse()
    }

    #[test]
    fn every_part_of_a_url_is_understood() {
        let plain = parse("tcp://127.0.0.1:1884").unwrap();
        assert_eq!(plain, ListenerOptions::tcp("tcp://127.0.0.1:1884", ([127, 0, 0, 1], 1884).into()));
        let url = "wss://[::1]:8084/broker?cert=/etc/a%2cb.pem&key=k.pem&client_ca=ca.pem&client_cert=optional\
            &cert_user=san-uri&tls_min=1.3&proxy=v2&proxy_from=10.0.0.0/8,192.0.2.1&connections_max=1_000\
            &connections_per_address_max=5&connection_rate_max=50&auth=certificate,password&origin=https://a.example\
            &name=web";
        let listener = parse(url).unwrap();
        assert_eq!(listener.endpoint, Endpoint::Tcp("[::1]:8084".parse().unwrap()));
        assert_eq!(
            listener.tls,
            Some(TlsOptions {
                cert: "/etc/a,b.pem".into(),
                key: "k.pem".into(),
                client_ca: Some("ca.pem".into()),
                client_cert: ClientCertificate::Optional,
                cert_user: CertificateUser::Uri,
                only_tls13: true,
            })
        );
        assert_eq!((listener.name.as_str(), listener.url.as_str()), ("web", url));
        assert_eq!(listener.websocket.as_deref(), Some("/broker"));
        assert_eq!(listener.origins, ["https://a.example"]);
        assert_eq!(listener.proxy, ProxyHeader::V2);
        assert_eq!(listener.proxy_from, ["10.0.0.0/8".parse().unwrap(), "192.0.2.1/32".parse().unwrap()]);
        assert_eq!((listener.connections_max, listener.connections_per_address_max), (1_000, 5));
        assert_eq!(listener.connection_rate_max, 50);
        assert_eq!(listener.auth, [AuthMethod::Certificate, AuthMethod::Password]);
        let unix = parse("unix:///run/q.sock?mode=0600").unwrap();
        assert_eq!(unix.endpoint, Endpoint::Unix { path: "/run/q.sock".into(), mode: 0o600 });
        assert_eq!(unix.name, "unix:///run/q.sock");
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let ws = parse("ws://127.0.0.1:8083").unwrap();
        assert_eq!((ws.websocket.as_deref(), ws.tls, ws.auth.len()), (Some("/mqtt"), None, 0));
        let tls = parse("tls://127.0.0.1:8883?cert=c&key=k").unwrap().tls.unwrap();
        assert_eq!((tls.client_cert, tls.only_tls13), (ClientCertificate::None, false));
        let tls = parse("tls://127.0.0.1:8883?cert=c&key=k&client_ca=ca").unwrap().tls.unwrap();
        assert_eq!((tls.client_cert, tls.cert_user), (ClientCertificate::Required, CertificateUser::CommonName));
        assert!(matches!(parse("unix:///a").unwrap().endpoint, Endpoint::Unix { mode: 0o660, .. }));
    }

    #[test]
    fn what_is_wrong_is_said_with_what_would_be_right() {
        for (url, want) in [
            ("127.0.0.1:1883", "a listener is a URL: tcp://ADDRESS:PORT"),
            ("tpc://127.0.0.1:1883", "did you mean `tcp`?"),
            ("tcp://localhost:1883", "`localhost:1883` is no IP address with a port: write it like 0.0.0.0:8883"),
            ("tcp://127.0.0.1", "`127.0.0.1` is no IP address with a port"),
            ("tcp://127.0.0.1:1883/mqtt", "only ws, wss and unix listeners have a path"),
            ("unix://run/q.sock", "a Unix socket has an absolute path: unix:///run/quorate/mqtt.sock"),
            ("unix:///", "a Unix socket has an absolute path"),
            ("unix:///q?mode=abc", "mode=abc: expected octal permissions such as 0660"),
            ("unix:///q?mode=1777", "mode=1777: expected octal permissions"),
            ("unix:///q?proxy=v1&proxy_from=::1", "`proxy_from` is for tcp, tls, ws and wss listeners only"),
            ("tcp://127.0.0.1:1?cret=x", "there is no parameter `cret` (did you mean `cert`?)"),
            ("tcp://127.0.0.1:1?zzzzzz=x", "there is no parameter `zzzzzz`"),
            ("tcp://127.0.0.1:1?cert=x", "`cert` is for tls and wss listeners only"),
            ("ws://127.0.0.1:1?mode=0600", "`mode` is for unix listeners only"),
            ("tcp://127.0.0.1:1?origin=x", "`origin` is for ws and wss listeners only"),
            ("tcp://127.0.0.1:1?proxy=v1&proxy=v2", "`proxy` is given twice"),
            ("tcp://127.0.0.1:1?proxy=v3", "proxy=v3: expected one of: none, v1, v2, any"),
            ("tcp://127.0.0.1:1?proxy_from=::1", "proxy_from is of no use without proxy=v1, v2 or any"),
            ("tcp://127.0.0.1:1?proxy=v1&proxy_from=home", "proxy_from=home: expected addresses or networks such as"),
            ("tcp://127.0.0.1:1?connections_max=many", "connections_max=many: expected a whole number"),
            ("tcp://127.0.0.1:1?connection_rate_max=-1", "connection_rate_max=-1: expected a whole number"),
            ("tcp://127.0.0.1:1?connections_per_address_max=x", "connections_per_address_max=x: expected"),
            (
                "tcp://127.0.0.1:1?auth=passwd",
                "auth=passwd: expected one of: anonymous, password, scram, jwt, certificate",
            ),
            ("tcp://127.0.0.1:1?auth=jwt,jwt", "auth names a method twice"),
            ("tcp://127.0.0.1:1?auth=certificate", "auth=certificate needs client_ca"),
            ("tcp://127.0.0.1:1?name=", "name=: expected a word for logs and metrics"),
            ("tcp://127.0.0.1:1?name=%zz", "name=%zz: expected two hexadecimal digits behind each %"),
            ("tls://127.0.0.1:1", "TLS needs cert=FILE and key=FILE, both PEM"),
            ("tls://127.0.0.1:1?cert=c", "TLS needs cert=FILE and key=FILE"),
            ("tls://127.0.0.1:1?cert=c&key=k&tls_min=1.1", "tls_min=1.1: expected one of: 1.2, 1.3"),
            ("tls://127.0.0.1:1?cert=c&key=k&client_cert=required", "client_cert needs client_ca"),
            (
                "tls://127.0.0.1:1?cert=c&key=k&client_cert=yes",
                "client_cert=yes: expected one of: none, optional, required",
            ),
            (
                "tls://127.0.0.1:1?cert=c&key=k&client_ca=a&client_cert=none",
                "client_ca is of no use with client_cert=none",
            ),
            ("tls://127.0.0.1:1?cert=c&key=k&client_ca=a&cert_user=ou", "cert_user=ou: expected one of: cn, san-dns"),
            ("tls://127.0.0.1:1?cert=c&key=k&cert_user=cn", "cert_user is of no use without client_ca"),
        ] {
            let error = parse(url).expect_err(url).to_string();
            assert!(error.contains(want), "{url}: {error}");
        }
    }
}
