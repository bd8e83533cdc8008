//! A progress bar for what takes longer than a second, on a terminal only.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use qwen2c_checkpoint::DownloadEvent;

/// Work that finishes sooner shows nothing.
const QUIET_TIME: Duration = Duration::from_secs(1);

/// Progress through a known number of bytes. Several threads may advance it.
pub(crate) struct Progress {
    bar: ProgressBar,
    start: Instant,
    is_shown: AtomicBool,
}

impl Progress {
    /// Starts at zero; `what` stands before the bar. Never shown where `quiet` or without a terminal.
    pub(crate) fn bytes(what: &str, total_bytes: u64, quiet: bool) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template(
            "  {msg} {bar:32.green/dim} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
        ) {
            bar.set_style(style.progress_chars("━━─"));
        }
        bar.set_message(what.to_owned());
        let is_shown = AtomicBool::new(quiet || !std::io::stderr().is_terminal());
        Self { bar, start: Instant::now(), is_shown }
    }

    /// `bytes` more are done.
    pub(crate) fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
        self.show_when_slow();
    }

    /// A sign of life for work whose length is not known.
    pub(crate) fn spinner(what: &str, quiet: bool) -> Self {
        let is_shown = !quiet && std::io::stderr().is_terminal();
        let target = if is_shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target).with_message(what.to_owned());
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        if is_shown {
            bar.enable_steady_tick(QUIET_TIME);
        }
        Self { bar, start: Instant::now(), is_shown: AtomicBool::new(true) }
    }

    fn show_when_slow(&self) {
        if self.start.elapsed() >= QUIET_TIME && !self.is_shown.swap(true, Ordering::Relaxed) {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Progress of a checkpoint's files from the hub, one bar for each.
pub(crate) struct Download {
    quiet: bool,
    bar: Option<Progress>,
}

impl Download {
    /// Nothing is shown where `quiet`.
    pub(crate) fn new(quiet: bool) -> Self {
        Self { quiet, bar: None }
    }

    /// Shows an event.
    pub(crate) fn show(&mut self, event: DownloadEvent<'_>) {
        match event {
            DownloadEvent::Started { file, bytes } => {
                self.bar = Some(Progress::bytes(&format!("fetching {file}"), bytes, self.quiet));
            }
            DownloadEvent::Received { bytes } => {
                if let Some(bar) = &self.bar {
                    bar.advance(bytes);
                }
            }
            DownloadEvent::Finished => self.bar = None,
        }
    }
}
