//! The certificates in force and when they expire: the listeners write it, the alarms and the metric read it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use prometheus::{GaugeVec, Opts, Registry};
use x509_parser::certificate::X509Certificate;

/// When the certificate in a file stops being valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    pub path: PathBuf,
    pub at: Timestamp,
}

impl Expiry {
    #[must_use]
    pub fn of(path: &Path, certificate: &X509Certificate<'_>) -> Self {
        let at = certificate.validity().not_after.timestamp();
        Self {
            path: path.to_owned(),
            at: Timestamp::from_second(at).unwrap_or(Timestamp::MAX),
        }
    }

    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.at < now
    }
}

/// The list; clones share it.
#[derive(Debug, Clone)]
pub struct Certificates {
    gauge: GaugeVec,
    in_force: Arc<Mutex<BTreeMap<&'static str, Vec<Expiry>>>>,
}

impl Certificates {
    /// # Errors
    /// The metric's name is taken.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = GaugeVec::new(
            Opts::new(
                "foregate_tls_certificate_expiry_seconds",
                "When a certificate expires, in seconds since 1970",
            ),
            &["path"],
        )?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(Self {
            gauge,
            in_force: Arc::default(),
        })
    }

    /// What `listener` shows its clients from now on, in the place of what it showed before.
    pub fn set(&self, listener: &'static str, shown: Vec<Expiry>) {
        let mut in_force = self.lock();
        let before = by_path(&in_force);
        in_force.insert(listener, shown);
        let now = by_path(&in_force);
        for (path, at) in &now {
            #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 fit a double exactly")]
            self.gauge.with_label_values(&[path]).set(at.as_second() as f64);
        }
        for path in before.keys().filter(|path| !now.contains_key(*path)) {
            // It was set when the path came.
            drop(self.gauge.remove_label_values(&[path]));
        }
    }

    /// Every file that is in force, and when its certificate expires.
    #[must_use]
    pub fn in_force(&self) -> BTreeMap<String, Timestamp> {
        by_path(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Vec<Expiry>>> {
        // A panic while holding the lock cannot leave a map half written.
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that two listeners show is one certificate.
fn by_path(in_force: &BTreeMap<&'static str, Vec<Expiry>>) -> BTreeMap<String, Timestamp> {
    let all = in_force.values().flatten();
    all.map(|expiry| (expiry.path.display().to_string(), expiry.at))
        .collect()
}
