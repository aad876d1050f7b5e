use super::*;
use proptest::prelude::*;

impl Owned for String {
    fn owner(&self) -> OwnerId {
        OwnerId(if self == "/b" { 2 } else { 1 })
    }
}

impl Owned for usize {
    fn owner(&self) -> OwnerId {
        OwnerId(1)
    }
}

fn routes(patterns: &[&str]) -> Routes<String> {
    let mut routes = Routes::default();
    for pattern in patterns {
        routes.bind(pattern, (*pattern).to_owned()).unwrap();
    }
    routes
}

/// The pattern that a path leads to, and its captures as `name=value`.
fn find(routes: &Routes<String>, path: &str) -> Option<(String, Vec<String>)> {
    let found = routes.find(path).unwrap()?;
    let params = found.params.iter().map(|(name, value)| format!("{name}={value}")).collect();
    Some((found.binding.map_or("unbound".into(), Clone::clone), params))
}

fn led(pattern: &str, params: &[&str]) -> Option<(String, Vec<String>)> {
    Some((pattern.into(), params.iter().map(|&param| param.into()).collect()))
}

#[test]
fn the_most_specific_pattern_wins_whatever_the_order() {
    let patterns =
        ["/p:p:t.os/user/new", "/p:p:t.os/user/:id", "/p:p:t.os/*rest", "/p:p:t.os/user/:id/:what", "/*", "/:page"];
    let mut reversed = patterns;
    reversed.reverse();
    for order in [patterns, reversed] {
        let routes = routes(&order);
        let find = |path| find(&routes, path);
        assert_eq!(find("/p:p:t.os/user/new"), led("/p:p:t.os/user/new", &[]));
        assert_eq!(find("/p:p:t.os/user/new/"), led("/p:p:t.os/user/new", &[]));
        assert_eq!(find("/p:p:t.os/user/a%20b"), led("/p:p:t.os/user/:id", &["id=a%20b"]));
        assert_eq!(find("/p:p:t.os/user/1/2"), led("/p:p:t.os/user/:id/:what", &["id=1", "what=2"]));
        assert_eq!(find("/p:p:t.os/user/1/2/3"), led("/p:p:t.os/*rest", &["rest=user/1/2/3"]));
        assert_eq!(find("/p:p:t.os"), led("/:page", &["page=p:p:t.os"]));
        assert_eq!(find("/x/y"), led("/*", &[]));
    }
}

#[test]
fn dots_end_segments_too() {
    let routes = routes(&["/a/:name.json", "/a/:name", "/b.:ext"]);
    assert_eq!(find(&routes, "/a/x.y.json"), led("/a/:name.json", &["name=x.y"]));
    assert_eq!(find(&routes, "/a/x.y"), led("/a/:name", &["name=x.y"]));
    assert_eq!(find(&routes, "/b.css"), led("/b.:ext", &["ext=css"]));
    assert_eq!(find(&routes, "/a/"), None, "a parameter is not empty");
}

#[test]
fn paths_are_not_decoded_and_dots_not_resolved() {
    let routes = routes(&["/p:p:o/open/*rest", "/p:p:o/secret"]);
    for path in ["/p:p:o/open/../secret", "/p:p:o/open/%2e%2e/secret", "/p:p:o/open//secret"] {
        assert_eq!(find(&routes, path).unwrap().0, "/p:p:o/open/*rest", "{path}");
    }
    for path in ["/p:p:o/%73ecret", "/p:p:o/./secret", "//p:p:o/secret", "/P:P:O/secret", "/p:p:o/secret//"] {
        assert_eq!(find(&routes, path), None, "{path}");
    }
}

#[test]
fn the_last_bind_wins_and_an_unbound_path_stays_unbound() {
    let mut routes = routes(&["/a", "/a/:x", "/*"]);
    routes.bind("/a/:y", "again".into()).unwrap();
    assert_eq!(find(&routes, "/a/1"), led("again", &["y=1"]));
    let mut unbind = |path: &str, may: fn(Option<&String>) -> bool| routes.unbind(path, OwnerId(1), None, may).unwrap();
    unbind("/a/:z", |old| old.is_some_and(|old| old == "another's"));
    unbind("/nobodys", |old| old.is_some());
    assert_eq!(find(&routes, "/a/1"), led("again", &["y=1"]));
    assert_eq!(find(&routes, "/nobodys"), led("/*", &[]));
    for path in ["/a/:z", "/a/", "/never"] {
        routes.unbind(path, OwnerId(1), None, |_| true).unwrap();
    }
    assert_eq!(find(&routes, "/a/1"), led("unbound", &["z=1"]));
    assert_eq!(find(&routes, "/a"), led("unbound", &[]));
    assert_eq!(find(&routes, "/never"), led("unbound", &[]), "though it was never bound");
    routes.bind("/a", "back".into()).unwrap();
    assert_eq!(find(&routes, "/a"), led("back", &[]));
}

