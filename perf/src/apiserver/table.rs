//! What `kubectl get` asks for: rows and columns, made by the server.

use serde_json::{Value, json};

use super::kinds::Resource;
use super::object::{int_at, list_at, name, str_at};

/// `(title, type, priority)` and the cell of an object.
type Column = (String, &'static str, i64);

pub(super) fn table(resource: &Resource, objects: &[&Value], revision: u64, with_header: bool) -> Value {
    let columns = columns(resource);
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let meta = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]});
            json!({"cells": cells(resource, object), "object": meta})
        })
        .collect();
    let definitions: Vec<Value> = columns
        .iter()
        .map(|(title, kind, priority)| {
            let format = if title == "Name" { "name" } else { "" };
            json!({"name": title, "type": kind, "format": format, "description": title, "priority": priority})
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": revision.to_string()},
        "columnDefinitions": if with_header { json!(definitions) } else { Value::Null },
        "rows": rows,
    })
}

/// As `kubectl get` prints it: columns without a priority, titles in capitals, three blanks between.
pub(super) fn text(table: &Value) -> String {
    let shown: Vec<usize> = list_at(table, "/columnDefinitions")
        .iter()
        .enumerate()
        .filter_map(|(at, column)| (int_at(column, "/priority") == 0).then_some(at))
        .collect();
    let titles = shown.iter().map(|at| str_at(table, &format!("/columnDefinitions/{at}/name")).to_uppercase());
    let mut lines: Vec<Vec<String>> = vec![titles.collect()];
    for row in list_at(table, "/rows") {
        let cell = |at: &usize| match &row["cells"][*at] {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        lines.push(shown.iter().map(cell).collect());
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..shown.len()).map(width).collect();
    let line = |cells: &Vec<String>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("   ").trim_end().to_owned() + "\n"
    };
    lines.iter().map(line).collect()
}

fn columns(resource: &Resource) -> Vec<Column> {
    let plain = |titles: &[&str]| titles.iter().map(|t| ((*t).to_owned(), "string", 0)).collect();
    if let Some(custom) = &resource.custom {
        let own = custom.columns.iter().map(|c| {
            let kind = match str_at(c, "/type") {
                "integer" => "integer",
                "boolean" => "boolean",
                "date" => "date",
                _ => "string",
            };
            (str_at(c, "/name").to_owned(), kind, int_at(c, "/priority"))
        });
        return std::iter::once(("Name".to_owned(), "string", 0)).chain(own).collect();
    }
    match resource.kind.as_str() {
        "Service" => plain(&["Name", "Type", "Cluster-IP", "External-IP", "Port(s)", "Age"]),
        "Node" => plain(&["Name", "Status", "Roles", "Age", "Version", "Internal-IP"]),
        "Namespace" => plain(&["Name", "Status", "Age"]),
        "Event" => plain(&["Last Seen", "Type", "Reason", "Object", "Message"]),
        "EndpointSlice" => plain(&["Name", "AddressType", "Ports", "Endpoints", "Age"]),
        "Lease" => plain(&["Name", "Holder", "Age"]),
        _ => plain(&["Name", "Age"]),
    }
}

fn cells(resource: &Resource, object: &Value) -> Vec<Value> {
    let age = json!(age(str_at(object, "/metadata/creationTimestamp")));
    let named = json!(name(object));
    if let Some(custom) = &resource.custom {
        let own = custom.columns.iter().map(|c| {
            let value = lookup(object, str_at(c, "/jsonPath")).cloned().unwrap_or(Value::Null);
            if str_at(c, "/type") == "date" { json!(age_of(&value)) } else { value }
        });
        return std::iter::once(named).chain(own).collect();
    }
    match resource.kind.as_str() {
        "Service" => {
            let kind = str_at(object, "/spec/type");
            vec![
                named,
                json!(kind),
                json!(or_none(str_at(object, "/spec/clusterIP"))),
                json!(external(object, kind)),
                json!(ports(object)),
                age,
            ]
        }
        "Node" => {
            let ready = list_at(object, "/status/conditions")
                .iter()
                .any(|c| str_at(c, "/type") == "Ready" && str_at(c, "/status") == "True");
            let address = list_at(object, "/status/addresses").iter().find(|a| str_at(a, "/type") == "InternalIP");
            let version = str_at(object, "/status/nodeInfo/kubeletVersion");
            let status = if ready { "Ready" } else { "NotReady" };
            vec![
                named,
                json!(status),
                json!("<none>"),
                age,
                json!(version),
                json!(address.map_or("<none>", |a| str_at(a, "/address"))),
            ]
        }
        "Namespace" => vec![named, json!(str_at(object, "/status/phase")), age],
        "Event" => {
            // Both forms of events come here.
            let (about, text) =
                if object.get("regarding").is_some() { ("regarding", "note") } else { ("involvedObject", "message") };
            let about = format!(
                "{}/{}",
                str_at(object, &format!("/{about}/kind")).to_lowercase(),
                str_at(object, &format!("/{about}/name"))
            );
            vec![
                age,
                json!(str_at(object, "/type")),
                json!(str_at(object, "/reason")),
                json!(about),
                json!(str_at(object, &format!("/{text}"))),
            ]
        }
        "EndpointSlice" => {
            let ports: Vec<String> = list_at(object, "/ports").iter().map(|p| int_at(p, "/port").to_string()).collect();
            let endpoints: Vec<&str> = list_at(object, "/endpoints")
                .iter()
                .flat_map(|e| list_at(e, "/addresses"))
                .filter_map(Value::as_str)
                .collect();
            vec![
                named,
                json!(str_at(object, "/addressType")),
                json!(or_none(&ports.join(","))),
                json!(or_none(&endpoints.join(","))),
                age,
            ]
        }
        "Lease" => vec![named, json!(str_at(object, "/spec/holderIdentity")), age],
        _ => vec![named, age],
    }
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "<none>" } else { text }
}

