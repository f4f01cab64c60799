import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout

import pytest
from rich.console import Console

from pruning import CriterionSpec, ModelSpec, Policy
from search.pareto import front, hypervolume
from search.progress import LiveView, _duration
from search.results import Metrics, State, TrialRecord

BASELINE = {"accuracy": 0.93, "macs": 125_000_000, "params": 850_000, "latency_ms": 8.0}
OBJECTIVES = ("accuracy", "macs")


def record(number, state=State.FINISHED, accuracy=0.9, macs=60e6, criterion="fpgm", **changes):
    policy = Policy(model=ModelSpec(name="resnet56"), network="f", widths={}, criterion=CriterionSpec(name=criterion))
    metrics = Metrics(3, accuracy, 1 - accuracy, int(macs), params=500_000, latency_ms=4.0, seconds=12.0)
    history = () if state is State.FAILED else (metrics,)
    return TrialRecord(number, state, {}, policy, history, seconds=12.0, **changes)


SOME = [
    record(0, accuracy=0.80, macs=30e6),
    record(1, accuracy=0.85, macs=60e6, criterion="bn_scale"),
    record(2, State.FAILED, error="SurgeryError: layer1.0.conv1: expected [at] least one channel, got 0 of 16"),
    record(3, State.STOPPED, accuracy=0.4),
    record(4, accuracy=0.99, feasible=False),
    record(5, State.RUNNING),
]


def panel(records, width, objectives=OBJECTIVES, total=24):
    console = Console(record=True, width=width, height=40, force_terminal=True, file=io.StringIO())
    view = LiveView(total, BASELINE, objectives, console=console)
    view.update(records, sum(item.state is State.RUNNING for item in records))
    console.print(view.panel())
    return console.export_text()


def lines(*updates, total=24, **options):
    output = io.StringIO()
    with LiveView(total, BASELINE, OBJECTIVES, console=Console(file=output, width=60), **options) as view:
        for records in updates:
            view.update(records, 1)
    return output.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_the_panel_shows_states_front_hypervolume_and_failures(width):
    text = panel(SOME, width)
    assert {len(line) for line in text.splitlines()} == {width}
    for part in ("5/24", "1 running", "3 finished", "1 stopped early", "1 failed", "1 beyond the limits"):
        assert part in text
    rows = [line.split() for line in text.splitlines() if "M (" in line]
    assert [(row[1], row[2], row[4], row[6]) for row in rows] == [
        ("0", "80.00", "30.0", "(24.0"),
        ("1", "85.00", "60.0", "(48.0"),
    ]
    assert f"front {len(front(SOME, OBJECTIVES))}  hypervolume {hypervolume(SOME, OBJECTIVES, BASELINE):.3f}" in text
    assert "baseline" in text
    assert "trial 2: SurgeryError: layer1.0.conv1: expected [at] least" in text


@pytest.mark.parametrize("width", [1, 10, 20, 50, 79])
@pytest.mark.parametrize("objectives", [OBJECTIVES, ("accuracy", "params", "latency_ms")])
def test_narrow_terminals_get_narrow_panels(width, objectives):
    many = [record(number, accuracy=0.5 + number / 100, macs=1e6 * number + 1e6) for number in range(30)]
    for records in ([], SOME, many):
        text = panel(records, width, objectives, total=40)
        assert max(map(len, text.splitlines())) <= width
        if width >= 50 and records is SOME:
            assert "85.00 %" in text


def test_a_long_front_is_cut_at_its_cheap_end():
    many = [record(number, accuracy=0.5 + number / 100, macs=1e6 * number + 1e6) for number in range(30)]
    text = panel(many, 80)
    assert "20 cheaper" in text
    assert "79.00 %" in text
    assert "69.00 %" not in text


