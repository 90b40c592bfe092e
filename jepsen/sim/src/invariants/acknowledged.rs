//! What is acknowledged stands in the log, applied by a node at least (guarantee 1): a client has PUBACK or PUBREC for
//! nothing else.

use quorate_jepsen::history::MessageName;

use super::Found;
use super::audit::Audit;

pub(super) fn look(audit: &Audit, message: MessageName) -> Found {
    if audit.has(message) {
        return Ok(());
    }
    let how = format!("{message} is acknowledged, and stands in no entry that any node has applied");
    Err(("durable before acknowledged (guarantee 1)", how))
}
