//! The counting of HTTP/2 frames does not depend on how the bytes come.
#![no_main]

use foregate::proxy::Control;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let whole = Control::default().count(bytes);
    let mut control = Control::default();
    let piecewise: u32 = bytes.chunks(7).map(|piece| control.count(piece)).sum();
    assert_eq!(whole, piecewise);
    assert!(whole as usize * 9 <= bytes.len());
});
