//! What a run is reached by: calls, and the embedded store, or what a program brings in their place.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use iota_node::retry::{Decision, Policy, Retry};
use iota_node::{Clock, Shutdown};
use iota_store::server::{S3Server, ServerSettings};
use iota_store::{Credentials, Grants, Store};
use iota_tls::ServerCertificate;
use iota_wire::Incoming;
use tokio::net::TcpListener;
use tracing::warn;

use crate::Error;
use crate::run_file::Addresses;

/// Everything that a run is reached by.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) incoming: Incoming,
    /// Where peers call, as far as it is known here: behind a name or a proxy they call somewhere else.
    pub(crate) url: String,
    pub(crate) store: Store,
    /// None if the run's objects are kept elsewhere.
    pub(crate) store_server: Option<S3Server>,
    pub(crate) signer: Grants,
    /// With the ports that were given.
    pub(crate) addresses: Addresses,
}

/// What a program brings along, in place of what would be opened here.
#[derive(Debug, Default)]
pub(crate) struct Brought {
    pub(crate) incoming: Option<Incoming>,
    pub(crate) objects: Option<(Store, Grants)>,
}

/// What is not brought along. Connections that are cannot be looked at from two threads, so they stay out of what waits.
#[derive(Debug, Clone, Copy)]
struct Missing {
    incoming: bool,
    objects: bool,
}

/// What had to be opened.
#[derive(Debug)]
struct Opened {
    listener: Option<TcpListener>,
    store_server: Option<S3Server>,
}

impl Brought {
    const fn missing(&self) -> Missing {
        Missing {
            incoming: self.incoming.is_none(),
            objects: self.objects.is_none(),
        }
    }
}

impl Sockets {
    /// Listens, and serves the store.
    pub(crate) async fn open(
        addresses: &Addresses,
        store_folder: &Path,
        secret: &[u8; 32],
        brought: Brought,
        certificate: Option<&ServerCertificate>,
    ) -> Result<Self, Error> {
        let missing = brought.missing();
        let opened = Opened::new(addresses, store_folder, secret, missing, certificate).await?;
        opened.with(brought, addresses.clone(), certificate)
    }

    /// As [`open`](Self::open), at addresses that a process had which has just ended. The system may not have let go of
    /// them yet, or lent one to a connection of somebody else's meanwhile: so a port that is taken is tried again for a
    /// while.
    pub(crate) async fn open_again(
        addresses: &Addresses,
        store_folder: &Path,
        secret: &[u8; 32],
        brought: Brought,
        certificate: Option<&ServerCertificate>,
        (clock, shutdown): (&dyn Clock, &Shutdown),
    ) -> Result<Self, Error> {
        let retry = Retry::new(PORT_TAKEN, u64::from(std::process::id()), clock, shutdown);
        let missing = brought.missing();
        let open = |_| Opened::new(addresses, store_folder, secret, missing, certificate);
        let decide = |error: &Error| {
            if is_taken(error) {
                warn!(%error, "an address of the run is taken; trying again");
                Decision::Retry
            } else {
                Decision::GiveUp
            }
        };
        let opened = retry.run(open, decide).await;
        opened
            .map_err(|error| error.source)?
            .with(brought, addresses.clone(), certificate)
    }
}

impl Opened {
    async fn new(
        addresses: &Addresses,
        store_folder: &Path,
        secret: &[u8; 32],
        missing: Missing,
        certificate: Option<&ServerCertificate>,
    ) -> Result<Self, Error> {
        let store_server = if missing.objects {
            make_private(store_folder)?;
            // The run's own secret: whoever reads the folder can do without the store's credentials anyway. It is the same
            // after a restart, so that grants stay good.
            let credentials = Credentials::new("iota", hex(secret));
            let settings = ServerSettings::default();
            let (address, folder) = (addresses.store_listen, store_folder);
            let bound = match certificate {
                Some(certificate) => {
                    S3Server::bind_tls(address, folder, credentials, settings, certificate).await
                }
                None => S3Server::bind(address, folder, credentials, settings).await,
            };
            Some(bound?)
        } else {
            None
        };
        let listener = if missing.incoming {
            let address = addresses.listen;
            let listener = TcpListener::bind(address).await;
            Some(listener.map_err(|source| Error::Listen { address, source })?)
        } else {
            None
        };
        Ok(Self {
            listener,
            store_server,
        })
    }

    fn with(
        self,
        brought: Brought,
        mut addresses: Addresses,
        certificate: Option<&ServerCertificate>,
    ) -> Result<Sockets, Error> {
        let (scheme, incoming) = match (brought.incoming, self.listener) {
            (Some(incoming), _) => ("http", incoming),
            (None, Some(listener)) => {
                let address = addresses.listen;
                let (scheme, listening) = match certificate {
                    Some(certificate) => ("https", Incoming::tls(listener, certificate)),
                    None => {
                        warn_if_readable("calls", address);
                        ("http", Incoming::tcp(listener))
                    }
                };
                let incoming = listening.map_err(|source| Error::Listen { address, source })?;
                (scheme, incoming)
            }
            (None, None) => unreachable!("a listener is opened unless connections are brought"),
        };
        addresses.listen = incoming.address();
        let (store, signer) = match (brought.objects, &self.store_server) {
            (Some(objects), _) => objects,
            (None, Some(server)) => {
                addresses.store_listen = server.local_address();
                let signer = match &addresses.store_url {
                    Some(url) => server.grants_at(url)?,
                    None => server.grants(),
                };
                match certificate {
                    Some(certificate) => warn_if_not_named(certificate, &addresses),
                    None => warn_if_readable("grants and tensors", addresses.store_listen),
                }
                (server.store()?, signer)
            }
            (None, None) => unreachable!("a store is opened unless one is brought"),
        };
        Ok(Sockets {
            url: format!("{scheme}://{}", incoming.address()),
            incoming,
            store,
            store_server: self.store_server,
            signer,
            addresses,
        })
    }
}

