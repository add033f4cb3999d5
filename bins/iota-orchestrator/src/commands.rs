//! What each command does.

use std::path::PathBuf;

use anyhow::Context as _;
use iota_node::settings::SettingsError;
use iota_node::{Exit, Layers, Loaded, Shutdown, Telemetry};
use iota_orchestrator::{
    Orchestrator, Participants, Setup, SetupError, TimingOptions, check_addresses,
};
use iota_testnet::{Testnet, TestnetSettings, folder, summary};

use crate::arguments::{self, Arguments, Command, Config, Serve};

/// Does what was asked for.
pub(crate) fn execute(arguments: Arguments) -> anyhow::Result<Exit> {
    match arguments.command {
        Command::Testnet(flags) => testnet(&flags),
        Command::Serve(flags) => serve(flags),
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
    if error.is::<SettingsError>() || error.is::<SetupError>() {
        return Exit::Unusable;
    }
    match error.downcast_ref::<iota_testnet::Error>() {
        Some(
            iota_testnet::Error::Settings(_)
            | iota_testnet::Error::Setup(_)
            | iota_testnet::Error::Folder { .. }
            | iota_testnet::Error::NotARunFolder { .. },
        ) => Exit::Unusable,
        Some(iota_testnet::Error::Interrupted) => Exit::Interrupted,
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
        "IOTA_CAPACITY",
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
    let mut telemetry = Telemetry::from_environment()?;
    if std::env::var_os("IOTA_LOG").is_none() {
        // The terminal belongs to the view; what is worth a warning is worth a line there all the same.
        telemetry = telemetry.with_filter("warn");
    }
    telemetry.init()?;
    let testnet = Testnet::new(settings)?;
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

fn serve(flags: Serve) -> anyhow::Result<Exit> {
    // Between machines silence means less than on one.
    let defaults = TestnetSettings {
        timing: TimingOptions::default(),
        ..TestnetSettings::default()
    };
    let settings = load(&defaults, flags.run.flags(), flags.run.config.as_ref())?.settings;
    Telemetry::from_environment()?.init()?;
    let participants = Participants {
        miners_to_start: flags.miners_to_start,
        validators: flags.validators,
    };
    let setup = Setup::new(&settings.run_options(), participants)?;
    check_addresses(&[settings.listen, settings.store_listen])?;
    let keypair = iota_identity::load_or_create(&flags.key)
        .with_context(|| format!("the orchestrator's key, {}", flags.key.display()))?;
    if let Some(earlier) = folder::prepare(&settings.out)? {
        eprintln!(
            "the earlier run in {} is now in {}",
            settings.out.display(),
            earlier.display()
        );
    }
    runtime()?.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        let mut builder = Orchestrator::builder(setup, &settings.out)
            .with_listen(settings.listen)
            .with_store_listen(settings.store_listen)
            .with_keypair(keypair);
        if !settings.store_url.is_empty() {
            let url = settings
                .store_url
                .parse()
                .context("the store's URL, --store-url")?;
            builder = builder.with_store_url(url);
        }
        let orchestrator = builder.start(&Shutdown::new()).await?;
        println!("serving {} at {}", orchestrator.run(), orchestrator.url());
        let status = orchestrator.status();
        let viewing = tokio::spawn(iota_testnet::show(
            status,
            settings.training.samples_per_epoch,
        ));
        let mut state = orchestrator.state();
        let interrupted = tokio::select! {
            over = state.wait_for(|state| state.is_over()) => { drop(over); false }
            // What failed is said by finish().
            () = orchestrator.broken() => false,
            () = shutdown.wait() => true,
        };
        if interrupted {
            orchestrator.stop().await;
        }
        orchestrator.finish().await?;
        viewing.await?;
        Ok(if interrupted {
            Exit::Interrupted
        } else {
            Exit::Done
        })
    })
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
}
