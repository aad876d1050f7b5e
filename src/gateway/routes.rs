//! Bindings by path: a table per first segment, since nearly every path starts with the id of the process that bound
//! it, so that one process' thousand paths cost another nothing.
//!
//! Everything is in persistent maps: a clone shares all, and a change copies the few nodes on the way to what it
//! changes, so that a bind costs the same however much is bound already. Hashes are keyed at random, for processes
//! choose paths. The last bind of a path wins; nothing that is bound makes another bind fail. A path that was unbound
//! is remembered as long as its owner is there, because it answers 404 even where a less specific pattern or the base
//! path would take it (node contract, section 3).
//!
//! Patterns are found by what they begin with, up to the first parameter or wildcard: only those whose beginning the
//! path has are tried, the most specific first.

use super::owner::OwnerId;
use super::pattern::{MatchSteps, Parsed, PathPattern, PatternError, Subject, TooMuchWork};
use crate::admission::Charge;
use rpds::{HashTrieMapSync, HashTrieSetSync, RedBlackTreeMapSync};
use std::cmp::Reverse;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

pub use super::pattern::Params;

/// Unbound paths remembered for each owner; above that the oldest are forgotten, so that a process that binds and
/// unbinds for ever does not grow the tables for ever.
pub const UNBOUND_MAX: usize = 256;

/// A binding with an owner.
pub trait Owned {
    /// The owner, which alone may unbind it, and whose end removes it.
    fn owner(&self) -> OwnerId;
}

/// Bindings of type `B`.
#[derive(Debug, Clone)]
pub struct Routes<B> {
    /// By first segment, for paths whose first segment is static.
    tables: HashTrieMapSync<Box<str>, RouteTable<B>>,
    /// Patterns whose first segment is not.
    rootless: RouteTable<B>,
    by_owner: HashTrieMapSync<OwnerId, OwnedPaths>,
    changes: u64,
}

/// The slots of an owner.
#[derive(Debug, Clone, Default)]
struct OwnedPaths {
    bound: HashTrieSetSync<Arc<str>>,
    /// By the change that made them so.
    unbound: RedBlackTreeMapSync<u64, UnboundPath>,
}

#[derive(Debug)]
struct UnboundPath {
    shape: Arc<str>,
    #[expect(dead_code, reason = "let go of together with the path")]
    charge: Option<Charge>,
}

/// Cheap to clone.
#[derive(Debug)]
struct RouteTable<B> {
    /// Static paths by themselves, patterns by their shape, in which no static path can be written.
    slots: HashTrieMapSync<Arc<str>, RouteSlot<B>>,
    /// Patterns by the hash of what they begin with.
    groups: HashTrieMapSync<u64, PatternGroup<B>>,
    hashing: RandomState,
    /// The longest beginning of a pattern that there has been.
    prefix_bytes_max: usize,
}

/// Patterns that begin alike: the most specific first; of equals, the one bound first.
type PatternGroup<B> = RedBlackTreeMapSync<PatternPlace, Arc<(PathPattern, Option<Arc<B>>)>>;

type Rank = (u32, u32, u32);

/// The place of a pattern in its group: its rank, and the change that first bound it.
type PatternPlace = (Reverse<Rank>, u64);

#[derive(Debug)]
struct RouteSlot<B> {
    /// Who has bound the path, or unbound it.
    owner: OwnerId,
    /// `None`: unbound.
    binding: Option<Arc<B>>,
    /// The change that made it.
    change: u64,
    /// Where it stands among the patterns, if it is one.
    pattern: Option<(u64, PatternPlace)>,
}

/// A match of a path.
#[derive(Debug)]
pub struct RouteMatch<'s, 'p, B> {
    /// The binding; `None` where it was unbound.
    pub binding: Option<&'s B>,
    /// The captures of the pattern, undecoded, in order.
    pub params: Params<'s, 'p>,
}

impl<B> Clone for RouteTable<B> {
    fn clone(&self) -> Self {
        Self {
            slots: self.slots.clone(),
            groups: self.groups.clone(),
            hashing: self.hashing.clone(),
            prefix_bytes_max: self.prefix_bytes_max,
        }
    }
}

