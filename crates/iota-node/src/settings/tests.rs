use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::toml;

use super::*;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    name: String,
    listen: Option<String>,
    run: Run,
    optimizer: Optimizer,
    #[serde(default)]
    labels: BTreeMap<String, u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Run {
    epochs: u64,
    stage_layers: Vec<u16>,
    learning_rate: f32,
    secret_word: Word,
    dry: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Word(String);

impl TryFrom<String> for Word {
    type Error = &'static str;

    fn try_from(word: String) -> Result<Self, &'static str> {
        if word.contains(' ') {
            Err("a word has no spaces")
        } else {
            Ok(Self(word))
        }
    }
}

impl From<Word> for String {
    fn from(word: Word) -> Self {
        word.0
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Optimizer {
    Plain,
    AdamW { beta1: f32 },
    Muon { momentum: f32 },
}

fn defaults() -> Settings {
    Settings {
        name: "run".to_owned(),
        listen: None,
        run: Run {
            epochs: 1,
            stage_layers: vec![2, 2],
            learning_rate: 0.5,
            secret_word: Word("hush".to_owned()),
            dry: false,
        },
        optimizer: Optimizer::AdamW { beta1: 0.5 },
        labels: BTreeMap::new(),
    }
}

fn layers() -> Layers {
    Layers::new(&defaults()).unwrap()
}

/// The defaults under a file with this text, which is called `iota.toml` in its folder.
fn with_file(text: &str) -> (Result<Loaded<Settings>, SettingsError>, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("iota.toml");
    std::fs::write(&path, text).unwrap();
    (layers().file(&path).and_then(Layers::load), path)
}

fn with_variables(pairs: &[(&str, &str)]) -> Result<Loaded<Settings>, SettingsError> {
    layers()
        .environment(
            pairs
                .iter()
                .map(|(name, value)| (name.into(), value.into())),
        )?
        .load()
}

/// The message of the error that this file gives, with the folder left out.
fn file_error(text: &str) -> String {
    let (loaded, path) = with_file(text);
    let folder = format!("{}/", path.parent().unwrap().display());
    loaded.unwrap_err().to_string().replace(&folder, "")
}

fn variable_error(name: &str, value: &str) -> String {
    with_variables(&[(name, value)]).unwrap_err().to_string()
}

#[test]
fn defaults_alone_load_to_themselves() {
    assert_eq!(layers().load::<Settings>().unwrap().settings, defaults());
}

#[test]
fn each_layer_wins_over_those_below_and_leaves_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("iota.toml");
    std::fs::write(
        &path,
        "name = 'file'\nlisten = ':1'\n[run]\nepochs = 2\nlearning_rate = 2\n",
    )
    .unwrap();
    let loaded = layers()
        .file(&path)
        .unwrap()
        .environment([
            ("IOTA_NAME".into(), "variable".into()),
            ("IOTA_RUN__EPOCHS".into(), "3".into()),
        ])
        .unwrap()
        .flags(toml! { run.epochs = 4 })
        .load::<Settings>()
        .unwrap();
    let run = Run {
        epochs: 4,
        learning_rate: 2.0,
        ..defaults().run
    };
    let expected = Settings {
        name: "variable".to_owned(),
        listen: Some(":1".to_owned()),
        run,
        ..defaults()
    };
    assert_eq!(loaded.settings, expected);
    assert_eq!(loaded.origin("run.epochs"), Some(&Origin::Flags));
    assert_eq!(
        loaded.origin("name"),
        Some(&Origin::Variable("IOTA_NAME".to_owned()))
    );
    assert_eq!(
        loaded.origin("run.learning_rate"),
        Some(&Origin::File { path, line: 5 })
    );
    assert_eq!(loaded.origin("run.dry"), Some(&Origin::Default));
}

#[test]
fn a_list_is_replaced_whole() {
    let (loaded, _) = with_file("run.stage_layers = [7]");
    assert_eq!(loaded.unwrap().settings.run.stage_layers, [7]);
}

#[test]
fn a_variable_is_read_as_the_type_asks() {
    let loaded = with_variables(&[
        ("IOTA_NAME", "42"),
        ("IOTA_LISTEN", "true"),
        ("IOTA_RUN__STAGE_LAYERS", "[1, 2, 3]"),
        ("IOTA_RUN__DRY", "true"),
        ("IOTA_RUN__LEARNING_RATE", "3"),
        ("IOTA_OPTIMIZER", "plain"),
        ("IOTA_LABELS__GPU", "8"),
    ])
    .unwrap()
    .settings;
    assert_eq!(
        (loaded.name.as_str(), loaded.listen.as_deref()),
        ("42", Some("true"))
    );
    assert_eq!(
        (
            loaded.run.stage_layers,
            loaded.run.dry,
            loaded.run.learning_rate
        ),
        (vec![1, 2, 3], true, 3.0)
    );
    assert_eq!(
        (loaded.optimizer, loaded.labels["gpu"]),
        (Optimizer::Plain, 8)
    );
}

#[test]
fn a_variable_may_hold_a_whole_table() {
    let loaded = with_variables(&[("IOTA_OPTIMIZER", "{ muon = { momentum = 0.25 } }")]).unwrap();
    assert_eq!(
        loaded.settings.optimizer,
        Optimizer::Muon { momentum: 0.25 }
    );
    let from = Origin::Variable("IOTA_OPTIMIZER".to_owned());
    assert_eq!(loaded.origin("optimizer.muon.momentum"), Some(&from));
    assert!(loaded.show().unwrap().contains("# IOTA_OPTIMIZER\n"));
}

#[test]
fn a_variant_in_a_stronger_layer_replaces_another_variant_below() {
    let (loaded, _) = with_file("optimizer.muon.momentum = 0.25");
    assert_eq!(
        loaded.unwrap().settings.optimizer,
        Optimizer::Muon { momentum: 0.25 }
    );
    let (loaded, _) = with_file("optimizer = 'plain'");
    assert_eq!(loaded.unwrap().settings.optimizer, Optimizer::Plain);
}

#[test]
fn foreign_and_reserved_variables_are_left_alone() {
    let environment = [
        ("PATH", "/bin"),
        ("IOTA_LOG", "debug"),
        ("IOTA_LOG_FORMAT", "json"),
        ("IOTA_KEY", "file"),
    ];
    let layers = layers().reserve(["IOTA_KEY"]);
    let layers = layers
        .environment(environment.map(|(name, value)| (name.into(), value.into())))
        .unwrap();
    assert_eq!(layers.load::<Settings>().unwrap().settings, defaults());
}

#[test]
fn an_unknown_key_in_a_file_names_its_line_and_its_neighbour() {
    assert_eq!(
        file_error("name = 'a'\n\n[run]\nepoch = 2\n"),
        r#"there is no setting "run.epoch" (iota.toml:4); did you mean "run.epochs"?"#,
    );
}

#[test]
fn an_unknown_key_like_no_other_names_all_there_are() {
    assert_eq!(
        file_error("optimizer.adam_w.temperature = 1\n"),
        r#"there is no setting "optimizer.adam_w.temperature" (iota.toml:1); there are "optimizer.adam_w.beta1""#,
    );
}

#[test]
fn an_unknown_table_is_reported_where_it_was_written() {
    let message = file_error("name = 'a'\n[optimiser.muon]\nmomentum = 0.5\n");
    assert!(
        message.starts_with(r#"there is no setting "optimiser" (iota.toml:"#),
        "{message}"
    );
    assert!(
        message.ends_with(r#"did you mean "optimizer"?"#),
        "{message}"
    );
}

#[test]
fn an_unknown_variable_names_the_right_one() {
    assert_eq!(
        variable_error("IOTA_RUN__EPOCH", "2"),
        r#"there is no setting "run.epoch" (IOTA_RUN__EPOCH); did you mean IOTA_RUN__EPOCHS?"#,
    );
}

#[test]
fn an_unknown_flag_says_so() {
    let error = layers()
        .flags(toml! { nme = "a" })
        .load::<Settings>()
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        r#"there is no setting "nme" (command line); did you mean "name"?"#
    );
}

#[test]
fn a_value_of_the_wrong_type_names_key_and_place() {
    for (text, expected) in [
        (
            "run.epochs = 'many'",
            r#"run.epochs: invalid type: string "many", expected u64 (iota.toml:1)"#,
        ),
        (
            "\nrun.epochs = -1",
            "run.epochs: invalid value: integer `-1`, expected u64 (iota.toml:2)",
        ),
        (
            "[run]\nstage_layers = [\n  1,\n  'two',\n]",
            r#"run.stage_layers[1]: invalid type: string "two", expected u16 (iota.toml:4)"#,
        ),
        (
            "run.secret_word = 'a b'",
            "run.secret_word: a word has no spaces (iota.toml:1)",
        ),
        (
            "optimizer = 'plane'",
            r#"optimizer: there is no "plane"; did you mean "plain"? (iota.toml:1)"#,
        ),
        (
            "optimizer.muom.momentum = 0.5",
            r#"optimizer.muom: there is no "muom"; did you mean "muon"? (iota.toml:1)"#,
        ),
        (
            "[optimizer.muon]\nmomentum = 'high'",
            r#"optimizer.muon.momentum: invalid type: string "high", expected f32 (iota.toml:2)"#,
        ),
        (
            "labels.gpu = -1",
            "labels.gpu: invalid value: integer `-1`, expected u32 (iota.toml:1)",
        ),
        (
            "optimizer = 3",
            "optimizer: expected a name or a table of one name (iota.toml:1)",
        ),
    ] {
        assert_eq!(file_error(text), expected);
    }
    assert_eq!(
        variable_error("IOTA_RUN__EPOCHS", "many"),
        r#"run.epochs: invalid type: string "many", expected u64 (IOTA_RUN__EPOCHS)"#,
    );
}

#[test]
fn a_variable_cannot_smuggle_in_a_second_setting() {
    let message = variable_error("IOTA_RUN__EPOCHS", "1\nname = 2");
    assert!(
        message.starts_with("run.epochs: invalid type: string"),
        "{message}"
    );
}

#[test]
fn contradicting_variables_are_an_error() {
    let error = with_variables(&[("IOTA_RUN", "{}"), ("IOTA_RUN__EPOCHS", "1")]).unwrap_err();
    assert!(
        matches!(&error, SettingsError::Variable { name, .. } if name == "IOTA_RUN__EPOCHS"),
        "{error}"
    );
}

#[test]
fn a_missing_setting_says_how_to_give_it() {
    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read by serde")]
    struct Outer {
        inner: Inner,
    }
    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read by serde")]
    struct Inner {
        key_file: String,
    }
    let layers = Layers::new(&Table::new())
        .unwrap()
        .flags(toml! { inner = {} });
    let error = layers.load::<Outer>().unwrap_err().to_string();
    assert_eq!(
        error,
        r#"the setting "inner.key_file" is missing; set it in the settings file or as IOTA_INNER__KEY_FILE"#
    );
}

#[test]
fn a_file_that_is_not_toml_says_where() {
    let (loaded, _) = with_file("name = 'a'\nrun = [");
    let error = loaded.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("line 2"), "{source}");
}

#[test]
fn a_file_that_is_not_there_is_an_error_with_its_path() {
    let error = layers()
        .file(Path::new("/nonexistent/iota.toml"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "the settings file /nonexistent/iota.toml cannot be read"
    );
}

#[test]
fn what_is_shown_loads_again_to_the_same_settings() {
    let loaded = layers()
        .environment([
            ("IOTA_RUN__EPOCHS".into(), "3".into()),
            ("IOTA_NAME".into(), "quote \" and # and \\".into()),
            ("IOTA_LABELS".into(), "{ 'a b' = 1, \"c.d\" = 2 }".into()),
        ])
        .unwrap()
        .load::<Settings>()
        .unwrap();
    let shown = loaded.show().unwrap();
    let (again, _) = with_file(&shown);
    assert_eq!(again.unwrap().settings, loaded.settings, "{shown}");
    let epochs = shown
        .lines()
        .find(|line| line.starts_with("run.epochs"))
        .unwrap();
    assert!(
        epochs.starts_with("run.epochs = 3 ") && epochs.ends_with("  # IOTA_RUN__EPOCHS"),
        "{epochs}"
    );
}
