//! What a packet costs on its way in: the check of the frame, the codec, and our packet model. `make bench-codec`;
//! docs/PERFORMANCE.md has the figures.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ntex::codec::Decoder as _;
use ntex::util::BytesMut;
use quorate::mqtt::packet::Version;
use quorate::mqtt::wire::Wire;

/// Packets in one read.
const PACKETS: u16 = 64;

/// A PUBLISH of QoS 1, as most of them are.
fn publish(version: Version, id: u16, payload: usize) -> Vec<u8> {
    let topic = b"plant/line7/temperature";
    let mut body = u16::try_from(topic.len()).unwrap().to_be_bytes().to_vec();
    body.extend(topic);
    body.extend(id.to_be_bytes());
    if version.is_v5() {
        body.push(0);
    }
    body.resize(body.len() + payload, b'x');
    frame(0x32, &body)
}

fn puback(_: Version, id: u16, _: usize) -> Vec<u8> {
    frame(0x40, &id.to_be_bytes())
}

fn frame(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut rest = body.len();
    loop {
        let more = u8::from(rest > 127) << 7;
        bytes.push((rest % 128) as u8 | more);
        rest /= 128;
        if more == 0 {
            break;
        }
    }
    bytes.extend(body);
    bytes
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group(format!("decode {PACKETS} packets"));
    group.throughput(Throughput::Elements(PACKETS.into()));
    type Make = fn(Version, u16, usize) -> Vec<u8>;
    let kinds: [(&str, Make, usize); 3] =
        [("PUBLISH of 256 bytes", publish, 256), ("PUBLISH of 16 KiB", publish, 16 << 10), ("PUBACK", puback, 0)];
    for version in [Version::V311, Version::V5] {
        for (name, make, payload) in kinds {
            let bytes: Vec<u8> = (1..=PACKETS).flat_map(|id| make(version, id, payload)).collect();
            let wire = Wire::new(version, 1 << 20);
            group.bench_function(BenchmarkId::new(name, format!("{version:?}")), |b| {
                b.iter_batched_ref(
                    || BytesMut::from(&bytes[..]),
                    |src| {
                        let mut packets = 0;
                        while let Some(packet) = wire.decode(src).unwrap() {
                            black_box(packet);
                            packets += 1;
                        }
                        assert_eq!(packets, PACKETS);
                    },
                    BatchSize::SmallInput,
                );
            });
        }
    }
    group.finish();
}

fn configured() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3)).sample_size(30)
}

criterion_group! {
    name = codec;
    config = configured();
    targets = decode
}
criterion_main!(codec);
