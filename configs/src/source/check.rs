//! The walk that holds a document against the schema: every unknown key, missing key and value of
//! the wrong kind, and a mended copy that the types accept, so that the meaning of the rest can be
//! looked at in the same run.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value as Json;

use super::tree::{Entry, Tree, Value};
use crate::fault::Fault;
use crate::file::SCHEMA_VERSION;
use crate::nearest::nearest;
use crate::schema::{Shape, Table, Text, placeholder};

/// What the walk found.
pub(super) struct Checked {
    pub(super) faults: Vec<Fault>,
    /// Paths whose value in `mended` is not the document's.
    pub(super) replaced: Vec<String>,
    pub(super) mended: Json,
}

pub(super) fn check(shape: &Shape, tree: &Tree) -> Checked {
    let mut walk = Walk { path: String::new(), faults: Vec::new(), replaced: Vec::new() };
    let mended = walk.value(shape, tree).unwrap_or_else(|| placeholder(shape));
    Checked { faults: walk.faults, replaced: walk.replaced, mended }
}

struct Walk {
    path: String,
    faults: Vec<Fault>,
    replaced: Vec<String>,
}

impl Walk {
    /// A value that cannot be used: a default or a placeholder takes its place.
    fn fault(&mut self, line: Option<usize>, problem: String, remedy: String) {
        self.replaced.push(self.path.clone());
        self.note(line, problem, remedy);
    }

    fn note(&mut self, line: Option<usize>, problem: String, remedy: String) {
        self.faults.push(Fault { line, path: self.path.clone(), problem, remedy });
    }

    /// Runs `inner` with `segment` appended to the path.
    fn within<T>(&mut self, segment: &str, inner: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        self.path.push_str(segment);
        let result = inner(self);
        self.path.truncate(length);
        result
    }

    fn within_key<T>(&mut self, key: &str, inner: impl FnOnce(&mut Self) -> T) -> T {
        let key = if is_bare(key) { key.to_owned() } else { format!("{key:?}") };
        let segment = if self.path.is_empty() { key } else { format!(".{key}") };
        self.within(&segment, inner)
    }

    /// The value as the type takes it; `None` after a fault.
    fn value(&mut self, shape: &Shape, tree: &Tree) -> Option<Json> {
        match (shape, &tree.value) {
            (Shape::Optional(_), Value::Null) => Some(Json::Null),
            (Shape::Optional(inner), _) => self.value(inner, tree),
            (Shape::Bool, Value::Bool(value)) => Some(Json::Bool(*value)),
            (Shape::Integer { max }, Value::Integer(value)) => match u64::try_from(*value) {
                Ok(value) if value <= *max => Some(Json::from(value)),
                _ => {
                    self.fault(tree.line, format!("is {value}"), format!("write a number from 0 to {max}"));
                    None
                }
            },
            (Shape::Text(kind), Value::Text(text)) => self.text(*kind, text, tree.line),
            (Shape::Choice(names), Value::Text(text)) => self.choice(names, text, tree.line),
            (Shape::List(inner), Value::List(items)) => Some(self.list(inner, items)),
            (Shape::Array(len, inner), Value::List(items)) => {
                if items.len() != *len {
                    let problem = format!("has {} elements, not {len}", items.len());
                    self.fault(tree.line, problem, format!("write {}", example(shape)));
                    return None;
                }
                Some(self.list(inner, items))
            }
            (Shape::Table(table), Value::Table(entries)) => Some(self.table(table, entries, tree.line)),
            (_, value) => {
                let (problem, remedy) = self.wrong_kind(shape, value);
                self.fault(tree.line, problem, remedy);
                None
            }
        }
    }

    fn list(&mut self, inner: &Shape, items: &[Tree]) -> Json {
        let mended = items.iter().enumerate().map(|(index, item)| {
            let segment = match name_of(item) {
                Some(name) => format!("[{index}] {name:?}"),
                None => format!("[{index}]"),
            };
            // A faulty element keeps its place: the paths of later faults count on it.
            self.within(&segment, |walk| walk.value(inner, item)).unwrap_or_else(|| placeholder(inner))
        });
        Json::Array(mended.collect())
    }

    fn table(&mut self, table: &Table, entries: &[Entry], line: Option<usize>) -> Json {
        let present: HashSet<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
        let mut mended = serde_json::Map::new();
        for entry in entries {
            let key = table.key(&entry.key).or_else(|| {
                let meant = self.unknown_key(table, entry, &present);
                // What was meant is looked at too, unless it is there or was meant before.
                meant
                    .filter(|name| !present.contains(name) && !mended.contains_key(*name))
                    .and_then(|name| table.key(name))
            });
            if let Some(key) = key {
                let value = self.within_key(&entry.key, |walk| walk.value(&key.shape, &entry.tree));
                let needed = || key.required.then(|| placeholder(&key.shape));
                if let Some(value) = value.or_else(needed) {
                    mended.insert(key.name.to_owned(), value);
                }
            }
        }
        for key in table.keys.iter().filter(|key| key.required) {
            if !mended.contains_key(key.name) {
                self.within_key(key.name, |walk| walk.missing(&key.shape, key.name, line));
                mended.insert(key.name.to_owned(), placeholder(&key.shape));
            }
        }
        Json::Object(mended)
    }

