//! Objects by grant: what a lease lets a peer read and write.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use iota_data::{Sampler, Shard};
use iota_protocol::event::Direction;
use iota_protocol::work::{Difference, Failure, ObjectName, ObjectRef, Purpose, Seal};
use iota_protocol::{Digest, SampleId};
use iota_run::{BoundaryError, Description, Merge, Tokens};
use iota_store::{ErrorKind, Grant, GrantClient, tensor};
use iota_wire::{GrantTarget, LeasedWork};
use tracing::{debug, warn};

use crate::learned::CellPlanes;
use crate::{Error, convert};

/// Fetches and uploads what leases grant.
#[derive(Debug)]
pub struct Transfer {
    description: Arc<Description>,
    sampler: Sampler,
    client: GrantClient,
    shards: Mutex<BTreeMap<Digest, Arc<Shard>>>,
    made: Mutex<BTreeMap<Digest, Bytes>>,
}

/// Decoded token shards kept in memory, at most: a sample reads one, and neighbouring samples often the same.
const SHARDS_KEPT: usize = 64;

/// Tries of one transfer. With the waits between them a store may be away for ten seconds: as long as it takes to start an
/// orchestrator again, which serves the store of a testnet.
const TRIES: u32 = 8;

impl Transfer {
    /// Transfers for a run, by `client`.
    ///
    /// # Errors
    /// If the run's data cannot give samples.
    pub fn new(description: Arc<Description>, client: GrantClient) -> Result<Self, Error> {
        let sampler = description.sampler()?;
        Ok(Self {
            description,
            sampler,
            client,
            shards: Mutex::default(),
            made: Mutex::default(),
        })
    }

    /// Inputs and targets of a sample.
    ///
    /// # Errors
    /// [`Failure::StoreUnavailable`] or [`Failure::Internal`]: shards are the orchestrator's, nobody else is to blame.
    pub async fn tokens(
        &self,
        sample: SampleId,
        leased: &LeasedWork,
    ) -> Result<Arc<Tokens>, Failure> {
        let slice = self.sampler.slice(sample);
        let info = &self.description.data.shards[slice.shard];
        let cached = self.shards().get(&info.digest).cloned();
        let shard = match cached {
            Some(shard) => shard,
            None => {
                let grant = grant(leased, |target| {
                    *target
                        == GrantTarget::Shard {
                            index: slice.shard as u32,
                        }
                })?;
                let seal = Seal {
                    digest: info.digest,
                    length: info.length_bytes,
                };
                let bytes = self
                    .fetch(&grant, &seal)
                    .await
                    .map_err(|error| error.into_failure(None))?;
                let shard = Arc::new(info.open(&bytes).map_err(|_| Failure::Internal)?);
                let mut shards = self.shards();
                if shards.len() >= SHARDS_KEPT {
                    shards.pop_first();
                }
                shards.insert(info.digest, Arc::clone(&shard));
                shard
            }
        };
        let batch = slice.read(&shard).map_err(|_| Failure::Internal)?;
        Ok(Arc::new(batch))
    }

    /// An activation or gradient, decoded: `tokens x boundary width` finite numbers.
    ///
    /// # Errors
    /// [`Failure::BadInput`] if it is missing, altered, of another shape or not finite.
    pub async fn activation(
        &self,
        object: &ObjectRef,
        leased: &LeasedWork,
    ) -> Result<Arc<[f32]>, Failure> {
        let bytes = self.object(object, leased).await?;
        let direction = match object.name.purpose {
            Purpose::Gradient => Direction::Backward,
            _ => Direction::Forward,
        };
        let values = self.description.decode_boundary(direction, &bytes);
        let values = values.map_err(|error| {
            let difference = match error {
                BoundaryError::NotFinite => Difference::NotFinite,
                _ => Difference::Malformed,
            };
            bad_input(object.name, difference)
        })?;
        Ok(values.into())
    }

    /// How the run merges.
    pub fn merge_settings(&self) -> Merge {
        self.description.merge
    }

    /// Keeps the object of a merged cell that this machine made, whoever stored it: if it is in the checkpoint that is
    /// installed next, by its digest, it need not be fetched. An owner of a cell has it in memory until then; all cells of
    /// the stage are there when it installs.
    pub fn keep_made(&self, cell: Bytes) {
        let digest = Digest::of(&cell);
        self.made().insert(digest, cell);
    }

    /// Forgets what was kept and not asked for.
    pub fn forget_made(&self) {
        self.made().clear();
    }

    pub(crate) fn has_made(&self, seal: &Seal) -> bool {
        self.made().contains_key(&seal.digest)
    }

    /// The planes of a merged cell of so many elements.
    ///
    /// # Errors
    /// [`Failure::BadInput`] if it is missing, altered or of another shape.
    pub async fn cell(
        &self,
        object: &ObjectRef,
        elements: usize,
        leased: &LeasedWork,
    ) -> Result<CellPlanes, Failure> {
        let made = self.made().remove(&object.seal.digest);
        let bytes = match made {
            Some(bytes) => bytes,
            None => self.object(object, leased).await?,
        };
        let spec = self.description.merge.cell_spec(elements);
        tensor::decode(&bytes, &spec).map_err(|_| bad_input(object.name, Difference::Malformed))
    }

