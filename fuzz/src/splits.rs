//! The ways in which an input is cut into reads.

/// Streams up to this length are also cut at every byte; longer ones would make every run slow.
const EVERY_BYTE_MAX: usize = 2048;

/// Lists of cuts, each in order and within `stream`: at every byte, at every seventh, and where the stream itself
/// decides, so that runs of the same input cut alike.
pub fn splits(stream: &[u8]) -> impl Iterator<Item = Vec<usize>> {
    let len = stream.len();
    let every = (len <= EVERY_BYTE_MAX).then(|| (0..=len).collect());
    let seventh = (0..len).step_by(7).collect();
    every.into_iter().chain([seventh, drawn(stream)])
}

/// Up to eight cuts, drawn from a hash of the stream (FNV-1a, then xorshift).
fn drawn(stream: &[u8]) -> Vec<usize> {
    let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let mut state = stream.iter().fold(0xcbf2_9ce4_8422_2325, hash) | 1;
    let mut draw = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let count = draw() % 8 + 1;
    let mut cuts: Vec<_> = (0..count).map(|_| (draw() % (stream.len() as u64 + 1)) as usize).collect();
    cuts.sort_unstable();
    cuts
}

/// The pieces of `stream` between the cuts.
pub fn pieces<'a>(stream: &'a [u8], cuts: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut start = 0;
    cuts.iter().copied().chain([stream.len()]).map(move |end| {
        let piece = &stream[start..end];
        start = end;
        piece
    })
}
