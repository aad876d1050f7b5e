//! Path patterns: `/user/:id`, `/files/*rest`, matched as the router of the original does (`route-recognizer` 0.3).
//!
//! A segment ends at `/` or `.`. One that starts with `:` is a parameter: one or more characters but `/`. One that
//! starts with `*` is a wildcard: one or more characters. Names of parameters and wildcards may be empty, and are then
//! not captured. Of several patterns that match, the one with more static segments wins, then with more parameters,
//! then with more wildcards, then the one bound first; each capture takes as much as it can, from left to right.
//! Paths are compared as they were sent, byte for byte, undecoded.
//!
//! A match costs at most (pattern pieces × path bytes) steps, whatever the path.

use smallvec::SmallVec;

/// The captures of a match: name and value, in order.
pub type Params<'s, 'p> = SmallVec<[(&'s str, &'p str); 4]>;

/// A pattern that cannot be bound: the fault of the process that binds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Longer than any request head may be.
    #[error("the path is longer than 4096 bytes")]
    TooLong,
    /// More than 16 parameters and wildcards.
    #[error("the path has more than 16 parameters and wildcards")]
    TooManyParams,
}

const PATTERN_BYTES_MAX: usize = 4096;
const PARAMS_MAX: usize = 16;

/// A pattern with at least one parameter or wildcard. Compares by what it matches: names do not count.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    pieces: Box<[Piece]>,
    /// Static segments, parameters, wildcards: more is better, in this order.
    rank: (u32, u32, u32),
}

#[derive(Debug, Clone)]
enum Piece {
    /// These bytes.
    Static(Box<str>),
    /// One or more characters but `/`.
    Param(Box<str>),
    /// One or more characters.
    Wildcard(Box<str>),
}

/// What a path turns out to be.
pub(super) enum Parsed {
    /// It matches itself.
    Static,
    /// It matches others.
    Pattern(Pattern),
}

impl Pattern {
    /// Reads a path without its leading `/`.
    pub(super) fn parse(path: &str) -> Result<Parsed, PatternError> {
        if path.len() > PATTERN_BYTES_MAX {
            return Err(PatternError::TooLong);
        }
        let mut pieces = Vec::new();
        let mut text = String::new();
        let mut rank = (0, 0, 0);
        for (separator, segment) in segments(path) {
            text.extend(separator);
            let dynamic = match segment.as_bytes().first() {
                Some(b':') => {
                    rank.1 += 1;
                    Piece::Param(segment[1..].into())
                }
                Some(b'*') => {
                    rank.2 += 1;
                    Piece::Wildcard(segment[1..].into())
                }
                _ => {
                    rank.0 += 1;
                    text.push_str(segment);
                    continue;
                }
            };
            if !text.is_empty() {
                pieces.push(Piece::Static(std::mem::take(&mut text).into()));
            }
            pieces.push(dynamic);
        }
        if rank.1 + rank.2 == 0 {
            return Ok(Parsed::Static);
        }
        if (rank.1 + rank.2) as usize > PARAMS_MAX {
            return Err(PatternError::TooManyParams);
        }
        if !text.is_empty() {
            pieces.push(Piece::Static(text.into()));
        }
        Ok(Parsed::Pattern(Self { pieces: pieces.into(), rank }))
    }

    /// How specific it is; more is better.
    pub(super) fn rank(&self) -> (u32, u32, u32) {
        self.rank
    }

    /// Whether both match the same paths for the same reason.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.pieces.len() == other.pieces.len()
            && self.pieces.iter().zip(&other.pieces).all(|pair| match pair {
                (Piece::Static(a), Piece::Static(b)) => a == b,
                (Piece::Param(_), Piece::Param(_)) | (Piece::Wildcard(_), Piece::Wildcard(_)) => true,
                _ => false,
            })
    }

    /// Matches a path without its leading `/`.
    pub(super) fn matches<'s, 'p>(&'s self, path: &'p str) -> Option<Params<'s, 'p>> {
        let mut ends: SmallVec<[usize; 8]> = SmallVec::new();
        let mut dead_ends = DeadEnds { stride: path.len() + 1, seen: Vec::new() };
        if !self.matches_from(0, path, 0, &mut ends, &mut dead_ends) {
            return None;
        }
        let mut params = Params::new();
        let mut start = 0;
        for (piece, &end) in self.pieces.iter().zip(&ends) {
            if let Piece::Param(name) | Piece::Wildcard(name) = piece
                && !name.is_empty()
            {
                params.push((name, &path[start..end]));
            }
            start = end;
        }
        Some(params)
    }

    /// Matches the pieces from `piece` on with the path from `at` on; the end of each is left in `ends`.
    fn matches_from(
        &self,
        piece: usize,
        path: &str,
        at: usize,
        ends: &mut SmallVec<[usize; 8]>,
        dead_ends: &mut DeadEnds,
    ) -> bool {
        let rest = &path[at..];
        let longest = match self.pieces.get(piece) {
            None => return rest.is_empty(),
            Some(Piece::Static(text)) => {
                if !rest.starts_with(&**text) {
                    return false;
                }
                ends.push(at + text.len());
                if self.matches_from(piece + 1, path, at + text.len(), ends, dead_ends) {
                    return true;
                }
                ends.pop();
                return false;
            }
            Some(Piece::Param(_)) => rest.find('/').unwrap_or(rest.len()),
            Some(Piece::Wildcard(_)) => rest.len(),
        };
        if longest == 0 || dead_ends.contains(piece, at) {
            return false;
        }
        let fits = |end: &usize| match self.pieces.get(piece + 1) {
            // The last piece takes all there is, and a static one behind it says where it can end.
            None => at + *end == path.len(),
            Some(Piece::Static(text)) => rest[*end..].starts_with(&**text),
            Some(_) => true,
        };
        for end in (1..=longest).rev().filter(|end| rest.is_char_boundary(*end)).filter(fits) {
            ends.push(at + end);
            if self.matches_from(piece + 1, path, at + end, ends, dead_ends) {
                return true;
            }
            ends.pop();
        }
        dead_ends.insert(piece, at);
        false
    }
}

/// Where a match was tried and failed, so that it is not tried twice: this is what keeps a hostile path linear.
struct DeadEnds {
    stride: usize,
    seen: Vec<u64>,
}

impl DeadEnds {
    fn contains(&self, piece: usize, at: usize) -> bool {
        let bit = piece * self.stride + at;
        self.seen.get(bit / 64).is_some_and(|word| word & (1 << (bit % 64)) != 0)
    }

    fn insert(&mut self, piece: usize, at: usize) {
        let bit = piece * self.stride + at;
        if self.seen.len() <= bit / 64 {
            self.seen.resize(bit / 64 + 1, 0);
        }
        self.seen[bit / 64] |= 1 << (bit % 64);
    }
}

/// The segments of a path, each with the separator before it. The first has none.
fn segments(path: &str) -> impl Iterator<Item = (Option<char>, &str)> {
    let mut rest = path;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let separator = matches!(first, '/' | '.').then_some(first);
        let body = if separator.is_some() { &rest[1..] } else { rest };
        let end = body.find(['/', '.']).unwrap_or(body.len());
        let segment = &body[..end];
        rest = &body[end..];
        Some((separator, segment))
    })
}
