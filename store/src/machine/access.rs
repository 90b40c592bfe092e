//! Users and rules. What they decide is not decided here: the front end asks the snapshot.

use std::sync::Arc;

use crate::access::{Access, AccessError, AclRule, Permission, RULES_MAX, Rules, USERS_MAX, User, Users};
use crate::effect::Outcome;
use crate::rows::RowStore;
use crate::rows::key::{self, RowKind};
use crate::rows::value::Value as _;

use super::{Machine, MachineError};

impl<S: RowStore> Machine<S> {
    pub(super) fn put_user(&mut self, user: &User) -> Result<Outcome, MachineError> {
        if let Err(error) = user.check() {
            return Ok(Outcome::AccessRefused(error));
        }
        match self.access.users.get(&user.name) {
            Some(known) if known == user => return Ok(Outcome::Done),
            None if self.access.users.len() >= USERS_MAX => {
                return Ok(Outcome::AccessRefused(AccessError::TooManyUsers));
            }
            Some(_) | None => {}
        }
        self.rows.put(key::user(&user.name), user.to_bytes()?);
        self.access_mut().users.insert(user.name.clone(), user.clone());
        Ok(Outcome::Done)
    }

    pub(super) fn delete_user(&mut self, name: &str) -> Result<Outcome, MachineError> {
        if self.access.users.get(name).is_none() {
            return Ok(Outcome::Void);
        }
        self.rows.delete(key::user(name));
        self.access_mut().users.remove(name);
        Ok(Outcome::Done)
    }

    pub(super) fn put_acl_rule(&mut self, rule: &AclRule) -> Result<Outcome, MachineError> {
        if let Err(error) = rule.check() {
            return Ok(Outcome::AccessRefused(error));
        }
        match self.access.rules.get(rule.number) {
            Some(known) if known == rule => return Ok(Outcome::Done),
            None if self.access.rules.len() >= RULES_MAX => {
                return Ok(Outcome::AccessRefused(AccessError::TooManyRules));
            }
            Some(_) | None => {}
        }
        self.rows.put(key::acl_rule(rule.number), rule.to_bytes()?);
        self.access_mut().rules.insert(rule.clone());
        Ok(Outcome::Done)
    }

    pub(super) fn delete_acl_rule(&mut self, number: u32) -> Outcome {
        if self.access.rules.get(number).is_none() {
            return Outcome::Void;
        }
        self.rows.delete(key::acl_rule(number));
        self.access_mut().rules.remove(number);
        Outcome::Done
    }

    pub(super) fn set_acl_otherwise(&mut self, permission: Permission) {
        if self.access.otherwise != permission {
            self.access_mut().otherwise = permission;
        }
    }

    /// To be changed: in place while nobody else has it, so only the first change of a run copies anything.
    fn access_mut(&mut self) -> &mut Access {
        Arc::make_mut(&mut self.access)
    }

    /// Users and rules as the commands so far left them; readers get it after [`Self::commit_run`]. It is not the one
    /// that was taken before (`Arc::ptr_eq`) when, and only when, something changed.
    #[must_use]
    pub fn access(&self) -> &Arc<Access> {
        &self.access
    }

    pub(super) fn load_access(&mut self) -> Result<(), MachineError> {
        let mut users = Users::default();
        self.each(RowKind::User, |k, user: User| {
            let fits = key::rest(k) == user.name.as_bytes();
            users.insert(user.name.clone(), user);
            fits.then_some(())
        })?;
        let mut rules = Rules::default();
        self.each(RowKind::AclRule, |k, rule: AclRule| {
            let fits = key::rest(k) == rule.number.to_be_bytes();
            rules.insert(rule);
            fits.then_some(())
        })?;
        self.access = Arc::new(Access { users, rules, otherwise: self.settings.acl_otherwise });
        Ok(())
    }
}