def test_each_trial_that_ends_is_told_once_in_one_line():
    told = lines(SOME[:1] + SOME[5:], SOME[:2], SOME, SOME)
    dominated = hypervolume(SOME[:1], OBJECTIVES, BASELINE)
    assert told[0].startswith(
        f"[ 1/24] trial 0  80.00 %  30.0 M MACs (24.0 %)  fpgm  12 s   front 1  hypervolume {dominated:.3f}  ETA "
    )
    assert [line.split("  ")[0] for line in told] == [f"[ {count}/24] trial {count - 1}" for count in range(1, 6)]
    assert (
        told[2] == "[ 3/24] trial 2  failed: SurgeryError: layer1.0.conv1: expected [at] least one channel, got 0 of 16"
    )
    assert "fpgm  stopped after epoch 3  12 s" in told[3]
    assert "fpgm  beyond the limits  12 s" in told[4]


def test_told_only_what_changed_the_view_shows_the_same(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    many = [record(number, accuracy=0.5 + number % 7 / 20, macs=1e6 * (number * 5 % 11) + 1e6) for number in range(20)]
    many[3], many[11] = SOME[2], record(11, accuracy=0.99, feasible=False)
    whole, bits = (Console(record=True, width=80, force_terminal=True, file=io.StringIO()) for _ in range(2))
    for console, some in ((whole, lambda count: many[:count]), (bits, lambda count: many[count - 1 : count])):
        view = LiveView(24, BASELINE, OBJECTIVES, live=False, console=console)
        for count in range(1, 21):
            view.update([*some(count), SOME[5]], 1)
        console.print(view.panel())
    assert bits.export_text() == whole.export_text()


def test_trials_of_an_earlier_run_are_counted_but_neither_told_nor_timed(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    output = io.StringIO()
    earlier = [record(number, started=100.0) for number in range(4)]
    with LiveView(8, BASELINE, OBJECTIVES, console=Console(file=output, width=60)) as view:
        view.update([*earlier, record(4, State.RUNNING, started=500.0)], 1)
        now += 30
        view.update([*earlier, record(4, started=500.0)], 0)
    (line,) = output.getvalue().splitlines()
    assert line.startswith("[5/8] trial 4  ")
    assert line.endswith("  ETA 1m30s")  # three trials to go, thirty seconds each


def test_a_terminal_gets_lines_instead_of_a_panel_when_asked():
    output = io.StringIO()
    console = Console(file=output, width=100, force_terminal=True)
    with LiveView(24, BASELINE, OBJECTIVES, live=False, console=console) as view:
        view.update(SOME, 1)
    assert len(output.getvalue().splitlines()) == 5
    assert "─" not in output.getvalue()


def test_the_view_keeps_its_output_when_standard_output_is_redirected(capsys):
    with LiveView(24, BASELINE, OBJECTIVES) as view, redirect_stdout(io.StringIO()) as elsewhere:
        view.update(SOME, 1)
    assert elsewhere.getvalue() == ""
    assert len(capsys.readouterr().out.splitlines()) == 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1m00s"), (100, "1m40s"), (7530, "2h05m")],
)
def test_durations_read_well(seconds, text):
    assert _duration(seconds) == text


INTERRUPTED = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so their children
from search.progress import LiveView
with LiveView(24, {"accuracy": 0.9, "macs": 1e6, "params": 1e3}, ("accuracy", "macs")) as view:
    view.update([], 2)
    time.sleep(60)
"""


def test_ctrl_c_gives_the_terminal_back():
    shown = _run_in_a_terminal(INTERRUPTED, until=b"2 running")
    hidden, cursor = b"\x1b[?25l", b"\x1b[?25h"
    assert shown.count(hidden) == 1
    assert shown.index(hidden) < shown.index(cursor)
    assert b"KeyboardInterrupt" in shown.partition(cursor)[2]


def _run_in_a_terminal(script, until):
    """Run a script in a pseudo-terminal, press Ctrl-C when it has written `until`, and return all that it wrote."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    shown, pressed, patience = b"", False, time.monotonic() + 60
    while time.monotonic() < patience and select.select([ours], [], [], 30)[0]:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        shown += piece
        if until in shown and not pressed:
            pressed = True
            process.send_signal(signal.SIGINT)
    os.close(ours)
    process.kill()
    process.wait()
    return shown
