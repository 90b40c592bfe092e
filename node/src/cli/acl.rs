//! `quorate acl`: what clients may publish and subscribe to, through any node's administration.

use clap::{Args, Subcommand, ValueEnum};
use quorate_http_admin::{Act, CheckRequest, Checked, PutOtherwise, PutRule, RulePage, RuleView, Verdict, Whom};
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::admin::{Admin, encoded};
use super::cluster::table;
use super::{Failure, as_json, print_out};

const ACLS: &str = "/api/v1/acls";

/// `quorate acl …`
#[derive(Debug, Args)]
pub(crate) struct AclArgs {
    /// Administration of any node of the cluster
    #[arg(long, global = true, value_name = "URL", env = "QUORATE_ADMIN_URL", default_value = "http://127.0.0.1:7480")]
    admin: String,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: AclCommand,
}

#[derive(Debug, Subcommand)]
enum AclCommand {
    /// Add a rule, or set the one of this number; the first rule that fits decides
    Add {
        /// Place in the order
        number: u32,
        /// What it says
        permission: Permission,
        /// Whom it fits: all, anonymous, user:NAME or client:ID
        #[arg(value_parser = whom)]
        who: Whom,
        /// What it fits
        action: Action,
        /// Topic filters, one of which has to fit; %u is the user, %c the client identifier; none: every topic
        filters: Vec<String>,
        /// It fits publishes of at most this QoS, and a subscription is granted at most this
        #[arg(long, value_name = "QOS", default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=2))]
        qos_max: u8,
        /// It fits publishes with this RETAIN only
        #[arg(long, value_name = "BOOL")]
        retain: Option<bool>,
    },
    /// Delete a rule
    Delete {
        /// Its number
        number: u32,
    },
    /// List the rules in the order in which they are asked
    List,
    /// Set what holds when no rule fits
    Otherwise {
        /// What holds
        permission: Permission,
    },
    /// Say whether a client may publish or subscribe, and which rule decides
    Test {
        /// What it does
        action: Access,
        /// Topic, or topic filter to subscribe to
        topic: String,
        /// Its user; without one it is anonymous
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
        /// Its client identifier
        #[arg(long, value_name = "ID", default_value = "")]
        client: String,
        /// QoS
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
        qos: u8,
        /// With RETAIN
        #[arg(long)]
        retain: bool,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Permission {
    Allow,
    Deny,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Action {
    Publish,
    Subscribe,
    All,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Access {
    Publish,
    Subscribe,
}

impl From<Permission> for Verdict {
    fn from(permission: Permission) -> Self {
        match permission {
            Permission::Allow => Self::Allow,
            Permission::Deny => Self::Deny,
        }
    }
}

fn whom(text: &str) -> Result<Whom, String> {
    match text.split_once(':') {
        Some(("user", name)) if !name.is_empty() => Ok(Whom::User(name.to_owned())),
        Some(("client", id)) if !id.is_empty() => Ok(Whom::Client(id.to_owned())),
        None if text == "all" => Ok(Whom::All),
        None if text == "anonymous" => Ok(Whom::Anonymous),
        _ => Err("all, anonymous, user:NAME or client:ID".to_owned()),
    }
}

/// Carries the command out.
///
/// # Errors
/// What the cluster or the network said.
pub(crate) async fn run(args: AclArgs) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin, None)?;
    let (answer, text) = match args.command {
        AclCommand::Add { number, permission, who, action, filters, qos_max, retain } => {
            let action = match action {
                Action::Publish => Act::Publish,
                Action::Subscribe => Act::Subscribe,
                Action::All => Act::All,
            };
            let put = PutRule { permission: permission.into(), who, action, filters, qos_max, retain };
            let rule: RuleView = ask(&admin, Method::PUT, &format!("{ACLS}/{number}"), Some(&put)).await?;
            (as_json(&rule)?, format!("rule {number} is set: {}\n", cells(&rule)[1..].join(" ").trim_end()))
        }
        AclCommand::Delete { number } => {
            let answer: serde_json::Value =
                ask(&admin, Method::DELETE, &format!("{ACLS}/{number}"), None::<&()>).await?;
            (as_json(&answer)?, format!("rule {number} is deleted\n"))
        }
        AclCommand::Otherwise { permission } => {
            let put = PutOtherwise { permission: permission.into() };
            let set: PutOtherwise = ask(&admin, Method::PUT, &format!("{ACLS}/otherwise"), Some(&put)).await?;
            (as_json(&set)?, format!("when no rule fits: {}\n", verdict(set.permission)))
        }
        AclCommand::Test { action, topic, user, client, qos, retain } => {
            let action = match action {
                Access::Publish => Act::Publish,
                Access::Subscribe => Act::Subscribe,
            };
            let query = check_query(&CheckRequest { user, client, action, topic, qos, retain });
            let checked: Checked = ask(&admin, Method::GET, &query, None::<&()>).await?;
            (as_json(&checked)?, checked_text(&checked))
        }
        AclCommand::List => {
            let all = list(&admin).await?;
            let mut rows = vec![["NUMBER", "SAYS", "WHOM", "ACTION", "TOPICS", "LIMITS"].map(str::to_owned)];
            rows.extend(all.rules.iter().map(cells));
            (as_json(&all)?, format!("{}otherwise: {}\n", table(&rows), verdict(all.otherwise)))
        }
    };
    print_out(if args.json { &answer } else { &text })
}

async fn ask<T: DeserializeOwned>(
    admin: &Admin,
    method: Method,
    path: &str,
    body: Option<&(impl Serialize + Sync)>,
) -> Result<T, Failure> {
    admin.ask(method, path, body).await.map_err(|failure| admin.failure(&failure))
}

async fn list(admin: &Admin) -> Result<RulePage, Failure> {
    let mut all: RulePage = ask(admin, Method::GET, ACLS, None::<&()>).await?;
    while let Some(after) = all.next {
        let page: RulePage = ask(admin, Method::GET, &format!("{ACLS}?after={after}"), None::<&()>).await?;
        all.rules.extend(page.rules);
        all.next = page.next;
    }
    Ok(all)
}

fn check_query(request: &CheckRequest) -> String {
    let action = if request.action == Act::Subscribe { "subscribe" } else { "publish" };
    let mut query = format!(
        "{ACLS}/check?action={action}&topic={}&client={}&qos={}&retain={}",
        encoded(&request.topic),
        encoded(&request.client),
        request.qos,
        request.retain
    );
    if let Some(user) = &request.user {
        query.push_str("&user=");
        query.push_str(&encoded(user));
    }
    query
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    }
}

fn cells(view: &RuleView) -> [String; 6] {
    let rule = &view.rule;
    let whom = match &rule.who {
        Whom::All => "all".to_owned(),
        Whom::Anonymous => "anonymous".to_owned(),
        Whom::User(name) => format!("user:{name}"),
        Whom::Client(id) => format!("client:{id}"),
    };
    let action = match rule.action {
        Act::Publish => "publish",
        Act::Subscribe => "subscribe",
        Act::All => "all",
    };
    let topics = if rule.filters.is_empty() { "(every topic)".to_owned() } else { rule.filters.join(" ") };
    let mut limits = Vec::new();
    if rule.qos_max < 2 {
        limits.push(format!("QoS up to {}", rule.qos_max));
    }
    if let Some(retain) = rule.retain {
        limits.push(format!("retain {retain}"));
    }
    [view.number.to_string(), verdict(rule.permission).into(), whom, action.into(), topics, limits.join(", ")]
}

fn checked_text(checked: &Checked) -> String {
    let answer = match (checked.allowed, checked.granted_qos) {
        (true, Some(qos)) => format!("allowed, QoS {qos} is granted"),
        (true, None) => "allowed".to_owned(),
        (false, _) => "denied".to_owned(),
    };
    let why = match (&checked.rule, checked.decided_by.as_str()) {
        (Some(rule), _) => format!("by rule {}", cells(rule).join(" ").trim_end()),
        (None, "superuser") => "the user is a superuser".to_owned(),
        (None, _) => "no rule fits, and so it is otherwise".to_owned(),
    };
    format!("{answer}: {why}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_a_rule_fits_is_said_in_one_word() {
        assert_eq!(whom("user:a:b"), Ok(Whom::User("a:b".into())));
        assert_eq!(whom("client:c"), Ok(Whom::Client("c".into())));
        assert_eq!((whom("all"), whom("anonymous")), (Ok(Whom::All), Ok(Whom::Anonymous)));
        for none in ["", "user", "user:", "ann", "all:x"] {
            assert!(whom(none).is_err(), "{none}");
        }
    }
}
