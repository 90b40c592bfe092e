//! What can be done to a node, and how: the operator's commands, or signals to a process of this machine.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::site::{Member, Site};

/// A command that takes longer is killed. A graceful stop takes 5 s and what the machine takes.
const COMMAND_MAX: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// Templates of commands for `sh -c`: `{node}` is the node's name, `{host}` the host of its peer address, `{peers}` those
/// of all other voters with commas between.
#[derive(Clone, Debug, Default)]
pub struct Commands {
    /// Ends a node without a word.
    pub kill: Option<String>,
    /// Starts one that was killed or drained.
    pub start: Option<String>,
    /// A supervisor starts such a node by itself.
    pub supervised: bool,
    /// Freezes a node.
    pub pause: Option<String>,
    /// Lets it go on.
    pub resume: Option<String>,
    /// Cuts a node off from its peers.
    pub partition: Option<String>,
    /// Ends that.
    pub heal: Option<String>,
    /// Stops a node gracefully.
    pub drain: Option<String>,
    /// A file with the process id of a node of this machine: kill, pause and drain are signals then, where there is no
    /// command for them.
    pub pid_file: Option<String>,
}

/// A nemesis, and how it is made; or what it lacks.
#[derive(Clone, Debug)]
pub(super) struct Nemesis {
    pub(super) name: &'static str,
    pub(super) means: Result<Means, String>,
}

/// How a nemesis is made and undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Means {
    harm: Act,
    undo: Act,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Act {
    /// A template for the shell.
    Shell(String),
    /// A signal to the process of the file of this template.
    Signal(Signal, String),
    /// The supervisor does it.
    Nothing,
}

/// An act on one node, with everything filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Shell(String),
    Signal(Signal, Pid),
    Nothing,
}

const KNOWN: [&str; 4] = ["kill", "pause", "partition", "drain"];

impl Commands {
    /// The nemeses of a list, with commas between.
    ///
    /// # Errors
    /// Names what there is not.
    pub(super) fn nemeses(&self, list: &str) -> Result<Vec<Nemesis>, String> {
        if matches!(list, "none" | "") {
            return Ok(Vec::new());
        }
        let mut found: Vec<Nemesis> = Vec::new();
        for wanted in list.split(',') {
            let Some(name) = KNOWN.into_iter().find(|name| *name == wanted) else {
                return Err(format!("there is no nemesis {wanted:?}; there are {}, or none", KNOWN.join(", ")));
            };
            if !found.iter().any(|nemesis| nemesis.name == name) {
                found.push(Nemesis { name, means: self.means(name) });
            }
        }
        Ok(found)
    }

    fn means(&self, name: &str) -> Result<Means, String> {
        let signal = |signal| self.pid_file.clone().map(|file| Act::Signal(signal, file));
        let shell = |template: &Option<String>| template.clone().map(Act::Shell);
        let back = || match (shell(&self.start), self.supervised) {
            (Some(start), _) => Ok(start),
            (None, true) => Ok(Act::Nothing),
            (None, false) => Err("no --start, and no --supervised, which says that a supervisor starts it".to_owned()),
        };
        match name {
            "kill" => {
                let harm = shell(&self.kill).or_else(|| signal(Signal::KILL)).ok_or("no --kill, and no --pid-file")?;
                Ok(Means { harm, undo: back()? })
            }
            "drain" => {
                let harm =
                    shell(&self.drain).or_else(|| signal(Signal::TERM)).ok_or("no --drain, and no --pid-file")?;
                Ok(Means { harm, undo: back()? })
            }
            "pause" => match (shell(&self.pause), shell(&self.resume), signal(Signal::STOP), signal(Signal::CONT)) {
                (Some(harm), Some(undo), ..) | (None, None, Some(harm), Some(undo)) => Ok(Means { harm, undo }),
                (Some(_), None, ..) | (None, Some(_), ..) => Err("--pause and --resume go together".to_owned()),
                _ => Err("no --pause and --resume, and no --pid-file".to_owned()),
            },
            _ => match (shell(&self.partition), shell(&self.heal)) {
                (Some(harm), Some(undo)) => Ok(Means { harm, undo }),
                (None, None) => Err("no --partition and --heal".to_owned()),
                _ => Err("--partition and --heal go together".to_owned()),
            },
        }
    }
}

