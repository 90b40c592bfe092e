//! Where the peers' programs are: unpacked by `make peers`, else installed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::BenchError;

/// Programs and their libraries.
#[derive(Clone, Debug)]
pub(crate) struct Packages {
    root: PathBuf,
}

impl Packages {
    /// In this folder, else where `make peers` puts them.
    pub(crate) fn new(dir: Option<&Path>) -> Result<Self, BenchError> {
        let root = match dir {
            // Brokers are started in folders of their own.
            Some(dir) => std::path::absolute(dir).map_err(BenchError::io(&dir.display().to_string()))?,
            None => cache().join("quorate/peers"),
        };
        Ok(Self { root })
    }

    /// A program of a package.
    pub(super) fn program(&self, name: &str) -> Result<PathBuf, BenchError> {
        let unpacked = ["usr/sbin", "usr/bin"].map(|folder| self.root.join(folder));
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Daemons lie in a folder that users of Debian do not have on their path.
        let installed = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
        let mut places = unpacked.into_iter().chain(installed).map(|folder| folder.join(name));
        places.find(|file| file.is_file()).ok_or_else(|| self.missing(name))
    }

    /// A command that finds the libraries beside the program.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = super::process::command(program);
        let mut libraries = folders(&self.root.join("usr/lib"), |name| name.ends_with("-linux-gnu"));
        if let Some(inherited) = std::env::var_os("LD_LIBRARY_PATH") {
            libraries.extend(std::env::split_paths(&inherited));
        }
        if let Ok(joined) = std::env::join_paths(libraries) {
            command.env("LD_LIBRARY_PATH", joined);
        }
        command
    }

    /// The folder of a package whose name in `under` begins so: unpacked, else installed.
    pub(super) fn folder(&self, under: &str, prefix: &str) -> Result<PathBuf, BenchError> {
        let places = [self.root.as_path(), Path::new("/")];
        let mut found = places.iter().flat_map(|root| folders(&root.join(under), |name| name.starts_with(prefix)));
        found.next().ok_or_else(|| self.missing(prefix.trim_end_matches('-')))
    }

    fn missing(&self, name: &str) -> BenchError {
        BenchError::NoPeer { name: name.to_owned(), dir: self.root.display().to_string() }
    }
}

/// Folders in `under` with such names, in order.
fn folders(under: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(under).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.filter(|e| e.file_name().to_str().is_some_and(&is_wanted)).map(|e| e.path()).collect();
    found.sort();
    found
}

fn cache() -> PathBuf {
    let is_set = |value: &OsString| !value.is_empty();
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").filter(is_set).map_or_else(home, PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacked_programs_come_before_installed_ones() {
        let dir = tempfile::tempdir().unwrap();
        let sbin = dir.path().join("usr/sbin");
        std::fs::create_dir_all(&sbin).unwrap();
        let packages = Packages::new(Some(dir.path())).unwrap();
        let before = packages.program("sh").unwrap();
        std::fs::write(sbin.join("sh"), "").unwrap();
        assert_ne!(packages.program("sh").unwrap(), before);
        assert_eq!(packages.program("sh").unwrap(), sbin.join("sh"));
    }

    #[test]
    fn who_lacks_a_program_hears_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = Packages::new(Some(dir.path())).unwrap().program("no-such-broker").unwrap_err().to_string();
        assert!(error.contains("no-such-broker") && error.contains("make peers"), "{error}");
    }
}
