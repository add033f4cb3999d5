//! Runs that begin and go on.

use iota_tls::CertificateFiles;
use iota_tls::testing::Authority;

use super::*;
use crate::testing::setup;

async fn started(builder: OrchestratorBuilder) -> Result<Orchestrator, Error> {
    builder.start(&Shutdown::new()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_under_its_addresses_and_with_its_key_only() {
    let folder = tempfile::tempdir().unwrap();
    let first = started(Orchestrator::builder(setup(1), folder.path()))
        .await
        .unwrap();
    let (url, run) = (first.url().to_owned(), first.run());
    let again = started(Orchestrator::resume(folder.path()).unwrap()).await;
    assert!(
        matches!(
            again,
            Err(Error::Journal(iota_journal::Error::InUse { .. }))
        ),
        "it is being served"
    );
    first.suspend();
    let (state, _) = first.finish().await.unwrap();
    assert!(!state.is_over());

    let stranger = Orchestrator::resume(folder.path())
        .unwrap()
        .with_keypair(Keypair::generate());
    assert!(matches!(
        started(stranger).await,
        Err(Error::AnotherKey { .. })
    ));
    let second = started(Orchestrator::resume(folder.path()).unwrap())
        .await
        .unwrap();
    assert_eq!((second.url(), second.run()), (url.as_str(), run));
    second.stop().await;
    let (state, _) = second.finish().await.unwrap();
    assert!(state.is_over());

    // A run that is over can be resumed too: it is over.
    let third = started(Orchestrator::resume(folder.path()).unwrap())
        .await
        .unwrap();
    let (state, _) = third.finish().await.unwrap();
    assert!(state.is_over());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_encrypted_does_not_go_on_unencrypted() {
    let folder = tempfile::tempdir().unwrap();
    let (run, certificate, key) = (
        folder.path().join("run"),
        folder.path().join("certificate.pem"),
        folder.path().join("key.pem"),
    );
    let authority = Authority::new();
    let issued = authority.issue(&["127.0.0.1"]);
    std::fs::write(&certificate, issued.certificate).unwrap();
    std::fs::write(&key, issued.key).unwrap();
    std::fs::create_dir(&run).unwrap();

    // Begun with a certificate that a program brings, it needs one again.
    let builder = Orchestrator::builder(setup(1), &run);
    let brought = authority.server(&["127.0.0.1"]);
    let first = started(builder.with_certificate(brought)).await.unwrap();
    let url = first.url().to_owned();
    assert!(url.starts_with("https://"), "{url}");
    first.suspend();
    first.finish().await.unwrap();
    let none = started(Orchestrator::resume(&run).unwrap()).await;
    assert!(matches!(none, Err(Error::NoCertificate)));

    // Given one in files, it finds these again without being told.
    let files = CertificateFiles { certificate, key };
    let read = ServerCertificate::from_files(&files).unwrap();
    for given in [Some(read), None] {
        let mut builder = Orchestrator::resume(&run).unwrap();
        if let Some(certificate) = given {
            builder = builder.with_certificate(certificate);
        }
        let again = started(builder).await.unwrap();
        assert_eq!(again.url(), url);
        again.suspend();
        again.finish().await.unwrap();
    }
    std::fs::remove_file(&files.key).unwrap();
    let gone = started(Orchestrator::resume(&run).unwrap()).await;
    let error = gone.err().unwrap();
    assert!(matches!(error, Error::Tls(_)), "{error:?}");
    assert!(error.to_string().contains("key.pem"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_lost_its_end_is_not_gone_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let first = started(Orchestrator::builder(setup(1), folder.path()))
        .await
        .unwrap();
    first.stop().await;
    first.finish().await.unwrap();
    let journal = folder.path().join(JOURNAL);
    std::fs::remove_file(&journal).unwrap();
    let missing = started(Orchestrator::resume(folder.path()).unwrap()).await;
    assert!(matches!(
        missing,
        Err(Error::Journal(iota_journal::Error::Missing { .. }))
    ));
    // A journal of the same run from before its last entry, such as an old backup.
    let mut older = SqliteJournal::create(&journal).unwrap();
    older
        .begin(&Genesis {
            settings: setup(1).settings().clone(),
            began: Timestamp::default(),
        })
        .unwrap();
    drop(older);
    let older = started(Orchestrator::resume(folder.path()).unwrap()).await;
    assert!(matches!(
        older,
        Err(Error::Journal(iota_journal::Error::Damaged { .. }))
    ));
}

#[test]
fn a_folder_without_a_run_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let nothing = Orchestrator::resume(folder.path());
    assert!(matches!(nothing, Err(Error::NoRun { .. })));
    std::fs::write(folder.path().join("run.json"), "{}").unwrap();
    let unusable = Orchestrator::resume(folder.path());
    assert!(matches!(unusable, Err(Error::RunFile { .. })));
}
