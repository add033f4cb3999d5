//! Reads a tree of values as a settings type.
//!
//! serde tells a deserializer the names of a struct's fields before it reads them. That is all it takes to check every
//! key against the type itself and to know, when something is wrong, at which key it was and who wrote it there.

use std::collections::btree_map;
use std::fmt;
use std::marker::PhantomData;
use std::vec;

use serde::de::value::StringDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IntoDeserializer, Visitor,
};
use serde::forward_to_deserialize_any;
use toml::{Table, Value};

use super::error::nearest;
use super::node::{Content, Node};
use super::{Origin, SettingsError, join};

/// Reads `root` as a `T`.
pub(super) fn read<T: DeserializeOwned>(root: Node) -> Result<T, SettingsError> {
    Reader {
        node: root,
        key: String::new(),
    }
    .feed(PhantomData::<T>)
    .map_err(Fault::into_error)
}

/// What is wrong, and, once it has passed [`Reader::feed`], where.
#[derive(Debug)]
struct Fault {
    what: What,
    place: Option<(String, Origin)>,
}

#[derive(Debug)]
enum What {
    Unknown {
        nearest: Option<String>,
        known: Vec<String>,
    },
    Missing {
        name: &'static str,
    },
    Invalid {
        problem: String,
    },
}

impl Fault {
    fn new(what: What) -> Self {
        Self { what, place: None }
    }

    /// The innermost place wins: it is called first, on the way out.
    fn at(self, key: &str, origin: &Origin) -> Self {
        Self {
            place: self
                .place
                .or_else(|| Some((key.to_owned(), origin.clone()))),
            ..self
        }
    }

    fn into_error(self) -> SettingsError {
        let (key, origin) = self.place.unwrap_or((String::new(), Origin::Default));
        match self.what {
            What::Unknown { nearest, known } => SettingsError::UnknownKey {
                key,
                origin,
                nearest,
                known,
            },
            What::Missing { name } => SettingsError::Missing {
                key: join(&key, name),
            },
            What::Invalid { problem } if key.is_empty() => SettingsError::Invalid {
                key: "settings".to_owned(),
                origin,
                problem,
            },
            What::Invalid { problem } => SettingsError::Invalid {
                key,
                origin,
                problem,
            },
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Unknown { .. } => f.write_str("there is no such setting"),
            What::Missing { name } => write!(f, "{name} is missing"),
            What::Invalid { problem } => f.write_str(problem),
        }
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<D: fmt::Display>(problem: D) -> Self {
        Self::new(What::Invalid {
            problem: problem.to_string(),
        })
    }

    fn missing_field(name: &'static str) -> Self {
        Self::new(What::Missing { name })
    }

    fn unknown_variant(written: &str, known: &'static [&'static str]) -> Self {
        let problem = match nearest(written, known) {
            Some(nearest) => format!("there is no \"{written}\"; did you mean \"{nearest}\"?"),
            None => format!("there is no \"{written}\"; there are {}", quoted(known)),
        };
        Self::new(What::Invalid { problem })
    }
}

fn quoted(names: &[&str]) -> String {
    names
        .iter()
        .map(|name| format!("\"{name}\""))
        .collect::<Vec<_>>()
        .join(", ")
}

/// One value on its way into a settings type.
struct Reader {
    node: Node,
    key: String,
}

impl Reader {
    /// Hands this to `seed` and gives its fault this place, unless it has one from deeper inside. Some faults are found
    /// only after the value was handed over, by a `TryFrom` for instance, so this stands around the seed.
    fn feed<'de, S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Fault> {
        let (key, origin) = (self.key.clone(), self.node.strongest().clone());
        seed.deserialize(self)
            .map_err(|fault| fault.at(&key, &origin))
    }

    /// Reads a variable's text as TOML where the type asks for more than a string.
    fn with_text_as_toml(self) -> Self {
        let Content::Text(text) = &self.node.content else {
            return self;
        };
        let parsed = format!("value = {text}")
            .parse::<Table>()
            .ok()
            .filter(|table| table.len() == 1)
            .and_then(|mut table| table.remove("value"));
        // What does not parse is a string, as somebody without quotes would write it; if the type cannot hold one, it
        // says what it wants instead.
        let value = parsed.unwrap_or_else(|| Value::String(text.clone()));
        Self {
            node: Node::from_value(value, &self.node.origin),
            key: self.key,
        }
    }

    /// Refuses keys that are not among `fields`.
    fn check_keys(&self, fields: &'static [&'static str]) -> Result<(), Fault> {
        let Content::Table(entries) = &self.node.content else {
            return Ok(());
        };
        for (name, node) in entries {
            if !fields.contains(&name.as_str()) {
                let what = What::Unknown {
                    nearest: nearest(name, fields).map(|field| join(&self.key, field)),
                    known: fields.iter().map(|field| join(&self.key, field)).collect(),
                };
                return Err(Fault::new(what).at(&join(&self.key, name), node.strongest()));
            }
        }
        Ok(())
    }
}

