//! What each command does.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use iota_journal::SqliteJournal;
use iota_node::settings::SettingsError;
use iota_node::{Clock as _, Exit, Layers, Loaded, Shutdown, SystemClock, Telemetry};
use iota_orchestrator::{
    JOURNAL, LeftStore, Orchestrator, OrchestratorBuilder, Participants, RestoreOptions,
    ServerCertificate, Setup, SetupError, TimingOptions, check_addresses,
};
use iota_peer::Device;
use iota_testnet::{
    InvalidTestnet, Measurement, Testnet, TestnetSettings, folder, measure, summary,
};
use iota_trained::Sampling;

use crate::arguments::{self, Arguments, Command, Config, Resume, Serve};
use crate::history::{self, NotInThisRun};
use crate::model;

/// Does what was asked for.
pub(crate) fn execute(arguments: Arguments) -> anyhow::Result<Exit> {
    match arguments.command {
        Command::Testnet(flags) => testnet(&flags),
        Command::Serve(flags) => serve(flags),
        Command::Resume(flags) => resume(flags),
        Command::Fsck { out } => fsck(&out),
        Command::Backup { out, to } => backup(&out, &to),
        Command::AuditLedger { out, json } => history::audit_ledger(out, json),
        Command::Explain { what, which, out } => history::explain(what, &which, out),
        Command::Replay { at, out, json } => history::replay(at, out, json),
        Command::Export { model, to, numbers } => model::export(model, &to, numbers),
        Command::Generate {
            model,
            prompt,
            tokens,
            temperature,
            seed,
            threads,
        } => {
            let sampling = Sampling { temperature, seed };
            model::generate(model, &prompt, tokens, sampling, threads)
        }
        Command::Tolerances(flags) => tolerances(&flags),
        Command::Config {
            command: Config::Show(flags),
        } => {
            print!(
                "{}",
                load(
                    &TestnetSettings::default(),
                    flags.flags(),
                    flags.run.config.as_ref()
                )?
                .show()?
            );
            Ok(Exit::Done)
        }
    }
}

/// 2 for input that cannot be used, 1 for everything else.
pub(crate) fn exit_code(error: &anyhow::Error) -> Exit {
    let cannot_be = error.is::<SettingsError>()
        || error.is::<SetupError>()
        || error.is::<InvalidTestnet>()
        || error.is::<NotInThisRun>();
    if cannot_be {
        return Exit::Unusable;
    }
    if let Some(error) = error.downcast_ref::<iota_trained::Error>() {
        return trained_exit_code(error);
    }
    if let Some(error) = error.downcast_ref::<iota_orchestrator::Error>() {
        return orchestrator_exit_code(error);
    }
    if error.is::<iota_journal::Error>() {
        return Exit::Unusable;
    }
    match error.downcast_ref::<iota_testnet::Error>() {
        Some(iota_testnet::Error::Orchestrator(error)) => orchestrator_exit_code(error),
        Some(
            iota_testnet::Error::NotResumable { .. }
            | iota_testnet::Error::Settings(_)
            | iota_testnet::Error::Setup(_)
            | iota_testnet::Error::Folder { .. }
            | iota_testnet::Error::NotARunFolder { .. },
        ) => Exit::Unusable,
        Some(iota_testnet::Error::Interrupted) => Exit::Interrupted,
        _ => Exit::Failed,
    }
}

const fn trained_exit_code(error: &iota_trained::Error) -> Exit {
    use iota_trained::Error;
    match error {
        Error::NoPrompt | Error::Occupied { .. } => Exit::Unusable,
        _ => Exit::Failed,
    }
}

/// A folder or journal that cannot be resumed from is input; one that fails meanwhile is not.
const fn orchestrator_exit_code(error: &iota_orchestrator::Error) -> Exit {
    use iota_journal::Error as Journal;
    use iota_orchestrator::Error;
    match error {
        Error::NoRun { .. }
        | Error::Occupied { .. }
        | Error::NothingToRestore { .. }
        | Error::RunFile { .. }
        | Error::AnotherKey { .. }
        | Error::Tls(_)
        | Error::NoCertificate
        | Error::Journal(
            Journal::Missing { .. }
            | Journal::Exists { .. }
            | Journal::InUse { .. }
            | Journal::NotAJournal { .. }
            | Journal::Newer { .. }
            | Journal::Damaged { .. },
        ) => Exit::Unusable,
        _ => Exit::Failed,
    }
}