impl<B> Clone for RouteSlot<B> {
    fn clone(&self) -> Self {
        Self { owner: self.owner, binding: self.binding.clone(), change: self.change, pattern: self.pattern }
    }
}

impl<B> Default for RouteTable<B> {
    fn default() -> Self {
        Self {
            slots: HashTrieMapSync::default(),
            groups: HashTrieMapSync::default(),
            hashing: RandomState::new(),
            prefix_bytes_max: 0,
        }
    }
}

impl<B> Default for Routes<B> {
    fn default() -> Self {
        Self {
            tables: HashTrieMapSync::default(),
            rootless: RouteTable::default(),
            by_owner: HashTrieMapSync::default(),
            changes: 0,
        }
    }
}

/// A path without one trailing `/`: the form in which bound and requested paths are compared.
pub(super) fn without_trailing_slash(path: &str) -> &str {
    path.strip_suffix('/').unwrap_or(path)
}

fn without_leading_slash(path: &str) -> &str {
    path.strip_prefix('/').unwrap_or(path)
}

fn first_segment(path: &str) -> &str {
    path.split('/').next().unwrap_or_default()
}

impl<B: Owned> Routes<B> {
    /// Binds `pattern`, which may have parameters and wildcards.
    ///
    /// # Errors
    /// When it is too long or has too many parameters.
    pub fn bind(&mut self, pattern: &str, binding: B) -> Result<(), PatternError> {
        let path = Path::parse(pattern)?;
        self.put(path, binding.owner(), Ok(Arc::new(binding)));
        Ok(())
    }

    /// Unbinds `pattern` in the name of `owner`, if it `may` take what is bound there; none: nothing is. What is
    /// remembered of it has the `charge`.
    ///
    /// # Errors
    /// The pattern could never have been bound.
    pub fn unbind(
        &mut self,
        pattern: &str,
        owner: OwnerId,
        charge: Option<Charge>,
        may: impl Fn(Option<&B>) -> bool,
    ) -> Result<(), PatternError> {
        let path = Path::parse(pattern)?;
        if may(path.table(self).and_then(|table| table.slots.get(&*path.shape)?.binding.as_deref())) {
            self.put(path, owner, Err(charge));
        }
        Ok(())
    }

    /// Removes all that `owner` has bound and unbound.
    pub fn remove_owner(&mut self, owner: OwnerId) {
        let Some(paths) = self.by_owner.get(&owner).cloned() else { return };
        self.by_owner.remove_mut(&owner);
        let unbound = paths.unbound.values().map(|unbound| &unbound.shape);
        paths.bound.iter().chain(unbound).for_each(|shape| self.forget(shape));
    }

    /// Returns whether anything is bound for `owner`.
    pub fn has_bound(&self, owner: OwnerId) -> bool {
        self.by_owner.get(&owner).is_some_and(|paths| !paths.bound.is_empty())
    }

    /// Binds a path; or unbinds it, with the charge for that.
    fn put(&mut self, path: Path, owner: OwnerId, binding: Result<Arc<B>, Option<Charge>>) {
        self.changes += 1;
        let change = self.changes;
        let before = path.table_mut(self).put(&path, owner, change, binding.as_ref().ok().cloned());
        let was_bound = |before: &RouteSlot<B>| before.binding.is_some() && before.owner == owner;
        if binding.is_ok() && before.as_ref().is_some_and(was_bound) {
            return;
        }
        if let Some(before) = before {
            self.disown(&before, &path.shape);
        }
        if !self.by_owner.contains_key(&owner) {
            self.by_owner.insert_mut(owner, OwnedPaths::default());
        }
        let paths = self.by_owner.get_mut(&owner).expect("it is there now");
        let charge = match binding {
            Ok(_) => return paths.bound.insert_mut(path.shape),
            Err(charge) => charge,
        };
        paths.unbound.insert_mut(change, UnboundPath { shape: path.shape, charge });
        if paths.unbound.size() > UNBOUND_MAX
            && let Some((oldest, shape)) = paths.unbound.first().map(|(change, oldest)| (*change, oldest.shape.clone()))
        {
            paths.unbound.remove_mut(&oldest);
            self.forget(&shape);
        }
    }

