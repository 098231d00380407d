//! The schema as serde sees it: which keys a table has, which it needs, what each holds.
//!
//! Derived by running a type's own `Deserialize` against a deserializer that answers every question
//! and writes down what was asked, so that no second list of keys can fall behind the types. serde
//! stops at the first fault; with this a walk over the document finds them all.

use std::fmt;

use serde::de::value::Error;
use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shape {
    Bool,
    Integer {
        max: u64,
    },
    Text(Text),
    Choice(&'static [&'static str]),
    Optional(Box<Shape>),
    List(Box<Shape>),
    /// A list of a fixed length, all elements alike.
    Array(usize, Box<Shape>),
    Table(Table),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Text {
    Free,
    Address,
    Network,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Table {
    /// The Rust type, by which the second pass finds it again.
    type_name: &'static str,
    pub(crate) keys: Vec<Key>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) required: bool,
    pub(crate) shape: Shape,
}

impl Table {
    pub(crate) fn key(&self, name: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

/// The shape of `T`. Uses only what the schema's types use; a type that asks for something else
/// (a float, a map) fails the tests of this module before it fails here.
pub(crate) fn of<T: DeserializeOwned>() -> Shape {
    let mut shape = None;
    T::deserialize(Probe { found: &mut shape, omit: None }).expect("the probe answers all the schema's types ask");
    let mut shape = shape.expect("a type asks for something");
    mark_required::<T>(&mut shape);
    shape
}

/// A key is required if the type does not deserialize without it.
fn mark_required<T: DeserializeOwned>(shape: &mut Shape) {
    match shape {
        Shape::Optional(inner) | Shape::List(inner) | Shape::Array(_, inner) => mark_required::<T>(inner),
        Shape::Table(table) => {
            for key in &mut table.keys {
                let probe = Probe { found: &mut None, omit: Some((table.type_name, key.name)) };
                key.required = T::deserialize(probe).is_err();
                mark_required::<T>(&mut key.shape);
            }
        }
        Shape::Bool | Shape::Integer { .. } | Shape::Text(_) | Shape::Choice(_) => {}
    }
}

/// Answers with some valid value and leaves the shape that was asked for in `found`.
struct Probe<'a> {
    found: &'a mut Option<Shape>,
    /// A (type, key) to leave out.
    omit: Option<(&'static str, &'static str)>,
}

/// What a visitor says it expects is the only trace of the type behind a string.
fn text_kind<'de>(visitor: &impl Visitor<'de>) -> Text {
    struct Expected<'a, V>(&'a V);
    impl<'de, V: Visitor<'de>> fmt::Display for Expected<'_, V> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.expecting(f)
        }
    }
    match Expected(visitor).to_string().as_str() {
        "IP address" => Text::Address,
        "IPv4 or IPv6 network address" => Text::Network,
        _ => Text::Free,
    }
}

macro_rules! unsigned {
    ($($method:ident $visit:ident $type:ty),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            *self.found = Some(Shape::Integer { max: u64::from(<$type>::MAX) });
            visitor.$visit(1)
        }
    )*};
}

impl<'de> serde::Deserializer<'de> for Probe<'_> {
    type Error = Error;

    unsigned!(deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32,
              deserialize_u64 visit_u64 u64);

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        *self.found = Some(Shape::Bool);
        visitor.visit_bool(false)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let kind = text_kind(&visitor);
        *self.found = Some(Shape::Text(kind));
        visitor.visit_str(placeholder_text(kind))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut inner = None;
        let value = visitor.visit_some(Probe { found: &mut inner, omit: self.omit })?;
        *self.found = inner.map(|shape| Shape::Optional(Box::new(shape)));
        Ok(value)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut inner = None;
        let value = visitor.visit_seq(Elements { left: 1, found: &mut inner, omit: self.omit })?;
        *self.found = inner.map(|shape| Shape::List(Box::new(shape)));
        Ok(value)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        let mut inner = None;
        let value = visitor.visit_seq(Elements { left: len, found: &mut inner, omit: self.omit })?;
        *self.found = inner.map(|shape| Shape::Array(len, Box::new(shape)));
        Ok(value)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let mut keys = Vec::new();
        let value =
            visitor.visit_map(Entries { name, fields: fields.iter(), next: "", keys: &mut keys, omit: self.omit })?;
        *self.found = Some(Shape::Table(Table { type_name: name, keys }));
        Ok(value)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        *self.found = Some(Shape::Choice(variants));
        let first = variants.first().ok_or_else(|| Error::custom("an enum without variants"))?;
        visitor.visit_enum((*first).into_deserializer())
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
        Err(Error::custom("a type the schema does not use"))
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u128 f32 f64 char bytes byte_buf unit unit_struct newtype_struct
        tuple_struct map identifier ignored_any
    }
}

struct Elements<'a> {
    left: usize,
    found: &'a mut Option<Shape>,
    omit: Option<(&'static str, &'static str)>,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(Probe { found: self.found, omit: self.omit }).map(Some)
    }
}

struct Entries<'a> {
    name: &'static str,
    fields: std::slice::Iter<'static, &'static str>,
    next: &'static str,
    keys: &'a mut Vec<Key>,
    omit: Option<(&'static str, &'static str)>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let name = self.name;
        let omit = self.omit;
        let Some(field) = self.fields.by_ref().find(|field| omit != Some((name, **field))) else {
            return Ok(None);
        };
        self.next = field;
        seed.deserialize((*field).into_deserializer()).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let mut found = None;
        let value = seed.deserialize(Probe { found: &mut found, omit: self.omit })?;
        let shape = found.ok_or_else(|| Error::custom("a value without a shape"))?;
        self.keys.push(Key { name: self.next, required: false, shape });
        Ok(value)
    }
}

