"""Which networks can be cut: the table of pruning/README.md.

    python experiments/support_matrix.py --cache matrix --torch-pruning
    python experiments/support_matrix.py --cache matrix --only 'timm/*net*' --again

Each network has random weights and statistics, and a process of its own with a limit of time and memory. Every group is
cut to half its channels, rounded up; the result is compared with the masked network, trained for a step and exported.
What was found is kept in the folder `--cache`: a run goes on with what is missing there, and writes the table when
nothing is. With `--torch-pruning` torch-pruning 1.6.1 (extra `dev`) cuts the networks of timm by half, too.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pruning.models.torchvision_models import torchvision_names

Found = dict[str, Any]
"""What was found of one network; see `examine`."""

TABLE = Path(__file__).parents[1] / "pruning" / "README.md"
BEGIN, END = "<!-- matrix -->", "<!-- /matrix -->"
MOST_LEFT = 0.75
"""Share of the MACs: where half of all channels leaves more, most of the network is pinned."""


def networks() -> dict[str, tuple[str, ...]]:
    """Return the names of all networks by kind."""
    kinds = {"torchvision, classification": torchvision_names()}
    text = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    for kind, names in re.findall(r"^\[(.*)\]\n([^\[]*)", text, re.MULTILINE):
        kinds[kind] = tuple(names.split())
    return kinds


def run_apart(engine: str, name: str, arguments: argparse.Namespace) -> Found:
    """Return what a process of its own finds within the limits; `error` if it does not come to an end."""
    script = Path(__file__).with_name("support_matrix_network.py")
    command = [sys.executable, str(script), engine, name, "--gib", str(arguments.gib)]
    started, error = time.monotonic(), ""
    with tempfile.TemporaryFile("w+") as lines, tempfile.TemporaryFile("w+") as complaints:
        try:
            subprocess.run(command, stdout=lines, stderr=complaints, timeout=arguments.seconds, check=True)
        except subprocess.TimeoutExpired:
            error = f"not within {arguments.seconds} s"
        except subprocess.CalledProcessError as fault:
            complaints.seek(0)
            said = complaints.read().strip().splitlines()
            error = said[-1] if said and fault.returncode > 0 else f"exit code {fault.returncode}"
        lines.seek(0)
        found: Found = json.loads(["{}", *(line for line in lines if line.startswith("{"))][-1])
    return {"name": name, "seconds": round(time.monotonic() - started), **found} | ({"error": error} if error else {})


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


def verdict(found: Found) -> str:
    """Return what is to be thought of a network."""
    if "refused" in found:
        return "refused"
    if not (found.get("masked") and found.get("trains")):
        unfinished = re.search(r"not within|allocate memory|MemoryError|exit code -9", found.get("error", ""))
        return "not finished" if unfinished else "WRONG"
    return "passes" if found["left"] <= MOST_LEFT else "largely pinned"


def their_verdict(found: Found) -> str:
    """Return what is to be thought of a network that torch-pruning cut: an error is told to the user."""
    return verdict(found).replace("WRONG", "fails")


def row(found: Found, other: Found | None) -> list[str]:
    """Return the cells of a line of the table."""
    error = found.get("error", "")
    export = found.get("exported", error)
    return [
        f"`{found['name']}`",
        verdict(found),
        str(found.get("groups", "")),
        f"{found['left']:.0%}" if "left" in found else "",
        f"{found['pinned_macs']:.0%}" if "pinned_macs" in found else "",
        (found.get("refused") or ("" if "trains" in found else error) or found.get("why", "")).replace("|", "\\|")[
            :120
        ],
        "yes" if export == "yes" else "no" if export else "",
        found.get("front_end", ""),
        str(found.get("pixels", "")),
        str(found["seconds"]),
        "" if other is None else their_verdict(other),
    ]


HEADERS = ("network", "verdict", "groups", "MACs left", "pinned", "why", "exported", "traced by", "pixels", "s")


def table(ours: dict[str, Found], theirs: dict[str, Found]) -> tuple[str, str]:
    """Return the table of all kinds, and the lines that count."""
    lines, counts = list[str](), list[str]()
    for kind, names in networks().items():
        known = [ours[name] for name in names if name in ours]
        rows = [row(found, theirs.get(found["name"])) for found in known]
        dashes = ["---"] * (len(HEADERS) + 1)
        lines += [
            "",
            f"**{kind}**",
            "",
            *(f"| {' | '.join(cells)} |" for cells in ((*HEADERS, "torch-pruning"), dashes, *rows)),
        ]
        counts.append(f"- {kind}: {counted(list(map(verdict, known)))}")
        if others := [their_verdict(theirs[name]) for name in names if name in theirs]:
            counts.append(f"- {kind}, by torch-pruning: {counted(others)}")
    return "\n".join(lines), "\n".join(counts)


def counted(verdicts: list[str]) -> str:
    """Return `46 networks: 40 passes, 6 refused`."""
    counts = Counter(verdicts).most_common()
    return f"{len(verdicts)} networks: " + ", ".join(f"{number} {name}" for name, number in counts)


def read(path: Path) -> dict[str, Found]:
    """Return what was found last, by name."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {found["name"]: found for found in map(json.loads, lines)}


def fill(engine: str, names: list[str], path: Path, arguments: argparse.Namespace) -> None:
    """Append what is found of networks that are not in the file, or of all of them."""
    known = {} if arguments.again else read(path)
    for name in names:
        if name not in known:
            found = run_apart(engine, name, arguments)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            thought = verdict(found) if engine == "ours" else their_verdict(found)
            print(f"{name} by {engine}: {thought}: {found}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for what was found")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="shell patterns of names")
    parser.add_argument("--again", action="store_true", help="also what is in the cache")
    parser.add_argument("--torch-pruning", action="store_true", help="have it cut timm's networks, too")
    parser.add_argument("--seconds", type=int, default=300, help="limit of one network")
    parser.add_argument("--gib", type=float, default=12, help="limit of one network")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    names = [name for kind in networks().values() for name in kind]
    chosen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in arguments.only)]
    files = {engine: arguments.cache / f"{engine}.jsonl" for engine in ("ours", "torch-pruning")}
    fill("ours", chosen, files["ours"], arguments)
    if arguments.torch_pruning:
        fill("torch-pruning", [name for name in chosen if name.startswith("timm/")], files["torch-pruning"], arguments)
    rows, counts = table(read(files["ours"]), read(files["torch-pruning"]))
    print(counts)
    if missing := set(names) - read(files["ours"]).keys():
        print(f"{len(missing)} networks are not in {arguments.cache} yet: {TABLE} is as it was")
        return
    before, _, rest = TABLE.read_text(encoding="utf-8").partition(BEGIN)
    TABLE.write_text(f"{before}{BEGIN}\n{counts}\n{rows}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(f"table written to {TABLE}")


if __name__ == "__main__":
    main()
