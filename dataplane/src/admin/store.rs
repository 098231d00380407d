//! The last good snapshot of each owner, and the operator's drains, on disk: a box rebooted with
//! nobody to tell it anything serves at once.
//!
//! Each document is a file of its own, replaced whole (written beside, synced, renamed, directory
//! synced), so that a crash at any instant leaves the old one or the new one. What is corrupt
//! is set aside, never deleted, and never stops the others.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use penstock_configs::api::Drains;
use penstock_configs::desired::Desired;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

use super::faults::check_name;

/// Raised when an older build could misread a document.
const FORMAT: u32 = 1;

#[derive(Debug, Error)]
pub enum StoreError {
    #[error("{path}: {source}; the change is served, but a restart would forget it: free space or mend the directory")]
    Write { path: PathBuf, source: io::Error },
}

#[derive(Debug, Error)]
enum Unreadable {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("not the document it was written as: {0}")]
    Json(#[from] serde_json::Error),
    #[error("format {found}, and this build reads {FORMAT}")]
    Format { found: u32 },
    #[error("checksum {found} over content of {computed}")]
    Checksum { found: String, computed: String },
}

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    format: u32,
    /// CRC-32 of `content`'s text, in hexadecimal.
    checksum: String,
    #[serde(borrow)]
    content: &'a RawValue,
}

/// A file of the state directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Document {
    Owner(String),
    Drains,
}

#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
}

/// What lay on disk, and what has to be said about a document, or about the directory.
#[derive(Debug, Default)]
pub struct Restored {
    pub owners: Vec<(String, Desired)>,
    pub drains: Drains,
    pub unread: Vec<(Document, String)>,
    pub notices: Vec<String>,
}

impl Store {
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { directory: state_dir.to_owned() }
    }

    fn owners_dir(&self) -> PathBuf {
        self.directory.join("owners")
    }

    fn owner_path(&self, owner: &str) -> PathBuf {
        self.owners_dir().join(format!("{owner}.json"))
    }

    fn drains_path(&self) -> PathBuf {
        self.directory.join("drains.json")
    }

    /// # Errors
    /// The file that could not be written; the one before it is intact.
    pub fn save_owner(&self, owner: &str, desired: &Desired) -> Result<(), StoreError> {
        write(&self.owner_path(owner), desired)
    }

    /// The term an owner's document was written under; `None`: it has none. One that cannot be read has no term.
    #[must_use]
    pub fn owner_term(&self, owner: &str) -> Option<Option<u64>> {
        let path = self.owner_path(owner);
        path.exists().then(|| read(&path).ok().and_then(|desired: Desired| desired.term))
    }

    /// # Errors
    /// The file that could not be removed.
    pub fn remove_owner(&self, owner: &str) -> Result<(), StoreError> {
        let path = self.owner_path(owner);
        match fs::remove_file(&path).and_then(|()| sync_directory(&path)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StoreError::Write { path, source }),
            _ => Ok(()),
        }
    }

    /// One that could not be read is set aside first: unlike an owner, nobody sends again what it said.
    ///
    /// # Errors
    /// The file that could not be written; the one before it is intact.
    pub fn save_drains(&self, drains: &Drains) -> Result<(), StoreError> {
        let path = self.drains_path();
        if path.exists() && read::<Drains>(&path).is_err() {
            fs::rename(&path, bad(&path)).map_err(|source| StoreError::Write { path: path.clone(), source })?;
        }
        write(&path, drains)
    }

    /// Everything readable. Never fails: a box that lost its disk still serves what it is told.
    #[must_use]
    pub fn load(&self) -> Restored {
        let mut restored = Restored::default();
        // A directory that can not be made holds nothing either; that is said as soon as something is to be kept.
        let _ = fs::create_dir_all(self.owners_dir());
        let mut files: Vec<PathBuf> = match fs::read_dir(self.owners_dir()) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(source) if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Vec::new()
            }
            Err(source) => {
                restored.notices.push(format!("{}: {source}", self.owners_dir().display()));
                Vec::new()
            }
        };
        files.sort();
        for path in files {
            self.load_owner(&path, &mut restored);
        }
        if self.drains_path().exists() {
            match read(&self.drains_path()) {
                Ok(drains) => restored.drains = drains,
                Err(why) => {
                    let said = set_aside(&self.drains_path(), &why);
                    let said = format!("{said}; the nodes it names take flows: drain them again");
                    restored.unread.push((Document::Drains, said));
                }
            }
        }
        restored
    }

    fn load_owner(&self, path: &Path, restored: &mut Restored) {
        let (stem, extension) = (path.file_stem(), path.extension());
        if extension.is_some_and(|extension| extension == "tmp") {
            // A write that a crash cut short: the document it was to replace is whole.
            let _ = fs::remove_file(path);
            return;
        }
        let name = stem.and_then(|stem| stem.to_str()).unwrap_or_default();
        if extension.is_none_or(|extension| extension != "json") || check_name(name).is_err() {
            return;
        }
        match read(path) {
            Ok(desired) => restored.owners.push((name.to_owned(), desired)),
            Err(why) => restored.unread.push((Document::Owner(name.to_owned()), set_aside(path, &why))),
        }
    }
}

