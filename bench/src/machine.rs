//! What the machine says: processor time and memory of processes, and how long its disk takes for an fdatasync.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use crate::BenchError;
use crate::histogram::Histogram;

/// How many fdatasyncs are measured.
const SYNCS: usize = 300;
/// What is written before each: as much as a small batch in a log.
const SYNC_BYTES: usize = 4096;

/// Unit of the kernel's figures of disks, whatever the disk's own is.
const SECTOR_BYTES: u64 = 512;

/// Which process: ids are used again, with other times of birth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Birth {
    /// Its id.
    pub(crate) pid: u32,
    /// Clock ticks from the machine's start to its own.
    start: u64,
}

/// Fields of `/proc/PID/stat` from the third on; the second is a name in parentheses that may hold blanks.
fn stat(pid: u32) -> std::io::Result<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    Ok(after_name.split_whitespace().map(str::to_owned).collect())
}

/// When a process was born, if there is one with this id.
pub(crate) fn birth(pid: u32) -> Option<Birth> {
    stat(pid).ok()?.get(19)?.parse().ok().map(|start| Birth { pid, start })
}

/// A process and everything that descends from it, itself first.
pub(crate) fn family(pid: u32) -> Result<Vec<Birth>, BenchError> {
    let entries = fs::read_dir("/proc").map_err(BenchError::io("/proc"))?;
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let parents: Vec<(u32, u32)> = pids.filter_map(|pid| Some((pid, stat(pid).ok()?.get(1)?.parse().ok()?))).collect();
    let mut found = vec![pid];
    let mut looked_at = 0;
    while let Some(parent) = found.get(looked_at).copied() {
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        looked_at += 1;
    }
    Ok(found.into_iter().filter_map(birth).collect())
}

/// Processor microseconds that these processes have used so far, all threads; those of one that has ended are lost.
pub(crate) fn cpu_us(pids: &[u32]) -> Result<u64, BenchError> {
    let tick_us = 1_000_000 / rustix::param::clock_ticks_per_second().max(1);
    let mut sum = 0;
    for pid in pids {
        let fields = match stat(*pid) {
            Ok(fields) => fields,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(BenchError::io(&format!("/proc/{pid}/stat"))(e)),
        };
        let ticks: u64 = fields.iter().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
        sum += ticks * tick_us;
    }
    Ok(sum)
}

/// Bytes that the disk of `dir` has been told to write so far, by whomever; none if it is not a disk. (What the kernel
/// counts for a process are pages that it made dirty, several times too much for a log.)
pub(crate) fn disk_written_bytes(dir: &Path) -> Option<u64> {
    let device = fs::metadata(dir).ok()?.dev();
    let stat = format!("/sys/dev/block/{}:{}/stat", rustix::fs::major(device), rustix::fs::minor(device));
    let sectors: u64 = fs::read_to_string(stat).ok()?.split_whitespace().nth(6)?.parse().ok()?;
    Some(sectors * SECTOR_BYTES)
}

/// Memory of a process in MiB: now, and its highest.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) resident_mib: u64,
    /// Resident at its highest.
    pub(crate) peak_mib: u64,
}

/// Memory of one process.
pub(crate) fn memory(pid: u32) -> Result<Memory, BenchError> {
    let status = status(pid)?;
    let mib = |field: &str| kib(&status, field) / 1024;
    Ok(Memory { resident_mib: mib("VmRSS:"), peak_mib: mib("VmHWM:") })
}

/// Memory of a process in bytes: as the kernel counts it in user space.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Pages {
    /// Resident: also files that are mapped, such as the program.
    pub(crate) resident_bytes: u64,
    /// Resident and of no file: heap, stacks.
    pub(crate) anonymous_bytes: u64,
}

/// Memory of one process, to the page.
pub(crate) fn pages(pid: u32) -> Result<Pages, BenchError> {
    let status = status(pid)?;
    Ok(Pages { resident_bytes: kib(&status, "VmRSS:") * 1024, anonymous_bytes: kib(&status, "RssAnon:") * 1024 })
}

fn status(pid: u32) -> Result<String, BenchError> {
    let path = format!("/proc/{pid}/status");
    fs::read_to_string(&path).map_err(BenchError::io(&path))
}

fn kib(status: &str, field: &str) -> u64 {
    let line = status.lines().find_map(|l| l.strip_prefix(field)).unwrap_or_default();
    line.split_whitespace().find_map(|w| w.parse::<u64>().ok()).unwrap_or(0)
}

/// Times of an append and its fdatasync in `dir`.
pub(crate) fn fdatasync(dir: &Path) -> Result<Histogram, BenchError> {
    let path = dir.join("fdatasync.probe");
    let shown = path.display().to_string();
    let mut file = File::create(&path).map_err(BenchError::io(&shown))?;
    let mut times = Histogram::default();
    for _ in 0..SYNCS {
        file.write_all(&[0x5a; SYNC_BYTES]).map_err(BenchError::io(&shown))?;
        let start = Instant::now();
        file.sync_data().map_err(BenchError::io(&shown))?;
        times.record(start.elapsed().as_nanos() as u64);
    }
    fs::remove_file(&path).map_err(BenchError::io(&shown))?;
    Ok(times)
}

/// One line about this machine.
pub(crate) fn describe() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split(": ").nth(1));
    let kernel = rustix::system::uname();
    format!("{cpus} x {}, Linux {}", model.unwrap_or("unknown processor"), kernel.release().to_string_lossy())
}
