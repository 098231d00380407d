//! The file that a run's figures go into.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

/// A file to write: that it can't be is found out before anything is measured, and what an interrupted run had measured stays
/// beside it, in `PATH.partial`.
#[derive(Debug)]
pub struct FiguresFile {
    path: PathBuf,
    partial: PathBuf,
}

impl FiguresFile {
    /// # Errors
    /// The file can't be written.
    pub fn prepare(path: &Path) -> Result<Self> {
        let mut partial = OsString::from(path);
        partial.push(".partial");
        let (path, partial) = (path.to_owned(), PathBuf::from(partial));
        fs::File::create(&partial)
            .with_context(|| format!("{}: can't be written; is its directory there?", partial.display()))?;
        Ok(Self { path, partial })
    }

    /// What there is so far.
    ///
    /// # Errors
    /// The file can't be written any more.
    pub fn keep(&self, figures: &impl Serialize) -> Result<()> {
        let text = serde_json::to_vec_pretty(figures)?;
        fs::write(&self.partial, text).with_context(|| format!("{}: can't be written", self.partial.display()))
    }

    /// All of it.
    ///
    /// # Errors
    /// As [`keep`](Self::keep).
    pub fn finish(self, figures: &impl Serialize) -> Result<()> {
        self.keep(figures)?;
        fs::rename(&self.partial, &self.path).with_context(|| format!("{}: can't be written", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_kept_while_a_run_goes_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("figures.json");
        let partial = dir.path().join("figures.json.partial");
        let file = FiguresFile::prepare(&path).expect("a file");
        file.keep(&[1, 2, 3]).expect("a file");
        file.keep(&[4]).expect("a file");
        let read = |path: &Path| serde_json::from_str::<Vec<u32>>(&fs::read_to_string(path).expect("a file")).unwrap();
        assert_eq!((read(&partial), path.exists()), (vec![4], false));
        file.finish(&[4, 5]).expect("a file");
        assert_eq!((read(&path), partial.exists()), (vec![4, 5], false));
        let error = FiguresFile::prepare(&dir.path().join("not-there/figures.json")).expect_err("no directory");
        assert!(format!("{error:#}").contains("is its directory there?"), "{error:#}");
    }
}
