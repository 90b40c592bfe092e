//! Users and rules as maps that a changed copy shares with its original.
//!
//! The front end holds the snapshot of the moment, so each change makes another. With 100,000 users a copy of all of
//! them would hold up the apply thread for each; here one part in [`PARTS`] is copied, and the rest shared.

use std::collections::BTreeMap;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::{AclRule, User};

/// Parts of the users.
const PARTS: u64 = 512;

type Part = Arc<BTreeMap<String, User>>;

/// Users, by name.
#[derive(Clone, PartialEq, Eq)]
pub struct Users {
    /// By a hash of the name.
    parts: Vec<Part>,
    len: usize,
}

impl Default for Users {
    fn default() -> Self {
        Self { parts: (0..PARTS).map(|_| Part::default()).collect(), len: 0 }
    }
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.sorted()).finish()
    }
}

impl Users {
    /// The user of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&User> {
        self.parts.get(part_of(name))?.get(name)
    }

    /// Adds a user, or replaces the one that has the name.
    pub fn insert(&mut self, name: String, user: User) -> Option<User> {
        let part = self.parts.get_mut(part_of(&name))?;
        let before = Arc::make_mut(part).insert(name, user);
        self.len += usize::from(before.is_none());
        before
    }

    /// Removes a user.
    pub fn remove(&mut self, name: &str) -> Option<User> {
        let part = self.parts.get_mut(part_of(name)).filter(|part| part.contains_key(name))?;
        let before = Arc::make_mut(part).remove(name);
        self.len -= usize::from(before.is_some());
        before
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of them, in order of their names.
    #[must_use]
    pub fn sorted(&self) -> Vec<&User> {
        let mut all: Vec<&User> = self.parts.iter().flat_map(|part| part.values()).collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

impl FromIterator<(String, User)> for Users {
    fn from_iter<I: IntoIterator<Item = (String, User)>>(users: I) -> Self {
        let mut all = Self::default();
        for (name, user) in users {
            all.insert(name, user);
        }
        all
    }
}

fn part_of(name: &str) -> usize {
    usize::try_from(xxh3_64(name.as_bytes()) % PARTS).unwrap_or_default()
}

/// Rules, by number. Copying them shares them all; the first change of a copy copies the rest.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Rules(Arc<BTreeMap<u32, Arc<AclRule>>>);

impl std::fmt::Debug for Rules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Rules {
    /// The rule of this number.
    #[must_use]
    pub fn get(&self, number: u32) -> Option<&AclRule> {
        self.0.get(&number).map(Arc::as_ref)
    }

    /// Adds a rule, or replaces the one that has its number.
    pub fn insert(&mut self, rule: AclRule) {
        Arc::make_mut(&mut self.0).insert(rule.number, Arc::new(rule));
    }

    /// Removes a rule; whether there was one.
    pub fn remove(&mut self, number: u32) -> bool {
        self.0.contains_key(&number) && Arc::make_mut(&mut self.0).remove(&number).is_some()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in the order in which they are asked.
    pub fn iter(&self) -> impl Iterator<Item = &AclRule> {
        self.0.values().map(Arc::as_ref)
    }
}

impl FromIterator<AclRule> for Rules {
    fn from_iter<I: IntoIterator<Item = AclRule>>(rules: I) -> Self {
        Self(Arc::new(rules.into_iter().map(|rule| (rule.number, Arc::new(rule))).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> User {
        User { name: name.to_owned(), password_hash: None, scram: None, is_superuser: false }
    }

    #[test]
    fn a_change_leaves_a_copy_as_it_was_and_shares_the_rest_with_it() {
        let names = (0..2000).map(|n| format!("user{n}"));
        let mut users: Users = names.map(|name| (name.clone(), user(&name))).collect();
        let before = users.clone();
        assert!(users.insert("user7".into(), User { is_superuser: true, ..user("user7") }).is_some());
        assert!(users.insert("new".into(), user("new")).is_none());
        assert!(users.remove("user9").is_some() && users.remove("user9").is_none());
        assert_eq!((before.len(), users.len()), (2000, 2000));
        assert!(before.get("user9").is_some() && before.get("new").is_none());
        assert!(!before.get("user7").unwrap().is_superuser && users.get("user7").unwrap().is_superuser);
        let shared = before.parts.iter().zip(&users.parts).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert!(shared >= PARTS as usize - 3, "{shared} parts are shared");
    }

    #[test]
    fn users_are_listed_in_order() {
        let users: Users = ["b", "c", "a"].map(|name| (name.to_owned(), user(name))).into_iter().collect();
        let names: Vec<_> = users.sorted().into_iter().map(|user| user.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }
}
