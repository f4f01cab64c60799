"""Damage to files and trees: drawn by hypothesis, so that what fails shrinks."""

import copy
import re

from hypothesis import strategies as st

HUGE = ["1000000000000", "-1", "0", "1e308", "1e999", "9" * 400, "4294967296", "9223372036854775808", "0.5", "NaN"]
PIECES = [b"\x00", b"\xff", b"{", b"}", b"[", b'"', b"\n", b":", b"&a ", b"*a", b"\\ud800", b"\xc3", b"!!int x", b"- "]
DEPTHS = (3, 150, 2000, 100_000)
LEAVES = [
    None, True, False, -1, 0, 10**12, 2**63, -(2**70), 10**400, 0.5, 1e308, -0.0, float("nan"), float("inf"), "", "a",
    "a\nb", "x" * 5000, "../../x", "/etc/hostname", "os:getcwd", "\ud800", "1e-3", [], {}, [[]],
    {"a": 1}, [1, "a", None],
]  # fmt: skip

NUMBER = st.integers(0, 2**16 - 1)
STEP = st.tuples(st.integers(0, 7), NUMBER, NUMBER, NUMBER)
STEPS = st.lists(STEP, min_size=1, max_size=5)


def damaged(content, steps, others):
    """Return bytes after some steps: flip, cut, insert, duplicate, splice, make numbers huge, nest."""
    for kind, first, second, third in steps:
        at, length = first * len(content) // 2**16, 1 + second % 64
        match kind:
            case 0:
                content = content[:at] + bytes([third % 256]) + content[at + 1 :]
            case 1:
                content = content[:at] + content[at + length :]
            case 2:
                content = content[:at]
            case 3:
                content = content[:at] + PIECES[third % len(PIECES)] + content[at:]
            case 4:
                content = content[:at] + content[at : at + length] * (2 + third % 50) + content[at + length :]
            case 5:
                other = others[third % len(others)]
                content = content[:at] + other[second * len(other) // 2**16 :]
            case 6:
                if numbers := [*re.finditer(rb"-?\d+(\.\d+)?", content)]:
                    one = numbers[second % len(numbers)]
                    content = content[: one.start()] + HUGE[third % len(HUGE)].encode() + content[one.end() :]
            case 7:
                opening = (b"[", b'{"a":', b"- ")[second % 3]
                content = content[:at] + opening * DEPTHS[third % len(DEPTHS)] + content[at:]
    return content


def changed(tree, steps):
    """Return a tree of plain values after some steps: other leaves, lost, doubled and exchanged branches, nesting."""
    tree = copy.deepcopy(tree)
    for kind, first, second, third in steps:
        places = list(_places(tree))
        if not places:
            break
        (branch, key), (other, name) = places[first % len(places)], places[second % len(places)]
        match kind:
            case 0 | 1 | 2:
                branch[key] = copy.deepcopy(LEAVES[third % len(LEAVES)])
            case 3:
                del branch[key]
            case 4:
                branch[key] = copy.deepcopy(other[name])
            case 5:
                _add(branch, copy.deepcopy(other[name]), third)
            case 6:
                if isinstance(branch[key], (int, float)) and not isinstance(branch[key], bool):
                    branch[key] = branch[key] * 10 ** (third % 40) if third % 2 else -branch[key]
            case 7:
                for _ in range(third % 60):
                    branch[key] = [branch[key]] if third % 2 else {"a": branch[key]}
    return tree


def _places(tree):
    for key in range(len(tree)) if isinstance(tree, list) else list(tree) if isinstance(tree, dict) else ():
        yield tree, key
        yield from _places(tree[key])


def _add(branch, value, number):
    if isinstance(branch, list):
        branch.append(value)
    else:
        branch[("x", "name", "format", "a b", 7, "../x")[number % 6]] = value