    /// A slot is its owner's no more.
    fn disown(&mut self, slot: &RouteSlot<B>, shape: &Arc<str>) {
        let Some(paths) = self.by_owner.get_mut(&slot.owner) else { return };
        match slot.binding {
            Some(_) => paths.bound.remove_mut(shape),
            None => paths.unbound.remove_mut(&slot.change),
        };
        if paths.bound.is_empty() && paths.unbound.is_empty() {
            self.by_owner.remove_mut(&slot.owner);
        }
    }

    /// Forgets that a path was ever bound.
    fn forget(&mut self, shape: &Arc<str>) {
        let path = Path::of(shape).expect("the shape of a pattern is a pattern");
        let table = path.table_mut(self);
        table.forget(shape);
        if table.slots.is_empty()
            && let Some(first) = &path.first
        {
            self.tables.remove_mut(first);
        }
    }

    /// The binding that matches `path`. One trailing `/` does not count.
    ///
    /// # Errors
    /// The comparisons would cost more than a request may.
    pub fn find<'s, 'p>(&'s self, path: &'p str) -> Result<Option<RouteMatch<'s, 'p, B>>, TooMuchWork> {
        let path = without_leading_slash(without_trailing_slash(path));
        let table = self.tables.get(first_segment(path));
        if let Some(slot) = table.and_then(|table| table.slots.get(path)).filter(|slot| slot.pattern.is_none()) {
            return Ok(Some(RouteMatch { binding: slot.binding.as_deref(), params: Params::new() }));
        }
        let mut search = Search { path, subject: None, work: MatchSteps::new(), best: None };
        if let Some(table) = table {
            search.look_through(table)?;
        }
        if let Some(((_, first_bound), _)) = &mut search.best {
            // Of equals, the one that names the process.
            *first_bound = 0;
        }
        search.look_through(&self.rootless)?;
        Ok(search.best.map(|(_, found)| found))
    }

    /// Every binding, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &B> {
        let tables = self.tables.values().chain(std::iter::once(&self.rootless));
        tables.flat_map(|table| table.slots.values()).filter_map(|slot| slot.binding.as_deref())
    }
}

/// What all spellings of a path have in common: it is without the slashes that do not count, and without the names of
/// parameters.
///
/// # Errors
/// It could not be bound.
pub fn shape(path: &str) -> Result<Arc<str>, PatternError> {
    Path::parse(path).map(|path| path.shape)
}

/// A path, read.
struct Path {
    /// The path of a static one.
    shape: Arc<str>,
    /// Its first segment, if that is static.
    first: Option<Box<str>>,
    pattern: Option<PathPattern>,
}

impl Path {
    fn parse(path: &str) -> Result<Self, PatternError> {
        Self::of(without_leading_slash(without_trailing_slash(path)))
    }

    /// Reads a path without the slashes that do not count, such as its own shape.
    fn of(path: &str) -> Result<Self, PatternError> {
        let first = first_segment(path);
        let first = match PathPattern::parse(first)? {
            Parsed::Static => Some(first.into()),
            Parsed::Pattern(_) => None,
        };
        Ok(match PathPattern::parse(path)? {
            Parsed::Static => Self { shape: path.into(), first, pattern: None },
            Parsed::Pattern(pattern) => Self { shape: pattern.shape().into(), first, pattern: Some(pattern) },
        })
    }

    fn table<'r, B>(&self, routes: &'r Routes<B>) -> Option<&'r RouteTable<B>> {
        match &self.first {
            Some(first) => routes.tables.get(first),
            None => Some(&routes.rootless),
        }
    }

    /// The table, made if there is none.
    fn table_mut<'r, B>(&self, routes: &'r mut Routes<B>) -> &'r mut RouteTable<B> {
        let Some(first) = &self.first else { return &mut routes.rootless };
        if !routes.tables.contains_key(first) {
            routes.tables.insert_mut(first.clone(), RouteTable::default());
        }
        routes.tables.get_mut(first).expect("it is there now")
    }
}

