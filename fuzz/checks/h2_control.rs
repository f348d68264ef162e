//! The counting of HTTP/2 frames does not depend on how the bytes come, in either direction.

use std::time::Duration;

use foregate::proxy::Control;

const NOW: Duration = Duration::from_secs(1);

pub(crate) fn check(bytes: &[u8]) {
    let (mut whole, mut pieces) = (Control::default(), Control::default());
    whole.received(bytes, NOW);
    for piece in bytes.chunks(7) {
        pieces.received(piece, NOW);
    }
    assert_eq!((whole.tally(), whole.flood()), (pieces.tally(), pieces.flood()));
    // A frame has a head of 9 bytes.
    let frames: u32 = whole.tally().iter().sum();
    assert!(frames as usize * 9 <= 2 * bytes.len());

    whole.sent(bytes, NOW);
    for piece in bytes.chunks(5) {
        pieces.sent(piece, NOW);
    }
    assert_eq!((whole.tally(), whole.flood()), (pieces.tally(), pieces.flood()));
}
