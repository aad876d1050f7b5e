//! Sequence numbers received from other nodes: which messages are new, how many before them are lost, and which are
//! late.
//!
//! For each audience that this node listens to and each source there is an entry: the source's incarnation, its stream,
//! and the last number that was taken. The first message received from a source begins the count; from then on every
//! number is either delivered, in order, or counted as lost. Where the source has said how far it was when this node
//! began to listen ([`standing`](super::standing)), what it numbers behind that is delivered or lost too, from the
//! first on. A source also announces its last numbers, and how old each count is: where a count began after this node
//! had begun to listen, what came before the first received number is lost too. Numbers that an announcement claims and
//! that have not arrived may still be on their way by another subscription, so the claim is accepted
//! [`BELIEVED_AFTER_MS`] later.
//!
//! Invariants: a number is delivered at most once, and never behind a higher one of its stream; the number of entries
//! is limited, and the count of entries evicted for want of room is reported; a source can affect only its own counts.

use super::names::NAME_BYTES_MAX;
use super::subject::AudienceKey;
use crate::admission::{table_bytes, tree_bytes_in_order};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// After this long an announcement is believed: what was sent before it has arrived by then, or is lost.
pub(super) const BELIEVED_AFTER_MS: u64 = 1000;

/// Where the source has not said it, a count is taken for younger than a subscription only if it is so by as much:
/// announcements take time, and look younger by that.
const YOUNGER_BY_MS: u64 = 1000;

/// Where a message stands among its source's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number {
    /// When the source began.
    pub incarnation: u64,
    /// Its count.
    pub stream: u32,
    /// The number in that.
    pub sequence: u64,
}

/// The meaning of a message's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the next, or the first that is heard of its source.
    Next,
    /// So many before it are lost.
    Behind {
        /// How many.
        lost: u64,
    },
    /// The source has forgotten its count and begun another: how many are lost is not known, but that these are.
    Recounted {
        /// Of the new count.
        lost: u64,
    },
    /// The source began anew.
    Restarted {
        /// Of the new count.
        lost: u64,
    },
    /// It was delivered already, or has been counted as lost.
    Late,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Incoming {
    places: HashMap<AudienceKey, HashMap<Arc<str>, Place>>,
    /// The heap bytes of the tables of all lines.
    of_lines_bytes: usize,
    /// All of them by when they were used last.
    by_use: BTreeMap<u64, (AudienceKey, Arc<str>)>,
    uses: u64,
    places_max: usize,
    /// Announcements that are not believed yet, in order.
    claims: VecDeque<LossClaim>,
}

#[derive(Debug)]
struct Place {
    incarnation: u64,
    stream: u32,
    /// None: only an announcement was heard.
    last: Option<u64>,
    /// How many numbers came before the first that was heard, while it is not known whether they were meant for this
    /// node.
    unheard: u64,
    /// While none is heard: up to which number they came before this node listened, where that is known.
    base: Option<u64>,
    used: u64,
    /// A claim of it waits.
    is_claimed: bool,
}

#[derive(Debug)]
struct LossClaim {
    at_ms: u64,
    line: AudienceKey,
    source: Arc<str>,
    number: Number,
    /// The count is younger than the subscription.
    is_younger: bool,
}

/// The memory of the name of a place's source, which came with a message.
const NAME_BYTES: usize = 2 * size_of::<usize>() + NAME_BYTES_MAX / 2;

fn bytes_of(of_line: &HashMap<Arc<str>, Place>) -> usize {
    table_bytes::<Arc<str>, Place>(of_line.capacity())
}

/// A source's report of one of its counts, and its time.
#[derive(Debug, Clone, Copy)]
pub(super) struct AnnouncedCount {
    /// Its last number.
    pub number: Number,
    /// How old the count is.
    pub age_ms: u64,
    /// When it was heard.
    pub now_ms: u64,
    /// Since when this node listens to that audience.
    pub since_ms: u64,
    /// Whether the count is younger than that, where its source has said so.
    pub is_younger: Option<bool>,
}

/// A place that was forgotten.
pub(super) type ForgottenPlace = (AudienceKey, Arc<str>);

impl Incoming {
    /// Keeps at most so many places.
    pub(super) fn new(places_max: usize) -> Self {
        assert!(places_max > 0);
        let (places, by_use, claims) = Default::default();
        Self { places, of_lines_bytes: 0, by_use, uses: 0, places_max, claims }
    }

