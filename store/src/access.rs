//! Who may connect and what they may do: users and rules as they are replicated, and the decision over them.
//!
//! Plain data and pure functions. The state machine keeps the rows ([`crate::machine::Machine::access`]); the
//! front end asks the snapshot that follows from them. No password is in here, only what verifies one.

mod limits;
mod reach;
mod shared;

use std::fmt;

use bincode::{Decode, Encode};

use crate::ids::QoS;

pub use limits::{
    AccessError, PASSWORD_HASH_BYTES_MAX, RULE_CLIENT_BYTES_MAX, RULE_FILTER_BYTES_MAX, RULE_FILTERS_MAX, RULES_MAX,
    SCRAM_SALT_BYTES_MAX, USER_NAME_BYTES_MAX, USERS_MAX,
};
pub use reach::{reached_by_publish, reached_by_subscription};
pub use shared::{Rules, Users};

/// A user.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct User {
    /// User Name of CONNECT.
    pub name: String,
    /// Argon2id hash of the password in PHC string form; `None` refuses passwords.
    pub password_hash: Option<String>,
    /// What verifies a SCRAM-SHA-256 exchange (RFC 5802); `None` refuses SCRAM.
    pub scram: Option<ScramVerifier>,
    /// No rule is asked for this user.
    pub is_superuser: bool,
}

/// RFC 5802's stored secrets of SCRAM-SHA-256.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct ScramVerifier {
    /// Salt.
    pub salt: Vec<u8>,
    /// Iteration count.
    pub iterations: u32,
    /// StoredKey.
    pub stored_key: [u8; 32],
    /// ServerKey.
    pub server_key: [u8; 32],
}

// Secrets never reach a log line.
impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name)
            .field("has_password", &self.password_hash.is_some())
            .field("has_scram", &self.scram.is_some())
            .field("is_superuser", &self.is_superuser)
            .finish()
    }
}

impl fmt::Debug for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramVerifier").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

/// One rule. Rules are asked in order of their number; the first that fits decides.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct AclRule {
    /// Place in the order, unique.
    pub number: u32,
    /// What it says of those whom it fits.
    pub permission: Permission,
    /// Whom it fits.
    pub who: Who,
    /// What it fits.
    pub action: AclAction,
    /// Topic filters, one of which has to fit; `%u` stands for the user name, `%c` for the client identifier, as a
    /// whole level or a part of one. None at all: every topic.
    pub filters: Vec<String>,
    /// It fits publishes of at most this QoS; a subscription that asks for more is granted this.
    pub qos_max: QoS,
    /// It fits only publishes with this RETAIN flag; `None`: with either.
    pub retain: Option<bool>,
}

/// Allow or deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Permission {
    /// Go on.
    Allow,
    /// 0x87 Not authorized.
    Deny,
}

/// Whom a rule fits.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Who {
    /// Everybody.
    All,
    /// Clients without a user.
    Anonymous,
    /// One user.
    User(String),
    /// One client identifier, whatever its user.
    Client(String),
}

/// What a rule fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum AclAction {
    /// PUBLISH and wills.
    Publish,
    /// SUBSCRIBE.
    Subscribe,
    /// Both.
    All,
}

/// Everything that decides about clients, as of one applied index. Cheap to share, never changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// By name.
    pub users: Users,
    /// By number.
    pub rules: Rules,
    /// What holds when no rule fits.
    pub otherwise: Permission,
}

impl Default for Access {
    fn default() -> Self {
        Self { users: Users::default(), rules: Rules::default(), otherwise: Permission::Allow }
    }
}

/// A client, as rules see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client<'a> {
    /// Authenticated user, `None` for an anonymous client.
    pub user: Option<&'a str>,
    /// Client identifier.
    pub client_id: &'a str,
}

/// What decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decider<'a> {
    /// The user may do everything.
    Superuser,
    /// The first rule that fits.
    Rule(&'a AclRule),
    /// No rule fits: [`Access::otherwise`].
    Otherwise(Permission),
}

impl Decider<'_> {
    /// What it says.
    #[must_use]
    pub fn permission(self) -> Permission {
        match self {
            Self::Superuser => Permission::Allow,
            Self::Rule(rule) => rule.permission,
            Self::Otherwise(permission) => permission,
        }
    }
}

