#!/usr/bin/env python3
"""Checks what `cargo rustdoc` says of the library, as JSON: no type of another crate stands in a public signature but
those of ALLOWED, and each type of ours that stands in one can be named from outside.

Usage: check.py target/doc/pushring.json
"""

import json
import sys

# std's own crates, and what README.md promises of the API.
ALLOWED = {"std", "core", "alloc", "bytes", "futures_core", "serde", "serde_core"}

# `crate: why` of what else may stand in the signatures of one module. It only gets shorter.
EXCEPTIONS = {
    # A node's own types: its messages go through tokio's channels; a login that cannot be read says why.
    "node": {"tokio", "anyhow", "base64", "rmp_serde", "serde_json"},
    "link": {"tokio", "anyhow", "rmp_serde", "serde_json"},
    # The process library's own signatures have anyhow's errors; the ends of a mailbox are channels.
    "process_lib": {"anyhow", "crossbeam_channel", "serde_json"},
    # A registry of the program's own takes the metrics as a collector; an answer that is no JSON says why.
    "control": {"prometheus_client", "serde_json"},
}

with open(sys.argv[1], encoding="utf-8") as file:
    DOC = json.load(file)
INDEX, PATHS = DOC["index"], DOC["paths"]
CRATES = {int(number): crate["name"] for number, crate in DOC["external_crates"].items()}


def references(value):
    """The ids of all types and traits that a piece of an item names."""
    if isinstance(value, dict):
        if "id" in value and "path" in value and "args" in value:
            yield str(value["id"])
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def members(item):
    """The ids of what an item has within it."""
    (kind, inner), = item["inner"].items()
    if kind == "module":
        return inner["items"]
    if kind == "use":
        return [inner["id"]] if inner["id"] is not None else []
    if kind == "struct":
        fields = inner["kind"]
        if isinstance(fields, dict):
            (_, fields), = fields.items()
            fields = fields["fields"] if isinstance(fields, dict) else fields
        return inner["impls"] + [field for field in (fields if isinstance(fields, list) else []) if field is not None]
    if kind == "enum":
        return inner["impls"] + inner["variants"]
    if kind == "variant":
        fields = inner["kind"]
        if isinstance(fields, dict):
            (_, fields), = fields.items()
            fields = fields["fields"] if isinstance(fields, dict) else fields
            return [field for field in fields if field is not None]
        return []
    if kind in ("trait", "impl"):
        return inner["items"]
    return []


def is_written(item):
    """Whether an impl stands in the source, and is not the compiler's."""
    impl = item["inner"].get("impl")
    return impl is None or not (impl["is_synthetic"] or impl["blanket_impl"] is not None)


def walk(root):
    """Every public item, by its id, with the module of the facade that it is found in."""
    found, waiting = {}, [(str(root), "")]
    while waiting:
        key, module = waiting.pop()
        item = INDEX.get(key)
        if item is None or key in found or not is_written(item):
            continue
        if item["visibility"] not in ("public", "default"):
            continue
        found[key] = module
        inside = item["name"] if "module" in item["inner"] and key != str(root) and not module else module
        waiting.extend((str(member), inside) for member in members(item))
    return found


def main():
    found, wrong = walk(DOC["root"]), set()
    for key, module in found.items():
        item = INDEX[key]
        signature = {kind: inner for kind, inner in item["inner"].items() if kind not in ("module", "use")}
        if "impl" in signature:
            signature = {name: signature["impl"][name] for name in ("trait", "for", "generics")}
        for named in references(signature):
            summary = PATHS.get(named)
            if summary is None:
                continue
            crate = CRATES.get(summary["crate_id"], "?") if summary["crate_id"] else None
            where = "::".join(PATHS[key]["path"]) if key in PATHS else f"{module}: {item['name'] or 'an impl'}"
            if crate is None:
                # What is implemented for a private type, or of a private trait, cannot be reached.
                if named not in found and "impl" not in item["inner"] and summary["kind"] != "primitive":
                    wrong.add(f"{where} names {'::'.join(summary['path'])}, which is not public")
            elif crate not in ALLOWED | EXCEPTIONS.get(module, set()):
                wrong.add(f"{where} names {'::'.join(summary['path'])} of the crate {crate}")
    for line in sorted(wrong):
        print(line)
    print(f"{len(found)} public items, {len(wrong)} wrong")
    return 1 if wrong else 0


sys.exit(main())
