//! The disk that forgets, mounted: a FUSE file system over [`super::disk::Disk`], so that RocksDB runs on it
//! unchanged, with its own system calls.
//!
//! Needs `/dev/fuse` and the right to mount (root, or `fusermount3` from the package `fuse3`). Where that is
//! missing the tests fail and say so: a power-cut test that skips itself proves nothing.
//!
//! The file system is served by a process of its own, the test binary started once more: a process that serves
//! the files it uses cannot be killed while it waits for itself. When the test ends, in whatever way, its end
//! of the control socket closes, and the server unmounts and goes.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::disk::{Cut, DirNode, Disk, FileNode, Ino, Node};

const TTL: Duration = Duration::from_secs(60);

/// Longest that a disk is busy after its last file was closed.
const BUSY_MAX: Duration = Duration::from_secs(30);

/// Names the control socket to the server's process.
const SERVE: &str = "QUORATE_FAULT_DISK";

/// A mounted disk that loses what was not synced when its power is cut.
pub struct FaultDisk {
    dir: tempfile::TempDir,
    control: Mutex<BufReader<UnixStream>>,
    server: Child,
}

impl FaultDisk {
    /// An empty disk.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("disk")).unwrap();
        let socket = dir.path().join("control");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = Command::new(std::env::current_exe().unwrap())
            .args(["support::fault_fs::serve", "--exact", "--ignored", "--nocapture"])
            .env(SERVE, &socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // Not in our process group: an interrupted test run must leave it time to unmount.
            .process_group(0)
            .spawn()
            .unwrap();
        let (control, _) = listener.accept().unwrap();
        let it = Self { dir, control: Mutex::new(BufReader::new(control)), server };
        if let Err(error) = it.ask("mount") {
            panic!(
                "POWER-CUT TESTS CANNOT RUN: mounting a FUSE file system failed ({error}). They need /dev/fuse \
                 and either root or fusermount3 (apt-get install fuse3). They are not skipped, because then \
                 nothing would hold what Quorate promises about power cuts."
            );
        }
        it
    }

    /// One request to the server: its answer, or its error.
    fn ask(&self, request: &str) -> Result<String, String> {
        let mut control = self.control.lock().unwrap();
        writeln!(control.get_mut(), "{request}").unwrap();
        let mut answer = String::new();
        control.read_line(&mut answer).unwrap();
        match answer.trim_end_matches('\n').split_once(' ') {
            Some(("ok", answer)) => Ok(answer.to_owned()),
            _ => Err(answer.trim_end().to_owned()),
        }
    }

    fn must(&self, request: &str) -> String {
        self.ask(request).unwrap_or_else(|error| panic!("the fault disk, asked to {request}: {error}"))
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// A path on it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Changing operations (writes, syncs, creations, renames, removals) so far.
    pub fn changes(&self) -> u64 {
        self.must("changes").parse().unwrap()
    }

    /// The power goes just before the change of this number, from 0.
    pub fn cut_before(&self, change: u64) {
        self.must(&format!("cut_before {change}"));
    }

    /// The power goes now.
    pub fn power_off(&self) {
        self.must("power_off");
    }

    /// Whether it is gone.
    pub fn is_off(&self) -> bool {
        self.must("is_off") == "true"
    }

    /// The next fsync of a file whose name ends in `suffix` fails.
    pub fn fail_sync_of(&self, suffix: &str) {
        self.must(&format!("fail_sync_of {suffix}"));
    }

    /// The power is back, with a fresh kernel cache. Nothing may have a file of it open any more.
    pub fn restart(&mut self, cut: Cut) {
        match cut {
            Cut::Clean => self.must("restart"),
            Cut::Torn(seed) => self.must(&format!("restart {seed}")),
        };
    }
}

impl Drop for FaultDisk {
    fn drop(&mut self) {
        let _ = self.control.get_mut().map(|control| control.get_ref().shutdown(std::net::Shutdown::Both));
        let _ = self.server.wait();
    }
}

/// The server's side.
struct Server {
    disk: Arc<Mutex<Disk>>,
    mountpoint: PathBuf,
    session: Option<BackgroundSession>,
}

impl Server {
    fn mount(&mut self) -> std::io::Result<()> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("quorate-fault".to_owned())];
        self.session = Some(fuser::spawn_mount(Mounted { disk: Arc::clone(&self.disk) }, &self.mountpoint, &config)?);
        Ok(())
    }

    /// Tries again while it is busy: a process that another test starts has our files open, too, until it has become
    /// what it is to be. How its thread ended does not matter once nothing is mounted any more.
    fn unmount(&mut self) -> std::io::Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        let first = session.umount_and_join();
        let began = Instant::now();
        while first.is_err() && self.is_mounted()? {
            if began.elapsed() > BUSY_MAX {
                return first;
            }
            let _ = Command::new("umount").arg(&self.mountpoint).stderr(Stdio::null()).status();
        }
        Ok(())
    }

    fn is_mounted(&self) -> std::io::Result<bool> {
        let at = self.mountpoint.to_string_lossy();
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        Ok(mounts.lines().any(|line| line.split(' ').nth(1) == Some(&*at)))
    }

    fn answer(&mut self, request: &str) -> Result<String, String> {
        let (what, number) = request.split_once(' ').unwrap_or((request, ""));
        let disk = || self.disk.lock().unwrap();
        match what {
            "mount" => self.mount().map_err(|e| e.to_string())?,
            "changes" => return Ok(disk().changes().to_string()),
            "is_off" => return Ok(disk().is_off().to_string()),
            "cut_before" => disk().cut_before(number.parse().unwrap()),
            "power_off" => disk().power_off(),
            "fail_sync_of" => disk().fail_sync_of(number),
            "restart" => {
                disk().power_off();
                self.unmount().map_err(|e| format!("{e}: is a file of it still open?"))?;
                self.disk.lock().unwrap().cut(number.parse().map_or(Cut::Clean, Cut::Torn));
                self.mount().map_err(|e| e.to_string())?;
            }
            _ => return Err("unknown request".to_owned()),
        }
        Ok(String::new())
    }
}

