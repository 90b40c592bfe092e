//! Users and rules are state like all else: the same on every replica, after every restart, from their entry on.

use std::sync::Arc;

use quorate_store::access::{
    AccessError, AclAction, AclRule, Client, Permission, RULE_FILTERS_MAX, RULES_MAX, ScramVerifier, USERS_MAX, User,
    Who,
};
use quorate_store::command::{Command, Setting};
use quorate_store::effect::Outcome;
use quorate_store::ids::QoS;

use crate::testkit::Rig;
use crate::testkit::commands::connect;
use crate::testkit::replica::{Then, replay};

fn user(name: &str) -> User {
    User { name: name.to_owned(), password_hash: Some("$argon2id$x".into()), scram: None, is_superuser: false }
}

fn rule(number: u32, permission: Permission, filter: &str) -> AclRule {
    let filters = vec![filter.to_owned()];
    let (who, action) = (Who::All, AclAction::All);
    AclRule { number, permission, who, action, filters, qos_max: QoS::ExactlyOnce, retain: None }
}

fn put_user(user: User) -> Command {
    Command::PutUser(Box::new(user))
}

fn put_rule(rule: AclRule) -> Command {
    Command::PutAclRule(Box::new(rule))
}

fn may_publish(rig: &Rig, user: &str, topic: &str) -> bool {
    let client = Client { user: Some(user), client_id: "c" };
    rig.machine.access().may_publish(client, topic, QoS::AtLeastOnce, false)
}

/// `count` commands in entries of 1,000, each entry a run.
fn many(rig: &mut Rig, count: usize, command: impl Fn(usize) -> Command) {
    let commands: Vec<Command> = (0..count).map(command).collect();
    for chunk in commands.chunks(1000) {
        let happened = rig.batch(1, chunk.to_vec());
        assert!(happened.outcomes().iter().all(|outcome| *outcome == Outcome::Done));
    }
}

#[test]
fn users_and_rules_hold_from_their_entry_on_and_through_restarts_and_crashes() {
    let mut rig = Rig::with_nodes(2);
    assert!(may_publish(&rig, "ann", "plant/bob/x"), "without rules all is allowed");
    rig.direct(put_rule(rule(20, Permission::Deny, "plant/#")));
    rig.direct(put_rule(rule(10, Permission::Allow, "plant/%u/#")));
    let check = |rig: &Rig| {
        assert!(may_publish(rig, "ann", "plant/ann/x") && may_publish(rig, "ann", "else"));
        assert!(!may_publish(rig, "ann", "plant/bob/x"));
    };
    check(&rig);
    rig.reopen();
    check(&rig);
    let scram = ScramVerifier { salt: vec![1; 16], iterations: 15_000, stored_key: [2; 32], server_key: [3; 32] };
    rig.direct(put_user(User { scram: Some(scram), ..user("ann") }));
    // Through a stream, too.
    rig.batch(2, vec![put_user(User { is_superuser: true, ..user("bob") }), put_user(user("gone"))]);
    assert!(may_publish(&rig, "bob", "plant/ann/x"), "no rule is asked for a superuser");
    rig.direct(Command::DeleteUser { name: "gone".into() });
    rig.direct(Command::DeleteAclRule { number: 20 });
    rig.direct(Command::Set(Setting::AclOtherwise(Permission::Deny)));
    assert!(!may_publish(&rig, "ann", "else") && may_publish(&rig, "ann", "plant/ann/x"));
    rig.reopen();
    assert!(!may_publish(&rig, "ann", "else") && may_publish(&rig, "bob", "else"));
    let names: Vec<_> = rig.machine.access().users.sorted().into_iter().map(|user| user.name.clone()).collect();
    assert_eq!(names, ["ann", "bob"]);
    let (rows, _) = replay(&rig.log, &[Then::GoOn, Then::Flush, Then::Commit, Then::Crash, Then::Reopen]);
    assert!(rows == *rig.machine.store());
}

#[test]
fn a_deleted_user_leaves_its_sessions_alone() {
    let mut rig = Rig::with_nodes(1);
    rig.direct(put_user(user("ann")));
    rig.connect(1, connect("ann-1"));
    assert_eq!(rig.direct(Command::DeleteUser { name: "ann".into() }).outcome(), Outcome::Done);
    assert_eq!(rig.direct(Command::DeleteUser { name: "ann".into() }).outcome(), Outcome::Void, "there is none");
    assert!(rig.machine.sessions().iter().any(|session| session.client_id == "ann-1" && session.owner.is_some()));
    assert_eq!(rig.direct(Command::DeleteAclRule { number: 7 }).outcome(), Outcome::Void);
}