/// A text the type accepts and no valid document means.
fn placeholder_text(kind: Text) -> &'static str {
    match kind {
        Text::Free => "",
        Text::Address => "0.0.0.0",
        Text::Network => "0.0.0.0/0",
    }
}

/// Stands in for a value that is missing or of the wrong kind, so that the rest of the document can
/// still be read into its types and looked at.
pub(crate) fn placeholder(shape: &Shape) -> serde_json::Value {
    use serde_json::Value;
    match shape {
        Shape::Bool => Value::Bool(false),
        Shape::Integer { .. } => Value::from(0),
        Shape::Text(kind) => Value::from(placeholder_text(*kind)),
        Shape::Choice(names) => Value::from(names.first().copied().unwrap_or_default()),
        Shape::Optional(_) => Value::Null,
        Shape::List(_) => Value::Array(Vec::new()),
        Shape::Array(len, inner) => Value::Array(vec![placeholder(inner); *len]),
        Shape::Table(table) => {
            let needed = table.keys.iter().filter(|key| key.required);
            Value::Object(needed.map(|key| (key.name.to_owned(), placeholder(&key.shape))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{Desired, Health};
    use crate::file::ConfigFile;

    fn table(shape: &Shape) -> &Table {
        match shape {
            Shape::Table(table) => table,
            Shape::List(inner) | Shape::Optional(inner) => table(inner),
            other => panic!("not a table: {other:?}"),
        }
    }

    fn key<'s>(shape: &'s Shape, path: &[&str]) -> &'s Key {
        let found = table(shape).key(path[0]).unwrap_or_else(|| panic!("no key {}", path[0]));
        if path.len() == 1 { found } else { key(&found.shape, &path[1..]) }
    }

    #[test]
    fn keys_and_kinds_come_from_the_types() {
        let file = of::<ConfigFile>();
        assert_eq!(key(&file, &["service", "vip"]).shape, Shape::Text(Text::Address));
        assert_eq!(key(&file, &["service", "port"]).shape, Shape::Integer { max: 65_535 });
        assert_eq!(key(&file, &["service", "protocol"]).shape, Shape::Choice(&["tcp", "udp", "sctp"]));
        assert_eq!(
            key(&file, &["service", "announce"]).shape,
            Shape::Optional(Box::new(Shape::Choice(&["l2", "none"])))
        );
        assert_eq!(key(&file, &["service", "source_ranges"]).shape, Shape::List(Box::new(Shape::Text(Text::Network))));
        assert_eq!(key(&file, &["snat", "ports"]).shape, Shape::Array(2, Box::new(Shape::Integer { max: 65_535 })));
        assert_eq!(key(&file, &["snat", "shared"]).shape, Shape::Bool);
        assert_eq!(key(&file, &["box", "run_dir"]).shape, Shape::Text(Text::Free));
        let names: Vec<_> = table(&file).keys.iter().map(|key| key.name).collect();
        assert_eq!(
            names,
            ["version", "box", "port", "workers", "snat", "limits", "timeouts", "node", "set", "service"]
        );
    }

    #[test]
    fn required_means_serde_refuses_without_it() {
        let file = of::<ConfigFile>();
        let required = |shape: &Shape| -> Vec<&str> {
            table(shape).keys.iter().filter(|key| key.required).map(|key| key.name).collect()
        };
        assert_eq!(required(&file), ["version", "port"]);
        assert_eq!(required(&key(&file, &["service"]).shape), ["name", "vip", "port", "protocol"]);
        assert_eq!(required(&key(&file, &["service", "backends"]).shape), Vec::<&str>::new());
        assert_eq!(required(&key(&file, &["set"]).shape), ["name", "backends"]);
        assert_eq!(required(&key(&file, &["limits"]).shape), Vec::<&str>::new());
        assert_eq!(required(&of::<Desired>()), Vec::<&str>::new());
        assert_eq!(required(&of::<Health>()), ["backends"]);
    }

    /// Whether `value` or an element of it has a value for every key of `shape`.
    fn missing(shape: &Shape, values: &[&toml::Value], path: &str, found: &mut Vec<String>) {
        match shape {
            Shape::Optional(inner) => missing(inner, values, path, found),
            Shape::List(inner) if matches!(**inner, Shape::Table(_)) => {
                let items: Vec<&toml::Value> = values.iter().filter_map(|value| value.as_array()).flatten().collect();
                missing(inner, &items, path, found);
            }
            Shape::Table(table) => {
                for key in &table.keys {
                    let path = format!("{path}.{}", key.name);
                    let inner: Vec<&toml::Value> = values.iter().filter_map(|value| value.get(key.name)).collect();
                    if inner.is_empty() {
                        found.push(path);
                    } else {
                        missing(&key.shape, &inner, &path, found);
                    }
                }
            }
            _ => {}
        }
    }

    #[test]
    fn the_example_of_every_option_has_every_key() {
        let text = include_str!("../examples/every-option.toml");
        let value: toml::Value = toml::from_str(text).expect("the example");
        let mut found = Vec::new();
        missing(&of::<ConfigFile>(), &[&value], "", &mut found);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn a_placeholder_is_accepted_by_the_type() {
        let value = placeholder(&of::<ConfigFile>());
        serde_json::from_value::<ConfigFile>(value).expect("placeholders are valid values");
    }
}
