//! Sealing alone, by level and threads, from an uncompressed dump in the page cache to nowhere.

use std::fs::File;
use std::io;
use std::time::Instant;

use foregate::repository::Keys;
use foregate::repository::seal::{Compression, seal};

use crate::cluster::Cluster;

pub(crate) fn compare(cluster: &Cluster) {
    let dump = cluster.path("plain.dump");
    super::timed(cluster.program("pg_dump").args(["-F", "c", "-Z0", "-f", &dump, "app"]));
    let plain = std::fs::metadata(&dump).expect("a dump").len();
    println!(
        "| zstd level | threads | {} MiB sealed in | size |\n|--:|--:|--:|--:|",
        plain >> 20
    );
    let keys = Keys::new(&[], None).expect("no keys");
    let keys = keys.with_witness();
    for (level, threads) in [(1, 2), (2, 1), (2, 2), (3, 2), (4, 2), (6, 2)] {
        let source = File::open(&dump).expect("a dump");
        let begun = Instant::now();
        let sealed = seal(
            source,
            io::sink(),
            &keys,
            Compression { level, threads },
            || Ok(()),
            |_| {},
        );
        let stored = sealed.expect("it seals").stored_bytes;
        println!(
            "| {level} | {threads} | {:.1} s | {} MiB |",
            begun.elapsed().as_secs_f64(),
            stored >> 20
        );
    }
    std::fs::remove_file(dump).expect("it is removed");
}