    /// An object's bytes, which match its seal.
    ///
    /// # Errors
    /// [`Failure::BadInput`] if it is missing or altered.
    pub async fn object(&self, object: &ObjectRef, leased: &LeasedWork) -> Result<Bytes, Failure> {
        let grant = object_grant(leased, object.name)?;
        self.fetch(&grant, &object.seal)
            .await
            .map_err(|error| error.into_failure(Some(object.name)))
    }

    /// Writes an object and says what was written.
    ///
    /// # Errors
    /// [`Failure::StoreUnavailable`] if the store stays away or refuses. [`Failure::Internal`] if the key was taken
    /// before: whatever is there need not be these bytes, and nobody may commit to what it has not written.
    pub async fn upload(
        &self,
        name: ObjectName,
        bytes: Bytes,
        leased: &LeasedWork,
    ) -> Result<Seal, Failure> {
        let grant = object_grant(leased, name)?;
        let written = create(|| self.client.upload(&grant, bytes.clone())).await?;
        Ok(written.unwrap_or_else(|| iota_store::seal(&bytes)))
    }

    async fn fetch(&self, grant: &Grant, seal: &Seal) -> Result<Bytes, Trouble> {
        patiently(|| self.client.fetch(grant, seal))
            .await
            .map_err(Trouble)
    }

    fn made(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, Bytes>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shards(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, Arc<Shard>>> {
        // A cache stays true even if a thread died while it held the lock.
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A transfer that failed for good.
struct Trouble(iota_store::Error);

impl Trouble {
    /// With an object's name, what is wrong with the object is its producer's fault.
    fn into_failure(self, object: Option<ObjectName>) -> Failure {
        match &self.0 {
            // No other lease will fare better, and nobody else can see why.
            error @ iota_store::Error::Tls(_) => warn!(%error, "transfer failed"),
            error => debug!(%error, "transfer failed"),
        }
        let difference = match &self.0 {
            iota_store::Error::Missing { .. } => Difference::Missing,
            iota_store::Error::Digest { .. } | iota_store::Error::Length { .. } => {
                Difference::Digest
            }
            _ => return Failure::StoreUnavailable,
        };
        object.map_or(Failure::Internal, |object| bad_input(object, difference))
    }
}

/// Creates an object; `call` is one try. None if a try did it whose answer was lost.
async fn create<T, F>(mut call: impl FnMut() -> F) -> Result<Option<T>, Failure>
where
    F: Future<Output = Result<T, iota_store::Error>>,
{
    let mut tries = 0;
    let created = patiently(|| {
        tries += 1;
        call()
    });
    match created.await {
        Ok(written) => Ok(Some(written)),
        // The tries before this one ended without saying whether the object had arrived. Now it is known that one had.
        Err(iota_store::Error::Exists { .. }) if tries > 1 => Ok(None),
        Err(error @ iota_store::Error::Exists { .. }) => {
            debug!(%error, "the object was there before it was written");
            Err(Failure::Internal)
        }
        Err(error) => Err(Trouble(error).into_failure(None)),
    }
}

async fn patiently<T, F>(mut call: impl FnMut() -> F) -> Result<T, iota_store::Error>
where
    F: Future<Output = Result<T, iota_store::Error>>,
{
    let mut wait = Duration::from_millis(100);
    for _ in 1..TRIES {
        match call().await {
            Err(error) if error.kind() == ErrorKind::Retry => {
                debug!(%error, wait_ms = wait.as_millis(), "trying again")
            }
            done => return done,
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(4));
    }
    call().await
}

const fn bad_input(object: ObjectName, difference: Difference) -> Failure {
    Failure::BadInput { object, difference }
}

fn object_grant(leased: &LeasedWork, name: ObjectName) -> Result<Grant, Failure> {
    grant(leased, |target| *target == GrantTarget::Object(name))
}

fn grant(leased: &LeasedWork, is_target: impl Fn(&GrantTarget) -> bool) -> Result<Grant, Failure> {
    let found = leased.grants.iter().find(|grant| is_target(&grant.target));
    // An orchestrator that leases work without the grants it needs cannot be helped from here.
    convert::grant(found.ok_or(Failure::Internal)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exists() -> iota_store::Error {
        iota_store::Error::Exists {
            key: "gradient/7".to_owned(),
        }
    }

    async fn created(answers: Vec<Result<(), iota_store::Error>>) -> Result<(), Failure> {
        let mut answers = answers.into_iter();
        create(|| std::future::ready(answers.next().unwrap()))
            .await
            .map(drop)
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_taken_is_ours_only_after_a_try_without_an_answer() {
        let lost = || iota_store::Error::Unavailable {
            source: "the connection was reset".into(),
        };
        assert_eq!(created(vec![Ok(())]).await, Ok(()));
        assert_eq!(created(vec![Err(lost()), Err(exists())]).await, Ok(()));
        assert_eq!(created(vec![Err(exists())]).await, Err(Failure::Internal));
        let away = (0..TRIES).map(|_| Err(lost())).collect();
        assert_eq!(created(away).await, Err(Failure::StoreUnavailable));
    }
}
