//! Bindings by path: a table per first segment, since nearly every path starts with the id of the process that bound
//! it, so that one process' thousand paths cost another nothing.
//!
//! Cheap to clone: a change copies the list of tables and the one table it touches. The last bind of a path wins;
//! nothing that is bound makes another bind fail. A path that was unbound is remembered, because it answers 404 even
//! where a less specific pattern or the base path would take it (node contract, section 3).

use super::pattern::{Parsed, Pattern, PatternError};
use rustc_hash::FxHashMap;
use std::sync::Arc;

pub use super::pattern::Params;

/// Unbound paths remembered per table; above that the oldest are forgotten, so that a process that binds and unbinds
/// for ever does not grow it for ever.
const UNBOUND_MAX: usize = 256;

/// Bindings of type `B`.
#[derive(Debug)]
pub struct Routes<B> {
    /// By first segment, for paths whose first segment is static.
    tables: Arc<FxHashMap<Box<str>, Arc<Table<B>>>>,
    /// Patterns whose first segment is not.
    rootless: Arc<Table<B>>,
}

#[derive(Debug)]
struct Table<B> {
    statics: FxHashMap<Box<str>, Slot<B>>,
    /// The most specific first; of equals, the one bound first.
    patterns: Vec<(Pattern, Slot<B>)>,
    changes: u64,
}

#[derive(Debug)]
struct Slot<B> {
    /// `None`: unbound.
    binding: Option<Arc<B>>,
    /// The table's change that made it.
    change: u64,
}

/// What a path leads to.
#[derive(Debug)]
pub struct Found<'s, 'p, B> {
    /// The binding; `None` where it was unbound.
    pub binding: Option<&'s B>,
    /// The captures of the pattern, undecoded, in order.
    pub params: Params<'s, 'p>,
}

impl<B> Clone for Routes<B> {
    fn clone(&self) -> Self {
        Self { tables: self.tables.clone(), rootless: self.rootless.clone() }
    }
}

impl<B> Clone for Table<B> {
    fn clone(&self) -> Self {
        Self { statics: self.statics.clone(), patterns: self.patterns.clone(), changes: self.changes }
    }
}

impl<B> Clone for Slot<B> {
    fn clone(&self) -> Self {
        Self { binding: self.binding.clone(), change: self.change }
    }
}

impl<B> Default for Table<B> {
    fn default() -> Self {
        Self { statics: FxHashMap::default(), patterns: Vec::new(), changes: 0 }
    }
}

impl<B> Default for Routes<B> {
    fn default() -> Self {
        Self { tables: Arc::default(), rootless: Arc::default() }
    }
}

/// A path without one trailing `/`: what is bound and what is asked for are compared in this form.
pub(super) fn without_trailing_slash(path: &str) -> &str {
    path.strip_suffix('/').unwrap_or(path)
}

fn without_leading_slash(path: &str) -> &str {
    path.strip_prefix('/').unwrap_or(path)
}

impl<B> Routes<B> {
    /// Binds `pattern`, which may have parameters and wildcards.
    ///
    /// # Errors
    /// When it is too long or has too many parameters.
    pub fn bind(&mut self, pattern: &str, binding: B) -> Result<(), PatternError> {
        self.put(pattern, Some(Arc::new(binding)), |_| true)
    }

    /// Unbinds `pattern` if what is bound there is `ours`; what is not bound is left alone.
    ///
    /// # Errors
    /// When the pattern could never have been bound.
    pub fn unbind(&mut self, pattern: &str, ours: impl Fn(&B) -> bool) -> Result<(), PatternError> {
        self.put(pattern, None, |old| old.is_some_and(&ours))
    }

    fn put(
        &mut self,
        pattern: &str,
        binding: Option<Arc<B>>,
        may_replace: impl Fn(Option<&B>) -> bool,
    ) -> Result<(), PatternError> {
        let path = without_leading_slash(without_trailing_slash(pattern));
        let parsed = Pattern::parse(path)?;
        let first = path.split('/').next().unwrap_or_default();
        let table = match Pattern::parse(first)? {
            Parsed::Static => Arc::make_mut(&mut self.tables).entry(first.into()).or_default(),
            Parsed::Pattern(_) => &mut self.rootless,
        };
        Arc::make_mut(table).put(path, parsed, binding, may_replace);
        Ok(())
    }