impl Access {
    /// Whether `client` may publish to `topic`.
    #[must_use]
    pub fn may_publish(&self, client: Client<'_>, topic: &str, qos: QoS, retain: bool) -> bool {
        self.decider_of_publish(client, topic, qos, retain).permission() == Permission::Allow
    }

    /// What decides whether `client` may publish to `topic`.
    #[must_use]
    pub fn decider_of_publish(&self, client: Client<'_>, topic: &str, qos: QoS, retain: bool) -> Decider<'_> {
        self.decider(client, |rule| {
            rule.action != AclAction::Subscribe
                && rule.retain.is_none_or(|r| r == retain)
                && qos <= rule.qos_max
                && rule.fits_client(client)
                && rule.fits_topic(|pattern| covers(pattern, client, topic))
        })
    }

    /// The most QoS at which `client` may subscribe to `filter`, when it may at all.
    #[must_use]
    pub fn may_subscribe(&self, client: Client<'_>, filter: &str, qos: QoS) -> Option<QoS> {
        let decider = self.decider_of_subscribe(client, filter);
        (decider.permission() == Permission::Allow).then(|| match decider {
            Decider::Rule(rule) => qos.min(rule.qos_max),
            Decider::Superuser | Decider::Otherwise(_) => qos,
        })
    }

    /// What decides whether `client` may subscribe to `filter`.
    ///
    /// A rule that allows fits when it covers every topic of the filter; one that denies when it touches any: else
    /// `#` would bring what `deny secret/#` keeps away.
    #[must_use]
    pub fn decider_of_subscribe(&self, client: Client<'_>, filter: &str) -> Decider<'_> {
        self.decider(client, |rule| {
            let fits_pattern = match rule.permission {
                Permission::Allow => covers,
                Permission::Deny => overlaps,
            };
            rule.action != AclAction::Publish
                && rule.fits_client(client)
                && rule.fits_topic(|pattern| fits_pattern(pattern, client, filter))
        })
    }

    fn decider(&self, client: Client<'_>, fits: impl Fn(&AclRule) -> bool) -> Decider<'_> {
        if self.is_superuser(client) {
            return Decider::Superuser;
        }
        self.rules.iter().find(|rule| fits(rule)).map_or(Decider::Otherwise(self.otherwise), Decider::Rule)
    }

    fn is_superuser(&self, client: Client<'_>) -> bool {
        client.user.and_then(|name| self.users.get(name)).is_some_and(|user| user.is_superuser)
    }
}

impl AclRule {
    fn fits_client(&self, client: Client<'_>) -> bool {
        match &self.who {
            Who::All => true,
            Who::Anonymous => client.user.is_none(),
            Who::User(name) => client.user == Some(name),
            Who::Client(id) => client.client_id == id,
        }
    }

    fn fits_topic(&self, fits: impl Fn(&str) -> bool) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|pattern| fits(pattern))
    }
}

/// Whether `pattern` matches every topic that `filter` (a topic is one, too) matches.
fn covers(pattern: &str, client: Client<'_>, filter: &str) -> bool {
    if is_kept_from_wildcards(pattern, filter) {
        return false;
    }
    let mut wanted = filter.split('/');
    for level in pattern.split('/') {
        match (level, wanted.next()) {
            ("#", _) => return true,
            ("+", Some(other)) if other != "#" => {}
            (level, Some(other)) if level != "+" && is_text(level, client, other) => {}
            _ => return false,
        }
    }
    wanted.next().is_none()
}

/// Whether some topic is matched by both.
fn overlaps(pattern: &str, client: Client<'_>, filter: &str) -> bool {
    // `+/x` touches no topic that begins with `$`, whichever of the two says it.
    if is_kept_from_wildcards(pattern, filter) || is_kept_from_wildcards(filter, pattern) {
        return false;
    }
    let (mut pattern, mut filter) = (pattern.split('/'), filter.split('/'));
    loop {
        match (pattern.next(), filter.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some(p), Some(f)) if p == "+" || f == "+" || is_text(p, client, f) => {}
            _ => return false,
        }
    }
}

