//! SIGINT and SIGTERM: the first asks for a graceful stop, the second ends the process at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Installs the handlers; `shutdown` is cancelled by the first signal.
pub fn stop_on_signal(shutdown: CancellationToken) -> io::Result<()> {
    let interrupt = (signal(SignalKind::interrupt())?, "SIGINT", SignalKind::interrupt());
    let terminate = (signal(SignalKind::terminate())?, "SIGTERM", SignalKind::terminate());
    tokio::spawn(async move {
        let mut signals = [interrupt, terminate];
        let (name, _) = next(&mut signals).await;
        tracing::info!(signal = name, "stopping; a second signal ends the process at once");
        shutdown.cancel();
        let (name, kind) = next(&mut signals).await;
        tracing::warn!(signal = name, "ended by a second signal");
        // The shell's convention for who died of a signal.
        std::process::exit(128 + kind.as_raw_value());
    });
    Ok(())
}

async fn next(signals: &mut [(Signal, &'static str, SignalKind); 2]) -> (&'static str, SignalKind) {
    let [(first, first_name, first_kind), (second, second_name, second_kind)] = signals;
    tokio::select! {
        _ = first.recv() => (*first_name, *first_kind),
        _ = second.recv() => (*second_name, *second_kind),
    }
}
