//! When which nemesis works: random subsets, rotated, a quarter of the time quiet; and pairs one after the other.

use std::time::{Duration, Instant};

use super::{Kind, Need, Nemesis, World, all};
use crate::history::event::What;

/// The second of a pair comes so long after the first.
const PAIR_AFTER: Duration = Duration::from_secs(2);
/// At most so many at a time.
const SUBSET_MAX: u64 = 3;
/// So many rounds of a hundred are quiet.
const QUIET_PERCENT: u64 = 25;

/// One entry of `--nemesis`: a nemesis, or a pair (`kill+halves`) that is always made together and in this order.
#[derive(Clone)]
pub(crate) struct Choice {
    kinds: Vec<Kind>,
}

impl Choice {
    pub(crate) fn needs(&self, need: Need) -> bool {
        self.kinds.iter().any(|kind| kind.need == need)
    }
}

/// The entries of a list `a,b,c+d`; `none` is none, `all` is every one by itself.
///
/// # Errors
/// Names what there is not.
pub(crate) fn parse(list: &str) -> Result<Vec<Choice>, String> {
    let known = all();
    let find = |name: &str| {
        let found = known.iter().find(|kind| kind.name == name).copied();
        found.ok_or_else(|| format!("there is no nemesis {name:?}: see `quorate-faults list`"))
    };
    match list {
        "none" | "" => Ok(Vec::new()),
        "all" => Ok(known.iter().map(|kind| Choice { kinds: vec![*kind] }).collect()),
        list => list
            .split(',')
            .map(|entry| Ok(Choice { kinds: entry.split('+').map(find).collect::<Result<_, _>>()? }))
            .collect(),
    }
}

/// A schedule.
pub(crate) struct Schedule {
    choices: Vec<Choice>,
    /// How long a round takes, at least and at most.
    round: (Duration, Duration),
    /// Those that have not had their turn; drawn from until it is empty.
    deck: Vec<usize>,
    faults: u32,
}

/// A fault that stands.
struct Standing {
    number: u32,
    name: &'static str,
    nemesis: Box<dyn Nemesis>,
}

impl Schedule {
    pub(crate) const fn new(choices: Vec<Choice>, round: (Duration, Duration)) -> Self {
        Self { choices, round, deck: Vec::new(), faults: 0 }
    }

    /// Makes and heals faults for so long. Ends with everything healed; what could not be healed is noted, and mended
    /// by [`World::recover`].
    pub(crate) fn run(&mut self, world: &mut World, time: Duration) {
        let end = Instant::now() + time;
        let mut is_first = true;
        while Instant::now() < end {
            let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX / 2);
            let length = Duration::from_millis(world.rng.between(ms(self.round.0), ms(self.round.1)));
            let length = length.min(end.saturating_duration_since(Instant::now()));
            let is_quiet = self.choices.is_empty() || (!is_first && world.rng.chance(QUIET_PERCENT));
            is_first = false;
            if is_quiet {
                std::thread::sleep(length);
            } else {
                self.round(world, length);
            }
        }
    }

    fn round(&mut self, world: &mut World, length: Duration) {
        let end = Instant::now() + length;
        let mut standing = Vec::new();
        for choice in self.subset(world) {
            self.make(world, &choice, &mut standing);
        }
        // The last part of a round is for coming back.
        let hold = u32::try_from(world.rng.between(40, 80)).unwrap_or(50);
        std::thread::sleep(end.saturating_duration_since(Instant::now()) * hold / 100);
        for mut fault in standing.into_iter().rev() {
            unmake(world, fault.name, fault.nemesis.as_mut());
            world.recorder.record(None, What::Healed { number: fault.number });
        }
        world.leader();
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
    }

    /// One to three entries; all get their turn before one gets its second. What takes data or members comes first,
    /// while nothing else is about.
    fn subset(&mut self, world: &mut World) -> Vec<Choice> {
        let count = world.rng.between(1, SUBSET_MAX.min(self.choices.len() as u64));
        let mut chosen = Vec::new();
        for _ in 0..count {
            if self.deck.is_empty() {
                self.deck = (0..self.choices.len()).collect();
                world.rng.shuffle(&mut self.deck);
            }
            let Some(at) = self.deck.pop() else { break };
            if !chosen.contains(&at) {
                chosen.push(at);
            }
        }
        let mut chosen: Vec<Choice> = chosen.into_iter().filter_map(|at| self.choices.get(at).cloned()).collect();
        chosen.sort_by_key(|choice| !choice.needs(Need::Whole));
        chosen
    }

    fn make(&mut self, world: &mut World, choice: &Choice, standing: &mut Vec<Standing>) {
        for (at, kind) in choice.kinds.iter().enumerate() {
            if at > 0 {
                std::thread::sleep(PAIR_AFTER);
            }
            world.leader();
            let mut nemesis = (kind.make)();
            let made = if kind.need == Need::Whole && !world.is_whole() {
                let why = "another fault holds a node down, and this one takes a node's data or membership";
                Err(super::Refused(why.into()))
            } else {
                nemesis.install(world)
            };
            match made {
                Ok(installed) => {
                    self.faults += 1;
                    let number = self.faults;
                    eprintln!("  {}: {} {:?}", kind.name, installed.what, installed.nodes);
                    let (nodes, what) = (installed.nodes, installed.what);
                    world.recorder.record(None, What::Fault { number, nemesis: kind.name.into(), nodes, what });
                    standing.push(Standing { number, name: kind.name, nemesis });
                }
                Err(super::Refused(why)) => {
                    eprintln!("  {}: NOT INSTALLED: {why}", kind.name);
                    world.recorder.record(None, What::NotInstalled { nemesis: kind.name.into(), why });
                    unmake(world, kind.name, nemesis.as_mut());
                }
            }
        }
    }
}

fn unmake(world: &mut World, name: &str, nemesis: &mut dyn Nemesis) {
    if let Err(e) = nemesis.heal(world) {
        eprintln!("  {name}: NOT HEALED: {e}");
        world.recorder.note(&format!("{name} was not healed as it should be: {e}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_nemeses_and_pairs_and_nothing_else() {
        let choices = parse("kill,pause+power-loss").unwrap();
        let names: Vec<Vec<&str>> = choices.iter().map(|c| c.kinds.iter().map(|k| k.name).collect()).collect();
        assert_eq!(names, [vec!["kill"], vec!["pause", "power-loss"]]);
        assert!(choices[1].needs(Need::Disks) && !choices[0].needs(Need::Disks));
        assert!(parse("none").unwrap().is_empty());
        assert_eq!(parse("all").unwrap().len(), all().len());
        assert!(parse("kill,earthquake").is_err_and(|e| e.contains("earthquake")));
    }

    #[test]
    fn names_are_unique_and_can_be_written_in_a_list() {
        let names: Vec<&str> = all().iter().map(|kind| kind.name).collect();
        let unique: std::collections::BTreeSet<&&str> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')), "{names:?}");
    }
}