fn load(
    defaults: &TestnetSettings,
    flags: toml::Table,
    file: Option<&PathBuf>,
) -> Result<Loaded<TestnetSettings>, SettingsError> {
    // Variables of miners and validators, which may run from the same shell, are none of ours.
    let others = [
        "IOTA_ORCHESTRATOR",
        "IOTA_KEY",
        "IOTA_THREADS",
        "IOTA_DEVICE",
        "IOTA_PRECISION",
        "IOTA_DEVICE_FALLBACK",
        "IOTA_CUDA_KERNELS",
        "IOTA_CAPACITY",
        "IOTA_MEMORY_LIMIT_MIB",
        "IOTA_CA",
    ];
    let mut layers = Layers::new(defaults)?.reserve(others);
    if let Some(file) = file {
        layers = layers.file(file)?;
    }
    layers.environment(std::env::vars_os())?.flags(flags).load()
}

fn testnet(flags: &arguments::Testnet) -> anyhow::Result<Exit> {
    let settings = load(
        &TestnetSettings::default(),
        flags.flags(),
        flags.run.config.as_ref(),
    )?
    .settings;
    start_telemetry("warn")?;
    run_testnet(Testnet::new(settings)?)
}

fn tolerances(flags: &arguments::Tolerances) -> anyhow::Result<Exit> {
    let testnet = &flags.testnet;
    let file = testnet.run.config.as_ref();
    let settings = load(&TestnetSettings::default(), testnet.flags(), file)?.settings;
    let measurement = Measurement {
        device: Device::open(flags.device, None)?,
        precision: flags.miner_precision.into(),
        steps: flags.steps,
        epochs: flags.measured_epochs,
        margin: flags.margin,
        threads: flags.threads,
    };
    let measured = measure(&settings, &measurement)?;
    if flags.table {
        print!("{}", measured.table());
        return Ok(Exit::Done);
    }
    println!(
        "# Miners on {} in {:?} beside validators on the CPU in {:?}: {} times the worst of {} epochs of {} steps.",
        flags.device,
        measurement.precision,
        settings.training.precision,
        flags.margin,
        flags.measured_epochs,
        flags.steps,
    );
    print!("{}", measured.settings()?);
    Ok(Exit::Done)
}

/// The terminal belongs to the view; what is worth a warning is worth a line there all the same.
fn start_telemetry(unless_set: &str) -> anyhow::Result<()> {
    let mut telemetry = Telemetry::from_environment()?;
    if std::env::var_os("IOTA_LOG").is_none() {
        telemetry = telemetry.with_filter(unless_set);
    }
    Ok(telemetry.init()?)
}

fn run_testnet(testnet: Testnet) -> anyhow::Result<Exit> {
    let report = runtime()?.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        anyhow::Ok(testnet.run(&shutdown).await?)
    })?;
    print!("{}", summary(&report));
    Ok(if report.trained {
        Exit::Done
    } else {
        Exit::Failed
    })
}

fn resume(flags: Resume) -> anyhow::Result<Exit> {
    let Resume { out, tls, restore } = flags;
    // As settings are checked that say the same, and before there is a folder.
    let settings = TestnetSettings {
        tls_certificate: tls.tls_certificate.unwrap_or_default(),
        tls_key: tls.tls_key.unwrap_or_default(),
        ..TestnetSettings::default()
    };
    let certificate = certificate(&settings)?;
    if let Some(store) = restore.from_store {
        let variable = |name: &str| std::env::var(name).ok();
        let options = RestoreOptions {
            store: LeftStore::parse(&store, variable)
                .map_err(|problem| iota_orchestrator::Error::NothingToRestore { store, problem })?,
            run: restore.run,
            key_file: restore.key,
            listen: restore.listen,
            store_listen: restore.store_listen,
            store_url: restore.store_url,
        };
        restore_folder(&options, &out)?;
    }
    if folder::holds_testnet(&out) {
        settings.validate()?;
        start_telemetry("warn")?;
        return run_testnet(Testnet::resume(out)?);
    }
    Telemetry::from_environment()?.init()?;
    let mut builder = Orchestrator::resume(out)?;
    if let Some(certificate) = certificate {
        builder = builder.with_certificate(certificate);
    }
    serve_until_over(builder)
}

