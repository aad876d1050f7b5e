//! The code in `docs/NODE.md` compiles in nodes of the released versions that it names, and serves there.
//!
//! The stand-ins have the types, names and task handling of those versions. Blobs go through the adapter by moves.
#![allow(missing_docs)]

mod node_support;
mod released_nodes;
mod support;

use released_nodes::decode_keyfile;
use support::{Client, PATIENCE, recv};
use tungstenite::Message as WsMessage;

/// Where nodes have it.
mod keygen {
    pub(crate) use super::decode_keyfile;
}

/// The texts that the page shows.
const ADAPTER: &str = include_str!("node_adapter/hyperdrive.rs");
const MAIN: &str = include_str!("node_adapter/main_hyperdrive.rs");

/// The differences for Kinode that the page states: in 0.8 and 0.9, and in all.
const PRINT: (&str, &str) =
    ("Printout::new(verbosity, theirs::HTTP_SERVER_PROCESS_ID.clone(), text)", "Printout { verbosity, content: text }");
const DIALECT: (&str, &str) = ("Dialect::Hyperdrive", "Dialect::Kinode");
const EXPOSED: (&str, &str) = ("        expose_local,\n", "        expose_local: true,\n");

/// Pieces of `main` that are shown, each behind a comment, without their indent.
fn shown_of_main() -> Vec<String> {
    let pieces = MAIN.split("    // Where a node ").skip(1);
    let shown = pieces.map(|piece| piece.split("    // Shown so far.").next().unwrap().split_once('\n').unwrap().1);
    shown.map(|piece| piece.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap())).collect()).collect()
}

#[test]
fn the_page_shows_what_compiles_here_and_says_what_differs() {
    let page = include_str!("../docs/NODE.md");
    let main = shown_of_main();
    assert_eq!(main.len(), 2);
    for shown in main.iter().map(String::as_str).chain([ADAPTER]) {
        assert!(page.contains(shown), "docs/NODE.md does not show:\n{shown}");
    }
    let in_kinode = |text: &str, differences: &[(&str, &str)]| {
        differences.iter().fold(text.to_owned(), |text, (theirs, kinodes)| {
            assert!(text.contains(theirs) && page.contains(kinodes.trim()), "docs/NODE.md does not say: {kinodes}");
            text.replace(theirs, kinodes)
        })
    };
    assert_eq!(in_kinode(ADAPTER, &[PRINT]), include_str!("node_adapter/kinode.rs"));
    assert_eq!(in_kinode(MAIN, &[DIALECT, EXPOSED]), include_str!("node_adapter/main_kinode.rs"));
    let lines = main.iter().flat_map(|text| text.lines()).chain(ADAPTER.lines());
    let lines = lines.filter(|line| !line.trim().is_empty()).count();
    assert!(lines <= 30, "{lines} lines are much to ask of who writes a node");
}

/// Hyperdrive 1.9, and Kinode 0.10 to 1.0.
mod hyperdrive {
    use super::released_nodes::hyperdrive as lib;

    mod adapter {
        use super::lib;

        include!("node_adapter/hyperdrive.rs");
    }

    include!("node_adapter/main_hyperdrive.rs");
    include!("node_adapter/checks.rs");
}

/// Kinode 0.8 and 0.9.
mod kinode {
    use super::released_nodes::kinode as lib;

    mod adapter {
        use super::lib;

        include!("node_adapter/kinode.rs");
    }

    include!("node_adapter/main_kinode.rs");
    include!("node_adapter/checks.rs");
}
