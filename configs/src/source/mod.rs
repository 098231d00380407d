//! From text to types: the TOML file with the line of each fault, the JSON snapshot with its path.

mod check;
mod deny;
mod tree;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::OnceLock;

use serde::de::DeserializeOwned;
use toml::de::DeTable;

use self::check::Checked;
use self::tree::{LineIndex, Tree, Value};
use crate::desired::{Desired, Health};
use crate::fault::{Fault, Faults};
use crate::file::ConfigFile;
use crate::schema::{self, Shape};
use crate::validate::{self, BoxContext, HostFacts};

/// Reads and validates a file, wherever it will run. Faults bear the path as given.
pub fn load(path: &Path) -> Result<ConfigFile, Faults> {
    load_for(path, None)
}

/// Reads and validates a file against the machine it is to run on.
pub fn load_for(path: &Path, host: Option<&HostFacts>) -> Result<ConfigFile, Faults> {
    let name = path.display().to_string();
    let refuse = |fault| Faults { name: name.clone(), list: vec![fault] };
    let bytes = std::fs::read(path).map_err(|error| {
        refuse(Fault::new("", format!("cannot be read: {error}"), "give the path of a readable TOML file"))
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        refuse(Fault::new("", "is not UTF-8 text", "save the file as UTF-8").at_line(line))
    })?;
    let mut file = parse_for(&text, &name, host)?;
    file.the_box.deny_feed = deny::read(&file.the_box.deny_file)?.into();
    Ok(file)
}

/// [`load`] of a text already read; `name` stands for the file in messages.
pub fn parse(text: &str, name: &str) -> Result<ConfigFile, Faults> {
    parse_for(text, name, None)
}

/// [`load_for`] of a text already read.
pub fn parse_for(text: &str, name: &str, host: Option<&HostFacts>) -> Result<ConfigFile, Faults> {
    static SHAPE: OnceLock<Shape> = OnceLock::new();
    let tree = read_toml(text).map_err(|list| Faults { name: name.into(), list })?;
    let shape = SHAPE.get_or_init(schema::of::<ConfigFile>);
    let (mut faults, file) = typed::<ConfigFile>(shape, &tree, |file| validate::file(file, host));
    if !faults.is_empty() {
        let lines = Lines::of(&tree);
        for fault in &mut faults {
            fault.line = fault.line.or_else(|| Some(lines.line(&fault.path)));
        }
        faults.sort_by_key(|fault| fault.line);
    }
    finish(name, faults, file)
}

/// Reads and validates an owner's snapshot: what `PUT /v1/desired/{owner}` carries. What several
/// owners claim together is for [`validate::claims`].
pub fn snapshot(json: &[u8], owner: &str, context: &BoxContext) -> Result<Desired, Faults> {
    static SHAPE: OnceLock<Shape> = OnceLock::new();
    json_document(json, owner, &SHAPE, |desired| validate::desired(desired, owner, context))
}

/// Reads and validates `PUT /v1/health`.
pub fn health(json: &[u8]) -> Result<Health, Faults> {
    static SHAPE: OnceLock<Shape> = OnceLock::new();
    json_document(json, "health", &SHAPE, validate::health)
}

fn json_document<T: DeserializeOwned>(
    json: &[u8],
    name: &str,
    shape: &OnceLock<Shape>,
    meaning: impl Fn(&T) -> Vec<Fault>,
) -> Result<T, Faults> {
    // Nearly every snapshot is good: the walk that finds all faults runs only when serde found one.
    // serde takes a list for a struct too: `[1]` would be a snapshot without services.
    let is_object = json.trim_ascii_start().starts_with(b"{");
    if is_object && let Ok(document) = serde_json::from_slice::<T>(json) {
        let faults = meaning(&document);
        return Faults::or(name, faults, document);
    }
    let value: serde_json::Value = serde_json::from_slice(json).map_err(|error| Faults {
        name: name.into(),
        list: vec![Fault::new("", format!("is not JSON: {error}"), "send one JSON object")],
    })?;
    let (mut faults, document) = typed::<T>(shape.get_or_init(schema::of::<T>), &tree::from_json(&value), meaning);
    if faults.is_empty() {
        // What serde refuses in the bytes and accepts in the tree: a key given twice.
        let refused = serde_json::from_slice::<T>(json).err().map(|error| error.to_string());
        faults.extend(refused.map(|problem| Fault::new("", problem, "give each key once")));
    }
    finish(name, faults, document)
}