/// Says so if what is served at an address without TLS may be read by strangers on its way.
fn warn_if_readable(what: &str, address: SocketAddr) {
    if !is_private(address.ip()) {
        warn!(
            %address,
            "{what} are not encrypted, and whoever reads a grant on its way can use it; --tls-certificate and --tls-key \
             encrypt them"
        );
    }
}

/// Says so if grants lead peers to a store that they cannot believe. Behind a proxy with a certificate of its own they may.
fn warn_if_not_named(certificate: &ServerCertificate, addresses: &Addresses) {
    let host = match &addresses.store_url {
        Some(url) if url.scheme() != "https" => {
            warn!(%url, "grants are for a URL without TLS, and the store speaks nothing else");
            return;
        }
        Some(url) => url.host_str().unwrap_or_default().to_owned(),
        None => addresses.store_listen.ip().to_string(),
    };
    if !certificate.names(&host) {
        warn!(
            %host,
            "the certificate does not name the host where peers are granted objects; --store-url names one that it does"
        );
    }
}

/// Whether an address is one of this machine or of a network that is nobody else's. No address in particular is all that the
/// machine has.
fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        // 100.64.0.0/10 is between a provider and its customers, and in overlay networks, which encrypt.
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            let is_shared = first == 100 && (64..128).contains(&second);
            address.is_loopback() || address.is_private() || address.is_link_local() || is_shared
        }
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
        }
    }
}

/// How long a port may be taken that the run had.
const PORT_TAKEN: Policy = Policy {
    delay_initial: Duration::from_millis(50),
    delay_max: Duration::from_millis(500),
    attempts_max: u32::MAX,
    elapsed_max: Duration::from_secs(15),
};

/// Whether an address cannot be listened on because somebody else does.
fn is_taken(error: &Error) -> bool {
    let (Error::Listen { source, .. } | Error::Store(iota_store::Error::Bind { source, .. })) =
        error
    else {
        return false;
    };
    source.kind() == ErrorKind::AddrInUse
}

/// Makes a folder that only its owner may look into: a store's backups have the run's secret.
fn make_private(folder: &Path) -> Result<(), Error> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(|source| Error::Folder {
        path: folder.to_owned(),
        source,
    })
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener as BlockingListener;

    use iota_node::SystemClock;
    use iota_protocol::PeerId;

    use super::*;
    use crate::run_file::Tls;

    fn at(listen: SocketAddr) -> Addresses {
        Addresses {
            orchestrator: PeerId::from_bytes([1; 32]),
            key_file: None,
            listen,
            store_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            store_url: None,
            tls: Tls::Off,
        }
    }

    #[test]
    fn an_address_that_strangers_are_between_is_told_from_one_of_ones_own() {
        for own in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.9.9",
            "192.168.1.2",
            "169.254.3.4",
            "100.100.1.1",
            "::1",
            "fd12::1",
            "fe80::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(is_private(own.parse().unwrap()), "{own}");
        }
        for open in [
            "0.0.0.0",
            "203.0.113.7",
            "100.128.0.1",
            "172.32.0.1",
            "::",
            "2001:db8::1",
            "::ffff:203.0.113.7",
        ] {
            assert!(!is_private(open.parse().unwrap()), "{open}");
        }
    }

    #[tokio::test]
    async fn a_port_that_is_taken_for_a_moment_is_waited_for_when_a_run_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let taken = BlockingListener::bind("127.0.0.1:0").unwrap();
        let addresses = at(taken.local_addr().unwrap());
        let (clock, shutdown) = (SystemClock::new(), Shutdown::new());
        let brought = Brought::default();
        let opening = Sockets::open_again(
            &addresses,
            folder.path(),
            &[7; 32],
            brought,
            None,
            (&clock, &shutdown),
        );
        tokio::pin!(opening);
        // It has met the taken port once it waits for its next try.
        let first = std::future::poll_fn(|context| {
            use std::future::Future as _;
            std::task::Poll::Ready(opening.as_mut().poll(context).is_ready())
        });
        assert!(!first.await);
        drop(taken);
        let opened = opening.await.unwrap();
        assert_eq!(opened.addresses.listen, addresses.listen);
    }

    #[tokio::test]
    async fn a_port_that_stays_taken_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let taken = BlockingListener::bind("127.0.0.1:0").unwrap();
        let addresses = at(taken.local_addr().unwrap());
        let clock = iota_node::clock::ManualClock::skipping(iota_protocol::Timestamp::default());
        let shutdown = Shutdown::new();
        let opened = Sockets::open_again(
            &addresses,
            folder.path(),
            &[7; 32],
            Brought::default(),
            None,
            (&clock, &shutdown),
        )
        .await;
        let error = opened.unwrap_err();
        assert!(is_taken(&error), "{error}");
        assert!(error.to_string().contains(&addresses.listen.to_string()));
        // New runs do not wait: somebody else's program has the port.
        let brought = Brought::default();
        let error = Sockets::open(&addresses, folder.path(), &[7; 32], brought, None).await;
        assert!(is_taken(&error.unwrap_err()));
    }
}
