//! Opening on three cores: one hashes what is stored and decrypts it, one decompresses, one has the sink.

use std::io::{self, Read, Write};

use super::behind::Behind;
use super::pipe;
use super::seal::{self, Keys, Measured};

/// What age makes of 64 KiB at a time.
const AHEAD: usize = 64;

/// As [`seal::open`]; the sink comes back to be closed.
///
/// # Errors
/// As [`seal::open`].
pub(super) fn open<W: Write + Send + 'static>(
    stored: impl Read,
    sink: W,
    keys: &Keys,
    encrypted: bool,
    progress: impl Fn(u64) + Send + 'static,
) -> io::Result<(Measured, W)> {
    let (mut inlet, outlet) = pipe::new(AHEAD);
    let decompressing = std::thread::spawn(move || {
        let mut sink = Behind::new(sink);
        let plain_bytes = seal::decompress(outlet, &mut sink, progress)?;
        Ok((plain_bytes, sink.finish()?))
    });
    let decrypted = seal::decrypt(stored, &mut inlet, keys, encrypted);
    drop(inlet);
    let gone = |_| io::Error::other("the thread that decompresses ended early");
    let decompressed = decompressing.join().map_err(gone)?;
    match (decrypted, decompressed) {
        (Ok((stored_bytes, stored_sha256)), Ok((plain_bytes, sink))) => {
            let measured = Measured {
                plain_bytes,
                stored_bytes,
                stored_sha256,
            };
            Ok((measured, sink))
        }
        (Err(effect), Err(cause)) if pipe::is_closed(&effect) => Err(cause),
        // One that was cut off has nothing of its own to tell.
        (Err(error), _) | (Ok(_), Err(error)) => Err(error),
    }
}
