//! A document as read, before it has types: the same tree for TOML, with lines, and JSON, without.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tree {
    /// Line it begins on, from 1.
    pub(super) line: Option<usize>,
    pub(super) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// JSON only.
    Null,
    Bool(bool),
    /// Beyond 128 bits: the nearest that fits, which no key of the schema takes either.
    Integer(i128),
    Float(f64),
    /// A TOML date or time, as written.
    Date(String),
    Text(String),
    List(Vec<Tree>),
    Table(Vec<Entry>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Line of the key, or of the header that opens the table.
    pub(super) line: Option<usize>,
    pub(super) tree: Tree,
}

impl Value {
    /// With its article, for "is …, not …".
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Null => "null".into(),
            Self::Bool(value) => format!("the boolean {value}"),
            Self::Integer(value) => format!("the number {value}"),
            Self::Float(value) => format!("the fraction {value}"),
            Self::Date(text) => format!("the date {text}"),
            Self::Text(text) => format!("the text {text:?}"),
            Self::List(_) => "a list".into(),
            Self::Table(_) => "a table".into(),
        }
    }
}

/// Byte offsets of line starts.
pub(super) struct LineIndex(Vec<usize>);

impl LineIndex {
    pub(super) fn new(text: &str) -> Self {
        let after_breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self(std::iter::once(0).chain(after_breaks).collect())
    }

    pub(super) fn line(&self, offset: usize) -> usize {
        self.0.partition_point(|start| *start <= offset)
    }

    fn of(&self, span: &Range<usize>) -> Option<usize> {
        Some(self.line(span.start))
    }
}

pub(super) fn from_toml(root: &Spanned<DeTable<'_>>, lines: &LineIndex) -> Tree {
    Tree { line: Some(1), value: table(root.get_ref(), lines) }
}

fn table(table: &DeTable<'_>, lines: &LineIndex) -> Value {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            line: lines.of(&key.span()),
            tree: value_tree(value, lines),
        })
        .collect();
    // The map sorts by key; faults are told in the order of the file.
    entries.sort_by_key(|entry| entry.line);
    Value::Table(entries)
}

fn value_tree(value: &Spanned<DeValue<'_>>, lines: &LineIndex) -> Tree {
    let line = lines.of(&value.span());
    let value = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(integer) => Value::Integer(integer_value(integer)),
        DeValue::Float(float) => Value::Float(float.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(date) => Value::Date(date.to_string()),
        DeValue::Array(items) => Value::List(items.iter().map(|item| value_tree(item, lines)).collect()),
        DeValue::Table(inner) => table(inner, lines),
    };
    Tree { line, value }
}

fn integer_value(integer: &DeInteger<'_>) -> i128 {
    let text = integer.as_str();
    let limit = if text.starts_with('-') { i128::MIN } else { i128::MAX };
    i128::from_str_radix(text, integer.radix()).unwrap_or(limit)
}

pub(super) fn from_json(value: &serde_json::Value) -> Tree {
    use serde_json::Value as Json;
    let value = match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(value), _) => Value::Integer(value.into()),
            (None, Some(value)) => Value::Integer(value.into()),
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::Text(text.clone()),
        Json::Array(items) => Value::List(items.iter().map(from_json).collect()),
        Json::Object(map) => Value::Table(
            map.iter().map(|(key, value)| Entry { key: key.clone(), line: None, tree: from_json(value) }).collect(),
        ),
    };
    Tree { line: None, value }
}
