//! Links that are cut, in one direction or both, or lose packets. Rules of nftables in the namespaces of the nodes, so
//! that packets vanish without a word, on connections that stand too.

use std::collections::BTreeMap;

use super::world::Scope;
use super::{Installed, Kind, Need, Nemesis, Refused, World, installed};
use crate::harness::{Dropped, HarnessError, Link};

macro_rules! partition {
    ($name:literal, $about:literal, $plan:expr) => {
        Kind {
            name: $name,
            about: $about,
            need: Need::Machines,
            make: || Box::new(Partition { plan: $plan, owner: None }),
        }
    };
}

pub(super) const KINDS: &[Kind] = &[
    partition!("halves", "two halves that hear nothing of each other, any way round", halves),
    partition!("ring", "each node hears a majority, no two the same: a ring of neighbours", ring),
    partition!("bridge", "two halves, and one node that hears both", bridge),
    partition!("isolate", "one node, often the leader, hears no peer and is heard by none", isolate),
    partition!("one-way", "one node, often the leader, is heard and does not hear, or the reverse", one_way),
    partition!("loss", "5 to 40 of a hundred packets are lost on all links of some nodes", loss),
    Kind {
        name: "leader-from-peers",
        about: "the leader's link to its peers is cut, its link to clients is not",
        need: Need::Machines,
        make: || Box::new(Unplug { link: Link::Peers, place: None }),
    },
    Kind {
        name: "leader-from-clients",
        about: "the leader's link to clients is cut, its link to its peers is not",
        need: Need::Machines,
        make: || Box::new(Unplug { link: Link::Clients, place: None }),
    },
];

/// What each place drops, and in words what that is.
type Plan = (Vec<(usize, Vec<Dropped>)>, String);

struct Partition {
    plan: fn(&mut World) -> Plan,
    owner: Option<u32>,
}

impl Nemesis for Partition {
    fn install(&mut self, world: &mut World) -> Result<Installed, Refused> {
        let (drops, what) = (self.plan)(world);
        let owner = world.owner();
        self.owner = Some(owner);
        let places: Vec<usize> = drops.iter().map(|(place, _)| *place).collect();
        for (place, dropped) in drops {
            world.cluster.drop_at(owner, place, dropped)?;
        }
        Ok(installed(world, &places, what))
    }

    fn heal(&mut self, world: &mut World) -> Result<(), HarnessError> {
        self.owner.take().map_or(Ok(()), |owner| world.cluster.keep(owner))
    }
}

/// Each of `pairs` hears nothing of the other.
fn between(pairs: &[(usize, usize)]) -> Vec<(usize, Vec<Dropped>)> {
    let mut drops: BTreeMap<usize, Vec<Dropped>> = BTreeMap::new();
    for (a, b) in pairs {
        drops.entry(*a).or_default().push(Dropped::From(*b));
        drops.entry(*b).or_default().push(Dropped::From(*a));
    }
    drops.into_iter().collect()
}

/// All pairs of one of `left` with one of `right`.
fn across(left: &[usize], right: &[usize]) -> Vec<(usize, usize)> {
    left.iter().flat_map(|a| right.iter().map(move |b| (*a, *b))).collect()
}

/// Pairs that are no neighbours in a ring in which each hears the smallest majority, itself in it.
fn apart_in_ring(places: &[usize]) -> Vec<(usize, usize)> {
    let count = places.len();
    let reach = (count / 2).div_ceil(2);
    let mut apart = Vec::new();
    for (i, a) in places.iter().enumerate() {
        for (j, b) in places.iter().enumerate().skip(i + 1) {
            let distance = (j - i).min(count - (j - i));
            // In a ring of three everyone is a neighbour: the ring is opened.
            if distance > reach || (count == 3 && (i, j) == (0, 2)) {
                apart.push((*a, *b));
            }
        }
    }
    apart
}

fn halves(world: &mut World) -> Plan {
    let places = world.shuffled();
    let (left, right) = places.split_at(places.len() / 2);
    (between(&across(left, right)), format!("{:?} | {:?}", world.names(left), world.names(right)))
}

