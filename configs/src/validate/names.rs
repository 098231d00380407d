//! Names: what may stand in a metric's label, a path of the API and a line of a log.

use std::collections::HashMap;

use super::item_path;
use crate::fault::Fault;

/// A DNS label's length (RFC 1035, 2.3.4); the box and an owner have such names.
const LABEL: usize = 63;
/// A DNS name's. Kubernetes: `namespace/name:port` is at most 63 + 1 + 63 + 1 + 63.
pub(super) const NAME: usize = 253;
/// What may stand in a name beside letters and digits.
pub(super) const MARKS: &str = "-_.:/@+";

/// An owner is a path segment of the API and a file name in the state directory.
#[must_use]
pub fn owner_name(owner: &str) -> Option<Fault> {
    problem(owner, LABEL, "-_.")
        .map(|(problem, remedy)| Fault::new("", format!("owner {owner:?} {problem}"), remedy))
        .or_else(|| {
            owner.starts_with('.').then(|| {
                Fault::new("", format!("owner {owner:?} begins with a dot"), "begin it with a letter or a digit")
            })
        })
}

pub(super) fn box_name(name: &str) -> Option<Fault> {
    problem(name, LABEL, "-_.").map(|(problem, remedy)| Fault::new("box.name", problem, remedy))
}

/// Names of one list (`node`, `set`, `service`): well formed, and each once.
pub(super) fn list<'a>(list: &str, names: impl Iterator<Item = &'a str>) -> Vec<Fault> {
    let marks = if list == "node" { "-_.:" } else { MARKS };
    let mut first: HashMap<&str, usize> = HashMap::new();
    let mut faults = Vec::new();
    for (index, name) in names.enumerate() {
        let path = || format!("{}.name", item_path(list, index, name));
        if let Some((problem, remedy)) = problem(name, NAME, marks) {
            faults.push(Fault::new(path(), problem, remedy));
        } else if let Some(earlier) = first.get(name) {
            faults.push(Fault::new(
                path(),
                format!("is the name of {list}[{earlier}] too"),
                format!("give each {list} a name of its own"),
            ));
        } else {
            first.insert(name, index);
        }
    }
    faults
}

pub(super) fn problem(name: &str, longest: usize, marks: &str) -> Option<(String, String)> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || marks.contains(c);
    if name.is_empty() {
        return Some(("is empty".into(), "give it a name".into()));
    }
    if name.len() > longest {
        return Some((format!("has {} bytes", name.len()), format!("use at most {longest}")));
    }
    let stranger = name.chars().find(|c| !allowed(*c))?;
    let spelt: Vec<String> = marks.chars().map(String::from).collect();
    Some((format!("contains {stranger:?}"), format!("use letters a-z, A-Z, digits and {}", spelt.join(" "))))
}

/// Network interfaces as the kernel takes them (`dev_valid_name`): 15 bytes, no slash, no space.
pub(super) fn interface_problem(name: &str) -> Option<(String, String)> {
    let remedy = || "write the name as `ip link` shows it".to_owned();
    if name.is_empty() || name == "." || name == ".." {
        return Some((format!("{name:?} is no interface name"), remedy()));
    }
    if name.len() > 15 {
        return Some((format!("has {} bytes, Linux interfaces at most 15", name.len()), remedy()));
    }
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    name.chars().find(|c| bad(*c)).map(|c| (format!("contains {c:?}"), remedy()))
}
