//! What every iota process needs: clock, shutdown, retry, settings, telemetry.
