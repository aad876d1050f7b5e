//! Which audiences this node listens to: those that have members here, and a while longer.
//!
//! Invariants: their number is limited; an audience without a member for [`IDLE_MS`] is unsubscribed, so that a client
//! that comes and goes costs NATS nothing each time; audiences that there was no room for are counted.

use super::subject::{AudienceKey, Target};
use crate::admission::table_bytes;
use std::collections::HashMap;

/// How long an audience without members is still listened to.
pub(super) const IDLE_MS: u64 = 10_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Interest {
    lines: HashMap<AudienceKey, Listening>,
    lines_max: usize,
    /// The names of them.
    names_bytes: usize,
    refused: u64,
}

#[derive(Debug)]
struct Listening {
    target: Target,
    since_ms: u64,
    /// Since when it has had no member, as far as that was looked at.
    idle_since_ms: Option<u64>,
}

/// The result of a request to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// It is to be subscribed to.
    New,
    /// It is listened to already.
    Already,
    /// There are as many as there may be.
    Full,
}

impl Interest {
    /// At most so many audiences.
    pub(super) fn new(lines_max: usize) -> Self {
        Self { lines: HashMap::new(), lines_max, names_bytes: 0, refused: 0 }
    }

    /// A channel here belongs to an audience. `has_room` is asked where it is new.
    pub(super) fn want(
        &mut self,
        line: AudienceKey,
        target: &Target,
        now_ms: u64,
        has_room: impl FnOnce() -> bool,
    ) -> Wanted {
        if let Some(listening) = self.lines.get_mut(&line) {
            listening.idle_since_ms = None;
            return Wanted::Already;
        }
        if self.lines.len() >= self.lines_max || !has_room() {
            self.refused += 1;
            return Wanted::Full;
        }
        let listening = Listening { target: target.clone(), since_ms: now_ms, idle_since_ms: None };
        self.names_bytes += target.name().len();
        self.lines.insert(line, listening);
        Wanted::New
    }

    /// Whose audience a line is, and since when it is listened to.
    pub(super) fn get(&self, line: &AudienceKey) -> Option<(&Target, u64)> {
        self.lines.get(line).map(|listening| (&listening.target, listening.since_ms))
    }

    /// All that is listened to.
    pub(super) fn lines(&self) -> impl Iterator<Item = &AudienceKey> {
        self.lines.keys()
    }

    /// Takes out what has had no members for long enough.
    pub(super) fn sweep(&mut self, now_ms: u64, has_members: impl Fn(&Target) -> bool) -> Vec<(AudienceKey, Target)> {
        let mut idle = Vec::new();
        for (line, listening) in &mut self.lines {
            if has_members(&listening.target) {
                listening.idle_since_ms = None;
            } else if *listening.idle_since_ms.get_or_insert(now_ms) + IDLE_MS <= now_ms {
                idle.push((*line, listening.target.clone()));
            }
        }
        for (line, target) in &idle {
            self.lines.remove(line);
            self.names_bytes -= target.name().len();
        }
        idle
    }

    /// Their heap bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        table_bytes::<AudienceKey, Listening>(self.lines.capacity()) + self.names_bytes
    }

    /// How many are listened to.
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    /// How often there was no room.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::super::subject::NamedAudience;
    use super::*;

    fn target(name: &str) -> Target {
        Target { process: "a:b:c".parse().unwrap(), to: NamedAudience::Topic(name.into()) }
    }

    #[test]
    fn what_has_no_members_is_given_up_after_a_while() {
        let mut interest = Interest::new(2);
        let (x, y, z) = (target("x"), target("y"), target("z"));
        let want =
            |interest: &mut Interest, target: &Target, now_ms| interest.want(target.line(), target, now_ms, || true);
        assert_eq!(want(&mut interest, &x, 0), Wanted::New);
        assert_eq!(want(&mut interest, &y, 0), Wanted::New);
        assert_eq!(want(&mut interest, &x, 5), Wanted::Already);
        assert_eq!((want(&mut interest, &z, 5), interest.refused()), (Wanted::Full, 1));
        assert_eq!(interest.names_bytes, 2);
        let only_y = |target: &Target| *target == y;
        assert!(interest.sweep(1000, only_y).is_empty() && interest.sweep(1000 + IDLE_MS - 1, only_y).is_empty());
        // It has come back meanwhile, so it begins anew.
        assert_eq!(want(&mut interest, &x, 9_000), Wanted::Already);
        assert!(interest.sweep(1000 + IDLE_MS, only_y).is_empty());
        assert_eq!(interest.sweep(1000 + 2 * IDLE_MS, only_y), [(x.line(), x.clone())]);
        assert_eq!((interest.len(), interest.get(&x.line()), interest.get(&y.line())), (1, None, Some((&y, 0))));
        assert_eq!(interest.want(z.line(), &z, 50_000, || false), Wanted::Full, "there is no memory");
        assert_eq!(want(&mut interest, &z, 50_000), Wanted::New);
        assert_eq!(interest.want(z.line(), &z, 50_000, || panic!("it is there")), Wanted::Already);
    }
}