impl<B> RouteTable<B> {
    /// Binds a path, or unbinds it; answers what was there.
    fn put(&mut self, path: &Path, owner: OwnerId, change: u64, binding: Option<Arc<B>>) -> Option<RouteSlot<B>> {
        let before = self.slots.get(&*path.shape).cloned();
        let pattern = path.pattern.as_ref().map(|pattern| {
            // One that was bound before keeps its place; the names of its parameters may have changed.
            let (hash, place) = before
                .as_ref()
                .and_then(|before| before.pattern)
                .unwrap_or_else(|| (self.hash(pattern.prefix()), (Reverse(pattern.rank()), change)));
            self.prefix_bytes_max = self.prefix_bytes_max.max(pattern.prefix().len());
            let entry = Arc::new((pattern.clone(), binding.clone()));
            match self.groups.get_mut(&hash) {
                Some(group) => group.insert_mut(place, entry),
                None => self.groups.insert_mut(hash, PatternGroup::default().insert(place, entry)),
            }
            (hash, place)
        });
        self.slots.insert_mut(path.shape.clone(), RouteSlot { owner, binding, change, pattern });
        before
    }

    /// Takes a slot out.
    fn forget(&mut self, shape: &Arc<str>) {
        let Some(slot) = self.slots.get(&**shape).cloned() else { return };
        self.slots.remove_mut(&**shape);
        if let Some((hash, place)) = slot.pattern
            && let Some(group) = self.groups.get_mut(&hash)
        {
            group.remove_mut(&place);
            if group.is_empty() {
                self.groups.remove_mut(&hash);
            }
        }
    }

    /// The hash of a beginning, segment by segment, so that those of one path cost one pass over it.
    fn hash(&self, prefix: &str) -> u64 {
        let mut hasher = self.hashing.build_hasher();
        for (_, segment) in beginnings(prefix) {
            hasher.write(segment.as_bytes());
        }
        hasher.finish()
    }
}

/// The beginnings of a path at each of its separators: their length, and the part added to the one before.
fn beginnings(path: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut from = 0;
    memchr::memchr2_iter(b'/', b'.', path.as_bytes()).map(move |at| {
        let segment = &path[from..=at];
        from = at + 1;
        (from, segment)
    })
}

/// The search for the most specific pattern that matches a path.
struct Search<'s, 'p, B> {
    path: &'p str,
    /// Made when the first pattern is tried.
    subject: Option<Subject<'p>>,
    work: MatchSteps,
    best: Option<(PatternPlace, RouteMatch<'s, 'p, B>)>,
}

impl<'s, B> Search<'s, '_, B> {
    fn look_through(&mut self, table: &'s RouteTable<B>) -> Result<(), TooMuchWork> {
        if table.groups.is_empty() {
            return Ok(());
        }
        let mut hasher = table.hashing.build_hasher();
        self.try_group(table.groups.get(&hasher.finish()))?;
        for (bytes, segment) in beginnings(self.path) {
            if bytes > table.prefix_bytes_max {
                break;
            }
            self.work.spend(1)?;
            hasher.write(segment.as_bytes());
            self.try_group(table.groups.get(&hasher.finish()))?;
        }
        Ok(())
    }

    fn try_group(&mut self, group: Option<&'s PatternGroup<B>>) -> Result<(), TooMuchWork> {
        for (place, entry) in group.into_iter().flat_map(PatternGroup::iter) {
            if self.best.as_ref().is_some_and(|(best, _)| best <= place) {
                break;
            }
            let subject = self.subject.get_or_insert_with(|| Subject::new(self.path));
            let (pattern, binding) = &**entry;
            if let Some(params) = pattern.matches(subject, &mut self.work)? {
                self.best = Some((*place, RouteMatch { binding: binding.as_deref(), params }));
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
