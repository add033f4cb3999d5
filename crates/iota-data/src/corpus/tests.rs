use std::fs;

use proptest::prelude::*;

use super::*;

fn corpus(texts: &[&str]) -> Corpus {
    let document = |(index, text): (usize, &&str)| Document {
        name: index.to_string(),
        text: (*text).to_owned(),
    };
    Corpus::from_documents(texts.iter().enumerate().map(document).collect()).unwrap()
}

fn texts(corpus: &Corpus) -> Vec<&str> {
    corpus
        .documents()
        .iter()
        .map(|document| document.text.as_str())
        .collect()
}

#[test]
fn the_bundled_text_is_the_one_that_is_pinned() {
    let corpus = Corpus::bundled();
    let text = &corpus.documents()[0].text;
    assert_eq!(text.len(), BUNDLED_BYTES);
    assert!(text.len() >= 1 << 20);
    assert!(text.is_ascii());
    assert_eq!(
        blake3::hash(text.as_bytes()).to_string(),
        "8fc5843289f1ff19c0b267b50c914c2cd7ed6a6a50fc6fcc0633b2b85248bb2e"
    );
}

#[test]
fn a_folder_is_read_in_the_order_of_names_without_what_is_hidden() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("b/deep")).unwrap();
    fs::create_dir_all(at(".git")).unwrap();
    for (name, text) in [
        ("c.txt", "third"),
        ("b/deep/x", "second"),
        ("a.txt", "first"),
        (".hidden", "no"),
        (".git/x", "no"),
        ("a", ""),
    ] {
        fs::write(at(name), text).unwrap();
    }
    let corpus = Corpus::load(folder.path()).unwrap();
    assert_eq!(texts(&corpus), ["first", "second", "third"]);
    assert_eq!(corpus.documents()[1].name, "b/deep/x");
    assert_eq!(corpus.length_bytes(), 16);
}

#[test]
fn a_file_is_one_document() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("story.txt");
    fs::write(&path, "Once upon a time…").unwrap();
    let expected = Document {
        name: "story.txt".to_owned(),
        text: "Once upon a time…".to_owned(),
    };
    assert_eq!(Corpus::load(&path).unwrap().documents(), [expected]);
}

#[cfg(unix)]
#[test]
fn links_to_files_are_read_and_links_to_folders_are_not() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("text"), "once").unwrap();
    std::os::unix::fs::symlink(folder.path(), folder.path().join("circle")).unwrap();
    std::os::unix::fs::symlink(folder.path().join("text"), folder.path().join("twice")).unwrap();
    assert_eq!(
        texts(&Corpus::load(folder.path()).unwrap()),
        ["once", "once"]
    );

    std::os::unix::fs::symlink(folder.path().join("gone"), folder.path().join("broken")).unwrap();
    let error = Corpus::load(folder.path()).unwrap_err();
    assert!(
        matches!(&error, Error::Unreadable { path, .. } if path.ends_with("broken")),
        "{error:?}"
    );
}

#[test]
fn a_corpus_that_is_not_there_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nowhere");
    assert!(matches!(Corpus::load(&path), Err(Error::Missing { path: named }) if named == path));
}

#[test]
fn a_corpus_without_text_is_empty() {
    let folder = tempfile::tempdir().unwrap();
    assert!(
        matches!(Corpus::load(folder.path()), Err(Error::Empty { path }) if path == folder.path())
    );
    let file = folder.path().join("nothing.txt");
    fs::write(&file, "").unwrap();
    assert!(matches!(Corpus::load(&file), Err(Error::Empty { path }) if path == file));
    assert!(matches!(
        Corpus::load(folder.path()),
        Err(Error::Empty { .. })
    ));
}

#[test]
fn a_file_that_is_not_text_is_named_with_the_place() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("good.txt"), "fine").unwrap();
    fs::write(folder.path().join("bad.txt"), b"fin\xff").unwrap();
    let error = Corpus::load(folder.path()).unwrap_err();
    assert!(
        matches!(&error, Error::NotUtf8 { path, offset_bytes: 3 } if path.ends_with("bad.txt")),
        "{error:?}"
    );
}

#[test]
fn the_split_falls_where_a_line_or_a_document_begins() {
    let check = |whole: &[&str], fraction: f64, training: &[&str], held_out: &[&str]| {
        let parts = corpus(whole).split(fraction).unwrap();
        assert_eq!(texts(&parts.training), training);
        assert_eq!(texts(&parts.held_out), held_out);
    };
    check(&["one\ntwo\nsix\n"], 0.25, &["one\ntwo\n"], &["six\n"]);
    check(&["one\ntwo\nsix\n"], 0.1, &["one\ntwo\n"], &["six\n"]);
    check(&["one\ntwo\nsix\n"], 0.9, &["one\n"], &["two\nsix\n"]);
    check(&["four", "four"], 0.5, &["four"], &["four"]);
    check(
        &["a\nb\n", "c\nd\n", "e\nf\n"],
        0.5,
        &["a\nb\n", "c\n"],
        &["d\n", "e\nf\n"],
    );
    check(&["no break"], 0.5, &["no b"], &["reak"]);
    check(&["ééé"], 0.5, &["é"], &["éé"]);
    check(&["a single line\n"], 0.5, &["a singl"], &["e line\n"]);
    check(
        &["a single line\n", "another\n"],
        0.5,
        &["a single line\n"],
        &["another\n"],
    );
}

#[test]
fn a_split_that_leaves_a_part_empty_is_refused() {
    for fraction in [0.0, 1.0, -0.5, f64::NAN, f64::INFINITY] {
        assert!(
            matches!(
                corpus(&["one\ntwo\n"]).split(fraction),
                Err(Error::Split { bytes: 8, .. })
            ),
            "{fraction}"
        );
    }
    assert!(matches!(
        corpus(&["x"]).split(0.5),
        Err(Error::Split { bytes: 1, .. })
    ));
}

proptest! {
    #[test]
    fn a_split_loses_nothing(
        documents in prop::collection::vec("[a-zé\n]{0,30}", 1..6), fraction in 0.001_f64..0.999,
    ) {
        let whole: String = documents.concat();
        let documents = documents.into_iter().map(|text| Document { name: String::new(), text }).collect();
        if let Some(Ok(parts)) = Corpus::from_documents(documents).map(|corpus| corpus.split(fraction)) {
            prop_assert_eq!(texts(&parts.training).concat() + &texts(&parts.held_out).concat(), whole);
        }
    }
}
