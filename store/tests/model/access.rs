//! Users and rules, as the model has them: two maps.

use std::collections::BTreeMap;

use proptest::prelude::*;
use quorate_store::access::{Access, AccessError, AclAction, AclRule, Permission, ScramVerifier, User, Who};
use quorate_store::command::{Command, Setting};
use quorate_store::effect::Outcome;
use quorate_store::ids::QoS;
use quorate_store::topic::TopicError;

use super::Want;
use super::compare::Verdict;

/// A change of users or rules.
#[derive(Clone, Debug)]
pub(crate) enum AccessOp {
    PutUser { user: u8, secret: u8, is_superuser: bool },
    DeleteUser(u8),
    PutRule { number: u8, denies: bool, filter: u8 },
    DeleteRule(u8),
    Otherwise(bool),
}

/// The last is none.
const FILTERS: [&str; 4] = ["#", "a/%u/+", "$SYS/#", "a/#/b"];
/// The last is none.
const NAMES: [&str; 4] = ["ann", "bob", "\u{1f600}", ""];

fn permission(denies: bool) -> Permission {
    if denies { Permission::Deny } else { Permission::Allow }
}

impl AccessOp {
    pub(crate) fn command(&self) -> Command {
        match *self {
            Self::PutUser { user, secret, is_superuser } => Command::PutUser(Box::new(User {
                name: NAMES[usize::from(user) % 4].to_owned(),
                password_hash: (secret & 1 != 0).then(|| format!("$argon2id${secret}")),
                scram: (secret & 2 != 0).then(|| ScramVerifier {
                    salt: vec![secret],
                    iterations: 4096,
                    stored_key: [secret; 32],
                    server_key: [secret; 32],
                }),
                is_superuser,
            })),
            Self::DeleteUser(user) => Command::DeleteUser { name: NAMES[usize::from(user) % 4].to_owned() },
            Self::PutRule { number, denies, filter } => Command::PutAclRule(Box::new(AclRule {
                number: u32::from(number),
                permission: permission(denies),
                who: Who::User("ann".into()),
                action: AclAction::All,
                filters: vec![FILTERS[usize::from(filter) % 4].to_owned()],
                qos_max: QoS::ExactlyOnce,
                retain: Some(denies),
            })),
            Self::DeleteRule(number) => Command::DeleteAclRule { number: u32::from(number) },
            Self::Otherwise(denies) => Command::Set(Setting::AclOtherwise(permission(denies))),
        }
    }
}

pub(crate) fn access_op() -> impl Strategy<Value = AccessOp> {
    prop_oneof![
        3 => (0..4_u8, 0..8_u8, any::<bool>())
            .prop_map(|(user, secret, is_superuser)| AccessOp::PutUser { user, secret, is_superuser }),
        1 => (0..4_u8).prop_map(AccessOp::DeleteUser),
        3 => (0..6_u8, any::<bool>(), 0..4_u8)
            .prop_map(|(number, denies, filter)| AccessOp::PutRule { number, denies, filter }),
        1 => (0..6_u8).prop_map(AccessOp::DeleteRule),
        1 => any::<bool>().prop_map(AccessOp::Otherwise),
    ]
}

/// What the model knows of users and rules.
#[derive(Clone, Debug, Default)]
pub(crate) struct AccessModel {
    users: BTreeMap<String, User>,
    rules: BTreeMap<u32, AclRule>,
    pub(crate) denies_otherwise: bool,
}

impl AccessModel {
    pub(crate) fn put_user(&mut self, user: &User) -> Want {
        if user.name.is_empty() {
            return Want::Is(Outcome::AccessRefused(AccessError::UserName));
        }
        self.users.insert(user.name.clone(), user.clone());
        Want::Is(Outcome::Done)
    }

    pub(crate) fn delete_user(&mut self, name: &str) -> Want {
        Want::Is(self.users.remove(name).map_or(Outcome::Void, |_| Outcome::Done))
    }

    pub(crate) fn put_rule(&mut self, rule: &AclRule) -> Want {
        if rule.filters == [FILTERS[3]] {
            return Want::Is(Outcome::AccessRefused(AccessError::Filter(TopicError::MisplacedWildcard)));
        }
        self.rules.insert(rule.number, rule.clone());
        Want::Is(Outcome::Done)
    }

    pub(crate) fn delete_rule(&mut self, number: u32) -> Want {
        Want::Is(self.rules.remove(&number).map_or(Outcome::Void, |_| Outcome::Done))
    }

    pub(crate) fn check(&self, access: &Access) -> Verdict {
        let users = access.users.sorted().into_iter().eq(self.users.values());
        let rules = access.rules.iter().eq(self.rules.values());
        let otherwise = access.otherwise == permission(self.denies_otherwise);
        let same = users && rules && otherwise && access.users.len() == self.users.len();
        if same { Ok(()) } else { Err(format!("{access:?}, expected {self:?}")) }
    }
}