fn external(service: &Value, kind: &str) -> String {
    let shown: Vec<&str> = list_at(service, "/status/loadBalancer/ingress")
        .iter()
        .map(|i| Some(str_at(i, "/ip")).filter(|ip| !ip.is_empty()).unwrap_or(str_at(i, "/hostname")))
        .collect();
    match (kind, shown.is_empty()) {
        ("LoadBalancer", true) => "<pending>".into(),
        ("LoadBalancer", false) => shown.join(","),
        _ => "<none>".into(),
    }
}

fn ports(service: &Value) -> String {
    let text = |p: &Value| {
        let (port, node, protocol) = (int_at(p, "/port"), int_at(p, "/nodePort"), str_at(p, "/protocol"));
        if node == 0 { format!("{port}/{protocol}") } else { format!("{port}:{node}/{protocol}") }
    };
    let all: Vec<String> = list_at(service, "/spec/ports").iter().map(text).collect();
    or_none(&all.join(",")).to_owned()
}

fn age_of(value: &Value) -> String {
    age(value.as_str().unwrap_or_default())
}

fn age(since: &str) -> String {
    let Ok(since) = since.parse::<jiff::Timestamp>() else { return "<unknown>".into() };
    let seconds = jiff::Timestamp::now().as_second() - since.as_second();
    match seconds {
        ..120 => format!("{}s", seconds.max(0)),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The part of JSONPath that printer columns use: `.spec.claims[0].name`.
fn lookup<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    let mut at = object;
    for part in path.split('.').filter(|p| !p.is_empty()) {
        let (field, index) = part.split_once('[').map_or((part, None), |(f, i)| (f, i.strip_suffix(']')));
        at = at.get(field)?;
        if let Some(index) = index {
            at = at.get(index.parse::<usize>().ok()?)?;
        }
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::super::kinds::{Registry, SERVICES};
    use super::*;

    #[test]
    fn a_service_shows_its_external_address() {
        let services = Registry::new().by_id(SERVICES).unwrap();
        let mut object = json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1",
            "ports": [{"port": 80, "nodePort": 30001, "protocol": "TCP"}]}});
        let cells_of = |o: &Value| table(&services, &[o], 1, true)["rows"][0]["cells"].clone();
        assert_eq!(cells_of(&object)[3], "<pending>");
        object["status"]["loadBalancer"]["ingress"] = json!([{"ip": "203.0.113.1"}]);
        assert_eq!(cells_of(&object)[3], "203.0.113.1");
        assert_eq!(cells_of(&object)[4], "80:30001/TCP");
    }

    #[test]
    fn the_text_is_aligned_and_leaves_out_what_is_for_wide_output() {
        let table = json!({"columnDefinitions": [{"name": "Name", "priority": 0}, {"name": "Extra", "priority": 1},
            {"name": "Total", "priority": 0}], "rows": [{"cells": ["lab-pool", "x", 7]}, {"cells": ["p", "y", 12]}]});
        assert_eq!(text(&table), "NAME       TOTAL\nlab-pool   7\np          12\n");
    }

    #[test]
    fn printer_columns_look_into_lists() {
        let object = json!({"spec": {"claims": [{"name": "a"}]}});
        assert_eq!(lookup(&object, ".spec.claims[0].name"), Some(&json!("a")));
        assert_eq!(lookup(&object, ".spec.claims[1].name"), None);
    }
}
