//! Which names objects and finalizers may have. Source: `apimachinery/pkg/util/validation` and `ValidateObjectMeta`.

use serde_json::Value;

use super::kinds::{NAMESPACES, Resource, SERVICES};
use super::object::{Fault, list_at, name};

pub(super) fn faults(resource: &Resource, object: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    let named = name(object);
    let (fits, what) = match (&*resource.id, &*resource.group) {
        (SERVICES, _) => (is_label(named) && !named.starts_with(|c: char| c.is_ascii_digit()), "DNS-1035 label"),
        (NAMESPACES, _) => (is_label(named), "lowercase RFC 1123 label"),
        (_, "rbac.authorization.k8s.io") => {
            (!named.contains(['/', '%']) && !matches!(named, "." | ".."), "path segment")
        }
        _ => (is_subdomain(named), "lowercase RFC 1123 subdomain"),
    };
    if !fits {
        faults.push(Fault::new("metadata.name", format!("Invalid value: \"{named}\": a {what} is needed")));
    }
    for finalizer in list_at(object, "/metadata/finalizers").iter().filter_map(Value::as_str) {
        let qualified =
            finalizer.split_once('/').is_some_and(|(domain, name)| is_subdomain(domain) && is_qualified(name));
        if !qualified && !matches!(finalizer, "orphan" | "foregroundDeletion" | "kubernetes") {
            let why = format!(
                "Invalid value: \"{finalizer}\": name is neither a standard finalizer name nor is it fully qualified"
            );
            faults.push(Fault::new("metadata.finalizers", why));
        }
    }
    faults
}

fn is_label(text: &str) -> bool {
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inside) && !text.starts_with('-') && !text.ends_with('-')
}

/// The labels of an object's name may be longer than those of the DNS.
fn is_subdomain(text: &str) -> bool {
    let label = |part: &str| {
        let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !part.is_empty() && part.bytes().all(inside) && !part.starts_with('-') && !part.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// The part after the slash of a label's key, a finalizer, an Event's controller.
pub(super) fn is_qualified(text: &str) -> bool {
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let bytes = text.as_bytes();
    bytes.len() <= 63 && ends(bytes.first()) && ends(bytes.last()) && text.bytes().all(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_dns_and_the_api_allow() {
        assert!(is_label("web-1") && !is_label("Web") && !is_label("-a") && !is_label(&"a".repeat(64)));
        assert!(
            is_subdomain("203.0.113.1") && is_subdomain("2001-0db8") && !is_subdomain("a_b.c") && !is_subdomain("a..b")
        );
        assert!(is_qualified("load-balancer-cleanup") && !is_qualified("") && !is_qualified("a/b"));
    }
}
