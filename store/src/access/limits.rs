//! How large users and rules may be: everything about them is held in memory on every node.

use thiserror::Error;

use super::{AclRule, User, Who};
use crate::topic::{TopicError, TopicFilter};

/// Most users.
pub const USERS_MAX: usize = 100_000;
/// Most rules. A decision may look at all of them.
pub const RULES_MAX: usize = 10_000;
/// Longest user name in bytes.
pub const USER_NAME_BYTES_MAX: usize = 256;
/// Longest client identifier that a rule names, in bytes.
pub const RULE_CLIENT_BYTES_MAX: usize = 1024;
/// Most topic filters of a rule.
pub const RULE_FILTERS_MAX: usize = 64;
/// Longest topic filter of a rule in bytes.
pub const RULE_FILTER_BYTES_MAX: usize = 1024;
/// Longest password hash in bytes.
pub const PASSWORD_HASH_BYTES_MAX: usize = 512;
/// Longest salt of a SCRAM verifier in bytes.
pub const SCRAM_SALT_BYTES_MAX: usize = 64;

/// Why a user or a rule is not taken. The state is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AccessError {
    /// [`USERS_MAX`].
    #[error("there are {USERS_MAX} users, which is the most: delete some that are not used any more")]
    TooManyUsers,
    /// [`RULES_MAX`].
    #[error("there are {RULES_MAX} rules, which is the most: say more with one, by %u and %c in its filters")]
    TooManyRules,
    /// [`USER_NAME_BYTES_MAX`].
    #[error("a user name has 1 to {USER_NAME_BYTES_MAX} bytes of UTF-8, none of them a control character")]
    UserName,
    /// [`PASSWORD_HASH_BYTES_MAX`], [`SCRAM_SALT_BYTES_MAX`].
    #[error(
        "a password hash has at most {PASSWORD_HASH_BYTES_MAX} bytes, the salt of a SCRAM verifier at most \
         {SCRAM_SALT_BYTES_MAX}"
    )]
    Secrets,
    /// [`RULE_CLIENT_BYTES_MAX`].
    #[error("a client identifier in a rule has 1 to {RULE_CLIENT_BYTES_MAX} bytes of UTF-8")]
    ClientId,
    /// [`RULE_FILTERS_MAX`].
    #[error("a rule has at most {RULE_FILTERS_MAX} topic filters: make two rules of it")]
    TooManyFilters,
    /// [`RULE_FILTER_BYTES_MAX`].
    #[error("a topic filter of a rule has at most {RULE_FILTER_BYTES_MAX} bytes")]
    FilterTooLong,
    /// It is no topic filter.
    #[error("a topic filter of the rule is not valid: {0}")]
    Filter(TopicError),
}

impl User {
    /// Whether its name and secrets are within the bounds.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn check(&self) -> Result<(), AccessError> {
        check_name(&self.name)?;
        let is_long = self.password_hash.as_ref().is_some_and(|hash| hash.len() > PASSWORD_HASH_BYTES_MAX)
            || self.scram.as_ref().is_some_and(|scram| scram.salt.len() > SCRAM_SALT_BYTES_MAX);
        if is_long { Err(AccessError::Secrets) } else { Ok(()) }
    }
}

impl AclRule {
    /// Whether it is within the bounds and its filters are some.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn check(&self) -> Result<(), AccessError> {
        match &self.who {
            Who::User(name) => check_name(name)?,
            Who::Client(id) if id.is_empty() || id.len() > RULE_CLIENT_BYTES_MAX => return Err(AccessError::ClientId),
            Who::All | Who::Anonymous | Who::Client(_) => {}
        }
        if self.filters.len() > RULE_FILTERS_MAX {
            return Err(AccessError::TooManyFilters);
        }
        for filter in &self.filters {
            if filter.len() > RULE_FILTER_BYTES_MAX {
                return Err(AccessError::FilterTooLong);
            }
            TopicFilter::new(filter).map_err(AccessError::Filter)?;
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), AccessError> {
    let fits = !name.is_empty() && name.len() <= USER_NAME_BYTES_MAX && !name.chars().any(char::is_control);
    if fits { Ok(()) } else { Err(AccessError::UserName) }
}
