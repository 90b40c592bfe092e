//! One fault after the other: made, held, undone, and the cluster whole again before the next.
//!
//! Whatever ends a round - its time, a signal, an error, a panic - undoes what was done ([`Standing`]). Should the drill
//! itself be killed, `undo.sh` in its folder has the commands.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Stop;
use super::commands::{Deed, Nemesis};
use super::site::{Member, Site};
use crate::history::event::What;
use crate::history::record::Recorder;
use crate::rng::Rng;

/// A round takes a quarter of the load, within these bounds.
const ROUND: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(20));
/// Longest time for the cluster to be whole again once a fault is undone.
const WHOLE_MAX: Duration = Duration::from_secs(120);
/// What undoes a fault is tried so often, with a pause between.
const UNDO_TRIES: u32 = 3;
const UNDO_PAUSE: Duration = Duration::from_secs(2);

pub(super) struct Rounds<'a> {
    pub(super) site: &'a Site,
    pub(super) nemeses: &'a [Nemesis],
    pub(super) recorder: &'a Recorder,
    pub(super) out: &'a Path,
    pub(super) stop: &'a Stop,
    pub(super) rng: Rng,
    pub(super) harmed_max: usize,
    pub(super) faults: u32,
}

/// What went wrong.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// By the broker.
    pub(super) broken: Vec<String>,
    /// By a command, so that nothing is shown.
    pub(super) doubts: Vec<String>,
}

impl<'a> Rounds<'a> {
    /// For so long, and until each nemesis has had its turn. Ends with everything undone.
    pub(super) fn run(&mut self, time: Duration) -> Ended {
        let (end, length) = (Instant::now() + time, (time / 4).clamp(ROUND.0, ROUND.1));
        let mut ended = Ended::default();
        let installed: Vec<&Nemesis> = self.nemeses.iter().filter(|nemesis| nemesis.means.is_ok()).collect();
        for nemesis in self.nemeses {
            if let Err(why) = &nemesis.means {
                self.not_installed(nemesis.name, why.clone());
            }
        }
        if installed.is_empty() {
            self.stop.sleep_until(end);
            return ended;
        }
        let (mut deck, mut is_first) = (Vec::new(), true);
        while !self.stop.is_set() && (Instant::now() < end || is_first) {
            if deck.is_empty() {
                deck = (0..installed.len()).collect();
                self.rng.shuffle(&mut deck);
            }
            let next = deck.pop().and_then(|at| installed.get(at));
            is_first &= !deck.is_empty();
            let begin = Instant::now();
            // A while of peace, so that the fault meets a load that runs.
            self.stop.sleep_until(begin + length / 4);
            if self.stop.is_set() {
                break;
            }
            if let Some(nemesis) = next
                && !self.round(nemesis, length / 2, &mut ended)
            {
                break;
            }
            self.stop.sleep_until(begin + length);
        }
        ended
    }

    /// Whether the cluster is whole again.
    fn round(&mut self, nemesis: &Nemesis, hold: Duration, ended: &mut Ended) -> bool {
        let mut standing = Standing::new(self.out);
        let targets = self.targets();
        let mut hit = Vec::new();
        for member in targets {
            match self.harm(nemesis, member, &mut standing, ended) {
                Ok(()) => hit.push(member.name.clone()),
                Err(why) => self.not_installed(nemesis.name, format!("{}: {why}", member.name)),
            }
        }
        if !hit.is_empty() {
            self.faults += 1;
            let what = nemesis.plan(self.site);
            eprintln!("  {}: {}", nemesis.name, hit.join(", "));
            let (number, nemesis) = (self.faults, nemesis.name.to_owned());
            self.recorder.record(None, What::Fault { number, nemesis, nodes: hit, what });
            self.stop.sleep_until(Instant::now() + hold);
        }
        let has_hit = !standing.undos.is_empty();
        self.mind(&standing.undo(), ended);
        if has_hit {
            self.recorder.record(None, What::Healed { number: self.faults });
        }
        let healed = Instant::now();
        let whole = self.site.wait_healthy(WHOLE_MAX);
        self.site.leader(self.recorder);
        match whole {
            Ok(()) => {
                eprintln!("  healed; the cluster is whole again after {} ms", healed.elapsed().as_millis());
                true
            }
            Err(why) => {
                eprintln!("  healed, and the cluster is NOT WHOLE: {why}");
                let why = format!("after {} the cluster did not get whole: {why}", nemesis.name);
                // A command that failed may be why.
                if ended.doubts.is_empty() {
                    ended.broken.push(why)
                } else {
                    ended.doubts.push(why)
                }
                false
            }
        }
    }

