//! Path patterns: `/user/:id`, `/files/*rest`, matched as the router of the original does (`route-recognizer` 0.3).
//!
//! A segment ends at `/` or `.`. One that starts with `:` is a parameter: one or more characters but `/`. One that
//! starts with `*` is a wildcard: one or more characters. Names of parameters and wildcards may be empty, and are then
//! not captured. Of several patterns that match, the one with more static segments wins, then with more parameters,
//! then with more wildcards, then the one bound first; each capture takes as much as it can, from left to right.
//! Paths are compared as they were sent, byte for byte, undecoded.
//!
//! How it is matched: for each piece, from the last to the first, a set of the places in the path from which this piece
//! and those behind it match to the end; then the captures, each as long as the sets allow. A set is a bit for each
//! byte, so a piece costs a few steps for each 64 bytes of path, whatever the path, and nothing is tried twice. All
//! steps of a request come out of one [`MatchSteps`].

use smallvec::SmallVec;

/// The captures of a match: name and value, in order.
pub type Params<'s, 'p> = SmallVec<[(&'s str, &'p str); 4]>;

/// A pattern that cannot be bound: the fault of the process that binds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
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

/// A pattern with at least one parameter or wildcard.
#[derive(Debug, Clone)]
pub(super) struct PathPattern {
    pieces: Box<[PatternPiece]>,
    /// Static segments, parameters, wildcards: more is better, in this order.
    rank: (u32, u32, u32),
}

#[derive(Debug, Clone)]
enum PatternPiece {
    /// These bytes.
    Static(Box<str>),
    /// One or more characters but `/`.
    Param(Box<str>),
    /// One or more characters.
    Wildcard(Box<str>),
}

/// A parsed path.
pub(super) enum Parsed {
    /// It matches itself.
    Static,
    /// It matches others.
    Pattern(PathPattern),
}

impl PathPattern {
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
                    PatternPiece::Param(segment[1..].into())
                }
                Some(b'*') => {
                    rank.2 += 1;
                    PatternPiece::Wildcard(segment[1..].into())
                }
                _ => {
                    rank.0 += 1;
                    text.push_str(segment);
                    continue;
                }
            };
            if !text.is_empty() {
                pieces.push(PatternPiece::Static(std::mem::take(&mut text).into()));
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
            pieces.push(PatternPiece::Static(text.into()));
        }
        Ok(Parsed::Pattern(Self { pieces: pieces.into(), rank }))
    }

    /// How specific it is; more is better.
    pub(super) fn rank(&self) -> (u32, u32, u32) {
        self.rank
    }

    /// The pattern without parameter names: patterns of the same shape are the same pattern.
    pub(super) fn shape(&self) -> String {
        let text = |piece: &PatternPiece| match piece {
            PatternPiece::Static(text) => text.to_string(),
            PatternPiece::Param(_) => ":".to_owned(),
            PatternPiece::Wildcard(_) => "*".to_owned(),
        };
        self.pieces.iter().map(text).collect()
    }

    /// The prefix of every path that it matches; it ends at a separator, or is empty.
    pub(super) fn prefix(&self) -> &str {
        match self.pieces.first() {
            Some(PatternPiece::Static(text)) => text,
            _ => "",
        }
    }

    /// Matches a path without its leading `/`.
    ///
    /// # Errors
    /// There is not so much work left.
    pub(super) fn matches<'s, 'p>(
        &'s self,
        path: &Subject<'p>,
        work: &mut MatchSteps,
    ) -> Result<Option<Params<'s, 'p>>, TooMuchWork> {
        work.spend(1)?;
        let text = path.text;
        if !text.starts_with(self.prefix())
            || matches!(self.pieces.last(), Some(PatternPiece::Static(end)) if !text.ends_with(&**end))
        {
            return Ok(None);
        }
        let words = path.words();
        work.spend(self.pieces.iter().map(PatternPiece::steps).sum::<usize>() * words)?;
        let mut sets: SmallVec<[u64; 16]> = SmallVec::from_elem(0, (self.pieces.len() + 1) * words);
        let end = self.pieces.len() * words;
        set(&mut sets[end..], text.len());
        for (at, piece) in self.pieces.iter().enumerate().rev() {
            let (these, next) = sets[at * words..(at + 2) * words].split_at_mut(words);
            match piece {
                // The prefix is there: all that is asked is whether the rest goes on behind it.
                PatternPiece::Static(text) if at == 0 => {
                    if has(next, text.len()) {
                        set(these, 0);
                    }
                }
                PatternPiece::Static(text) => path.before_text(text, next, these),
                PatternPiece::Param(_) => path.before_param(next, these),
                PatternPiece::Wildcard(_) => {
                    let last = highest(next, text.len()).unwrap_or(0);
                    fill(these, last);
                }
            }
        }
        Ok(has(&sets[..words], 0).then(|| self.captures(path, &sets)))
    }

    /// The part of the path that each parameter and wildcard takes: as much as lets the rest match.
    fn captures<'s, 'p>(&'s self, path: &Subject<'p>, sets: &[u64]) -> Params<'s, 'p> {
        let words = path.words();
        let mut params = Params::new();
        let mut at = 0;
        for (piece, next) in self.pieces.iter().zip(sets.chunks_exact(words).skip(1)) {
            let (name, furthest) = match piece {
                PatternPiece::Static(text) => {
                    at += text.len();
                    continue;
                }
                PatternPiece::Param(name) => {
                    let rest = &path.text[at..];
                    (name, at + rest.find('/').unwrap_or(rest.len()))
                }
                PatternPiece::Wildcard(name) => (name, path.text.len()),
            };
            let end = highest(next, furthest).expect("the pieces match from here");
            if !name.is_empty() {
                params.push((name, &path.text[at..end]));
            }
            at = end;
        }
        params
    }
}

