use todc_utils::linearizability::{
    WGLChecker,
    history::{
        Action::{Call, Response},
        History,
    },
};
use todc_utils::specifications::Specification;

use super::*;
use crate::check::testkit::Random;

/// A register of the oracle: the search of Wing, Gong and Lowe, which shares nothing with zones.
#[derive(Clone, Copy, Debug)]
enum Register {
    Write(u32),
    Read(Option<u32>),
}

struct Specified;

impl Specification for Specified {
    type State = u32;
    type Operation = Register;

    fn init() -> u32 {
        0
    }

    fn apply(operation: &Register, state: &u32) -> (bool, u32) {
        match operation {
            Register::Write(value) => (true, *value),
            Register::Read(value) => (*value == Some(*state), *state),
        }
    }
}

struct Op {
    what: Register,
    begin: u32,
    /// None: nobody knows.
    end: Option<u32>,
}

/// A few operations at random, of few clients, whose reads say what the register may have had, or anything.
fn random(seed: u64) -> Vec<Op> {
    let mut random = Random::new(seed);
    let mut ops: Vec<Op> = Vec::new();
    let mut open: Vec<Option<usize>> = vec![None; 3];
    let (mut value, mut written, mut line) = (0, 0, 0);
    for _ in 0..random.below(16) + 4 {
        line += 1;
        let client = random.below(3);
        match open[client].take() {
            None => {
                let what = if random.below(2) == 0 {
                    written += 1;
                    Register::Write(written)
                } else {
                    Register::Read(None)
                };
                open[client] = Some(ops.len());
                ops.push(Op { what, begin: line, end: None });
                // It may take effect at once, or later, at the end of another's.
                if let (Register::Write(new), 0..2) = (what, random.below(3)) {
                    value = new;
                }
            }
            Some(at) => {
                match ops[at].what {
                    Register::Write(new) if random.below(3) == 0 => value = new,
                    Register::Write(_) => {}
                    Register::Read(_) => {
                        let any = u32::try_from(random.below(written as usize + 1)).unwrap();
                        let read = if random.below(4) == 0 { any } else { value };
                        ops[at].what = Register::Read(Some(read));
                    }
                }
                // A write is given up now and then.
                if !(matches!(ops[at].what, Register::Write(_)) && random.below(4) == 0) {
                    ops[at].end = Some(line);
                }
            }
        }
    }
    ops.retain(|op| !matches!(op.what, Register::Read(_)) || op.end.is_some());
    ops
}

fn by_search(ops: &[Op]) -> bool {
    let mut actions = Vec::new();
    for (process, op) in ops.iter().enumerate() {
        // After everything else a write of which nobody knows is as good as none.
        let end = op.end.unwrap_or(1000 + u32::try_from(process).unwrap());
        let call = match op.what {
            Register::Read(_) => Register::Read(None),
            write @ Register::Write(_) => write,
        };
        actions.push((op.begin, process, Call(call)));
        actions.push((end, process, Response(op.what)));
    }
    actions.sort_by_key(|(line, ..)| *line);
    let actions: Vec<_> = actions.into_iter().map(|(_, process, action)| (process, action)).collect();
    actions.is_empty() || WGLChecker::<Specified>::is_linearizable(History::from_actions(actions))
}

fn by_zones(ops: &[Op]) -> bool {
    let mut clusters = vec![Cluster::initial()];
    for op in ops {
        if let Register::Write(_) = op.what {
            let by = op.end.map_or(Line::NEVER, Line);
            clusters.push(Cluster::write(Line(op.begin), by, op.end.is_some()));
        }
    }
    for op in ops {
        if let Register::Read(Some(value)) = op.what {
            clusters[value as usize].read(Line(op.begin), op.end.map_or(Line::NEVER, Line));
        }
    }
    conflicts(&clusters).is_empty()
}

#[test]
fn zones_say_what_a_search_of_all_orders_says() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..50_000 {
        let ops = random(seed);
        let expected = by_search(&ops);
        assert_eq!(by_zones(&ops), expected, "seed {seed}");
        if expected { good += 1 } else { bad += 1 }
    }
    assert!(good > 5_000 && bad > 5_000, "{good} good, {bad} bad");
}

#[test]
fn a_value_that_was_overwritten_does_not_come_back() {
    let mut old = Cluster::write(Line(1), Line(2), true);
    let new = Cluster::write(Line(3), Line(4), true);
    assert_eq!(conflicts(&[old, new]), []);
    old.read(Line(5), Line(6));
    assert_eq!(conflicts(&[old, new]), [Conflict::Overwritten(0, 1)]);
}

#[test]
fn nothing_is_read_before_it_is_written() {
    let mut cluster = Cluster::write(Line(3), Line(4), true);
    cluster.read(Line(1), Line(2));
    assert_eq!(conflicts(&[cluster]), [Conflict::ReadBeforeWritten(0)]);
}

#[test]
fn a_write_of_which_nobody_knows_may_happen_late() {
    let mut old = Cluster::write(Line(1), Line(2), true);
    let unknown = Cluster::write(Line(3), Line::NEVER, false);
    old.read(Line(5), Line(6));
    assert_eq!(conflicts(&[old, unknown]), []);
    let mut seen = unknown;
    seen.read(Line(7), Line(8));
    assert_eq!(conflicts(&[old, seen]), []);
    old.read(Line(9), Line(10));
    assert_eq!(conflicts(&[old, seen]), [Conflict::Overwritten(0, 1)]);
}
