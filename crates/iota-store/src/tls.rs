//! The choice of cryptography for HTTPS.

/// Makes *ring* the process's provider unless the program has chosen one.
///
/// The default of the HTTP libraries is aws-lc, whose C and assembly take longer to build than the rest of the crate.
pub(crate) fn install_provider() {
    // An error says that there is one already, which is just as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
