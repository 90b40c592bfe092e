//! What can be done on this machine.

use std::path::Path;
use std::process::Command;

use crate::nemesis::{self, Need};
use crate::workload;

/// Whether a program can be started.
fn has(program: &str, argument: &str) -> Result<(), String> {
    match Command::new(program).arg(argument).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{program} {argument}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(e) => Err(format!("{program}: {e}")),
    }
}

fn machines() -> Result<(), String> {
    has("ip", "-V")?;
    has("nsenter", "--version")?;
    has("nft", "--version").map_err(|e| format!("{e} (Debian: nftables)"))?;
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err("network namespaces need root".into()) }
}

fn disks() -> Result<(), String> {
    if Path::new("/dev/fuse").exists() { Ok(()) } else { Err("there is no /dev/fuse".into()) }
}

fn clocks() -> Result<(), String> {
    nemesis::faketime().map(drop).ok_or_else(|| "libfaketime is not installed (Debian: faketime)".into())
}

/// Workloads, nemeses, and what of them can be installed here, or why not.
#[must_use]
pub fn list() -> String {
    let mut text = String::from("workloads:\n");
    for workload in &workload::ALL {
        text.push_str(&format!("  {:20} {}\n", workload.name, workload.about));
    }
    text.push_str("nemeses (a,b: in turn and together; a+b: always together, a first; none; all):\n");
    for kind in nemesis::all() {
        let can = match kind.need {
            Need::Machines | Need::Relays | Need::Whole | Need::Nothing | Need::ShortLog => machines(),
            Need::Disks => machines().and_then(|()| disks()),
            Need::Clocks => machines().and_then(|()| clocks()),
        };
        text.push_str(&format!("  {:20} {}\n", kind.name, kind.about));
        if let Err(why) = can {
            text.push_str(&format!("  {:20} CANNOT BE INSTALLED HERE: {why}\n", ""));
        }
    }
    text
}
