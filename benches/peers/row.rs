//! The rows of the table: what is measured.

/// One kind of trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Row {
    Http1,
    Http2,
    Handshake,
    Download,
    Refusal,
    Blocked,
    Idle,
    Tracked,
    Syscalls,
    Latency,
}

/// One figure of a trial, as the table names it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
}

/// What a client may do, in all three subjects alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quotas {
    /// Limits are kept, but nobody reaches them.
    Ample,
    /// The first request passes, no other does.
    Tiny,
    /// A client is remembered for as long as the trial takes; who it is comes from `X-Forwarded-For`.
    Remembered,
    /// One client is blocked.
    Blocked,
}

impl Row {
    pub(super) const ALL: [Self; 10] = [
        Self::Http1,
        Self::Http2,
        Self::Handshake,
        Self::Download,
        Self::Refusal,
        Self::Blocked,
        Self::Idle,
        Self::Tracked,
        Self::Syscalls,
        Self::Latency,
    ];

    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Http1 => "h1",
            Self::Http2 => "h2",
            Self::Handshake => "handshake",
            Self::Download => "download",
            Self::Refusal => "429",
            Self::Blocked => "blocked",
            Self::Idle => "idle",
            Self::Tracked => "tracked",
            Self::Syscalls => "syscalls",
            Self::Latency => "latency",
        }
    }

    pub(super) fn lines(self) -> &'static [Line] {
        const fn line(title: &'static str, unit: &'static str) -> Line {
            Line { title, unit }
        }
        match self {
            Self::Http1 => const { &[line("CPU per request, HTTP/1.1 keep-alive, 64 connections", "µs")] },
            Self::Http2 => const { &[line("CPU per request, HTTP/2, 16 connections × 16 streams", "µs")] },
            Self::Handshake => const { &[line("CPU per new TLS connection with one request", "µs")] },
            Self::Download => const { &[line("CPU per MiB downloaded, 8 connections", "µs")] },
            Self::Refusal => const { &[line("CPU per 429, HTTP/1.1 keep-alive, 64 connections", "µs")] },
            Self::Blocked => const { &[line("CPU per connection of a blocked client", "µs")] },
            Self::Idle => const { &[line("Memory per idle TLS connection", "KiB")] },
            Self::Tracked => const { &[line("Memory per tracked client, both limits", "B")] },
            Self::Syscalls => const { &[line("System calls per request, HTTP/1.1, 64 connections", "calls")] },
            Self::Latency => {
                const {
                    &[
                        line("Latency at 4,000 requests/s, median", "µs"),
                        line("Latency at 4,000 requests/s, 99th percentile", "µs"),
                    ]
                }
            }
        }
    }

    pub(super) fn quotas(self) -> Quotas {
        match self {
            Self::Refusal => Quotas::Tiny,
            Self::Tracked => Quotas::Remembered,
            Self::Blocked => Quotas::Blocked,
            _ => Quotas::Ample,
        }
    }
}