impl Nemesis {
    /// What it would do to the first node.
    pub(super) fn plan(&self, site: &Site) -> String {
        match (&self.means, site.members.first()) {
            (Ok(means), Some(member)) => {
                format!("{}; then {}", means.harm.words(site, member), means.undo.words(site, member))
            }
            (Err(why), _) => format!("NOT INSTALLED: {why}"),
            (Ok(_), None) => "nobody".to_owned(),
        }
    }
}

impl Means {
    /// The deed on this node, and what undoes it.
    ///
    /// # Errors
    /// Which process cannot be found.
    pub(super) fn on(&self, site: &Site, member: &Member) -> Result<(Deed, Deed), String> {
        Ok((self.harm.on(site, member)?, self.undo.on(site, member)?))
    }
}

impl Act {
    fn words(&self, site: &Site, member: &Member) -> String {
        match self {
            Self::Shell(template) => format!("`{}`", fill(template, site, member)),
            Self::Signal(signal, file) => {
                format!("{} to the process in {}", name_of(*signal), fill(file, site, member))
            }
            Self::Nothing => "its supervisor starts it".to_owned(),
        }
    }

    fn on(&self, site: &Site, member: &Member) -> Result<Deed, String> {
        Ok(match self {
            Self::Shell(template) => Deed::Shell(fill(template, site, member)),
            Self::Signal(signal, file) => Deed::Signal(*signal, process_in(Path::new(&fill(file, site, member)))?),
            Self::Nothing => Deed::Nothing,
        })
    }
}

impl Deed {
    /// Does it. What a command prints goes to the end of `log`.
    ///
    /// # Errors
    /// Why it was not done, or not to the end.
    pub(super) fn perform(&self, log: &Path) -> Result<(), String> {
        match self {
            Self::Shell(line) => shell(line, log),
            Self::Signal(signal, pid) => kill_process(*pid, *signal)
                .map_err(|e| format!("{} to process {}: {e}", name_of(*signal), pid.as_raw_nonzero())),
            Self::Nothing => Ok(()),
        }
    }

    /// How a person would do it.
    pub(super) fn line(&self) -> Option<String> {
        match self {
            Self::Shell(line) => Some(line.clone()),
            Self::Signal(signal, pid) => Some(format!("kill -{} {}", name_of(*signal), pid.as_raw_nonzero())),
            Self::Nothing => None,
        }
    }
}

fn name_of(signal: Signal) -> &'static str {
    match signal {
        Signal::KILL => "KILL",
        Signal::TERM => "TERM",
        Signal::STOP => "STOP",
        _ => "CONT",
    }
}

fn fill(template: &str, site: &Site, member: &Member) -> String {
    let others = site.members.iter().filter(|other| other.name != member.name);
    let peers: Vec<&str> = others.map(|other| other.host.as_str()).collect();
    template.replace("{node}", &member.name).replace("{host}", &member.host).replace("{peers}", &peers.join(","))
}

/// The process that a file names, if it is a broker: process ids are used again.
fn process_in(file: &Path) -> Result<Pid, String> {
    let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let number = text.trim().parse::<i32>().ok().filter(|number| *number > 1);
    let pid = number.and_then(Pid::from_raw).ok_or_else(|| format!("{} has no process id", file.display()))?;
    let number = pid.as_raw_nonzero();
    let command = fs::read(format!("/proc/{number}/cmdline")).map_err(|_| format!("no process {number} runs"))?;
    if String::from_utf8_lossy(&command).contains("quorate") {
        Ok(pid)
    } else {
        Err(format!("process {number} of {} is not quorate", file.display()))
    }
}

