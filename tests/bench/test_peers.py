"""Those who are measured beside an artefact: endpoints, llama-bench, and the refusal of who is not there."""

from __future__ import annotations

import http.server
import json
import os
import stat
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from glmc.bench import peer
from glmc.bench.endpoint import Endpoint
from glmc.bench.llama_bench import LlamaBench
from glmc.cli.main import app
from glmc.errors import MissingPeer, PeerFailed, UsageError

SECONDS = 0.02


class Server(http.server.BaseHTTPRequestHandler):
    """Streams as many tokens as are asked for, `lacking` fewer; notes what it was asked."""

    asked, lacking, models, status = [], 0, ["tiny"], 200

    def log_message(self, *_):
        return

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": name} for name in self.models]}).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body, self.headers.get("Authorization")))
        self.send_response(self.status)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if self.status != 200:
            self.wfile.write(b"no such thing")
            return
        chat, count = self.path.endswith("/chat/completions"), body["max_tokens"] - self.lacking
        if chat:
            self.event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for _ in range(count):
            time.sleep(SECONDS)
            self.event({"choices": [{"delta": {"content": "a"}} if chat else {"text": "a"}]})
        self.event({"choices": [{"delta": {}, "text": "", "finish_reason": "length"}]})
        self.event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": count}})
        self.wfile.write(b": a comment\n\ndata: [DONE]\n\n")

    def event(self, value):
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()


@pytest.fixture
def server():
    handler = type("Handler", (Server,), {"asked": []})
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield handler, f"http://127.0.0.1:{made.server_port}/v1"
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.mark.parametrize("ending", ["", "/completions", "/chat/completions"])
def test_an_endpoint_is_streamed(server, ending, monkeypatch):
    handler, url = server
    monkeypatch.setenv("GLMC_API_KEY", "secret")
    endpoint = Endpoint(url + ending, None)
    sample = endpoint.request([[1, 2, 3], [4, 5, 6]], 5)
    assert [row.tokens for row in sample.rows] == [5, 5]
    for row in sample.rows:
        assert len(row.events) == 5
        assert row.ttft >= SECONDS
        assert row.tpot == pytest.approx(SECONDS, rel=1.0)
        assert row.tpot >= 0.9 * SECONDS
    path, body, key = handler.asked[0]
    assert path == "/v1" + (ending or "/completions")
    assert key == "Bearer secret"
    assert [body[name] for name in ("model", "max_tokens", "stream", "ignore_eos")] == ["tiny", 5, True, True]
    assert ("messages" in body) == ending.startswith("/chat")
    if "prompt" in body:
        assert sorted(one["prompt"] for _, one, _ in handler.asked) == [[1, 2, 3], [4, 5, 6]]
    assert endpoint.facts["prompt_tokens"] == 7
    assert "secret" not in json.dumps(endpoint.facts)


def test_an_endpoint_that_answers_less_did_other_work(server):
    handler, url = server
    handler.lacking = 2
    with pytest.raises(PeerFailed, match="other work"):
        Endpoint(url, "tiny").request([[1]], 5)


def test_an_endpoint_that_refuses_is_quoted(server):
    handler, url = server
    handler.status = 400
    with pytest.raises(PeerFailed, match="400: no such thing"):
        Endpoint(url, "tiny").request([[1], [2]], 5)


def test_an_endpoint_that_is_not_there():
    with pytest.raises(PeerFailed, match="talked to"):
        Endpoint("http://127.0.0.1:1/v1", "tiny").request([[1]], 2)
    with pytest.raises(PeerFailed, match="does not tell its models"):
        Endpoint("http://127.0.0.1:1/v1", None)


def test_several_models_must_be_chosen_from(server):
    handler, url = server
    handler.models = ["a", "b"]
    with pytest.raises(PeerFailed, match="several models"):
        Endpoint(url, None)


LLAMA = """#!{python}
import json, sys
words = sys.argv[1:]
value = lambda flag: int(words[words.index(flag) + 1]) if flag in words else 0
if value("-p") == 666:
    sys.exit("cannot load")
print(json.dumps([{{"model_type": "glm4 220M", "model_size": 5, "build_commit": "abc", "n_depth": value("-d"),
                   "samples_ns": [value("-p") * 1000000 + value("-n") * 20000000]}}] if value("-p") != 667 else []))
"""


@pytest.fixture
def llama(tmp_path, monkeypatch):
    path = tmp_path / "llama-bench"
    path.write_text(LLAMA.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return path


def test_llama_bench_is_asked_for_a_prompt_and_for_tokens_behind_it(llama):
    found = LlamaBench(str(llama), "model.gguf", 2)
    (row,) = found.request([[1] * 100], 11).rows
    assert row.ttft == pytest.approx(0.1)
    assert row.tpot == pytest.approx(0.02)
    assert row.itl == []
    assert found.facts["build"] == "abc"
    for wrong, said in (([[1]] * 2, "one row"), ([[1] * 666], "cannot load"), ([[1] * 667], "no JSON of one test")):
        with pytest.raises(PeerFailed, match=said):
            found.request(wrong, 2)


def test_contenders_are_named(tmp_path, llama):
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF")
    other = tmp_path / "other.glmc"
    other.mkdir()
    (other / "manifest.json").write_text("{}")
    found = peer.contenders(tmp_path, [f"llama-bench:{gguf}", "http://localhost:8000/v1#glm", str(other)], None, 2, None)
    assert [(one.name, one.kind) for one in found] == [
        ("glmc", "artifact"), ("llama-bench:m.gguf", "llama-bench"), ("http://localhost:8000/v1#glm", "endpoint"),
        ("other.glmc", "artifact")]


@pytest.mark.parametrize(("word", "said"), [
    ("eager", "--checkpoint"), ("inductor", "--checkpoint"), ("aoti", "--checkpoint"), ("vllm", "no contender is called"),
    ("http://user:key@host/v1", "no address"), ("llama-bench:absent.gguf", "of its own format"),
    ("absent.glmc", "no contender"),
])
def test_who_cannot_be_measured_is_refused_by_name(tmp_path, llama, monkeypatch, word, said):
    (tmp_path / "manifest.json").write_text("{}")
    opened = SimpleNamespace(manifest={"source": "a", "dtype": "bfloat16", "bounds": {}, "target": "cpu"})
    monkeypatch.setattr(peer.Artifact, "open", lambda path: opened)
    with pytest.raises(UsageError, match=said):
        peer.contenders(tmp_path, [word], None, 2, None)


@pytest.mark.parametrize(("target", "device", "place"), [
    ("cpu", None, "cpu"), ("cuda:sm_90", None, "cuda"), ("cuda:sm_90", "cuda:1", "cuda:1"), ("rocm:gfx942", None, "cuda"),
    ("npu:ascend910b", None, "npu"), ("cuda:sm_90", "triton-interpreted", "cpu"), ("npu:ascend910b", "npu-emulated", "cpu"),
])
def test_peers_run_where_the_artefact_does(target, device, place):
    assert peer.home(target, device) == place


def test_a_missing_peer_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPeer, match=r"build llama\.cpp"):
        peer.contenders(tmp_path, ["llama-bench:x.gguf"], None, 2, None)
    with pytest.raises(MissingPeer, match=r"g\+\+"):
        peer.contenders(tmp_path, ["inductor"], None, 2, None)


def test_an_endpoints_key_is_shown_nowhere(monkeypatch):
    monkeypatch.setenv("GLMC_API_KEY", "hush")
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert json.loads(done.stdout)["knobs"]["GLMC_API_KEY"] == "set"
    assert "hush" not in done.stdout + CliRunner().invoke(app, ["doctor"]).stdout
