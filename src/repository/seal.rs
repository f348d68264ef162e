//! Sealing: bytes -> sha256 -> zstd -> age -> sha256 -> chunks, and back. Synchronous: it runs on a blocking thread
//! between a pipe and a bounded channel, so that memory stays the same whatever the size.

use std::io::{self, BufReader, Read, Write};

use sha2::{Digest as _, Sha256};

use super::Error;
use super::frames::{self, Compression};
use super::hashed::{Hashed, Hasher};
use crate::secret::Secret;

const BUFFER_BYTES: usize = 256 * 1024;
/// Room at first for what is sealed into memory: a segment of 16 MiB seldom needs more, and room that grows is copied.
const WHOLE_BYTES: usize = 4 * 1024 * 1024;

/// Who can open what is sealed, and what we can open.
pub struct Keys {
    recipients: Vec<age::x25519::Recipient>,
    identities: Vec<age::x25519::Identity>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys")
            .field("recipients", &self.recipients.len())
            .finish_non_exhaustive()
    }
}

impl Keys {
    /// # Errors
    /// A recipient or identity that age does not read.
    pub fn new(recipients: &[String], identity: Option<&Secret>) -> Result<Self, Error> {
        let recipients = recipients
            .iter()
            .map(|text| text.parse().map_err(|_| Error::Recipient(text.clone())))
            .collect::<Result<Vec<_>, _>>()?;
        let mut identities = Vec::new();
        for line in identity.map_or("", Secret::reveal).lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            identities.push(
                line.parse()
                    .map_err(|reason: &str| Error::Identity(reason.to_owned()))?,
            );
        }
        Ok(Self { recipients, identities })
    }

    /// The same keys with one more that lives as long as a run. A server that holds public keys only can thereby
    /// still read back, whole, what it has just stored: the alternative is to publish backups nobody has opened.
    #[must_use]
    pub fn with_witness(&self) -> Self {
        let witness = age::x25519::Identity::generate();
        let mut recipients = self.recipients.clone();
        if !recipients.is_empty() {
            recipients.push(witness.to_public());
        }
        let mut identities = self.identities.clone();
        identities.push(witness);
        Self { recipients, identities }
    }

    #[must_use]
    pub fn encrypts(&self) -> bool {
        !self.recipients.is_empty()
    }

    #[must_use]
    pub fn decrypts(&self) -> bool {
        !self.identities.is_empty()
    }

    #[must_use]
    pub fn recipients(&self) -> Vec<String> {
        self.recipients.iter().map(ToString::to_string).collect()
    }

    /// The public keys of our identities: what is sealed to one of them can be opened.
    fn own(&self) -> Vec<String> {
        let public = |identity: &age::x25519::Identity| identity.to_public().to_string();
        self.identities.iter().map(public).collect()
    }

    /// Whether a backup that is sealed to `recipients` can be opened; none of them: it lies in the clear.
    ///
    /// # Errors
    /// Whose key is missing, in words.
    pub fn check(&self, recipients: &[String]) -> Result<(), String> {
        if recipients.is_empty() {
            return Ok(());
        }
        let own = self.own();
        if own.is_empty() {
            return Err(format!(
                "the backup is encrypted, and no age identity is configured (backup.identity, --identity): one of {} opens it",
                recipients.join(", ")
            ));
        }
        if own.iter().any(|key| recipients.contains(key)) {
            return Ok(());
        }
        Err(format!(
            "the backup is sealed to {}, and the configured age identity opens what is sealed to {} only: \
             configure the identity of one of the former",
            recipients.join(", "),
            own.join(", ")
        ))
    }
}

/// What is stored does not open as what was sealed. From the store itself and from a sink come other errors.
#[derive(Debug, thiserror::Error)]
#[error("its bytes are not those that were written ({0})")]
struct Altered(String);

/// Tells what a decoder says of the bytes that it reads from everything else.
struct Decoding<R>(R);

impl<R: Read> Read for Decoding<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(judged)
    }
}

fn judged(error: io::Error) -> io::Error {
    use io::ErrorKind::{InvalidData, Other, UnexpectedEof};
    let is_verdict = matches!(error.kind(), InvalidData | Other | UnexpectedEof) && error.raw_os_error().is_none();
    let is_judged = error.get_ref().is_some_and(|inner| inner.is::<Altered>());
    match is_verdict && !is_judged {
        true => invalid(Altered(error.to_string())),
        false => error,
    }
}

