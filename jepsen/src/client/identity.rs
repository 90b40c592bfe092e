//! Whose clients these are: what they are called, where their topics are, as whom they log in.

use crate::wire::encode::Login;

/// The same for all clients of a run.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// Client identifiers begin so.
    pub(crate) clients: String,
    /// Topics begin so; nothing else may publish there.
    pub(crate) topics: String,
    pub(crate) login: Option<Login>,
}

impl Default for Identity {
    /// On a cluster of the run's own.
    fn default() -> Self {
        Self { clients: "jepsen-".to_owned(), topics: String::new(), login: None }
    }
}

impl Identity {
    pub(crate) fn client_id(&self, id: u32) -> String {
        format!("{}{id}", self.clients)
    }

    /// A workload's topic, where this run has it.
    pub(crate) fn topic(&self, topic: &str) -> String {
        format!("{}{topic}", self.topics)
    }

    /// A workload's filter, shared or not, where this run has it.
    pub(crate) fn filter(&self, filter: &str) -> String {
        match filter.strip_prefix("$share/").and_then(|shared| shared.split_once('/')) {
            Some((group, filter)) => format!("$share/{group}/{}", self.topic(filter)),
            None => self.topic(filter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_and_filters_shared_or_not_are_under_the_prefix() {
        let drill = Identity { topics: "drill/7/".to_owned(), ..Identity::default() };
        assert_eq!(drill.topic("queue0/a"), "drill/7/queue0/a");
        assert_eq!(drill.filter("queue0/#"), "drill/7/queue0/#");
        assert_eq!(drill.filter("$share/g0/shared0/#"), "$share/g0/drill/7/shared0/#");
        assert_eq!(Identity::default().filter("$share/g0/shared0/#"), "$share/g0/shared0/#");
    }
}