fn shell(line: &str, log: &Path) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("`{line}`: {e}");
    let mut output = OpenOptions::new().create(true).append(true).open(log).map_err(failed)?;
    writeln!(output, "$ {line}").map_err(failed)?;
    let mut child = Command::new("sh")
        .args(["-c", line])
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(failed)?)
        .stderr(output)
        // Ctrl-C is for the drill, which heals; a command that is under way is not to be broken off.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let end = Instant::now() + COMMAND_MAX;
    loop {
        match child.try_wait().map_err(failed)? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => {
                return Err(format!("`{line}` ended with {status}; what it printed is in {}", log.display()));
            }
            None if Instant::now() >= end => {
                if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                    // That it ended just now is as good.
                    let _ = kill_process_group(group, Signal::KILL);
                }
                child.wait().map_err(failed)?;
                return Err(format!("`{line}` did not end within {COMMAND_MAX:?} and was killed"));
            }
            None => std::thread::sleep(LOOK),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site() -> Site {
        let member = |n: u8| Member {
            name: format!("n{n}"),
            mqtt: ([10, 0, 0, n], 1883).into(),
            admin: ([10, 0, 0, n], 7480).into(),
            host: format!("10.0.0.{n}"),
        };
        Site { cluster_id: "c".to_owned(), members: vec![member(1), member(2), member(3)] }
    }

    fn plan(commands: &Commands, nemesis: &str) -> String {
        let nemeses = commands.nemeses(nemesis).unwrap();
        nemeses.iter().map(|nemesis| nemesis.plan(&site())).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_template_names_the_node_its_host_and_its_peers() {
        let commands = Commands {
            partition: Some("ssh {host} cut {node} from {peers}".to_owned()),
            heal: Some("ssh {host} mend".to_owned()),
            ..Commands::default()
        };
        let said = plan(&commands, "partition");
        assert_eq!(said, "`ssh 10.0.0.1 cut n1 from 10.0.0.2,10.0.0.3`; then `ssh 10.0.0.1 mend`");
    }

    #[test]
    fn what_cannot_be_done_and_undone_is_not_installed() {
        for nemesis in KNOWN {
            assert!(plan(&Commands::default(), nemesis).starts_with("NOT INSTALLED"), "{nemesis}");
        }
        let harm = |text: &str| Some(text.to_owned());
        let half = Commands {
            kill: harm("k"),
            pause: harm("p"),
            partition: harm("c"),
            drain: harm("d"),
            pid_file: None,
            ..Commands::default()
        };
        for nemesis in KNOWN {
            assert!(plan(&half, nemesis).starts_with("NOT INSTALLED"), "{nemesis}: no way back");
        }
        let whole = Commands { supervised: true, resume: harm("r"), heal: harm("h"), ..half };
        for nemesis in KNOWN {
            assert!(!plan(&whole, nemesis).contains("NOT INSTALLED"), "{nemesis}");
        }
        let by_pid = Commands { pid_file: harm("/run/{node}.pid"), supervised: true, ..Commands::default() };
        assert_eq!(
            plan(&by_pid, "pause"),
            "STOP to the process in /run/n1.pid; then CONT to the process in /run/n1.pid"
        );
        assert!(whole.nemeses("kill,earthquake").is_err_and(|e| e.contains("earthquake")));
        assert!(whole.nemeses("none").unwrap().is_empty());
    }

    #[test]
    fn a_process_that_is_no_broker_is_never_signalled() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        for (text, why) in [(other.id().to_string(), "is not quorate"), ("1".to_owned(), "no process id")] {
            fs::write(&file, text).unwrap();
            assert!(process_in(&file).is_err_and(|e| e.contains(why)), "{why}");
        }
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(process_in(&dir.path().join("none")).is_err());
    }

    #[test]
    fn a_command_that_fails_says_so_and_its_words_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("commands.log");
        assert_eq!(shell("echo fine", &log), Ok(()));
        assert!(shell("echo no such host >&2; exit 3", &log).is_err_and(|e| e.contains("exit status: 3")));
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.contains("fine\n") && text.contains("no such host\n"), "{text}");
    }
}
