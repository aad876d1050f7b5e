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
        let mut failed_at = SmallVec::from_elem(usize::MAX, self.pieces.len());
        if !self.matches_from(0, path, 0, &mut ends, &mut failed_at) {
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
    ///
    /// `failed_at` holds, for each piece, the leftmost place where it was tried in vain. A capture that starts further
    /// left need not try the ends that were tried from there: that is what keeps a hostile path linear.
    fn matches_from(
        &self,
        piece: usize,
        path: &str,
        at: usize,
        ends: &mut SmallVec<[usize; 8]>,
        failed_at: &mut SmallVec<[usize; 8]>,
    ) -> bool {
        let rest = &path[at..];
        let longest = match self.pieces.get(piece) {
            None => return rest.is_empty(),
            Some(Piece::Static(text)) => {
                ends.push(at + text.len());
                let matches =
                    rest.starts_with(&**text) && self.matches_from(piece + 1, path, at + text.len(), ends, failed_at);
                if !matches {
                    ends.pop();
                }
                return matches;
            }
            Some(Piece::Param(_)) => at + rest.find('/').unwrap_or(rest.len()),
            Some(Piece::Wildcard(_)) => path.len(),
        };
        let longest = if at <= failed_at[piece] { longest.min(failed_at[piece]) } else { longest };
        // The last piece takes all there is.
        let shortest = if piece + 1 == self.pieces.len() { path.len().max(at + 1) } else { at + 1 };
        for end in (shortest..=longest).rev().filter(|end| path.is_char_boundary(*end)) {
            ends.push(end);
            if self.matches_from(piece + 1, path, end, ends, failed_at) {
                return true;
            }
            ends.pop();
        }
        failed_at[piece] = failed_at[piece].min(at);
        false
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
