//! Panics anywhere in a world: tokio keeps those of a task from its process, but nobody who is honest may cause one.

use std::sync::OnceLock;

static FIRST: OnceLock<String> = OnceLock::new();

/// From now on panics are noticed.
pub(crate) fn notice() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // The first says what the later ones follow from.
        drop(FIRST.set(panic.to_string()));
        usual(panic);
    }));
}

/// The first panic of this process.
pub(crate) fn first() -> Option<&'static str> {
    FIRST.get().map(String::as_str)
}
