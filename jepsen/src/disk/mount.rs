//! The model of a disk as a file system that can be mounted.

use std::ffi::OsStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::model::{DirNode, Disk, FileNode, Ino, Node};

/// How long the kernel may keep what it knows: nobody else changes the disk.
const TTL: Duration = Duration::from_secs(60);
/// Bytes of a block that `statfs` speaks of.
const BLOCK: u64 = 4096;
/// Size that a disk claims to have, in blocks.
const BLOCKS: u64 = 1 << 24;

/// The file system.
pub(super) struct Mounted {
    pub(super) disk: Arc<Mutex<Disk>>,
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
        // The kernel counts down from this when a name goes, and makes no link to a file that it takes for nameless.
        nlink: u32::try_from(disk.names_of(ino).len()).unwrap_or(u32::MAX).max(1),
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}

impl Mounted {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` on the disk.
    fn with<R>(&self, work: impl FnOnce(&mut Disk) -> Result<R, i32>) -> Result<R, Errno> {
        work(&mut self.disk()).map_err(errno)
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
        match self.with(|disk| disk.opened(ino.0)) {
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
        let created = self.with(|disk| {
            let ino = disk.create(parent.0, name, node)?;
            disk.opened(ino)?;
            attr(disk, ino)
        });
        match created {
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
        match self.disk().read(ino.0, offset, size as usize) {
            Ok(bytes) => reply.data(bytes),
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
            // A write is never longer than FUSE's largest request.
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(e) => reply.error(e),
        }
    }

    fn flush(&self, _: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let pause = self.disk().sync_pause_ms();
        if pause == 0 {
            return self.empty(reply, |disk| disk.sync_file(ino.0));
        }
        // Slow, but not in the way of others. The bytes are safe at the end, not at the beginning.
        let disk = Arc::clone(&self.disk);
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(pause));
            Self { disk }.empty(reply, |disk| disk.sync_file(ino.0));
        });
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.disk().closed(ino.0);
        reply.ok();
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let disk = self.disk();
        let dir = match disk.is_on().and_then(|()| disk.dir(ino.0)) {
            Ok(dir) => dir,
            Err(e) => return reply.error(errno(e)),
        };
        let dots = [(OsStr::new("."), ino.0), (OsStr::new(".."), ino.0)];
        let names = dots.into_iter().chain(dir.live.iter().map(|(name, ino)| (name.as_os_str(), *ino)));
        for ((name, ino), next) in names.zip(1_u64..).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            let kind =
                if matches!(disk.node(ino), Ok(Node::Dir(_))) { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(ino), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.empty(reply, |disk| disk.sync_dir(ino.0));
    }

    fn statfs(&self, _: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let free = self.disk().room().map_or(BLOCKS / 2, |bytes| bytes / BLOCK);
        reply.statfs(BLOCKS, free, free, 1 << 20, 1 << 19, 4096, 255, 4096);
    }
}