impl PatternPiece {
    /// Steps for each 64 bytes of path.
    fn steps(&self) -> usize {
        match self {
            PatternPiece::Static(text) if text.len() == 1 => 1,
            // Each of at most 32 separators may have to be compared.
            PatternPiece::Static(text) => 16 + text.len() / 8,
            PatternPiece::Param(_) => 4,
            PatternPiece::Wildcard(_) => 1,
        }
    }
}

/// Steps that matching one request may take, at some nanoseconds each: with usual patterns, thousands of them; with the
/// longest path and the costliest patterns, a few dozen.
const WORK_MAX: usize = 1 << 18;

/// The steps that are left for a request.
pub(super) struct MatchSteps(usize);

/// A path would have to be compared with more than a request may cost: it is too long for so many patterns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the path is too long for the number of patterns that it may match")]
pub struct TooMuchWork;

impl MatchSteps {
    /// That of one request.
    pub(super) fn new() -> Self {
        Self(WORK_MAX)
    }

    pub(super) fn spend(&mut self, steps: usize) -> Result<(), TooMuchWork> {
        self.0 = self.0.checked_sub(steps).ok_or(TooMuchWork)?;
        Ok(())
    }
}

/// A path that patterns are tried on, without its leading `/`.
pub(super) struct Subject<'p> {
    text: &'p str,
    slashes: SmallVec<[u64; 4]>,
    dots: SmallVec<[u64; 4]>,
}

impl<'p> Subject<'p> {
    pub(super) fn new(text: &'p str) -> Self {
        // One place more than bytes: the end.
        let words = text.len() / 64 + 1;
        let mut subject = Self { text, slashes: SmallVec::from_elem(0, words), dots: SmallVec::from_elem(0, words) };
        for (word, bytes) in text.as_bytes().chunks(64).enumerate() {
            let bits = |wanted| bytes.iter().rev().fold(0, |bits, &byte| bits << 1 | u64::from(byte == wanted));
            (subject.slashes[word], subject.dots[word]) = (bits(b'/'), bits(b'.'));
        }
        subject
    }

    fn words(&self) -> usize {
        self.slashes.len()
    }

    /// The places from which `text` leads to one of `next`. It begins with a separator, as all text behind a parameter
    /// or wildcard does.
    fn before_text(&self, text: &str, next: &[u64], these: &mut [u64]) {
        let separators = if text.starts_with('/') { &self.slashes } else { &self.dots };
        let (skip, shift) = (text.len() / 64, text.len() % 64);
        for word in 0..these.len() {
            let at = |word: usize| next.get(word).copied().unwrap_or(0);
            let (low, high) = (at(word + skip) >> shift, at(word + skip + 1));
            let moved = if shift == 0 { low } else { low | high << (64 - shift) };
            let mut found = moved & separators[word];
            let mut unchecked = if text.len() > 1 { found } else { 0 };
            while unchecked != 0 {
                let bit = unchecked.trailing_zeros();
                unchecked &= unchecked - 1;
                let start = word * 64 + bit as usize;
                if self.text.as_bytes()[start..start + text.len()] != *text.as_bytes() {
                    found &= !(1 << bit);
                }
            }
            these[word] = found;
        }
    }

    /// The places from which one or more bytes but `/` lead to one of `next`.
    fn before_param(&self, next: &[u64], these: &mut [u64]) {
        // Whether the place behind this word is one of `next`, or of those found.
        let mut behind = 0;
        for word in (0..these.len()).rev() {
            let plain = !self.slashes[word];
            let mut found = plain & (next[word] >> 1 | behind << 63);
            let mut run = plain;
            // All that lies before a place that was found, with no slash between: twice as far at each step.
            for by in [1, 2, 4, 8, 16, 32] {
                found |= run & found >> by;
                run &= run >> by;
            }
            these[word] = found;
            behind = (found | next[word]) & 1;
        }
    }
}

fn set(bits: &mut [u64], at: usize) {
    bits[at / 64] |= 1 << (at % 64);
}

fn has(bits: &[u64], at: usize) -> bool {
    bits.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
}

/// Sets all places before `end`.
fn fill(bits: &mut [u64], end: usize) {
    bits[..end / 64].fill(u64::MAX);
    if !end.is_multiple_of(64) {
        bits[end / 64] = (1 << (end % 64)) - 1;
    }
}

/// The last place that is set, up to `last`.
fn highest(bits: &[u64], last: usize) -> Option<usize> {
    let word = last / 64;
    let top = bits[word] & u64::MAX >> (63 - last % 64);
    let (word, bits) = match top {
        0 => bits[..word].iter().copied().enumerate().rfind(|(_, bits)| *bits != 0)?,
        top => (word, top),
    };
    Some(word * 64 + 63 - bits.leading_zeros() as usize)
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