/// The same of what stands before the encrypted bytes. That no key fits says nothing against them.
fn judged_header(error: age::DecryptError) -> io::Error {
    match error {
        age::DecryptError::NoMatchingKeys => invalid(error),
        age::DecryptError::Io(error) => judged(error),
        _ => invalid(Altered(error.to_string())),
    }
}

/// Why the object `key` could not be opened: the key, the bytes, or what read and wrote them.
#[must_use]
pub fn unopened(key: &str, keys: &Keys, source: io::Error) -> Error {
    let key = key.to_owned();
    let inner = source.get_ref();
    if let Some(altered) = inner.and_then(|inner| inner.downcast_ref::<Altered>()) {
        let what = altered.to_string();
        return Error::Damaged { key, what };
    }
    if inner.is_some_and(|inner| inner.is::<age::DecryptError>()) {
        let own = keys.own().join(", ");
        return Error::OtherKeys { key, own };
    }
    Error::Unseal { key, source }
}

/// Sizes and hashes of both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    pub plain_bytes: u64,
    pub plain_sha256: String,
    pub stored_bytes: u64,
    pub stored_sha256: String,
}

/// Counts and hashes what passes.
#[derive(Default)]
pub(super) struct Tally {
    bytes: u64,
    hash: Sha256,
}

impl Hasher for Tally {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        self.hash.update(bytes);
    }
}

impl Tally {
    /// The count, and the hash in hexadecimal.
    pub(super) fn finish(self) -> (u64, String) {
        (self.bytes, hex::encode(self.hash.finalize()))
    }
}

impl<T> Hashed<T, Tally> {
    /// What was opened or closed, together with the hash of what was in it, and what was wrapped.
    pub(super) fn sealed(self, opened: Measured) -> (Sealed, T) {
        (opened.sealed(self.hasher), self.inner)
    }
}

enum Cipher<W: Write> {
    Clear(W),
    Age(Box<age::stream::StreamWriter<W>>),
}

impl<W: Write> Cipher<W> {
    fn new(inner: W, keys: &Keys) -> io::Result<Self> {
        if !keys.encrypts() {
            return Ok(Self::Clear(inner));
        }
        let recipients = keys.recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
        Ok(Self::Age(Box::new(encryptor.wrap_output(inner)?)))
    }

    fn finish(self) -> io::Result<W> {
        match self {
            Self::Clear(inner) => Ok(inner),
            Self::Age(writer) => writer.finish(),
        }
    }
}

impl<W: Write> Write for Cipher<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Clear(inner) => inner.write(bytes),
            Self::Age(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Clear(inner) => inner.flush(),
            Self::Age(writer) => writer.flush(),
        }
    }
}

/// What went through, and what its stored bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    pub plain_bytes: u64,
    pub stored_bytes: u64,
    pub stored_sha256: String,
}

impl Measured {
    fn sealed(self, plain: Tally) -> Sealed {
        Sealed {
            plain_bytes: self.plain_bytes,
            plain_sha256: plain.finish().1,
            stored_bytes: self.stored_bytes,
            stored_sha256: self.stored_sha256,
        }
    }
}

/// Seals `source` into `sink`. `confirm` is asked once the source has ended and before the sealing does: only the exit status
/// of the program tells an end from a death. A sink must not count as whole before this returns; without encryption it holds
/// a complete stream by then.
///
/// # Errors
/// Of the source, the sink, or `confirm`.
pub fn seal(
    source: impl Read,
    sink: impl Write,
    keys: &Keys,
    compression: Compression,
    confirm: impl FnOnce() -> io::Result<()>,
    progress: impl Fn(u64),
) -> io::Result<Sealed> {
    let mut plain = Hashed::<_, Tally>::new(source);
    let closed = close(&mut plain, sink, keys, compression, confirm, progress)?;
    Ok(plain.sealed(closed).0)
}

