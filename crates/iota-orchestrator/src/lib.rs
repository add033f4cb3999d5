//! The orchestrator as a library: the rules behind a gRPC service, a journal and a store.
