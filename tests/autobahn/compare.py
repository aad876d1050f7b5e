#!/usr/bin/env python3
"""Compares a report of the Autobahn|Testsuite with the committed one.

    compare.py REPORT EXPECTED SPEC [--write]

REPORT is the suite's `index.json`, EXPECTED {case: {behavior, behaviorClose}} for all cases, SPEC what the suite was told
to leave out. Fails on any difference, and on any case that is not OK: informational cases state a choice that the
protocol leaves open, everything else is a fault of ours.
"""

import json
import re
import sys
from collections import Counter

ALLOWED = {"OK", "INFORMATIONAL"}


def by_number(case):
    return [int(part) for part in case.split(".")]


def left_out(spec):
    """Tells whether a case was left out. Patterns are read as the suite reads them."""
    patterns = [re.compile(text.replace(".", r"\.").replace("*", ".*")) for text in spec["exclude-cases"]]
    return lambda case: any(pattern.match(case) for pattern in patterns)


def main():
    report_path, expected_path, spec_path, *options = sys.argv[1:]
    with open(report_path) as file:
        (report,) = json.load(file).values()
    with open(spec_path) as file:
        is_left_out = left_out(json.load(file))
    found = {
        case: {key: report[case][key] for key in ("behavior", "behaviorClose")}
        for case in sorted(report, key=by_number)
    }
    faults = [f"{case}: {result}" for case, result in found.items() if not set(result.values()) <= ALLOWED]
    if "--write" in options:
        lines = ",\n".join(f"  {json.dumps(case)}: {json.dumps(result)}" for case, result in found.items())
        with open(expected_path, "w") as file:
            file.write("{\n" + lines + "\n}\n")
    with open(expected_path) as file:
        expected = {case: result for case, result in json.load(file).items() if not is_left_out(case)}
    for case in sorted(set(expected) | set(found), key=by_number):
        if expected.get(case) != found.get(case):
            faults.append(f"{case}: expected {expected.get(case)}, found {found.get(case)}")
    print("Autobahn:", dict(Counter(result["behavior"] for result in found.values())))
    for fault in faults:
        print("Autobahn:", fault, file=sys.stderr)
    # An empty report would differ from nothing.
    return 1 if faults or not found else 0


if __name__ == "__main__":
    sys.exit(main())