/// The server's process; does nothing when it is run as a test.
#[test]
#[ignore = "the fault disk's own process"]
fn serve() {
    let Some(socket) = std::env::var_os(SERVE) else { return };
    let control = UnixStream::connect(&socket).unwrap();
    let mountpoint = Path::new(&socket).with_file_name("disk");
    let mut server = Server { disk: Arc::new(Mutex::new(Disk::new())), mountpoint, session: None };
    for request in BufReader::new(control.try_clone().unwrap()).lines() {
        let Ok(request) = request else { break };
        let answer = match server.answer(&request) {
            Ok(answer) => format!("ok {answer}\n"),
            Err(error) => format!("error {error}\n"),
        };
        if (&control).write_all(answer.as_bytes()).is_err() {
            break;
        }
    }
    server.disk.lock().unwrap().power_off();
    if server.unmount().is_err() {
        // Somebody died with files open: take it out of the way all the same.
        let _ = Command::new("umount").arg("-l").arg(&server.mountpoint).stderr(Stdio::null()).status();
    }
}

struct Mounted {
    disk: Arc<Mutex<Disk>>,
}

fn errno(code: i32) -> Errno {
    Errno::from_i32(code)
}

fn attr(disk: &Disk, ino: Ino) -> Result<FileAttr, i32> {
    let (kind, size, perm) = match disk.node(ino)? {
        Node::File(file) => (FileType::RegularFile, file.live.len() as u64, 0o644),
        Node::Dir(_) => (FileType::Directory, 0, 0o755),
    };
    let epoch = SystemTime::UNIX_EPOCH;
    Ok(FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}

impl Mounted {
    /// Does `work` on the disk.
    fn with<R>(&self, work: impl FnOnce(&mut Disk) -> Result<R, i32>) -> Result<R, Errno> {
        work(&mut self.disk.lock().unwrap()).map_err(errno)
    }

    fn entry(&self, reply: ReplyEntry, work: impl FnOnce(&mut Disk) -> Result<Ino, i32>) {
        match self.with(|disk| work(disk).and_then(|ino| attr(disk, ino))) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(e) => reply.error(e),
        }
    }

    fn empty(&self, reply: ReplyEmpty, work: impl FnOnce(&mut Disk) -> Result<(), i32>) {
        match self.with(work) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }
}

impl Filesystem for Mounted {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry(reply, |disk| disk.lookup(parent.0, name));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.with(|disk| disk.is_on().and_then(|()| attr(disk, ino.0))) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(e) => reply.error(e),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let done = self.with(|disk| {
            if let Some(size) = size {
                disk.resize(ino.0, size)?;
            }
            disk.is_on().and_then(|()| attr(disk, ino.0))
        });
        match done {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(e) => reply.error(e),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        self.entry(reply, |disk| disk.create(parent.0, name, Node::Dir(DirNode::default())));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.empty(reply, |disk| disk.remove(parent.0, name, false));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.empty(reply, |disk| disk.remove(parent.0, name, true));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.empty(reply, |disk| disk.rename((parent.0, name), (newparent.0, newname)));
    }

    fn link(&self, _: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.entry(reply, |disk| disk.link(ino.0, newparent.0, newname).map(|()| ino.0));
    }

    fn open(&self, _: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.with(|disk| disk.is_on().and_then(|()| disk.file(ino.0).map(|_| ()))) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(e) => reply.error(e),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let node = Node::File(FileNode::default());
        match self.with(|disk| disk.create(parent.0, name, node).and_then(|ino| attr(disk, ino))) {
            Ok(attr) => reply.created(&TTL, &attr, Generation(0), FileHandle(0), FopenFlags::empty()),
            Err(e) => reply.error(e),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let disk = self.disk.lock().unwrap();
        match disk.is_on().and_then(|()| disk.file(ino.0)) {
            Ok(file) => {
                let from = (offset as usize).min(file.live.len());
                let to = (from + size as usize).min(file.live.len());
                reply.data(&file.live[from..to]);
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.with(|disk| disk.write(ino.0, offset, data)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(e) => reply.error(e),
        }
    }

    fn flush(&self, _: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.empty(reply, |disk| disk.sync_file(ino.0));
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let disk = self.disk.lock().unwrap();
        let dir = match disk.is_on().and_then(|()| disk.dir(ino.0)) {
            Ok(dir) => dir,
            Err(e) => return reply.error(errno(e)),
        };
        let dots = [(OsStr::new("."), ino.0), (OsStr::new(".."), ino.0)];
        let names = dots.into_iter().chain(dir.live.iter().map(|(name, ino)| (name.as_os_str(), *ino)));
        for (at, (name, ino)) in names.enumerate().skip(offset as usize) {
            let kind =
                if matches!(disk.node(ino), Ok(Node::Dir(_))) { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(ino), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.empty(reply, |disk| disk.sync_dir(ino.0));
    }

    fn statfs(&self, _: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 24, 1 << 23, 1 << 23, 1 << 20, 1 << 19, 4096, 255, 4096);
    }
}