impl<'de> Deserializer<'de> for Reader {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let Self { node, key } = self.with_text_as_toml();
        match node.content {
            Content::Table(entries) => visitor.visit_map(Entries {
                entries: entries.into_iter(),
                key,
                value: None,
            }),
            Content::List(nodes) => visitor.visit_seq(Elements {
                nodes: nodes.into_iter(),
                key,
                index: 0,
            }),
            Content::Scalar(Value::String(text)) | Content::Text(text) => {
                visitor.visit_string(text)
            }
            Content::Scalar(Value::Integer(number)) => visitor.visit_i64(number),
            Content::Scalar(Value::Float(number)) => visitor.visit_f64(number),
            Content::Scalar(Value::Boolean(flag)) => visitor.visit_bool(flag),
            Content::Scalar(other) => visitor.visit_string(other.to_string()),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.content {
            Content::Text(text) => visitor.visit_string(text),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let reader = self.with_text_as_toml();
        reader.check_keys(fields)?;
        reader.deserialize_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let reader = match &self.node.content {
            // A variant's name needs no quotes in a variable.
            Content::Text(text) if !text.trim_start().starts_with('{') => self,
            _ => self.with_text_as_toml(),
        };
        let Self { node, key } = reader;
        match node.content {
            Content::Scalar(Value::String(name)) | Content::Text(name) => {
                visitor.visit_enum(name.into_deserializer())
            }
            Content::Table(entries) => {
                // Layers merge tables key by key, so two variants may have come together: the stronger layer's holds.
                let chosen = entries
                    .into_iter()
                    .max_by(|(_, a), (_, b)| a.strongest().cmp(b.strongest()));
                let Some((name, node)) = chosen else {
                    return Err(Fault::custom("it needs a value"));
                };
                let content = Self {
                    key: join(&key, &name),
                    node,
                };
                visitor.visit_enum(Variant { name, content })
            }
            _ => Err(Fault::custom("expected a name or a table of one name")),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 bytes byte_buf unit unit_struct seq tuple tuple_struct map
        identifier
    }
}

/// The entries of a table.
struct Entries {
    entries: btree_map::IntoIter<String, Node>,
    key: String,
    /// The value whose name was handed out last.
    value: Option<Reader>,
}

impl<'de> de::MapAccess<'de> for Entries {
    type Error = Fault;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        let Some((name, node)) = self.entries.next() else {
            return Ok(None);
        };
        let (key, origin) = (join(&self.key, &name), node.origin.clone());
        self.value = Some(Reader {
            node,
            key: key.clone(),
        });
        let name: StringDeserializer<Fault> = name.into_deserializer();
        seed.deserialize(name)
            .map(Some)
            .map_err(|fault| fault.at(&key, &origin))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        self.value
            .take()
            .expect("serde asks for a value after its key")
            .feed(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len())
    }
}

/// The elements of a list; their keys are `list[0]`, `list[1]` and so on.
struct Elements {
    nodes: vec::IntoIter<Node>,
    key: String,
    index: usize,
}

impl<'de> de::SeqAccess<'de> for Elements {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        let Some(node) = self.nodes.next() else {
            return Ok(None);
        };
        let key = format!("{}[{}]", self.key, self.index);
        self.index += 1;
        Reader { node, key }.feed(seed).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.nodes.len())
    }
}

/// An enum's variant that is written as a table of one key.
struct Variant {
    name: String,
    content: Reader,
}

impl<'de> de::EnumAccess<'de> for Variant {
    type Error = Fault;
    type Variant = Reader;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Reader), Fault> {
        let name: StringDeserializer<Fault> = self.name.into_deserializer();
        let Reader { key, node } = &self.content;
        let variant = seed
            .deserialize(name)
            .map_err(|fault| fault.at(key, node.strongest()))?;
        Ok((variant, self.content))
    }
}

impl<'de> de::VariantAccess<'de> for Reader {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        match &self.node.content {
            Content::Table(entries) if entries.is_empty() => Ok(()),
            _ => Err(Fault::custom("it takes no settings of its own")
                .at(&self.key, self.node.strongest())),
        }
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Fault> {
        self.feed(seed)
    }

    // serde has no seed here, but the variant's name is part of this key, so the place is worth adding by hand.
    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        let (key, origin) = (self.key.clone(), self.node.strongest().clone());
        self.deserialize_any(visitor)
            .map_err(|fault| fault.at(&key, &origin))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let (key, origin) = (self.key.clone(), self.node.strongest().clone());
        self.deserialize_struct("", fields, visitor)
            .map_err(|fault| fault.at(&key, &origin))
    }
}