/// Wildcards at the first level do not match topics that begin with `$` [MQTT-4.7.2-1].
fn is_kept_from_wildcards(wild: &str, dollar: &str) -> bool {
    dollar.starts_with('$') && wild.starts_with(['+', '#'])
}

/// Whether a level of a pattern, with what stands for the client put in, is `text`. What is put in is never taken
/// for a wildcard or a separator: a client that calls itself `+` gains nothing.
fn is_text(level: &str, client: Client<'_>, text: &str) -> bool {
    if text == "+" || text == "#" {
        return false;
    }
    let mut rest = text;
    let mut level = level;
    loop {
        let Some(at) = level.find('%') else { return level == rest };
        let (before, sign) = level.split_at(at);
        let Some(after) = rest.strip_prefix(before) else { return false };
        let (put_in, sign_len) = match sign.as_bytes() {
            [b'%', b'u', ..] => (client.user, 2),
            [b'%', b'c', ..] => (Some(client.client_id), 2),
            _ => (Some("%"), 1),
        };
        // Nobody is meant by the name of somebody who has none.
        let Some(after) = put_in.filter(|text| !text.is_empty()).and_then(|text| after.strip_prefix(text)) else {
            return false;
        };
        rest = after;
        level = sign.get(sign_len..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topic::{TopicFilter, TopicName};

    const ANN: Client<'_> = Client { user: Some("ann"), client_id: "c1" };

    fn rule(number: u32, permission: Permission, action: AclAction, filters: &[&str]) -> AclRule {
        let filters = filters.iter().map(|f| (*f).to_owned()).collect();
        AclRule { number, permission, who: Who::All, action, filters, qos_max: QoS::ExactlyOnce, retain: None }
    }

    fn access(rules: impl IntoIterator<Item = AclRule>, otherwise: Permission) -> Access {
        Access { rules: rules.into_iter().collect(), otherwise, ..Access::default() }
    }

    fn publishes(access: &Access, client: Client<'_>, topic: &str) -> bool {
        access.may_publish(client, topic, QoS::AtLeastOnce, false)
    }

    fn subscribes(access: &Access, client: Client<'_>, filter: &str) -> Option<QoS> {
        access.may_subscribe(client, filter, QoS::ExactlyOnce)
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let a = access(
            [
                rule(10, Permission::Allow, AclAction::All, &["plant/%u/#"]),
                rule(20, Permission::Deny, AclAction::All, &["plant/#"]),
            ],
            Permission::Allow,
        );
        assert!(publishes(&a, ANN, "plant/ann/x"));
        assert!(!publishes(&a, ANN, "plant/bob/x"));
        assert!(publishes(&a, ANN, "else"));
        assert_eq!(subscribes(&a, ANN, "plant/ann/+"), Some(QoS::ExactlyOnce));
        assert_eq!(subscribes(&a, ANN, "plant/+/x"), None);
        assert_eq!(subscribes(&a, ANN, "#"), None, "it would bring what is denied");
        assert_eq!(subscribes(&a, ANN, "$SYS/#"), Some(QoS::ExactlyOnce));
    }

    #[test]
    fn a_client_cannot_name_itself_into_a_rule() {
        let a = access([rule(1, Permission::Allow, AclAction::All, &["u/%u/%c"])], Permission::Deny);
        let evil = |user, client_id| Client { user: Some(user), client_id };
        assert!(publishes(&a, ANN, "u/ann/c1"));
        assert!(!publishes(&a, evil("+", "#"), "u/ann/c1"));
        assert_eq!(subscribes(&a, evil("+", "#"), "u/+/#"), None);
        assert!(!publishes(&a, evil("ann/c", "1"), "u/ann/c/1"));
        assert!(!publishes(&a, Client { user: None, client_id: "c1" }, "u//c1"));
        let parts = access([rule(1, Permission::Allow, AclAction::All, &["pre-%c-100%"])], Permission::Deny);
        assert!(publishes(&parts, ANN, "pre-c1-100%"));
        assert!(!publishes(&parts, ANN, "pre-c2-100%"));
    }

    #[test]
    fn rules_limit_qos_and_retain() {
        let limited = AclRule {
            qos_max: QoS::AtLeastOnce,
            retain: Some(false),
            ..rule(1, Permission::Allow, AclAction::All, &["a"])
        };
        let a = access([limited], Permission::Deny);
        assert!(a.may_publish(ANN, "a", QoS::AtLeastOnce, false));
        assert!(!a.may_publish(ANN, "a", QoS::AtLeastOnce, true));
        assert!(!a.may_publish(ANN, "a", QoS::ExactlyOnce, false));
        assert_eq!(subscribes(&a, ANN, "a"), Some(QoS::AtLeastOnce));
    }

    #[test]
    fn rules_fit_their_clients_only() {
        let anonymous = Client { user: None, client_id: "c1" };
        for (who, ann, nobody) in [
            (Who::All, false, false),
            (Who::Anonymous, true, false),
            (Who::User("ann".into()), false, true),
            (Who::Client("c1".into()), false, false),
            (Who::Client("c2".into()), true, true),
        ] {
            let denies = AclRule { who: who.clone(), ..rule(1, Permission::Deny, AclAction::All, &[]) };
            let access = access([denies], Permission::Allow);
            assert_eq!((publishes(&access, ANN, "t"), publishes(&access, anonymous, "t")), (ann, nobody), "{who:?}");
        }
    }

    #[test]
    fn no_rule_is_asked_for_a_superuser() {
        let mut a = access([rule(1, Permission::Deny, AclAction::All, &[])], Permission::Deny);
        assert!(!publishes(&a, ANN, "t"));
        let ann = User { name: "ann".into(), password_hash: None, scram: None, is_superuser: true };
        a.users.insert(ann.name.clone(), ann);
        assert!(publishes(&a, ANN, "t"));
        assert_eq!(subscribes(&a, ANN, "#"), Some(QoS::ExactlyOnce));
    }

    #[test]
    fn secrets_are_not_shown() {
        let user = User {
            name: "ann".into(),
            password_hash: Some("$argon2id$secret".into()),
            scram: Some(ScramVerifier { salt: vec![1], iterations: 4096, stored_key: [7; 32], server_key: [8; 32] }),
            is_superuser: false,
        };
        let shown = format!("{user:?} {:?}", user.scram);
        assert!(!shown.contains("secret") && !shown.contains("[7") && !shown.contains("[8"), "{shown}");
    }

    fn filter() -> impl Strategy<Value = String> {
        "(\\$?(a|b||\\+)/){0,2}(a|b|\\+|#|\\$s)".prop_filter("not a filter", |s| TopicFilter::new(s).is_ok())
    }

    /// Every topic of up to three levels over the letters that the filters have.
    fn topics() -> Vec<TopicName> {
        let levels = ["a", "b", "", "$a", "$b", "$", "$s", "z"];
        let mut all: Vec<String> = levels.iter().map(|l| (*l).to_owned()).collect();
        let mut last = all.clone();
        for _ in 0..2 {
            last = last.iter().flat_map(|t| levels.iter().map(move |l| format!("{t}/{l}"))).collect();
            all.extend(last.iter().cloned());
        }
        all.iter().filter_map(|t| TopicName::new(t).ok()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn covering_and_touching_are_what_matching_says(pattern in filter(), wanted in filter()) {
            let (p, w) = (TopicFilter::new(&pattern).unwrap(), TopicFilter::new(&wanted).unwrap());
            let nobody = Client { user: None, client_id: "" };
            let both: Vec<_> = topics().into_iter().filter(|t| w.matches(t)).collect();
            if covers(&pattern, nobody, &wanted) {
                prop_assert!(both.iter().all(|t| p.matches(t)), "{pattern} does not cover {wanted}");
            }
            let touches = both.iter().any(|t| p.matches(t));
            // `+` and `/#` meet only in the empty topic, which there is not.
            let meet_in_nothing = covers(&pattern, nobody, "") && covers(&wanted, nobody, "");
            prop_assert!(
                overlaps(&pattern, nobody, &wanted) == touches || (meet_in_nothing && !touches),
                "{pattern} {wanted}"
            );
        }
    }
}
