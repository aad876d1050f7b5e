//! The ring and plain `send(2)` carry the same bytes and tell the same of sockets that are full or broken.
//!
//! Both flush the same random batches into twin sets of socket pairs, whose peers read, stall or go. After each batch
//! the reports must be equal; in the end each peer has got exactly what its reports add up to.

use proptest::prelude::*;
use pushring::internals::driver::flush_send::SendFlush;
use pushring::internals::driver::flush_uring::{BATCH_MIN, ENTRIES, UringFlush};
use pushring::internals::driver::sys::socket_id;
use pushring::internals::shard::flush::{Flush, OutgoingBytes, SendParts, ShortSend};
use std::io::{IoSlice, Read};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

/// The state of one socket before a batch.
#[derive(Debug, Clone, Copy)]
enum Peer {
    Stalls,
    Reads,
    Goes,
}

#[derive(Debug, Clone)]
struct Step {
    socket: usize,
    peer: Peer,
    /// The lengths of the parts; one part leaves as `SendParts::One`.
    parts: Vec<usize>,
}

const SOCKETS: usize = 5;

fn step() -> impl Strategy<Value = Step> {
    let peer = prop_oneof![6 => Just(Peer::Stalls), 3 => Just(Peer::Reads), 1 => Just(Peer::Goes)];
    let length = prop_oneof![4 => 1..200_usize, 2 => 1..20_000_usize, 1 => 1..400_000_usize];
    (0..SOCKETS, peer, prop::collection::vec(length, 1..6)).prop_map(|(socket, peer, parts)| Step {
        socket,
        peer,
        parts,
    })
}

/// Five connections and what their peers have got.
struct World {
    pairs: Vec<(UnixStream, Option<UnixStream>)>,
    got: Vec<Vec<u8>>,
    taken: Vec<Vec<u8>>,
}

impl World {
    fn new() -> Self {
        let pairs = (0..SOCKETS)
            .map(|_| {
                let (here, there) = UnixStream::pair().unwrap();
                there.set_nonblocking(true).unwrap();
                (here, Some(there))
            })
            .collect();
        Self { pairs, got: vec![Vec::new(); SOCKETS], taken: vec![Vec::new(); SOCKETS] }
    }

    fn apply(&mut self, socket: usize, peer: Peer) {
        match peer {
            Peer::Stalls => {}
            Peer::Reads => self.read(socket),
            Peer::Goes => {
                self.read(socket);
                // Its descriptor may be open for a moment longer, in a child that another test has just forked.
                if let Some(there) = self.pairs[socket].1.take() {
                    there.shutdown(Shutdown::Both).unwrap();
                }
            }
        }
    }