fn finish<T>(name: &str, faults: Vec<Fault>, document: Option<T>) -> Result<T, Faults> {
    match document {
        Some(document) => Faults::or(name, faults, document),
        None => Err(Faults { name: name.into(), list: faults }),
    }
}

/// The faults of form, and of the meaning of what could be read; the document, as far as it could.
fn typed<T: DeserializeOwned>(
    shape: &Shape,
    tree: &Tree,
    meaning: impl Fn(&T) -> Vec<Fault>,
) -> (Vec<Fault>, Option<T>) {
    let Checked { mut faults, replaced, mended } = check::check(shape, tree);
    match serde_json::from_value(mended) {
        Ok(document) => {
            // Where a value was replaced, what is said of it or by it may be wrong.
            let doubtful: HashSet<String> = replaced.iter().map(|path| item(path)).collect();
            let meant = meaning(&document).into_iter();
            faults.extend(meant.filter(|fault| {
                let path = without_names(&fault.path);
                !doubtful.contains(&path) && !doubtful.contains(&item(&path))
            }));
            (faults, Some(document))
        }
        Err(error) => {
            faults.push(Fault::new("", error.to_string(), "compare with the examples"));
            (faults, None)
        }
    }
}

/// What a replaced value makes doubtful: the whole `service[3]`, unless no other key's meaning hangs on
/// it; of `[limits]` one key.
fn item(path: &str) -> String {
    const ALONE: [&str; 9] =
        ["limits", "scheduler", "announce", "source_ranges", "timeouts", "weight", "state", "xdp", "zero_copy"];
    let plain = without_names(path);
    let Some((first, rest)) = plain.split_once('.').filter(|(first, _)| first.ends_with(']')) else {
        return plain;
    };
    let alone = rest.split(['.', '[']).any(|key| ALONE.contains(&key));
    if alone { plain } else { first.to_owned() }
}

fn read_toml(text: &str) -> Result<Tree, Vec<Fault>> {
    /// One slip of the pen can upset the parser many times over.
    const MOST: usize = 20;
    let lines = LineIndex::new(text);
    let (root, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(tree::from_toml(&root, &lines));
    }
    let mut faults: Vec<Fault> = errors
        .iter()
        .map(|error| {
            let line = error.span().map_or(1, |span| lines.line(span.start.min(text.len())));
            Fault::new("", format!("is not TOML: {}", error.message()), "mend the syntax of this line").at_line(line)
        })
        .collect();
    faults.sort_by_key(|fault| fault.line);
    faults.dedup_by_key(|fault| fault.line);
    faults.truncate(MOST);
    Err(faults)
}

/// From a path (`service[3].vip`) to the line it stands on.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    by_path: HashMap<String, usize>,
}

impl Lines {
    /// The lines of a TOML text; empty if it is none.
    #[must_use]
    pub fn of_text(text: &str) -> Self {
        read_toml(text).map(|tree| Self::of(&tree)).unwrap_or_default()
    }

    fn of(tree: &Tree) -> Self {
        let mut lines = Self::default();
        lines.add(String::new(), tree);
        lines
    }

    fn add(&mut self, path: String, tree: &Tree) {
        match &tree.value {
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.add(format!("{path}[{index}]"), item);
                }
            }
            Value::Table(entries) => {
                for entry in entries {
                    let inner = if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
                    if let Some(line) = entry.line {
                        self.by_path.insert(inner.clone(), line);
                    }
                    self.add(inner, &entry.tree);
                }
            }
            _ => {}
        }
        if let Some(line) = tree.line {
            // A key's own line is the better answer where the value begins further down.
            self.by_path.entry(path).or_insert(line);
        }
    }

    /// The line of `path`, which may bear names as faults do; of what is not written, the line of
    /// what should hold it.
    #[must_use]
    pub fn line(&self, path: &str) -> usize {
        let plain = without_names(path);
        let mut rest = plain.as_str();
        loop {
            if let Some(line) = self.by_path.get(rest) {
                return *line;
            }
            match rest.rfind(['.', '[']) {
                Some(cut) => rest = &rest[..cut],
                None => return self.by_path.get("").copied().unwrap_or(1),
            }
        }
    }
}

/// `service[3] "web".vip` -> `service[3].vip`.
fn without_names(path: &str) -> String {
    let mut plain = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(start) = rest.find("] \"") {
        plain.push_str(&rest[..=start]);
        rest = after_quoted(&rest[start + 3..]);
    }
    plain.push_str(rest);
    plain
}

/// What follows the quote that ends a text written with escapes.
fn after_quoted(text: &str) -> &str {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return &text[at + 1..],
            _ => {}
        }
    }
    ""
}

#[cfg(test)]
mod tests;
