//! The list of denied prefixes beside the config file: one a line, as feeds have them.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use crate::fault::{Fault, Faults};
use crate::validate::host_bits;

/// Beyond this it is no list that is meant: a file of a gigabyte would be read whole.
const MOST_BYTES: u64 = 64 << 20;
/// One wrong format makes every line a fault.
const MOST_FAULTS: usize = 20;

/// What the file lists; nothing for the empty path. Faults bear its name and lines.
pub(super) fn read(path: &Path) -> Result<Vec<IpNet>, Faults> {
    if path == Path::new("") {
        return Ok(Vec::new());
    }
    let name = path.display().to_string();
    let refuse = |problem: String, remedy: &str| Faults {
        name: name.clone(),
        list: vec![Fault::new("", problem, format!("{remedy} (box.deny_file)"))],
    };
    let unread = |error| refuse(format!("cannot be read: {error}"), "give the path of a readable text file");
    let length = std::fs::metadata(path).map_err(unread)?.len();
    if length > MOST_BYTES {
        return Err(refuse(format!("has {length} bytes"), "list at most a million prefixes or so"));
    }
    parse(&std::fs::read_to_string(path).map_err(unread)?, &name)
}

fn parse(text: &str, name: &str) -> Result<Vec<IpNet>, Faults> {
    let mut nets = Vec::new();
    let mut faults = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        match prefix(entry) {
            Ok(net) => nets.push(net),
            Err((problem, remedy)) if faults.len() < MOST_FAULTS => {
                faults.push(Fault::new("", problem, remedy).at_line(index + 1));
            }
            Err(_) => {}
        }
    }
    Faults::or(name, faults, nets)
}

/// A prefix, or an address alone.
fn prefix(entry: &str) -> Result<IpNet, (String, String)> {
    let net = entry.parse::<IpNet>().or_else(|_| entry.parse::<IpAddr>().map(IpNet::from));
    let net = net.map_err(|_| {
        let problem = format!("{entry:?} is neither a prefix nor an address");
        (problem, "write one such as 198.51.100.0/24 a line, `#` before comments".to_owned())
    })?;
    host_bits(&net).map_or(Ok(net), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_addresses_and_comments() {
        let text = "# a feed\n198.51.100.0/24\n\n  2001:db8::/32 # a comment\r\n192.0.2.7\n";
        let nets = parse(text, "deny.txt").expect("a good list");
        let nets: Vec<String> = nets.iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["198.51.100.0/24", "2001:db8::/32", "192.0.2.7/32"]);
    }

    #[test]
    fn faults_bear_their_lines() {
        let faults = parse("192.0.2.0/24\n192.0.2.1/24\nnonsense\n", "deny.txt").expect_err("two faults");
        let text = faults.to_string();
        assert!(text.contains("deny.txt:2: 192.0.2.1/24 has bits set beyond its prefix"), "{text}");
        assert!(text.contains("deny.txt:3: \"nonsense\" is neither a prefix nor an address"), "{text}");
        let many = parse(&"nonsense\n".repeat(1000), "deny.txt").expect_err("faults");
        assert_eq!(many.list.len(), MOST_FAULTS);
    }

    #[test]
    fn a_file_is_part_of_the_config_that_names_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let (list, config) = (dir.path().join("deny.txt"), dir.path().join("penstock.toml"));
        let text = format!(
            "version = 1\n[box]\ndeny = [\"192.0.2.0/24\"]\ndeny_file = {list:?}\n[[port]]\ninterface = \"eth0\"\n"
        );
        std::fs::write(&config, text).expect("written");
        let error = super::super::load(&config).expect_err("no such list");
        assert!(error.to_string().contains("deny.txt: cannot be read"), "{error}");
        std::fs::write(&list, "198.51.100.0/24\n").expect("written");
        let file = super::super::load(&config).expect("a good config");
        let denied: Vec<String> = file.the_box.denied().map(ToString::to_string).collect();
        assert_eq!(denied, ["192.0.2.0/24", "198.51.100.0/24"]);
    }
}
