use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use iota_identity::Keypair;
use iota_protocol::event::Phase;
use iota_protocol::work::{Failure, Outcome};
use iota_protocol::{
    Epoch, LeaseId, PeerId, Rejection, Role, RunId, Session, StageIndex, Timestamp,
};
use iota_tls::ServerCertificate;
use iota_wire::{
    ApiError, AuthSettings, Authenticator, Clock, Incoming, Joined, OrchestratorApi,
    PROTOCOL_VERSION, RateSettings, RunInfo, RunStatus, WorkReply, WorkRequest,
};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub(crate) const RUN: RunId = RunId::from_bytes([5; 16]);

/// The server's clock when it starts: not this machine's, so that nothing passes by accident.
pub(crate) const START: Timestamp = Timestamp::from_millis(50_000_000);

pub(crate) fn orchestrator_key() -> PeerId {
    Keypair::from_seed([99; 32]).peer_id()
}

/// What the stub was asked, and what it answers.
pub(crate) struct Stub {
    pub(crate) asked: Mutex<Vec<Asked>>,
    pub(crate) work: watch::Sender<Option<WorkReply>>,
    pub(crate) status: watch::Sender<RunStatus>,
    pub(crate) refuse: Mutex<Option<ApiError>>,
    pub(crate) protocol_version: AtomicU64,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Asked {
    Join(PeerId, Role, u32),
    Leave(Session),
    GetWork(WorkRequest),
    Complete(Session, LeaseId, Outcome),
    Fail(Session, LeaseId, Failure),
}

impl Stub {
    fn note(&self, asked: Asked) -> Result<(), ApiError> {
        self.asked.lock().unwrap().push(asked);
        match &*self.refuse.lock().unwrap() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    pub(crate) fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl OrchestratorApi for Stub {
    async fn run_info(&self) -> Result<RunInfo, ApiError> {
        Ok(RunInfo {
            run: RUN,
            orchestrator: orchestrator_key(),
            server_time: START,
            protocol_version: u32::try_from(self.protocol_version.load(Ordering::SeqCst)).unwrap(),
            config: br#"{"model":"tiny"}"#.to_vec(),
        })
    }

    async fn join(&self, peer: PeerId, role: Role, capacity: u32) -> Result<Joined, ApiError> {
        self.note(Asked::Join(peer, role, capacity))?;
        let session = Session {
            peer,
            generation: 3,
        };
        Ok(Joined {
            session,
            stage: Some(StageIndex::new(1)),
            epoch: Epoch::new(4),
            phase: Phase::Training,
        })
    }

    async fn leave(&self, session: Session) -> Result<(), ApiError> {
        self.note(Asked::Leave(session))
    }

    async fn get_work(&self, request: WorkRequest) -> Result<WorkReply, ApiError> {
        self.note(Asked::GetWork(request))?;
        let mut work = self.work.subscribe();
        let reply = work
            .wait_for(Option::is_some)
            .await
            .map_err(|_| ApiError::Internal)?;
        reply.clone().ok_or(ApiError::Internal)
    }

    async fn complete(
        &self,
        session: Session,
        lease: LeaseId,
        outcome: Outcome,
    ) -> Result<bool, ApiError> {
        self.note(Asked::Complete(session, lease, outcome))?;
        Ok(lease != LeaseId::new(0))
    }

    async fn fail(
        &self,
        session: Session,
        lease: LeaseId,
        failure: Failure,
    ) -> Result<(), ApiError> {
        self.note(Asked::Fail(session, lease, failure))?;
        if lease == LeaseId::new(0) {
            Err(Rejection::UnknownLease.into())
        } else {
            Ok(())
        }
    }

    fn watch(&self) -> watch::Receiver<RunStatus> {
        self.status.subscribe()
    }
}

/// A stub that is being served.
pub(crate) struct Served {
    pub(crate) url: String,
    pub(crate) stub: Arc<Stub>,
    pub(crate) stop: oneshot::Sender<()>,
    pub(crate) ended: JoinHandle<()>,
    clock: Arc<AtomicU64>,
}

impl Served {
    pub(crate) fn set_clock(&self, now: Timestamp) {
        self.clock.store(now.as_millis(), Ordering::SeqCst);
    }
}

pub(crate) async fn serve() -> Served {
    serve_with(RateSettings::default(), Timestamp::default()).await
}

pub(crate) async fn serve_with(rate: RateSettings, floor: Timestamp) -> Served {
    served(rate, floor, None).await
}

/// By TLS, under this certificate.
pub(crate) async fn serve_encrypted(certificate: &ServerCertificate) -> Served {
    let (rate, floor) = (RateSettings::default(), Timestamp::default());
    served(rate, floor, Some(certificate)).await
}

async fn served(
    rate: RateSettings,
    floor: Timestamp,
    certificate: Option<&ServerCertificate>,
) -> Served {
    let stub = Arc::new(Stub {
        asked: Mutex::default(),
        work: watch::Sender::new(None),
        status: watch::Sender::new(status(0)),
        refuse: Mutex::default(),
        protocol_version: AtomicU64::new(PROTOCOL_VERSION.into()),
    });
    let settings = AuthSettings {
        rate,
        ..AuthSettings::new(RUN, orchestrator_key())
    };
    let clock = Arc::new(AtomicU64::new(START.as_millis()));
    let now = Arc::clone(&clock);
    let service = iota_wire::service(
        Arc::clone(&stub),
        Arc::new(Authenticator::new(settings, floor)),
        Clock::new(move || Timestamp::from_millis(now.load(Ordering::SeqCst))),
    )
    .await;

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (scheme, incoming) = match certificate {
        None => ("http", Incoming::tcp(listener)),
        Some(certificate) => ("https", Incoming::tls(listener, certificate)),
    };
    let incoming = incoming.unwrap();
    let url = format!("{scheme}://{}", incoming.address());
    let (stop, stopped) = oneshot::channel();
    let ended = tokio::spawn(async move {
        let shutdown = async {
            // An error is a test that is over.
            let _ = stopped.await;
        };
        iota_wire::serve(incoming, service, shutdown).await.unwrap();
    });
    Served {
        url,
        stub,
        stop,
        ended,
        clock,
    }
}

pub(crate) fn status(samples_completed: u64) -> RunStatus {
    RunStatus {
        phase: Phase::Training,
        epoch: Epoch::new(1),
        epochs: 10,
        samples_completed,
        samples_in_flight: 2,
        samples_re_leased: 0,
        work_finished: 5 * samples_completed,
        work_wasted: 1,
        tokens_trained: 64 * samples_completed,
        tokens_per_second: 12.5,
        loss: Some(5.5),
        miners_per_stage: vec![2, 2, 1],
        registration_is_open: true,
        waiting: 3,
        validators: 1,
        audits_passed: 0,
        audits_failed: 0,
        banned: 0,
        elapsed: std::time::Duration::from_secs(9),
        phase_deadline_remaining: None,
    }
}