#[test]
fn a_clone_is_not_changed_and_removal_leaves_nothing() {
    let mut routes = routes(&["/a", "/a/:x", "/b", "/:c"]);
    let before = routes.clone();
    for odd in ["//odd", "/odd//", "///", "/:odd//", "//:odd"] {
        routes.bind(odd, odd.into()).unwrap();
    }
    routes.unbind("/a", OwnerId(1), None, |_| true).unwrap();
    routes.unbind("/never", OwnerId(1), None, |_| true).unwrap();
    routes.remove_owner(OwnerId(1));
    for gone in ["/a", "/a/1", "/z", "//odd", "/odd//", "///", "/z//", "//z", "/never"] {
        assert_eq!(find(&routes, gone), None, "{gone}");
    }
    assert_eq!(find(&routes, "/b"), led("/b", &[]));
    assert_eq!(find(&before, "/a"), led("/a", &[]));
    assert_eq!(before.iter().count(), 4);
    assert_eq!((routes.tables.size(), routes.by_owner.size()), (1, 1));
    assert!(routes.rootless.slots.is_empty() && routes.rootless.groups.is_empty());
}

#[test]
fn binding_and_unbinding_for_ever_grows_nothing() {
    let mut routes = Routes::default();
    let mut unbind = |bound: Option<String>, path: String| {
        if let Some(bound) = bound {
            routes.bind(&bound, 1).unwrap();
        }
        routes.unbind(&path, OwnerId(1), None, |_| true).unwrap();
    };
    for n in 0..2 * UNBOUND_MAX {
        // Each in a table of its own, at the root, and never bound at all.
        unbind(Some(format!("/{n}/x")), format!("/{n}/x"));
        unbind(Some(format!("/:x/{n}")), format!("/:y/{n}"));
        unbind(None, format!("/p:p:o/never-{n}"));
    }
    for n in 0..2 * UNBOUND_MAX {
        unbind(Some(format!("/p:p:o/:x/{n}")), format!("/p:p:o/:y/{n}"));
    }
    assert_eq!(routes.tables.size(), 1);
    let table = routes.tables.get("p:p:o").unwrap();
    assert_eq!((table.slots.size(), table.groups.size(), routes.rootless.slots.size()), (UNBOUND_MAX, 1, 0));
    assert!(routes.rootless.groups.is_empty() && !routes.has_bound(OwnerId(1)));
    let find = |path| routes.find(path).unwrap();
    assert!(find("/p:p:o/never-511").is_none() && find("/p:p:o/x/0").is_none());
    assert!(find("/p:p:o/x/511").unwrap().binding.is_none());
    // The memory of them goes with who had them, and with the last of it all that is about the owner.
    for n in 0..2 * UNBOUND_MAX {
        routes.bind(&format!("/p:p:o/:x/{n}"), n).unwrap();
    }
    assert_eq!(routes.by_owner.get(&OwnerId(1)).unwrap().unbound.size(), 0);
    routes.remove_owner(OwnerId(1));
    assert!(routes.by_owner.is_empty() && routes.tables.is_empty());
}

#[test]
fn patterns_are_bounded() {
    let mut routes = Routes::default();
    assert_eq!(routes.bind(&"/a".repeat(3000), 1), Err(PatternError::TooLong));
    assert_eq!(routes.bind(&"/:a".repeat(17), 1), Err(PatternError::TooManyParams));
    assert_eq!(routes.bind(&"/:a".repeat(16), 1), Ok(()));
}

#[test]
fn a_hostile_path_costs_no_more_than_its_length() {
    let pattern = format!("/{}x", "*/a/".repeat(8));
    let routes = routes(&[&pattern]);
    let path = format!("/{}", "a/".repeat(4000));
    assert_eq!(find(&routes, &path), None, "this would not end if each way were tried");
}

