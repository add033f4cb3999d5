//! The orchestrator protocol over gRPC: messages, conversions, signed requests, typed errors.
