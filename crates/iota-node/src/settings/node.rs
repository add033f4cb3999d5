//! A tree of values that remember where they came from, and how layers become one tree.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::{Origin, SettingsError, VARIABLE_PREFIX, join};

/// A value and its origin.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) content: Content,
    pub(super) origin: Origin,
}

/// A value. `Scalar` holds neither tables nor arrays.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Table(BTreeMap<String, Node>),
    List(Vec<Node>),
    Scalar(Value),
    /// The text of a variable: what it means depends on what the settings type asks for.
    Text(String),
}

impl Node {
    fn empty_table(origin: Origin) -> Self {
        Self {
            content: Content::Table(BTreeMap::new()),
            origin,
        }
    }

    pub(super) fn from_table(table: Table, origin: &Origin) -> Self {
        Self::from_value(Value::Table(table), origin)
    }

    pub(super) fn from_value(value: Value, origin: &Origin) -> Self {
        let content = match value {
            Value::Table(table) => Content::Table(
                table
                    .into_iter()
                    .map(|(name, value)| (name, Self::from_value(value, origin)))
                    .collect(),
            ),
            Value::Array(values) => Content::List(
                values
                    .into_iter()
                    .map(|value| Self::from_value(value, origin))
                    .collect(),
            ),
            scalar => Content::Scalar(scalar),
        };
        Self {
            content,
            origin: origin.clone(),
        }
    }

    pub(super) fn from_file(text: &str, path: &Path) -> Result<Self, SettingsError> {
        let syntax = |source| SettingsError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let table = DeTable::parse(text).map_err(syntax)?;
        let (span, table) = (table.span(), table.into_inner());
        let file = File { text, path };
        file.node(Spanned::new(span, DeValue::Table(table)))
            .map_err(syntax)
    }

    pub(super) fn from_variables(
        variables: BTreeMap<String, OsString>,
    ) -> Result<Self, SettingsError> {
        let mut root = Self::empty_table(Origin::Default);
        for (name, value) in variables {
            let fault = |problem: &str| SettingsError::Variable {
                name: name.clone(),
                problem: problem.to_owned(),
            };
            let value = value
                .into_string()
                .map_err(|_not_text| fault("the value is not valid UTF-8"))?;
            let key = name[VARIABLE_PREFIX.len()..].to_lowercase();
            let origin = Origin::Variable(name.clone());
            let mut table = &mut root;
            let mut names = key.split("__").peekable();
            while let Some(part) = names.next() {
                let Content::Table(entries) = &mut table.content else {
                    return Err(fault(
                        "a variable with the first part of its name is set too; one of them must go",
                    ));
                };
                let entry = entries
                    .entry(part.to_owned())
                    .or_insert_with(|| Self::empty_table(origin.clone()));
                if names.peek().is_none() {
                    *entry = Self {
                        content: Content::Text(value.clone()),
                        origin: origin.clone(),
                    };
                }
                table = entry;
            }
        }
        Ok(root)
    }

    /// Lays `stronger` over this: tables merge, anything else replaces.
    pub(super) fn overlay(&mut self, stronger: Self) {
        match (&mut self.content, stronger.content) {
            (Content::Table(entries), Content::Table(stronger_entries)) => {
                for (name, node) in stronger_entries {
                    match entries.get_mut(&name) {
                        Some(entry) => entry.overlay(node),
                        None => drop(entries.insert(name, node)),
                    }
                }
            }
            (content, stronger_content) => {
                *content = stronger_content;
                self.origin = stronger.origin;
            }
        }
    }

    /// The strongest origin of anything in this.
    pub(super) fn strongest(&self) -> &Origin {
        let inside = match &self.content {
            Content::Table(entries) => entries.values().map(Self::strongest).max(),
            Content::List(_) | Content::Scalar(_) | Content::Text(_) => None,
        };
        inside.map_or(&self.origin, |inside| inside.max(&self.origin))
    }

    /// Notes the origin of every key that is not a table.
    pub(super) fn collect_origins(&self, origins: &mut BTreeMap<String, Origin>) {
        self.collect_origins_under("", origins);
    }

    fn collect_origins_under(&self, key: &str, origins: &mut BTreeMap<String, Origin>) {
        if let Content::Table(entries) = &self.content {
            for (name, node) in entries {
                node.collect_origins_under(&join(key, name), origins);
            }
        } else {
            origins.insert(key.to_owned(), self.origin.clone());
        }
    }
}

/// A file while it becomes a tree.
struct File<'a> {
    text: &'a str,
    path: &'a Path,
}

impl File<'_> {
    fn node(&self, value: Spanned<DeValue<'_>>) -> Result<Node, toml::de::Error> {
        let span = value.span();
        let origin = self.origin(span.start);
        let content = match value.into_inner() {
            DeValue::Table(table) => {
                let mut entries = BTreeMap::new();
                for (name, value) in table {
                    // A key's own place says more than that of its value, which may start lines below.
                    let line = self.origin(name.span().start);
                    let node = Node {
                        origin: line,
                        ..self.node(value)?
                    };
                    entries.insert(name.into_inner().into_owned(), node);
                }
                Content::Table(entries)
            }
            DeValue::Array(array) => Content::List(
                array
                    .into_iter()
                    .map(|value| self.node(value))
                    .collect::<Result<_, _>>()?,
            ),
            scalar => Content::Scalar(Value::deserialize(
                Spanned::new(span, scalar).into_deserializer(),
            )?),
        };
        Ok(Node { content, origin })
    }

    fn origin(&self, offset: usize) -> Origin {
        let line = 1 + self.text.as_bytes()[..offset]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        Origin::File {
            path: self.path.to_owned(),
            line,
        }
    }
}