#[test]
fn captures_are_right_at_every_length_of_a_path() {
    let routes = routes(&["/p/:a/x/*b/y", "/q/:a.:b/*c"]);
    for n in 1..300 {
        let (long, dots) = ("l".repeat(n), "d.".repeat(n));
        assert_eq!(
            find(&routes, &format!("/p/{long}/x/{dots}/y/y")),
            led("/p/:a/x/*b/y", &[&format!("a={long}"), &format!("b={dots}/y")])
        );
        assert_eq!(find(&routes, &format!("/p/{long}/{long}/x/1/y")), None);
        assert_eq!(
            find(&routes, &format!("/q/{dots}{long}/{long}")),
            led("/q/:a.:b/*c", &[&format!("a={}d", "d.".repeat(n - 1)), &format!("b={long}"), &format!("c={long}")])
        );
    }
}

#[test]
fn a_path_that_is_too_long_for_so_many_patterns_is_refused_and_others_are_not() {
    let mut routes = Routes::default();
    for n in 0..5000 {
        routes.bind(&format!("/p:p:o/*/a{n}/*"), n).unwrap();
        routes.bind(&format!("/p:p:o/room/{n}/:user"), n).unwrap();
    }
    let bound = |path: &str| routes.find(path).map(|found| found.map(|found| *found.binding.unwrap()));
    assert_eq!(bound("/p:p:o/x/a4711/y"), Ok(Some(4711)));
    assert_eq!(bound("/p:p:o/x/b4711/y"), Ok(None));
    let long = "/a".repeat(8000);
    assert_eq!(bound(&format!("/p:p:o/room/17{long}")), Err(TooMuchWork));
    assert_eq!(bound(&format!("/other{long}")), Ok(None));
    assert_eq!(bound("/p:p:o/room/17/me"), Ok(Some(17)));
}

/// Segments from which patterns and paths are made, so that they often meet.
fn pattern() -> impl Strategy<Value = String> {
    let segment = prop::sample::select(vec!["/a", "/b", "/:x", "/:y", "/*z", "/*", "/a.b", "/:x.b", "/a.:y", "/"]);
    prop::collection::vec(segment, 1..4).prop_map(|segments| segments.concat())
}

fn path() -> impl Strategy<Value = String> {
    let segment = prop::sample::select(vec!["/a", "/b", "/c", "/a.b", "/c.b", "/a.b.b", "/a.c", "/"]);
    prop::collection::vec(segment, 1..5).prop_map(|segments| segments.concat())
}

proptest! {
    /// The router of the original is the oracle. Where patterns of equal rank match, its choice follows from the order
    /// in which its states were made; ours is the one bound first, so such cases are left out.
    #[test]
    fn matches_as_the_original(patterns in prop::collection::vec(pattern(), 1..6), path in path()) {
        let mut oracle = route_recognizer::Router::new();
        for pattern in &patterns {
            oracle.add(without_trailing_slash(pattern), pattern.clone());
        }
        let routes = routes(&patterns.iter().map(String::as_str).collect::<Vec<_>>());
        let expected = oracle.recognize(without_trailing_slash(&path)).ok();
        let found = routes.find(&path);
        let found = found.unwrap();
        let rank = |pattern: &str| match PathPattern::parse(without_leading_slash(without_trailing_slash(pattern))) {
            Ok(Parsed::Pattern(pattern)) => Some((pattern.rank(), pattern)),
            _ => None,
        };
        match (found, expected) {
            (None, None) => {}
            (Some(found), Some(expected)) => {
                let ours = found.binding.unwrap();
                if ours == *expected.handler() {
                    let mut captures = std::collections::BTreeMap::new();
                    captures.extend(found.params.iter().map(|(name, value)| (name.to_string(), value.to_string())));
                    let theirs = expected.params().iter().map(|(name, value)| (name.to_string(), value.to_string()));
                    prop_assert_eq!(captures, theirs.collect());
                } else {
                    let (a, b) = (rank(ours), rank(expected.handler()));
                    prop_assert_eq!(a.map(|a| a.0), b.map(|b| b.0), "{} instead of {}", ours, expected.handler());
                }
            }
            (found, expected) => {
                let (ours, theirs) = (found.map(|f| f.binding.cloned()), expected.map(|e| e.handler().to_string()));
                prop_assert!(false, "{:?} instead of {:?}", ours, theirs);
            }
        }
    }
}