fn ring(world: &mut World) -> Plan {
    let places = world.shuffled();
    (between(&apart_in_ring(&places)), format!("a ring in this order: {:?}", world.names(&places)))
}

fn bridge(world: &mut World) -> Plan {
    let places = world.shuffled();
    let Some((middle, others)) = places.split_first() else { return (Vec::new(), String::new()) };
    let (left, right) = others.split_at(others.len() / 2);
    let what = format!("{:?} | {:?} | {:?}", world.names(left), world.name(*middle), world.names(right));
    (between(&across(left, right)), what)
}

/// One node, the leader in half of the cases, and the others.
fn one(world: &mut World) -> (Vec<usize>, Vec<usize>) {
    let scope = if world.rng.chance(50) { Scope::Leader } else { Scope::One };
    let one = world.targets(scope);
    let others = world.members().into_iter().filter(|place| !one.contains(place)).collect();
    (one, others)
}

fn isolate(world: &mut World) -> Plan {
    let (one, others) = one(world);
    (between(&across(&one, &others)), format!("{:?} alone", world.names(&one)))
}

fn one_way(world: &mut World) -> Plan {
    let (one, others) = one(world);
    let is_deaf = world.rng.chance(50);
    let names = world.names(&one);
    if is_deaf {
        let from: Vec<Dropped> = others.iter().map(|other| Dropped::From(*other)).collect();
        (one.iter().map(|place| (*place, from.clone())).collect(), format!("{names:?} hears no peer"))
    } else {
        let from: Vec<Dropped> = one.iter().map(|place| Dropped::From(*place)).collect();
        (others.iter().map(|other| (*other, from.clone())).collect(), format!("{names:?} is heard by no peer"))
    }
}

fn loss(world: &mut World) -> Plan {
    let scope = world.any_scope();
    let percent = u8::try_from(world.rng.between(5, 40)).unwrap_or(5);
    let drops = vec![Dropped::Some(Link::Peers, percent), Dropped::Some(Link::Clients, percent)];
    let plan = world.targets(scope).into_iter().map(|place| (place, drops.clone())).collect();
    (plan, format!("{percent} % of the packets to them are lost"))
}

/// A leader that loses one of its links.
struct Unplug {
    link: Link,
    place: Option<usize>,
}

impl Nemesis for Unplug {
    fn install(&mut self, world: &mut World) -> Result<Installed, Refused> {
        let Some(leader) = world.leader() else { return Err(Refused("nobody knows a leader".into())) };
        world.cluster.cut(leader, self.link)?;
        self.place = Some(leader);
        Ok(installed(world, &[leader], format!("link cut: {:?}", self.link)))
    }

    fn heal(&mut self, world: &mut World) -> Result<(), HarnessError> {
        self.place.take().map_or(Ok(()), |place| world.cluster.heal(place, self.link))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many each hears, itself among them.
    fn heard(places: &[usize], apart: &[(usize, usize)]) -> Vec<usize> {
        let is_apart = |a, b| apart.contains(&(a, b)) || apart.contains(&(b, a));
        places.iter().map(|a| places.iter().filter(|b| !is_apart(*a, **b)).count()).collect()
    }

    #[test]
    fn in_a_ring_each_hears_a_majority() {
        assert_eq!(heard(&[4, 2, 0, 1, 3], &apart_in_ring(&[4, 2, 0, 1, 3])), [3; 5]);
        assert_eq!(heard(&[0, 1, 2], &apart_in_ring(&[0, 1, 2])), [2, 3, 2]);
    }

    #[test]
    fn a_cut_is_a_cut_both_ways() {
        let drops = between(&across(&[0], &[1, 2]));
        let want =
            [(0, vec![Dropped::From(1), Dropped::From(2)]), (1, vec![Dropped::From(0)]), (2, vec![Dropped::From(0)])];
        assert_eq!(drops, want);
    }
}
