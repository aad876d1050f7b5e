#!/usr/bin/env python3
"""Checks what `cargo rustdoc` says of the library, as JSON: no type of another crate stands in a public signature but
those of ALLOWED, each type of ours that stands in one can be named from outside, and what grows (errors, events and
policies) is `#[non_exhaustive]`.

Usage: check.py target/doc/pushring.json
"""

import json
import sys

# std's own crates, and what README.md promises of the API.
ALLOWED = {"std", "core", "alloc", "bytes", "futures_core", "serde", "serde_core"}

# What else stands in the signatures of one module, because a node or its process library dictates them.
EXCEPTIONS = {
    # The queues that a node hands to its HTTP server are tokio's; a node's author passes them as they are.
    "node": {"tokio"},
    "link": {"tokio"},
    # Apps are compiled against these signatures: `anyhow::Result` in most, `serde_json::Result` in `from_bytes`.
    "process_lib": {"anyhow", "serde_json"},
}

# Errors and other enums that may get new cases say so. These do not, since a contract settles what they are.
CLOSED = {
    # RFC 6455 section 5.6.
    "MessageKind",
    # The node contract's and the process library's, which apps match case by case.
    "BackendDelivery", "Dialect", "Exit", "HttpServerAction", "HttpServerError", "HttpServerRequest", "Message",
    "MessageType", "SendError", "SendErrorKind", "WsMessageType",
}  # fmt: skip

# What these names end with grows with the product.
GROWING = ("Error", "Event", "Policy")

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


def is_error(inner):
    """Whether a type implements std's Error."""
    impls = (INDEX[str(key)]["inner"]["impl"] for key in inner["impls"] if str(key) in INDEX)
    return any(impl["trait"] and impl["trait"]["path"].split("::")[-1] == "Error" for impl in impls)


def may_not_grow(item):
    """Whether a type that gets new cases or fields with time would break its users' code by that."""
    (kind, inner), = item["inner"].items()
    if kind not in ("enum", "struct") or item["name"] in CLOSED:
        return False
    if any("non_exhaustive" in str(attribute) for attribute in item["attrs"]):
        return False
    fields = [INDEX.get(str(key), {}) for key in members(item)]
    is_open = kind == "enum" or (
        any("struct_field" in field.get("inner", {}) for field in fields)
        and all(field["visibility"] == "public" for field in fields if "struct_field" in field.get("inner", {}))
    )
    return is_open and (item["name"].endswith(GROWING) or is_error(inner))


def main():
    found, wrong = walk(DOC["root"]), set()
    for key, module in found.items():
        item = INDEX[key]
        if may_not_grow(item):
            wrong.add(f"{module or 'the facade'}: {item['name']} lacks #[non_exhaustive]")
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
