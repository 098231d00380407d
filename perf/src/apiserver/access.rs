//! Who may do what: bearer tokens, and the rules of RBAC as they stand in a manifest.

use std::collections::BTreeMap;

use serde_json::Value;

use super::object::{ApiError, list_at, str_at};
use super::request::Asked;

/// The token that may do everything.
pub const ADMIN_TOKEN: &str = "admin";

/// The `rules` of a Role or ClusterRole.
#[derive(Debug, Clone, PartialEq)]
pub struct Grant {
    /// Only there; missing: everywhere, as with a ClusterRoleBinding.
    pub namespace: Option<String>,
    pub rules: Vec<Value>,
}

impl Grant {
    /// From a Role or ClusterRole as JSON, as if bound where it is meant to be.
    #[must_use]
    pub fn from_role(role: &Value) -> Self {
        let namespace = (str_at(role, "/kind") == "Role").then(|| str_at(role, "/metadata/namespace").to_owned());
        Self { namespace, rules: list_at(role, "/rules").to_vec() }
    }

    /// Every Role and ClusterRole in a manifest of several documents.
    ///
    /// # Errors
    /// When it is no YAML.
    pub fn from_manifest(yaml: &str) -> Result<Vec<Self>, String> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).map_err(|e| e.to_string())?;
        let is_role = |d: &&Value| matches!(str_at(d, "/kind"), "Role" | "ClusterRole");
        Ok(documents.iter().filter(is_role).map(Self::from_role).collect())
    }

    fn allows(&self, asked: &Asked) -> bool {
        let here = self.namespace.as_ref().is_none_or(|ns| *ns == asked.namespace);
        here && self.rules.iter().any(|rule| {
            let has = |field: &str, value: &str| {
                list_at(rule, field).iter().filter_map(Value::as_str).any(|v| v == "*" || v == value)
            };
            let names = list_at(rule, "/resourceNames");
            let named = names.is_empty() || names.iter().any(|n| n.as_str() == Some(&*asked.name));
            has("/verbs", asked.verb) && has("/apiGroups", &asked.group) && has("/resources", &asked.resource) && named
        })
    }
}

#[derive(Debug)]
pub(super) struct Access {
    /// Token to user and grants; a user without a list may do everything.
    users: BTreeMap<String, (String, Option<Vec<Grant>>)>,
    /// Whether a request without a token is the admin's.
    anonymous_is_admin: bool,
}

impl Access {
    pub(super) fn new(anonymous_is_admin: bool) -> Self {
        let users = BTreeMap::from([(ADMIN_TOKEN.to_owned(), ("kubernetes-admin".to_owned(), None))]);
        Self { users, anonymous_is_admin }
    }

    pub(super) fn add(&mut self, token: &str, user: &str, grants: Option<Vec<Grant>>) {
        self.users.insert(token.to_owned(), (user.to_owned(), grants));
    }

    /// The old token is worth nothing from now on.
    pub(super) fn replace_token(&mut self, old: &str, new: &str) {
        if let Some(user) = self.users.remove(old) {
            self.users.insert(new.to_owned(), user);
        }
    }

    /// # Errors
    /// 401 for a token nobody has, 403 for what its user may not.
    pub(super) fn check(&self, authorization: Option<&str>, asked: Option<&Asked>) -> Result<String, ApiError> {
        let token = authorization.and_then(|a| a.strip_prefix("Bearer "));
        let user = match token {
            None if self.anonymous_is_admin => self.users.get(ADMIN_TOKEN),
            None => None,
            Some(token) => self.users.get(token),
        };
        // With the admin's token rotated away an anonymous request still is the admin's.
        if user.is_none() && token.is_none() && self.anonymous_is_admin {
            return Ok("kubernetes-admin".into());
        }
        let Some((name, grants)) = user else { return Err(ApiError::new(401, "Unauthorized", "Unauthorized")) };
        match (grants, asked) {
            (Some(grants), Some(asked)) if !grants.iter().any(|g| g.allows(asked)) => Err(forbidden(name, asked)),
            _ => Ok(name.clone()),
        }
    }
}

fn forbidden(user: &str, asked: &Asked) -> ApiError {
    let dot = if asked.group.is_empty() { "" } else { "." };
    let quoted = if asked.name.is_empty() { String::new() } else { format!(" \"{}\"", asked.name) };
    let place = if asked.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", asked.namespace)
    };
    let (base, _) = asked.resource.split_once('/').unwrap_or((&asked.resource, ""));
    ApiError::new(
        403,
        "Forbidden",
        format!(
            "{base}{dot}{}{quoted} is forbidden: User \"{user}\" cannot {} resource \"{}\" in API group \"{}\" {place}",
            asked.group, asked.verb, asked.resource, asked.group
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "
kind: ClusterRole
rules:
- apiGroups: ['']
  resources: [services/status]
  verbs: [patch]
---
kind: Role
metadata: {namespace: penstock-system}
rules:
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [penstock]
  verbs: [get, update]
";

    fn asked(verb: &'static str, group: &str, resource: &str, namespace: &str, name: &str) -> Asked {
        let owned = |s: &str| s.to_owned();
        Asked { verb, group: owned(group), resource: owned(resource), namespace: owned(namespace), name: owned(name) }
    }

    #[test]
    fn rules_of_a_manifest_are_enforced() {
        let mut access = Access::new(true);
        access.add("t", "penstock", Some(Grant::from_manifest(MANIFEST).unwrap()));
        let check = |asked: &Asked| access.check(Some("Bearer t"), Some(asked)).map_err(|e| e.code);
        assert!(check(&asked("patch", "", "services/status", "a", "s")).is_ok());
        assert_eq!(check(&asked("patch", "", "services", "a", "s")), Err(403));
        let group = "coordination.k8s.io";
        assert!(check(&asked("update", group, "leases", "penstock-system", "penstock")).is_ok());
        assert_eq!(check(&asked("update", group, "leases", "penstock-system", "other")), Err(403));
        assert_eq!(check(&asked("update", group, "leases", "elsewhere", "penstock")), Err(403));
    }

    #[test]
    fn a_rotated_token_is_unauthorized() {
        let mut access = Access::new(true);
        access.add("old", "penstock", None);
        access.replace_token("old", "new");
        assert_eq!(access.check(Some("Bearer old"), None).map_err(|e| e.code), Err(401));
        assert!(access.check(Some("Bearer new"), None).is_ok());
    }
}