    /// Removes every binding that is `theirs`, and every memory of unbound paths in the tables it empties.
    pub fn remove(&mut self, theirs: impl Fn(&B) -> bool) {
        Arc::make_mut(&mut self.tables).retain(|_, table| {
            if table.any(&theirs) {
                Arc::make_mut(table).remove(&theirs);
            }
            table.any(|_| true)
        });
        if self.rootless.any(&theirs) {
            Arc::make_mut(&mut self.rootless).remove(&theirs);
        }
    }

    /// What `path` leads to. One trailing `/` does not count.
    pub fn find<'s, 'p>(&'s self, path: &'p str) -> Option<Found<'s, 'p, B>> {
        let path = without_leading_slash(without_trailing_slash(path));
        let first = path.split('/').next().unwrap_or_default();
        let table = self.tables.get(first);
        if let Some(slot) = table.and_then(|table| table.statics.get(path)) {
            return Some(Found { binding: slot.binding.as_deref(), params: Params::new() });
        }
        let narrow = table.and_then(|table| table.find(path));
        let (slot, params, _) = match (narrow, self.rootless.find(path)) {
            (Some(narrow), Some(wide)) if wide.2 > narrow.2 => wide,
            (narrow, wide) => narrow.or(wide)?,
        };
        Some(Found { binding: slot.binding.as_deref(), params })
    }

    /// Every binding, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &B> {
        let tables = self.tables.values().chain(std::iter::once(&self.rootless));
        tables.flat_map(|table| table.slots()).filter_map(|slot| slot.binding.as_deref())
    }
}

type Best<'s, 'p, B> = (&'s Slot<B>, Params<'s, 'p>, (u32, u32, u32));

impl<B> Table<B> {
    fn put(&mut self, path: &str, parsed: Parsed, binding: Option<Arc<B>>, may_replace: impl Fn(Option<&B>) -> bool) {
        self.changes += 1;
        let change = self.changes;
        let unbinds = binding.is_none();
        let slot = Slot { binding, change };
        match parsed {
            Parsed::Static => {
                if may_replace(self.statics.get(path).and_then(|slot| slot.binding.as_deref())) {
                    self.statics.insert(path.into(), slot);
                }
            }
            Parsed::Pattern(pattern) => {
                let at = self.patterns.iter().position(|(have, _)| have.is_same(&pattern));
                if !may_replace(at.and_then(|at| self.patterns[at].1.binding.as_deref())) {
                    return;
                }
                match at {
                    // The names of parameters may have changed.
                    Some(at) => self.patterns[at] = (pattern, slot),
                    None => {
                        let at = self.patterns.partition_point(|(have, _)| have.rank() >= pattern.rank());
                        self.patterns.insert(at, (pattern, slot));
                    }
                }
            }
        }
        if unbinds {
            self.forget_oldest_unbound();
        }
    }

    fn forget_oldest_unbound(&mut self) {
        let unbound = || self.slots().filter(|slot| slot.binding.is_none()).map(|slot| slot.change);
        if unbound().count() > UNBOUND_MAX {
            let oldest = unbound().min();
            self.retain(|slot| Some(slot.change) != oldest);
        }
    }

    fn find<'s, 'p>(&'s self, path: &'p str) -> Option<Best<'s, 'p, B>> {
        self.patterns
            .iter()
            .find_map(|(pattern, slot)| pattern.matches(path).map(|params| (slot, params, pattern.rank())))
    }

    fn slots(&self) -> impl Iterator<Item = &Slot<B>> {
        self.statics.values().chain(self.patterns.iter().map(|(_, slot)| slot))
    }

    fn any(&self, is: impl Fn(&B) -> bool) -> bool {
        self.slots().filter_map(|slot| slot.binding.as_deref()).any(is)
    }

    fn retain(&mut self, keep: impl Fn(&Slot<B>) -> bool) {
        self.statics.retain(|_, slot| keep(slot));
        self.patterns.retain(|(_, slot)| keep(slot));
    }

    fn remove(&mut self, theirs: impl Fn(&B) -> bool) {
        self.retain(|slot| !slot.binding.as_deref().is_some_and(&theirs));
    }
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