    /// Judges a message of `source` to `line`. With it, whose place was forgotten for it.
    pub(super) fn take(
        &mut self,
        line: AudienceKey,
        source: &Arc<str>,
        number: Number,
    ) -> (Verdict, Option<ForgottenPlace>) {
        let Some(place) = self.used(line, source) else {
            return (Verdict::Next, self.begin(line, source, number, Some(number.sequence)));
        };
        let Number { incarnation, stream, sequence } = number;
        let Some(last) = place.last else {
            let is_based = (incarnation, stream) == (place.incarnation, place.stream);
            if let Some(base) = place.base.take().filter(|_| is_based) {
                place.last = Some(sequence);
                let verdict = match sequence.saturating_sub(base) {
                    0 | 1 => Verdict::Next,
                    behind => Verdict::Behind { lost: behind - 1 },
                };
                return (verdict, None);
            }
            (place.incarnation, place.stream, place.last) = (incarnation, stream, Some(sequence));
            place.unheard = sequence.saturating_sub(1);
            return (Verdict::Next, None);
        };
        let is_old = (incarnation, stream) < (place.incarnation, place.stream);
        let is_same = (incarnation, stream) == (place.incarnation, place.stream);
        if is_old || is_same && sequence <= last {
            return (Verdict::Late, None);
        }
        let verdict = match sequence - if is_same { last + 1 } else { 1.min(sequence) } {
            0 if is_same => Verdict::Next,
            lost if is_same => Verdict::Behind { lost },
            lost if incarnation == place.incarnation => Verdict::Recounted { lost },
            lost => Verdict::Restarted { lost },
        };
        if !is_same {
            // Losses of a finished count can no longer be determined.
            place.unheard = 0;
        }
        (place.incarnation, place.stream, place.last) = (incarnation, stream, Some(sequence));
        (verdict, None)
    }

    /// Notes how far the count of `source` for an audience was when this node began to listen to it: what follows shows
    /// to be lost. With it, whose place was forgotten for it.
    pub(super) fn stood(
        &mut self,
        line: AudienceKey,
        source: &Arc<str>,
        number: Number,
    ) -> (Option<Verdict>, Option<ForgottenPlace>) {
        let Some(place) = self.used(line, source) else {
            let forgotten = self.begin(line, source, number, None);
            self.place(&line, source).expect("it was put there").base = Some(number.sequence);
            return (None, forgotten);
        };
        if (place.incarnation, place.stream) != (number.incarnation, number.stream) {
            return (None, None);
        }
        if place.last.is_none() {
            place.base = Some(number.sequence);
            return (None, None);
        }
        let lost = std::mem::take(&mut place.unheard).saturating_sub(number.sequence);
        ((lost > 0).then_some(Verdict::Behind { lost }), None)
    }

    /// Notes what `source` says of its count for an audience. With it, whose place was forgotten for it.
    pub(super) fn claim(
        &mut self,
        line: AudienceKey,
        source: &Arc<str>,
        announced: AnnouncedCount,
    ) -> Option<ForgottenPlace> {
        let AnnouncedCount { number, age_ms, now_ms, since_ms, is_younger } = announced;
        let forgotten = match self.used(line, source) {
            Some(_) => None,
            None => self.begin(line, source, number, None),
        };
        let has_room = self.claims.len() < 2 * self.places_max;
        let place = self.place(&line, source).expect("it is there or was put there");
        if !place.is_claimed && has_room {
            place.is_claimed = true;
            let by_age = now_ms.saturating_sub(age_ms) > since_ms + YOUNGER_BY_MS;
            let is_younger = is_younger.unwrap_or(by_age);
            self.claims.push_back(LossClaim { at_ms: now_ms, line, source: source.clone(), number, is_younger });
        }
        forgotten
    }

    /// Believes the announcements that are old enough: what they show to be lost.
    pub(super) fn believe(&mut self, now_ms: u64) -> Vec<(AudienceKey, Arc<str>, Verdict)> {
        let mut told = Vec::new();
        while self.claims.front().is_some_and(|claim| claim.at_ms + BELIEVED_AFTER_MS <= now_ms) {
            let claim = self.claims.pop_front().expect("there is one");
            let Some(verdict) = self.believe_one(&claim) else { continue };
            told.push((claim.line, claim.source, verdict));
        }
        told
    }

