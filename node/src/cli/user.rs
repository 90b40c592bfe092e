//! `quorate user`: who may connect, through any node's administration.

use std::io::{BufRead, IsTerminal, Read};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use quorate_http_admin::{PutUser, UserPage, UserView};
use reqwest::Method;

use super::admin::{Admin, encoded};
use super::cluster::table;
use super::{Failure, as_json, print_out};

const USERS: &str = "/api/v1/users";

/// `quorate user …`
#[derive(Debug, Args)]
pub(crate) struct UserArgs {
    /// Administration of any node of the cluster
    #[arg(long, global = true, value_name = "URL", env = "QUORATE_ADMIN_URL", default_value = "http://127.0.0.1:7480")]
    admin: String,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: UserCommand,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Add a user, or set the one of this name; asks for the password, or reads a line of standard input
    Add {
        /// User name
        name: String,
        /// No ACL rule is asked for it
        #[arg(long)]
        superuser: bool,
        /// It may log in by SCRAM-SHA-256, too, and its password is easier to guess from stolen files
        #[arg(long, conflicts_with = "no_password")]
        scram: bool,
        /// It has none: it logs in with a client certificate or a token
        #[arg(long, conflicts_with = "password_file")]
        no_password: bool,
        /// Read the password from the first line of this file
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Change the password of a user, and nothing else
    Passwd {
        /// User name
        name: String,
        /// Read the password from the first line of this file
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Delete a user: clients that are connected as it by password or SCRAM are disconnected, its sessions stay
    Delete {
        /// User name
        name: String,
    },
    /// List the users
    List,
}

/// Carries the command out.
///
/// # Errors
/// What the cluster or the network said.
pub(crate) async fn run(args: UserArgs) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin, None)?;
    let put = match &args.command {
        UserCommand::List => return list(&admin, args.json).await,
        UserCommand::Delete { name } => {
            let answer: serde_json::Value = ask(&admin, Method::DELETE, &path(name), None).await?;
            return print_out(&if args.json { as_json(&answer)? } else { format!("user {name} is deleted\n") });
        }
        UserCommand::Add { superuser, scram, no_password, password_file, .. } => {
            let password = if *no_password { None } else { Some(password(password_file.as_deref(), Asked::Twice)?) };
            PutUser { password: Some(password), scram: Some(*scram), superuser: Some(*superuser) }
        }
        UserCommand::Passwd { name, password_file } => {
            // A name that is mistyped must not become a new user.
            ask::<UserView>(&admin, Method::GET, &path(name), None).await?;
            PutUser { password: Some(Some(password(password_file.as_deref(), Asked::Twice)?)), ..PutUser::default() }
        }
    };
    let (UserCommand::Add { name, .. } | UserCommand::Passwd { name, .. }) = &args.command else { return Ok(()) };
    let user: UserView = ask(&admin, Method::PUT, &path(name), Some(&put)).await?;
    let text = if args.json { as_json(&user)? } else { format!("user {} is set: {}\n", user.name, words(&user)) };
    print_out(&text)
}

async fn ask<T: serde::de::DeserializeOwned>(
    admin: &Admin,
    method: Method,
    path: &str,
    body: Option<&PutUser>,
) -> Result<T, Failure> {
    admin.ask(method, path, body).await.map_err(|failure| admin.failure(&failure))
}

fn path(name: &str) -> String {
    format!("{USERS}/{}", encoded(name))
}

fn words(user: &UserView) -> String {
    let login = match (user.password, user.scram) {
        (true, true) => "password, SCRAM",
        (true, false) => "password",
        (false, _) => "no password",
    };
    if user.superuser { format!("{login}, superuser") } else { login.to_owned() }
}

async fn list(admin: &Admin, json: bool) -> Result<(), Failure> {
    let mut users: Vec<UserView> = Vec::new();
    let mut path = USERS.to_owned();
    loop {
        let page: UserPage = ask(admin, Method::GET, &path, None).await?;
        users.extend(page.users);
        match page.next {
            Some(after) => path = format!("{USERS}?after={}", encoded(&after)),
            None => break,
        }
    }
    if json {
        return print_out(&as_json(&users)?);
    }
    let mut rows = vec![["NAME", "LOGIN"].map(str::to_owned)];
    rows.extend(users.iter().map(|user| [user.name.clone(), words(user)]));
    print_out(&table(&rows))
}

/// How often the terminal is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// For a password that is there.
    Once,
    /// For a new one.
    Twice,
}

/// From the file, the terminal, or standard input; never an argument, which every process can see.
pub(super) fn password(file: Option<&Path>, asked: Asked) -> Result<String, Failure> {
    let failed = |what: &str, error: &std::io::Error| Failure::new(format!("cannot read the password {what}: {error}"));
    if let Some(file) = file {
        let open = std::fs::File::open(file).map_err(|e| failed(&format!("from {}", file.display()), &e))?;
        return first_line(open).map_err(|e| failed(&format!("from {}", file.display()), &e));
    }
    if !std::io::stdin().is_terminal() {
        return first_line(std::io::stdin().lock()).map_err(|e| failed("from standard input", &e));
    }
    let prompt = |text| rpassword::prompt_password(text).map_err(|e| failed("from the terminal", &e));
    let password = prompt("password: ")?;
    if asked == Asked::Once || prompt("once more: ")? == password {
        Ok(password)
    } else {
        Err(Failure::new("the two passwords differ; nothing was changed".to_owned()))
    }
}

fn first_line(from: impl Read) -> std::io::Result<String> {
    /// More than any password may have.
    const LINE_BYTES_MAX: u64 = 1 << 16;
    let mut line = String::new();
    std::io::BufReader::new(from.take(LINE_BYTES_MAX)).read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_the_first_line_with_its_spaces_and_without_its_end() {
        for (file, password) in [("a b \r\nc", "a b "), ("x", "x"), ("", ""), (" \n", " ")] {
            assert_eq!(first_line(file.as_bytes()).unwrap(), password);
        }
    }
}
