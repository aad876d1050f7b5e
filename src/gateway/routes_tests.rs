use super::*;
use proptest::prelude::*;

fn routes(patterns: &[&str]) -> Routes<String> {
    let mut routes = Routes::default();
    for pattern in patterns {
        routes.bind(pattern, (*pattern).to_owned()).unwrap();
    }
    routes
}

/// The pattern that a path leads to, and its captures as `name=value`.
fn find(routes: &Routes<String>, path: &str) -> Option<(String, Vec<String>)> {
    let found = routes.find(path)?;
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
    routes.unbind("/a/:z", |old| old == "another's").unwrap();
    assert_eq!(find(&routes, "/a/1"), led("again", &["y=1"]));
    routes.unbind("/a/:z", |old| old == "again").unwrap();
    assert_eq!(find(&routes, "/a/1"), led("unbound", &["z=1"]));
    routes.unbind("/a/", |_| true).unwrap();
    assert_eq!(find(&routes, "/a"), led("unbound", &[]));
    routes.unbind("/never", |_| true).unwrap();
    assert_eq!(find(&routes, "/never"), led("/*", &[]));
    routes.bind("/a", "back".into()).unwrap();
    assert_eq!(find(&routes, "/a"), led("back", &[]));
}

#[test]
fn a_clone_is_not_changed_and_removal_leaves_nothing() {
    let mut routes = routes(&["/a", "/a/:x", "/b", "/:c"]);
    let before = routes.clone();
    routes.unbind("/a", |_| true).unwrap();
    routes.remove(|binding| binding != "/b");
    assert_eq!((find(&routes, "/a"), find(&routes, "/a/1"), find(&routes, "/z")), (None, None, None));
    assert_eq!(find(&routes, "/b"), led("/b", &[]));
    assert_eq!(find(&before, "/a"), led("/a", &[]));
    assert_eq!(before.iter().count(), 4);
    assert_eq!(routes.tables.len(), 1);
}

#[test]
fn binding_and_unbinding_for_ever_grows_nothing() {
    let mut routes = Routes::default();
    for n in 0..2 * UNBOUND_MAX {
        routes.bind(&format!("/p:p:o/{n}"), n).unwrap();
        routes.unbind(&format!("/p:p:o/{n}"), |_| true).unwrap();
    }
    assert_eq!(routes.tables["p:p:o"].statics.len(), UNBOUND_MAX);
    assert!(routes.find("/p:p:o/0").is_none() && routes.find("/p:p:o/511").unwrap().binding.is_none());
}

#[test]
fn patterns_are_bounded() {
    let mut routes = Routes::default();
    assert_eq!(routes.bind(&"/a".repeat(3000), ()), Err(PatternError::TooLong));
    assert_eq!(routes.bind(&"/:a".repeat(17), ()), Err(PatternError::TooManyParams));
    assert_eq!(routes.bind(&"/:a".repeat(16), ()), Ok(()));
}

#[test]
fn a_hostile_path_costs_no_more_than_its_length() {
    let pattern = format!("/{}x", "*/a/".repeat(8));
    let routes = routes(&[&pattern]);
    let path = format!("/{}", "a/".repeat(4000));
    assert_eq!(find(&routes, &path), None, "this would not end if each way were tried");
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
        let rank = |pattern: &str| match Pattern::parse(without_leading_slash(without_trailing_slash(pattern))) {
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
