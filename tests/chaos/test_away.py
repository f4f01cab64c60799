"""MLflow that is away for the whole sweep: trials do not wait for it, and it gets everything later."""

import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import faults
import pytest
from faults import LONG

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]


class Broken(BaseHTTPRequestHandler):
    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_error(500)

    do_GET = do_POST = do_PATCH = answer  # noqa: N815

    def log_message(self, *_):
        pass


@contextmanager
def server(kind):
    """Yield an address where MLflow does not answer as it should."""
    if kind == "nobody answers":
        yield "http://127.0.0.1:9"
    elif kind == "calls are taken and never answered":
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen(100)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    else:
        with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as broken:
            threading.Thread(target=broken.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{broken.server_port}"
            broken.shutdown()


def timed(place):
    began = time.monotonic()
    assert place.run() == 0, place.err
    return time.monotonic() - began


@pytest.mark.parametrize("kind", ["nobody answers", "calls are taken and never answered", "every answer is 500"])
def test_a_sweep_does_not_wait_for_mlflow_and_sync_brings_everything_once(new_place, table, kind, tmp_path):
    with server(kind) as uri:
        place = new_place(**LONG, tracking={"uri": uri})
        with_mlflow = timed(place)
    alone = timed(new_place(**LONG, tracking={"enabled": False}))
    assert f"entries wait in {place.sweep}; send them with: prunesearch sync" in place.out
    found = faults.compare(place, uri=f"sqlite:///{tmp_path / 'later.db'}")
    table.add(
        f"MLflow is away: {kind}", f"for a whole sweep of {with_mlflow:.0f} s; {alone:.0f} s without MLflow", 1, found
    )
