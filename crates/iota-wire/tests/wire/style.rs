//! buf's STANDARD rules that apply to `proto/`, and that every name has a comment.

use std::collections::{BTreeMap, HashSet};

use iota_wire::proto::DESCRIPTOR;
use prost::Message as _;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

/// Numbers of fields in `google/protobuf/descriptor.proto`: the steps of a path to a comment.
const MESSAGES: i32 = 4;
const ENUMS: i32 = 5;
const SERVICES: i32 = 6;
const FIELDS_OR_VALUES_OR_METHODS: i32 = 2;
const ONEOFS: i32 = 8;

fn files() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(DESCRIPTOR).unwrap();
    assert!(set.file.len() >= 5, "the descriptor holds all files");
    set.file
}

fn camel_case(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_uppercase())
        && name.chars().all(|c| c.is_ascii_alphanumeric())
}

fn snake_case(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn upper_snake(name: &str) -> String {
    let mut upper = String::new();
    for (index, c) in name.char_indices() {
        if index > 0 && c.is_ascii_uppercase() {
            upper.push('_');
        }
        upper.push(c.to_ascii_uppercase());
    }
    upper
}

#[test]
fn files_lie_where_their_package_says() {
    for file in files() {
        let folder = file.package().replace('.', "/");
        let name = file
            .name()
            .strip_prefix(&format!("{folder}/"))
            .expect("in the folder of its package");
        assert!(snake_case(name.strip_suffix(".proto").unwrap()), "{name}");
        assert_eq!(file.package(), "iota.v1");
        assert_eq!(file.syntax(), "proto3");
    }
}

#[test]
fn every_name_has_a_comment() {
    let mut uncommented = Vec::new();
    for file in files() {
        let comments: HashSet<Vec<i32>> = file
            .source_code_info
            .clone()
            .unwrap()
            .location
            .into_iter()
            .filter(|location| !location.leading_comments().trim().is_empty())
            .map(|location| location.path)
            .collect();
        for (path, name) in names(&file) {
            if !comments.contains(&path) {
                uncommented.push(name);
            }
        }
    }
    assert_eq!(uncommented, Vec::<String>::new());
}

/// Everything that has a name, with its path in the descriptor. Messages and enumerations are not nested here.
fn names(file: &FileDescriptorProto) -> BTreeMap<Vec<i32>, String> {
    let mut names = BTreeMap::new();
    let index = |number: usize| i32::try_from(number).unwrap();
    for (m, message) in file.message_type.iter().enumerate() {
        assert!(
            message.nested_type.is_empty() && message.enum_type.is_empty(),
            "{} nests",
            message.name()
        );
        names.insert(vec![MESSAGES, index(m)], message.name().to_owned());
        for (f, field) in message.field.iter().enumerate() {
            let path = vec![MESSAGES, index(m), FIELDS_OR_VALUES_OR_METHODS, index(f)];
            names.insert(path, format!("{}.{}", message.name(), field.name()));
        }
        for (o, oneof) in message.oneof_decl.iter().enumerate() {
            // `optional` makes a oneof of its own, which nobody writes.
            if !oneof.name().starts_with('_') {
                let path = vec![MESSAGES, index(m), ONEOFS, index(o)];
                names.insert(path, format!("{}.{}", message.name(), oneof.name()));
            }
        }
    }
    for (e, enumeration) in file.enum_type.iter().enumerate() {
        names.insert(vec![ENUMS, index(e)], enumeration.name().to_owned());
        for (v, value) in enumeration.value.iter().enumerate() {
            let path = vec![ENUMS, index(e), FIELDS_OR_VALUES_OR_METHODS, index(v)];
            names.insert(path, value.name().to_owned());
        }
    }
    for (s, service) in file.service.iter().enumerate() {
        names.insert(vec![SERVICES, index(s)], service.name().to_owned());
        for (m, method) in service.method.iter().enumerate() {
            let path = vec![SERVICES, index(s), FIELDS_OR_VALUES_OR_METHODS, index(m)];
            names.insert(path, format!("{}.{}", service.name(), method.name()));
        }
    }
    names
}

#[test]
fn every_call_has_a_request_and_a_response_of_its_own() {
    let mut used = HashSet::new();
    let mut calls = 0;
    for service in files().into_iter().flat_map(|file| file.service) {
        assert!(service.name().ends_with("Service"), "{}", service.name());
        for method in service.method {
            calls += 1;
            assert_eq!(
                method.input_type(),
                format!(".iota.v1.{}Request", method.name())
            );
            assert_eq!(
                method.output_type(),
                format!(".iota.v1.{}Response", method.name())
            );
            assert!(
                used.insert(method.input_type().to_owned())
                    && used.insert(method.output_type().to_owned())
            );
        }
    }
    assert_eq!(calls, 7);
}

#[test]
fn the_comment_of_every_call_says_what_a_caller_must_know() {
    for file in files() {
        for location in file.source_code_info.clone().unwrap().location {
            let [SERVICES, _, FIELDS_OR_VALUES_OR_METHODS, _] = location.path[..] else {
                continue;
            };
            let comment = location.leading_comments();
            for word in ["Auth:", "Deadline:", "Retry:"] {
                assert!(comment.contains(word), "{word} is missing in {comment:?}");
            }
            assert!(
                comment.contains("Idempotency:") || comment.contains("Changes nothing."),
                "{comment:?}"
            );
        }
    }
}

#[test]
fn enumerations_begin_with_an_unspecified_zero_and_prefix_their_values() {
    let enumerations: Vec<EnumDescriptorProto> = files()
        .into_iter()
        .flat_map(|file| file.enum_type)
        .collect();
    assert!(!enumerations.is_empty());
    for enumeration in enumerations {
        let prefix = upper_snake(enumeration.name());
        assert_eq!(enumeration.value[0].name(), format!("{prefix}_UNSPECIFIED"));
        assert_eq!(enumeration.value[0].number(), 0);
        for value in &enumeration.value {
            assert!(
                value.name().starts_with(&format!("{prefix}_")),
                "{}",
                value.name()
            );
        }
    }
}

#[test]
fn names_are_cased_and_times_and_lengths_wear_their_unit() {
    let messages: Vec<DescriptorProto> = files()
        .into_iter()
        .flat_map(|file| file.message_type)
        .collect();
    assert!(!messages.is_empty());
    for message in messages {
        assert!(camel_case(message.name()), "{}", message.name());
        for field in &message.field {
            let name = format!("{}.{}", message.name(), field.name());
            assert!(snake_case(field.name()), "{name}");
            for (word, units) in [
                ("length", "_bytes"),
                ("deadline", "_ms"),
                ("issued_at", "_ms"),
                ("elapsed", "_ms"),
            ] {
                if field.name().starts_with(word) {
                    assert!(
                        field.name().ends_with(units),
                        "{name} lacks its unit {units}"
                    );
                }
            }
        }
    }
}