fn write(path: &Path, content: &impl Serialize) -> Result<(), StoreError> {
    replace(path, content).map_err(|source| StoreError::Write { path: path.to_owned(), source })
}

fn replace(path: &Path, content: &impl Serialize) -> io::Result<()> {
    let content = serde_json::value::to_raw_value(content)?;
    let checksum = checksum(content.get());
    let text = serde_json::to_vec(&Envelope { format: FORMAT, checksum, content: &content })?;
    let beside = path.with_extension("json.tmp");
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = File::create(&beside)?;
    let written = file.write_all(&text).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| fs::rename(&beside, path)) {
        // A full disk must not keep the half of a document as well.
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    sync_directory(path)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Unreadable> {
    // As bytes: what is no UTF-8 is another document's fault than what cannot be read now.
    let bytes = fs::read(path)?;
    let envelope: Envelope = serde_json::from_slice(&bytes)?;
    if envelope.format != FORMAT {
        return Err(Unreadable::Format { found: envelope.format });
    }
    let computed = checksum(envelope.content.get());
    if computed != envelope.checksum {
        return Err(Unreadable::Checksum { found: envelope.checksum, computed });
    }
    Ok(serde_json::from_str(envelope.content.get())?)
}

fn checksum(text: &str) -> String {
    format!("{:08x}", crc32fast::hash(text.as_bytes()))
}

/// What is said of a document that was not restored. Only a corrupt one is moved: one that a disk, or this build,
/// cannot read is good for the next start.
fn set_aside(path: &Path, why: &Unreadable) -> String {
    if matches!(why, Unreadable::Io(_) | Unreadable::Format { .. }) {
        return format!("{}: {why}; left for a start that can read it", path.display());
    }
    let bad = bad(path);
    match fs::rename(path, &bad) {
        Ok(()) => format!("{}: {why}; set aside as {}", path.display(), bad.display()),
        Err(error) => format!("{}: {why}; and could not be set aside: {error}", path.display()),
    }
}

fn bad(path: &Path) -> PathBuf {
    let mut bad = path.as_os_str().to_owned();
    bad.push(".bad");
    bad.into()
}

#[cfg(test)]
mod tests {
    use penstock_configs::api::Drain;
    use penstock_configs::desired::Node;

    use super::*;

    fn desired(generation: u64) -> Desired {
        let nodes = vec![Node { name: "n".into(), addresses: vec!["10.0.0.1".parse().expect("an address")] }];
        Desired { generation, term: Some(3), nodes, ..Desired::default() }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = Store::new(&directory.path().join("state"));
        let Restored { unread, notices, .. } = store.load();
        assert!(unread.is_empty() && notices.is_empty(), "an empty directory is no news");
        (directory, store)
    }

    #[test]
    fn what_was_saved_is_restored() {
        let (_directory, store) = store();
        store.save_owner("a", &desired(1)).expect("saved");
        store.save_owner("b", &desired(2)).expect("saved");
        store.save_owner("a", &desired(3)).expect("replaced");
        let drains = Drains::from([("n".to_owned(), Drain { reason: "disk".into(), ..Drain::default() })]);
        store.save_drains(&drains).expect("saved");
        let restored = store.load();
        assert_eq!(restored.owners, [("a".to_owned(), desired(3)), ("b".to_owned(), desired(2))]);
        assert_eq!(restored.drains, drains);
        store.remove_owner("a").expect("removed");
        store.remove_owner("a").expect("removing nothing is done already");
        assert_eq!(store.load().owners.len(), 1);
    }

    #[test]
    fn a_file_cut_anywhere_is_set_aside_and_the_others_serve() {
        let (_directory, store) = store();
        store.save_owner("a", &desired(1)).expect("saved");
        let whole = fs::read(store.owner_path("a")).expect("read back");
        for length in 0..whole.len() {
            store.save_owner("b", &desired(2)).expect("saved");
            fs::write(store.owner_path("a"), &whole[..length]).expect("torn");
            let restored = store.load();
            assert_eq!(restored.owners, [("b".to_owned(), desired(2))], "cut at {length}");
            assert_eq!(restored.unread.len(), 1, "cut at {length}: {:?}", restored.unread);
            let bad = store.owners_dir().join("a.json.bad");
            assert_eq!(fs::read(bad).expect("kept for inspection").len(), length);
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (_directory, store) = store();
        store.save_owner("a", &desired(1)).expect("saved");
        let whole = fs::read(store.owner_path("a")).expect("read back");
        for index in 0..whole.len() {
            let mut rotten = whole.clone();
            rotten[index] ^= 1;
            fs::write(store.owner_path("a"), &rotten).expect("written");
            let restored = store.load();
            // A flip may leave another document only if it says the same.
            let same = restored.owners == [("a".to_owned(), desired(1))];
            assert!(same || (restored.owners.is_empty() && restored.unread.len() == 1), "byte {index}");
        }
    }

    #[test]
    fn a_newer_format_is_not_guessed_at() {
        let (_directory, store) = store();
        fs::write(store.owner_path("a"), r#"{"format":2,"checksum":"0","content":{}}"#).expect("written");
        let restored = store.load();
        assert!(restored.owners.is_empty());
        let [(Document::Owner(owner), said)] = &restored.unread[..] else { panic!("{:?}", restored.unread) };
        assert!(owner == "a" && said.contains("format 2"), "{said}");
        assert!(store.owner_path("a").exists(), "the build that wrote it reads it again");
    }

    #[test]
    fn drains_that_this_build_does_not_read_are_not_written_over() {
        let (_directory, store) = store();
        let newer = r#"{"format":2,"checksum":"0","content":{}}"#;
        fs::write(store.drains_path(), newer).expect("written");
        let restored = store.load();
        let [(Document::Drains, said)] = &restored.unread[..] else { panic!("{:?}", restored.unread) };
        assert!(said.contains("format 2") && said.ends_with("drain them again"), "{said}");
        let drains = Drains::from([("n".to_owned(), Drain::default())]);
        for _ in 0..2 {
            store.save_drains(&drains).expect("saved");
            assert_eq!(store.load().drains, drains);
            assert_eq!(fs::read_to_string(bad(&store.drains_path())).expect("kept"), newer);
        }
    }

    #[test]
    fn what_the_disk_does_not_give_now_stays_where_it_is() {
        let (_directory, store) = store();
        for path in [store.owner_path("a"), store.drains_path()] {
            // Reading a directory is an error to root as well.
            fs::create_dir_all(&path).expect("a directory");
            let unread = store.load().unread;
            assert!(unread.len() == 1 && unread[0].1.contains("left for a start"), "{unread:?}");
            assert!(path.exists(), "{}", path.display());
            fs::remove_dir(path).expect("removed");
        }
        fs::write(store.owner_path("a"), [0xff; 8]).expect("written");
        assert!(store.load().unread[0].1.contains("set aside"), "no UTF-8 is no document");
    }

    #[test]
    fn leftovers_of_a_crash_and_foreign_files_are_no_snapshots() {
        let (_directory, store) = store();
        store.save_owner("a", &desired(1)).expect("saved");
        fs::write(store.owners_dir().join("a.json.tmp"), "half").expect("written");
        fs::write(store.owners_dir().join("README"), "hello").expect("written");
        fs::write(store.owners_dir().join("..json"), "{}").expect("written");
        let restored = store.load();
        assert_eq!((restored.owners.len(), restored.unread.len()), (1, 0));
        assert!(!store.owners_dir().join("a.json.tmp").exists());
    }

    #[test]
    fn a_directory_that_can_not_be_written_is_an_error_with_the_path() {
        let (directory, _) = store();
        let blocked = directory.path().join("file");
        fs::write(&blocked, "").expect("written");
        let store = Store::new(&blocked);
        assert!(store.load().notices.is_empty(), "said when something can not be kept");
        let error = store.save_owner("a", &desired(1)).expect_err("a file is no directory").to_string();
        assert!(error.contains("owners/a.json") && error.contains("restart"), "{error}");
    }
}
