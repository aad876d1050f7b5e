//! The promise: however the network cuts a client's bytes into reads, the same events come out, and the same
//! violation at the end.

use crate::proto_support;

use proptest::prelude::*;
use proto_support::{any_frames, any_frames_with_compression, receive, wire};
use pushring::internals::proto::MessageLimits;
use pushring::internals::proto::deflate::Agreed;

/// Small enough for the streams to break them now and then.
const LIMITS: MessageLimits = MessageLimits { message_bytes_max: 100_000, frame_bytes_max: 70_000, fragments_max: 3 };

fn sorted_cuts(cuts: &[prop::sample::Index], len: usize) -> Vec<usize> {
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(len + 1)).collect();
    cuts.sort_unstable();
    cuts
}

fn agreed(compression: bool) -> Option<Agreed> {
    compression.then_some(Agreed::DEFAULT)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn any_split_gives_the_same_events(
        frames in any_frames(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        compression: bool,
    ) {
        let stream = wire(&frames);
        let whole = receive(&stream, &[], &LIMITS, agreed(compression));
        let cuts = sorted_cuts(&cuts, stream.len());
        prop_assert_eq!(receive(&stream, &cuts, &LIMITS, agreed(compression)), whole);
    }

    #[test]
    fn any_split_of_compressed_messages_gives_the_same_events(
        frames in any_frames_with_compression(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let stream = wire(&frames);
        let whole = receive(&stream, &[], &LIMITS, Some(Agreed::DEFAULT));
        let cuts = sorted_cuts(&cuts, stream.len());
        prop_assert_eq!(receive(&stream, &cuts, &LIMITS, Some(Agreed::DEFAULT)), whole);
    }

    #[test]
    fn a_byte_at_a_time_gives_the_same_events(frames in any_frames_with_compression(), compression: bool) {
        let mut stream = wire(&frames);
        stream.truncate(2_000);
        let whole = receive(&stream, &[], &LIMITS, agreed(compression));
        let cuts: Vec<_> = (0..stream.len()).collect();
        prop_assert_eq!(receive(&stream, &cuts, &LIMITS, agreed(compression)), whole);
    }

    #[test]
    fn a_damaged_stream_is_split_invariant_too(
        frames in any_frames_with_compression(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        compression: bool,
    ) {
        let mut stream = wire(&frames);
        for (at, byte) in damage {
            let at = at.index(stream.len().min(40));
            stream[at] = byte;
        }
        let whole = receive(&stream, &[], &LIMITS, agreed(compression));
        let cuts = sorted_cuts(&cuts, stream.len());
        prop_assert_eq!(receive(&stream, &cuts, &LIMITS, agreed(compression)), whole);
    }

    #[test]
    fn no_bytes_at_all_make_it_panic(stream in prop::collection::vec(any::<u8>(), 0..400), compression: bool) {
        receive(&stream, &[], &LIMITS, agreed(compression));
    }
}