    fn unknown_key<'t>(&mut self, table: &'t Table, entry: &Entry, present: &HashSet<&str>) -> Option<&'t str> {
        let names = || table.keys.iter().map(|key| key.name);
        let absent = nearest(&entry.key, names().filter(|name| !present.contains(name)));
        let meant = absent.or_else(|| nearest(&entry.key, names()));
        let remedy = match meant {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("remove it; known here: {}", names().collect::<Vec<_>>().join(", ")),
        };
        self.within_key(&entry.key, |walk| walk.note(entry.line, "is not a known key".into(), remedy));
        meant
    }

    fn missing(&mut self, shape: &Shape, key: &str, line: Option<usize>) {
        let remedy = match shape {
            Shape::List(inner) if matches!(**inner, Shape::Table(_)) => format!("add a [[{key}]] table"),
            _ if key == "version" => format!("add version = {SCHEMA_VERSION}"),
            _ => format!("add {key} = {}", example(shape)),
        };
        self.fault(line, "is missing".into(), remedy);
    }

    fn text(&mut self, kind: Text, text: &str, line: Option<usize>) -> Option<Json> {
        let fault = match kind {
            Text::Free => None,
            Text::Address => text.parse::<IpAddr>().is_err().then(|| bad_address(text)),
            Text::Network => text.parse::<IpNet>().is_err().then(|| bad_network(text)),
        };
        match fault {
            None => Some(Json::from(text)),
            Some((problem, remedy)) => {
                self.fault(line, problem, remedy);
                None
            }
        }
    }

    fn choice(&mut self, names: &[&'static str], text: &str, line: Option<usize>) -> Option<Json> {
        if names.contains(&text) {
            return Some(Json::from(text));
        }
        let remedy = match nearest(text, names.iter().copied()) {
            Some(name) => format!("did you mean \"{name}\"?"),
            None => format!("choose one of {}", quoted(names)),
        };
        self.fault(line, format!("is {text:?}, which is not known"), remedy);
        None
    }

    fn wrong_kind(&self, shape: &Shape, value: &Value) -> (String, String) {
        let problem = format!("is {}, not {}", value.describe(), kind(shape));
        let key = self.path.rsplit('.').next().unwrap_or_default();
        let remedy = match (shape, value) {
            (Shape::List(inner), Value::Table(_)) if matches!(**inner, Shape::Table(_)) => {
                format!("write the header in double brackets: [[{key}]]")
            }
            (Shape::Table(_), Value::List(_)) => format!("write the header in single brackets: [{key}]"),
            (Shape::List(_), Value::Text(text)) => format!("write it in brackets: [{text:?}]"),
            (Shape::Integer { .. }, Value::Text(text)) if text.parse::<u64>().is_ok() => {
                format!("write {text} without quotes")
            }
            (Shape::Bool, Value::Text(text)) if text.parse::<bool>().is_ok() => format!("write {text} without quotes"),
            (Shape::Text(Text::Free), Value::Integer(number)) => format!("write it in quotes: \"{number}\""),
            _ => format!("write {}", example(shape)),
        };
        (problem, remedy)
    }
}

fn is_bare(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// The `name` of a table, for the path.
fn name_of(tree: &Tree) -> Option<&str> {
    let Value::Table(entries) = &tree.value else { return None };
    entries.iter().find_map(|entry| match &entry.tree.value {
        Value::Text(text) if entry.key == "name" => Some(text.as_str()),
        _ => None,
    })
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

fn kind(shape: &Shape) -> &'static str {
    match shape {
        Shape::Bool => "true or false",
        Shape::Integer { .. } => "a number",
        Shape::Text(Text::Free) | Shape::Choice(_) => "a text",
        Shape::Text(Text::Address) => "an IP address",
        Shape::Text(Text::Network) => "a network",
        Shape::Optional(inner) => kind(inner),
        Shape::List(inner) if matches!(**inner, Shape::Table(_)) => "a list of tables",
        Shape::List(_) | Shape::Array(..) => "a list",
        Shape::Table(_) => "a table",
    }
}

fn example(shape: &Shape) -> String {
    match shape {
        Shape::Bool => "true or false".into(),
        Shape::Integer { max } => format!("a number from 0 to {max}"),
        Shape::Text(Text::Free) => "a text in quotes".into(),
        Shape::Text(Text::Address) => "an address in quotes, such as \"192.0.2.10\"".into(),
        Shape::Text(Text::Network) => "a network in quotes, such as \"192.0.2.0/24\"".into(),
        Shape::Choice(names) => format!("one of {}", quoted(names)),
        Shape::Optional(inner) => example(inner),
        Shape::List(inner) if matches!(**inner, Shape::Table(_)) => "a list of tables".into(),
        Shape::List(_) => "a list in brackets".into(),
        Shape::Array(len, _) => format!("a list of {len} in brackets"),
        Shape::Table(_) => "a table".into(),
    }
}

fn bad_address(text: &str) -> (String, String) {
    let problem = format!("{text:?} is not an IP address");
    let plain = text.split_once('/').map_or(text, |(address, _)| address).trim().trim_matches(['[', ']']);
    let remedy = if plain != text && plain.parse::<IpAddr>().is_ok() {
        format!("write \"{plain}\"")
    } else {
        "write an IPv4 or IPv6 address such as 192.0.2.10 or 2001:db8::10; names are not resolved".into()
    };
    (problem, remedy)
}

fn bad_network(text: &str) -> (String, String) {
    let problem = format!("{text:?} is not a network");
    let remedy = match text.trim().parse::<IpAddr>() {
        Ok(address) => format!("add the prefix length: \"{}\"", IpNet::from(address)),
        Err(_) => "write address/prefix length, such as 192.0.2.0/24 or 2001:db8::/64".into(),
    };
    (problem, remedy)
}