    fn read(&mut self, socket: usize) {
        if let Some(there) = &mut self.pairs[socket].1 {
            match there.read_to_end(&mut self.got[socket]) {
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
    }

    fn flush(&mut self, flush: &mut dyn Flush, steps: &[Step], bytes: &[Vec<Vec<u8>>]) -> Vec<ShortSend> {
        let slices: Vec<Vec<IoSlice<'_>>> =
            bytes.iter().map(|parts| parts.iter().map(|part| IoSlice::new(part)).collect()).collect();
        let batch: Vec<_> = steps
            .iter()
            .zip(bytes.iter().zip(&slices))
            .map(|(step, (bytes, slices))| OutgoingBytes {
                socket: socket_id(&self.pairs[step.socket].0),
                parts: if bytes.len() == 1 { SendParts::One(&bytes[0]) } else { SendParts::Many(slices) },
                is_last: false,
            })
            .collect();
        let mut short = Vec::new();
        flush.send_all(&batch, &mut short);
        short.sort_by_key(|short| short.index);
        for (index, step) in steps.iter().enumerate() {
            let whole = bytes[index].concat();
            let sent = short.iter().find(|short| short.index == index).map_or(Ok(whole.len()), |short| short.sent);
            self.taken[step.socket].extend_from_slice(&whole[..sent.unwrap_or(0)]);
        }
        short
    }
}

fn part(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|place| (place.wrapping_mul(31) ^ seed.wrapping_mul(131)) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ring_and_send_agree(batches in prop::collection::vec(prop::collection::vec(step(), 1..8), 1..6)) {
        let (mut by_ring, mut by_send) = (World::new(), World::new());
        let mut ring = UringFlush::new().unwrap().with_batch_min(1);
        for (number, mut steps) in batches.into_iter().enumerate() {
            // A batch names no socket twice.
            steps.sort_by_key(|step| step.socket);
            steps.dedup_by_key(|step| step.socket);
            let bytes: Vec<Vec<Vec<u8>>> = steps
                .iter()
                .map(|step| {
                    step.parts.iter().enumerate().map(|(place, &length)| part(number * 8 + place, length)).collect()
                })
                .collect();
            for step in &steps {
                by_ring.apply(step.socket, step.peer);
                by_send.apply(step.socket, step.peer);
            }
            let ring_short = by_ring.flush(&mut ring, &steps, &bytes);
            let send_short = by_send.flush(&mut SendFlush, &steps, &bytes);
            prop_assert_eq!(ring_short, send_short);
        }
        prop_assert_eq!(ring.gave_up(), None);
        for world in [&mut by_ring, &mut by_send] {
            for socket in 0..SOCKETS {
                world.read(socket);
                if world.pairs[socket].1.is_some() {
                    prop_assert!(world.got[socket] == world.taken[socket], "bytes differ on socket {}", socket);
                }
            }
        }
    }
}

/// Batches beyond the ring's size, with shorts in every chunk: each is reported once, under its own index.
#[test]
fn a_batch_larger_than_the_ring_goes_in_chunks() {
    let count = ENTRIES as usize * 2 + 7;
    let pairs: Vec<_> = (0..count).map(|_| UnixStream::pair().unwrap()).collect();
    for (index, (here, there)) in pairs.iter().enumerate() {
        there.set_nonblocking(true).unwrap();
        if index % 100 == 3 {
            here.shutdown(Shutdown::Write).unwrap();
        }
    }
    let head = IoSlice::new(b"pu");
    let tail = IoSlice::new(b"sh");
    let slices = [head, tail];
    let batch: Vec<_> = pairs
        .iter()
        .enumerate()
        .map(|(index, (here, _))| OutgoingBytes {
            socket: socket_id(here),
            parts: if index % 2 == 0 { SendParts::One(b"push") } else { SendParts::Many(&slices) },
            is_last: false,
        })
        .collect();
    let mut short = Vec::new();
    let mut flush = UringFlush::new().unwrap();
    flush.send_all(&batch, &mut short);
    let expected: Vec<_> =
        (0..count).filter(|index| index % 100 == 3).map(|index| ShortSend { index, sent: Err(libc::EPIPE) }).collect();
    assert_eq!(short, expected);
    for (index, (_, there)) in pairs.iter().enumerate() {
        let mut got = [0; 8];
        match (&*there).read(&mut got) {
            Ok(length) => assert_eq!(&got[..length], if index % 100 == 3 { &b""[..] } else { b"push" }),
            Err(error) => panic!("{index}: {error}"),
        }
    }
    short.clear();
    flush.send_all(&[], &mut short);
    flush.send_all(&batch[..BATCH_MIN - 1], &mut short);
    assert_eq!(short, []);
}

#[test]
fn the_last_bytes_leave_with_the_end_of_the_stream() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let slices = [IoSlice::new(b"pu"), IoSlice::new(b"sh")];
    let uring: Box<dyn Flush> = Box::new(UringFlush::new().unwrap().with_batch_min(1));
    for mut flush in [uring, Box::new(SendFlush)] {
        for (parts, shut) in [(SendParts::One(b"push"), true), (SendParts::Many(&slices), false)] {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            let mut short = Vec::new();
            flush.send_all(&[OutgoingBytes { socket: socket_id(&server), parts, is_last: true }], &mut short);
            assert_eq!(short, []);
            if shut {
                server.shutdown(Shutdown::Write).unwrap();
            } else {
                drop(server);
            }
            let mut got = Vec::new();
            client.read_to_end(&mut got).unwrap();
            assert_eq!(got, b"push");
        }
    }
}