#[test]
fn who_holds_a_snapshot_keeps_it_as_it_was_and_what_changes_nothing_makes_no_other() {
    let mut rig = Rig::with_nodes(1);
    rig.direct(put_user(user("ann")));
    rig.direct(put_rule(rule(1, Permission::Deny, "x")));
    let before = rig.machine.access().clone();
    for same in [
        put_user(user("ann")),
        put_rule(rule(1, Permission::Deny, "x")),
        Command::Set(Setting::AclOtherwise(Permission::Allow)),
        Command::DeleteUser { name: "bob".into() },
        put_user(user("")),
    ] {
        rig.direct(same);
        assert!(Arc::ptr_eq(&before, rig.machine.access()));
    }
    rig.direct(put_user(User { is_superuser: true, ..user("ann") }));
    rig.direct(Command::DeleteAclRule { number: 1 });
    assert!(!before.users.get("ann").unwrap().is_superuser && before.rules.len() == 1);
    assert!(rig.machine.access().users.get("ann").unwrap().is_superuser && rig.machine.access().rules.is_empty());
}

#[test]
fn at_the_most_users_another_one_is_refused_until_one_goes() {
    let mut rig = Rig::with_nodes(1);
    many(&mut rig, USERS_MAX, |n| put_user(user(&format!("u{n}"))));
    let refused = Outcome::AccessRefused(AccessError::TooManyUsers);
    assert_eq!(rig.direct(put_user(user("one too many"))).outcome(), refused);
    let changed = User { is_superuser: true, ..user("u7") };
    assert_eq!(rig.direct(put_user(changed)).outcome(), Outcome::Done, "those that are there can be changed");
    rig.reopen();
    assert_eq!(rig.direct(put_user(user("one too many"))).outcome(), refused);
    rig.direct(Command::DeleteUser { name: "u8".into() });
    assert_eq!(rig.direct(put_user(user("one more"))).outcome(), Outcome::Done);
    assert_eq!(rig.machine.access().users.len(), USERS_MAX);
}

#[test]
fn at_the_most_rules_another_one_is_refused_until_one_goes() {
    let mut rig = Rig::with_nodes(1);
    many(&mut rig, RULES_MAX, |n| put_rule(rule(n as u32, Permission::Allow, "x")));
    let one_more = || put_rule(rule(u32::MAX, Permission::Deny, "x"));
    assert_eq!(rig.direct(one_more()).outcome(), Outcome::AccessRefused(AccessError::TooManyRules));
    assert_eq!(rig.direct(put_rule(rule(7, Permission::Deny, "x"))).outcome(), Outcome::Done);
    rig.direct(Command::DeleteAclRule { number: 8 });
    assert_eq!(rig.direct(one_more()).outcome(), Outcome::Done);
}

#[test]
fn what_is_beyond_a_bound_is_refused_and_says_which() {
    let mut rig = Rig::with_nodes(1);
    let before = rig.machine.store().iter().count();
    let long = "x".repeat(1025);
    let with = |filters: Vec<String>| put_rule(AclRule { filters, ..rule(1, Permission::Allow, "x") });
    let whose = |who| put_rule(AclRule { who, ..rule(1, Permission::Allow, "x") });
    for (command, error) in [
        (put_user(user(&"x".repeat(257))), AccessError::UserName),
        (put_user(user("a\nb")), AccessError::UserName),
        (put_user(User { password_hash: Some(long.clone()), ..user("ann") }), AccessError::Secrets),
        (with(vec!["x".to_owned(); RULE_FILTERS_MAX + 1]), AccessError::TooManyFilters),
        (with(vec![long.clone()]), AccessError::FilterTooLong),
        (with(vec![String::new()]), AccessError::Filter(quorate_store::topic::TopicError::Empty)),
        (whose(Who::User(String::new())), AccessError::UserName),
        (whose(Who::Client(long)), AccessError::ClientId),
    ] {
        assert_eq!(rig.direct(command).outcome(), Outcome::AccessRefused(error));
    }
    assert_eq!(rig.machine.store().iter().count(), before);
    assert_eq!(rig.direct(with(vec!["x".to_owned(); RULE_FILTERS_MAX])).outcome(), Outcome::Done);
}