/// As [`seal`], for whoever proves the content by other means: the plain bytes are not hashed.
///
/// # Errors
/// As [`seal`].
pub fn close(
    source: &mut impl Read,
    sink: impl Write,
    keys: &Keys,
    compression: Compression,
    confirm: impl FnOnce() -> io::Result<()>,
    progress: impl Fn(u64),
) -> io::Result<Measured> {
    let mut cipher = Cipher::new(Hashed::<_, Tally>::new(sink), keys)?;
    let plain_bytes = frames::compress(source, &mut cipher, compression, progress)?;
    confirm()?;
    let mut stored = cipher.finish()?;
    stored.flush()?;
    let (stored_bytes, stored_sha256) = stored.hasher.finish();
    Ok(Measured {
        plain_bytes,
        stored_bytes,
        stored_sha256,
    })
}

/// Seals `source` into memory: the caller knows that it is not too long for that. What is stored is not hashed.
///
/// # Errors
/// As [`seal`].
pub fn seal_whole(source: &mut impl Read, keys: &Keys, compression: Compression) -> io::Result<Vec<u8>> {
    let mut cipher = Cipher::new(Vec::with_capacity(WHOLE_BYTES), keys)?;
    frames::compress(source, &mut cipher, compression, |_| {})?;
    cipher.finish()
}

/// Opens what [`seal`] made into a sink that proves what it gets by itself: the plain bytes are not hashed.
///
/// # Errors
/// Of either side; `InvalidData` where the bytes are not what `seal` wrote or the keys do not fit.
pub fn open(
    stored: impl Read,
    sink: &mut impl Write,
    keys: &Keys,
    encrypted: bool,
    progress: impl Fn(u64),
) -> io::Result<Measured> {
    let (plain_bytes, tally) = through(stored, keys, encrypted, |opened| decompress(opened, sink, progress))?;
    let (stored_bytes, stored_sha256) = tally.finish();
    Ok(Measured {
        plain_bytes,
        stored_bytes,
        stored_sha256,
    })
}

/// The first half of [`open`]: into `sink` goes what is compressed. Returns size and hash of what is stored.
///
/// # Errors
/// As [`open`].
pub(super) fn decrypt(
    stored: impl Read,
    sink: &mut impl Write,
    keys: &Keys,
    encrypted: bool,
) -> io::Result<(u64, String)> {
    let (_, tally) = through(stored, keys, encrypted, |opened| io::copy(opened, sink))?;
    Ok(tally.finish())
}

/// Hashes `stored` to its end while `read` reads what is in it.
fn through<T>(
    stored: impl Read,
    keys: &Keys,
    encrypted: bool,
    read: impl FnOnce(&mut dyn Read) -> io::Result<T>,
) -> io::Result<(T, Tally)> {
    let mut hashed = Hashed::<_, Tally>::new(stored);
    let done = if encrypted {
        let buffered = BufReader::with_capacity(BUFFER_BYTES, &mut hashed);
        let decryptor = age::Decryptor::new_buffered(buffered).map_err(judged_header)?;
        let identities = keys.identities.iter().map(|identity| identity as &dyn age::Identity);
        read(&mut Decoding(decryptor.decrypt(identities).map_err(judged_header)?))?
    } else {
        read(&mut hashed)?
    };
    // What stands behind the end is part of the stored hash as well.
    io::copy(&mut hashed, &mut io::sink())?;
    Ok((done, hashed.hasher))
}

/// The second half of [`open`]. Returns how much came out.
///
/// # Errors
/// Of either side; `InvalidData` where the bytes are not what zstd made.
pub(super) fn decompress(compressed: impl Read, sink: &mut impl Write, progress: impl Fn(u64)) -> io::Result<u64> {
    let mut decoder = Decoding(zstd::stream::read::Decoder::new(compressed)?);
    let plain_bytes = drain(&mut decoder, progress, |bytes| sink.write_all(bytes))?;
    sink.flush()?;
    Ok(plain_bytes)
}

/// Size and hash of stored bytes, unopened.
///
/// # Errors
/// Of the reader.
pub fn hash(mut stored: impl Read, progress: impl Fn(u64)) -> io::Result<(u64, String)> {
    let mut tally = Tally::default();
    drain(&mut stored, progress, |bytes| {
        tally.add(bytes);
        Ok(())
    })?;
    Ok(tally.finish())
}

/// Hands `source` on to its end and tells `progress` how far it is. Returns its length.
fn drain(
    source: &mut impl Read,
    progress: impl Fn(u64),
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<u64> {
    let mut total = 0_u64;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        take(buffer.get(..read).unwrap_or_default())?;
        total = total.saturating_add(read as u64);
        progress(total);
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