    fn harm(
        &self,
        nemesis: &Nemesis,
        member: &Member,
        standing: &mut Standing<'_>,
        ended: &mut Ended,
    ) -> Result<(), String> {
        let (deed, undo) = nemesis.means.as_ref().map_err(Clone::clone)?.on(self.site, member)?;
        standing.add(undo)?;
        deed.perform(&standing.log).inspect_err(|_| {
            // It may have been done half.
            self.mind(&standing.undo_last(), ended);
        })
    }

    /// One to as many nodes as may be harmed; the leader in half of the cases.
    fn targets(&mut self) -> Vec<&'a Member> {
        let members = &self.site.members;
        let mut places: Vec<usize> = (0..members.len()).collect();
        self.rng.shuffle(&mut places);
        let leader = self.site.leader(self.recorder);
        if self.rng.chance(50) {
            let leads = |place: &usize| members.get(*place).map(|member| &member.name) == leader.as_ref();
            places.sort_by_key(|place| !leads(place));
        }
        let count = self.rng.between(1, self.harmed_max.max(1) as u64);
        places.truncate(usize::try_from(count).unwrap_or(1));
        places.into_iter().filter_map(|place| members.get(place)).collect()
    }

    fn not_installed(&self, name: &str, why: String) {
        eprintln!("  {name}: NOT INSTALLED: {why}");
        self.recorder.record(None, What::NotInstalled { nemesis: name.to_owned(), why });
    }

    /// What could not be undone.
    fn mind(&self, failed: &[String], ended: &mut Ended) {
        for why in failed {
            self.recorder.note(why);
            ended.doubts.push(why.clone());
        }
    }
}

/// What would undo the fault that stands, for a person.
pub(super) fn script(out: &Path) -> PathBuf {
    out.join("undo.sh")
}

/// What stands and must be undone.
struct Standing<'a> {
    undos: Vec<Deed>,
    log: PathBuf,
    out: &'a Path,
}

impl<'a> Standing<'a> {
    fn new(out: &'a Path) -> Self {
        Self { undos: Vec::new(), log: out.join("commands.log"), out }
    }

    /// Keeps it before the deed is done. An error: it could not be written down, and the deed must not be done.
    fn add(&mut self, undo: Deed) -> Result<(), String> {
        self.undos.push(undo);
        self.write().map_err(|e| {
            self.undos.pop();
            format!("{}: {e}", self.script().display())
        })
    }

    fn script(&self) -> PathBuf {
        script(self.out)
    }

    fn write(&self) -> std::io::Result<()> {
        let lines: Vec<String> = self.undos.iter().rev().filter_map(Deed::line).collect();
        if lines.is_empty() {
            return match fs::remove_file(self.script()) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            };
        }
        fs::write(self.script(), format!("{}\n", lines.join("\n")))
    }

    /// All of it, the last first. What failed, in words.
    fn undo(&mut self) -> Vec<String> {
        let mut failed = Vec::new();
        while !self.undos.is_empty() {
            failed.extend(self.undo_last());
        }
        failed
    }

    fn undo_last(&mut self) -> Vec<String> {
        let Some(undo) = self.undos.pop() else { return Vec::new() };
        let mut failed = Vec::new();
        let mut last = undo.perform(&self.log);
        for _ in 1..UNDO_TRIES {
            if last.is_ok() {
                break;
            }
            std::thread::sleep(UNDO_PAUSE);
            last = undo.perform(&self.log);
        }
        if let Err(why) = last {
            let by_hand = undo.line().unwrap_or_default();
            eprintln!("  NOT HEALED: {why}\n  do it by hand: {by_hand}");
            failed.push(format!("not healed: {why}; by hand: {by_hand}"));
        }
        if let Err(e) = self.write() {
            failed.push(format!("{}: {e}", self.script().display()));
        }
        failed
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        // Only after a panic is there anything left, and it was said by then.
        drop(self.undo());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_undone_the_last_first_also_after_a_panic() {
        let dir = tempfile::tempdir().unwrap();
        let done = dir.path().join("done");
        let undo = |n: u8| Deed::Shell(format!("echo {n} >> {}", done.display()));
        let panicked = std::panic::catch_unwind(|| {
            let mut standing = Standing::new(dir.path());
            standing.add(undo(1)).unwrap();
            standing.add(undo(2)).unwrap();
            let script = fs::read_to_string(dir.path().join("undo.sh")).unwrap();
            assert_eq!(script.lines().count(), 2, "{script}");
            panic!("in the middle of a round");
        });
        assert!(panicked.is_err());
        assert_eq!(fs::read_to_string(&done).unwrap(), "2\n1\n");
        assert!(!dir.path().join("undo.sh").exists(), "nothing is left to undo");
    }
}
