//! Sealing alone, by level and length of a frame, from an uncompressed dump in the page cache to nowhere.

use std::fs::File;
use std::io;
use std::time::Instant;

use foregate::repository::Keys;
use foregate::repository::frames::Compression;
use foregate::repository::seal::seal;

use crate::cluster::Cluster;

pub(crate) fn compare(cluster: &Cluster) {
    let dump = cluster.path("plain.dump");
    super::timed(cluster.program("pg_dump").args(["-F", "c", "-Z0", "-f", &dump, "app"]));
    let plain = std::fs::metadata(&dump).expect("a dump").len();
    println!(
        "| zstd level | frames of KiB | {} MiB sealed in | size |\n|--:|--:|--:|--:|",
        plain >> 20
    );
    let keys = Keys::new(&[], None).expect("no keys");
    let keys = keys.with_witness();
    for (level, kib) in [
        (1, 256),
        (1, 1024),
        (1, 4096),
        (2, 1024),
        (3, 1024),
        (3, 4096),
        (6, 4096),
    ] {
        let source = File::open(&dump).expect("a dump");
        let begun = Instant::now();
        let how = Compression {
            level,
            frame_bytes: kib << 10,
            ..Compression::DEFAULT
        };
        let sealed = seal(source, io::sink(), &keys, how, || Ok(()), |_| {});
        let stored = sealed.expect("it seals").stored_bytes;
        println!(
            "| {level} | {kib} | {:.1} s | {} MiB |",
            begun.elapsed().as_secs_f64(),
            stored >> 20
        );
    }
    std::fs::remove_file(dump).expect("it is removed");
}