/// What a served run shows, if it is to be encrypted.
fn certificate(settings: &TestnetSettings) -> anyhow::Result<Option<ServerCertificate>> {
    let files = settings.certificate_files()?;
    let certificate = files.as_ref().map(ServerCertificate::from_files);
    Ok(certificate
        .transpose()
        .map_err(iota_orchestrator::Error::from)?)
}

/// Makes `out` the folder of the run that is left in a store, and says what is lost.
fn restore_folder(options: &RestoreOptions, out: &Path) -> anyhow::Result<()> {
    let now = SystemClock::new().now();
    let restored = runtime()?.block_on(Orchestrator::restore(options, out, now))?;
    for (number, problem) in &restored.passed_over {
        eprintln!("backup {number} cannot be used: {problem}");
    }
    let lost = now.since(restored.until).as_secs();
    eprintln!(
        "{} is restored to {} as it was {lost} s ago, from backup {}; it goes on from the checkpoint of {}",
        restored.run,
        out.display(),
        restored.backup,
        restored.epoch
    );
    if let Some(epoch) = restored.lost_epoch {
        eprintln!(
            "the store has checkpoints up to {epoch}, but nobody knows what led to them; they will be replaced"
        );
    }
    Ok(())
}

fn fsck(out: &Path) -> anyhow::Result<Exit> {
    let journal = SqliteJournal::open_for_reading(out.join(JOURNAL))?;
    let checked = journal.check()?;
    println!(
        "{} is as it was written: {} events in {} entries, {} snapshots that a replay leads to",
        journal.path().display(),
        checked.events,
        checked.entries,
        checked.snapshots
    );
    Ok(Exit::Done)
}

fn backup(out: &Path, to: &Path) -> anyhow::Result<Exit> {
    SqliteJournal::open_for_reading(out.join(JOURNAL))?.backup(to)?;
    println!(
        "{} can take the place of {}",
        to.display(),
        out.join(JOURNAL).display()
    );
    Ok(Exit::Done)
}

fn serve(flags: Serve) -> anyhow::Result<Exit> {
    // Between machines silence means less than on one.
    let defaults = TestnetSettings {
        timing: TimingOptions::default(),
        ..TestnetSettings::default()
    };
    let settings = load(&defaults, flags.flags(), flags.run.config.as_ref())?.settings;
    let certificate = certificate(&settings)?;
    Telemetry::from_environment()?.init()?;
    let participants = Participants {
        miners_to_start: flags.miners_to_start,
        validators: flags.validators,
    };
    let setup = Setup::new(&settings.run_options(), participants)?;
    let store_url = settings.store_url()?;
    check_addresses(&[settings.listen, settings.store_listen])?;
    // Before the folder is touched: a key that cannot be used is learned of now.
    iota_identity::load_or_create(&flags.key)
        .with_context(|| format!("the orchestrator's key, {}", flags.key.display()))?;
    if let Some(earlier) = folder::prepare(&settings.out)? {
        eprintln!(
            "the earlier run in {} is now in {}",
            settings.out.display(),
            earlier.display()
        );
    }
    let mut builder = Orchestrator::builder(setup, &settings.out)
        .with_listen(settings.listen)
        .with_store_listen(settings.store_listen)
        .with_key_file(flags.key);
    if let Some(url) = store_url {
        builder = builder.with_store_url(url);
    }
    if let Some(certificate) = certificate {
        builder = builder.with_certificate(certificate);
    }
    serve_until_over(builder)
}

fn serve_until_over(builder: OrchestratorBuilder) -> anyhow::Result<Exit> {
    runtime()?.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        let orchestrator = builder.start(&Shutdown::new()).await?;
        println!("serving {} at {}", orchestrator.run(), orchestrator.url());
        let mut state = orchestrator.state();
        let samples_per_epoch = state.borrow().settings().samples_per_epoch;
        let status = orchestrator.status();
        let viewing = tokio::spawn(iota_testnet::show(status, samples_per_epoch));
        let interrupted = tokio::select! {
            over = state.wait_for(|state| state.is_over()) => { drop(over); false }
            // What failed is said by finish().
            () = orchestrator.broken() => false,
            () = shutdown.wait() => true,
        };
        if interrupted {
            orchestrator.suspend();
        }
        orchestrator.finish().await?;
        viewing.await?;
        Ok(if interrupted {
            eprintln!("`iota-orchestrator resume` goes on with this run");
            Exit::Interrupted
        } else {
            Exit::Done
        })
    })
}

pub(crate) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
}