    fn believe_one(&mut self, claim: &LossClaim) -> Option<Verdict> {
        let LossClaim { line, source, number, is_younger, .. } = claim;
        let place = self.place(line, source).filter(|place| place.is_claimed)?;
        place.is_claimed = false;
        let is_same = (place.incarnation, place.stream) == (number.incarnation, number.stream);
        let unheard = std::mem::take(&mut place.unheard);
        let unheard = if *is_younger && is_same { unheard } else { 0 };
        let lost = match place.last {
            // Nothing of it has come: all of it is lost, or it was before our time.
            None => {
                let base = place.base.take().filter(|_| is_same);
                (place.incarnation, place.stream) = (number.incarnation, number.stream);
                place.last = Some(base.unwrap_or(0).max(number.sequence));
                if let Some(base) = base {
                    let lost = number.sequence.saturating_sub(base);
                    return (lost > 0).then_some(Verdict::Behind { lost });
                }
                return is_younger.then_some(Verdict::Behind { lost: number.sequence }).filter(|_| number.sequence > 0);
            }
            Some(last) if is_same => number.sequence.saturating_sub(last),
            // As if a message of that number had come, and were lost itself.
            Some(_) => {
                return match self.take(*line, source, *number).0 {
                    Verdict::Recounted { lost } => Some(Verdict::Recounted { lost: lost.saturating_add(1) }),
                    Verdict::Restarted { lost } => Some(Verdict::Restarted { lost: lost.saturating_add(1) }),
                    Verdict::Next | Verdict::Behind { .. } | Verdict::Late => None,
                };
            }
        };
        place.last = place.last.max(Some(number.sequence));
        let lost = lost.saturating_add(unheard);
        (lost > 0).then_some(Verdict::Behind { lost })
    }

    /// Forgets an audience: this node does not listen to it any more.
    pub(super) fn leave(&mut self, line: &AudienceKey) {
        let of_line = self.places.remove(line).unwrap_or_default();
        self.of_lines_bytes -= bytes_of(&of_line);
        for place in of_line.into_values() {
            self.by_use.remove(&place.used);
        }
    }

    /// Forgets all places of a source.
    pub(super) fn forget(&mut self, source: &Arc<str>) {
        self.by_use.retain(|_, (_, of)| of != source);
        self.places.retain(|_, of_line| {
            of_line.remove(source);
            !of_line.is_empty()
        });
        self.of_lines_bytes = self.places.values().map(bytes_of).sum();
    }

    /// Their heap bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        table_bytes::<AudienceKey, HashMap<Arc<str>, Place>>(self.places.capacity())
            + self.of_lines_bytes
            + tree_bytes_in_order::<u64, (AudienceKey, Arc<str>)>(self.by_use.len())
            + self.len() * NAME_BYTES
            + self.claims.capacity() * size_of::<LossClaim>()
    }

    /// How many places there are.
    pub(super) fn len(&self) -> usize {
        self.by_use.len()
    }

    fn place(&mut self, line: &AudienceKey, source: &Arc<str>) -> Option<&mut Place> {
        self.places.get_mut(line)?.get_mut(source)
    }

    /// The place, if there is one, as the one that was used last.
    fn used(&mut self, line: AudienceKey, source: &Arc<str>) -> Option<&mut Place> {
        let place = self.places.get_mut(&line)?.get_mut(source)?;
        self.uses += 1;
        let entry = self.by_use.remove(&place.used).expect("both hold the same");
        self.by_use.insert(self.uses, entry);
        place.used = self.uses;
        Some(place)
    }

    fn begin(
        &mut self,
        line: AudienceKey,
        source: &Arc<str>,
        number: Number,
        last: Option<u64>,
    ) -> Option<ForgottenPlace> {
        let forgotten = if self.len() < self.places_max { None } else { self.by_use.pop_first() };
        if let Some((_, (line, source))) = &forgotten {
            let of_line = self.places.get_mut(line).expect("both hold the same");
            of_line.remove(source);
            if of_line.is_empty() {
                self.of_lines_bytes -= bytes_of(of_line);
                self.places.remove(line);
            }
        }
        self.uses += 1;
        let Number { incarnation, stream, .. } = number;
        let unheard = last.unwrap_or(0).saturating_sub(1);
        let place = Place { incarnation, stream, last, unheard, base: None, used: self.uses, is_claimed: false };
        let of_line = self.places.entry(line).or_default();
        let before = bytes_of(of_line);
        of_line.insert(source.clone(), place);
        self.of_lines_bytes += bytes_of(of_line) - before;
        self.by_use.insert(self.uses, (line, source.clone()));
        forgotten.map(|(_, entry)| entry)
    }
}

#[cfg(test)]
#[path = "incoming_tests.rs"]
mod tests;
