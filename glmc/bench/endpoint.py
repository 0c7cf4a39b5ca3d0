"""An OpenAI-style endpoint as a contender: streamed completions, every event noted when it arrives."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from glmc import knobs
from glmc.bench.sample import Row, Sample
from glmc.errors import PeerFailed

_WORDS = "a an the of in to and is it on as at by he we or if so up no my me do go us am be".split()


class Endpoint:
    """url: of the server's /v1, or of one of its two endpoints; of /v1 alone, completions are asked for, with ids as prompt.

    Each row is a request of its own over a connection of its own, all sent together. Raises PeerFailed.
    """

    compiles, device, vocabulary = False, None, None

    def __init__(self, url: str, model: str | None) -> None:
        parts = urlsplit(url)
        path = parts.path.rstrip("/")
        self._path = path if path.endswith("/completions") else f"{path}/completions"
        self._chat = self._path.endswith("/chat/completions")
        self._secure, self._host = parts.scheme == "https", parts.netloc
        self._root = self._path.removesuffix("/completions").removesuffix("/chat")
        self._deadline = knobs.get("GLMC_DEADLINE")
        self.phases: dict[str, float] = {}
        self._model = model or self._first_model()
        self.facts: dict[str, Any] = {"threads": None, "device": "the server's", "model": self._model, "prompt_tokens": None}

    def request(self, prompts: list[list[int]], output_len: int) -> Sample:
        rows: list[Row | None] = [None] * len(prompts)
        faults: list[Exception] = []
        lined_up = threading.Barrier(len(prompts))

        def one(number: int) -> None:
            try:
                body = self._body(prompts[number], output_len)
                lined_up.wait()
                rows[number] = self._row(body, output_len)
            except Exception as fault:  # told by the thread that asked
                lined_up.abort()
                faults.append(fault)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if fault := next((f for f in faults if not isinstance(f, threading.BrokenBarrierError)), None):
            raise fault
        return Sample(tuple(row for row in rows if row))

    def _body(self, ids: list[int], output_len: int) -> bytes:
        asked: dict[str, Any] = {"model": self._model, "max_tokens": output_len, "temperature": 0, "ignore_eos": True,
                                 "stream": True, "stream_options": {"include_usage": True}}
        if self._chat:
            draw = random.Random(str(ids))
            asked["messages"] = [{"role": "user", "content": " ".join(draw.choice(_WORDS) for _ in ids)}]
        else:
            asked["prompt"] = ids
        return json.dumps(asked).encode()

    def _row(self, body: bytes, output_len: int) -> Row:
        """Send one request and note its events. TTFT counts from before the connection is made."""
        began = time.perf_counter()
        times, usage = [], None
        for at, event in self._events(body):
            usage = event.get("usage") or usage
            choices = event.get("choices") or ()
            if choices and self._has_token(choices[0]):
                times.append(at - began)
        if not times:
            raise PeerFailed("the endpoint answered without a token", field=self._path)
        if usage:
            self.facts["prompt_tokens"] = usage.get("prompt_tokens")
        tokens = usage["completion_tokens"] if usage else len(times)
        if tokens != output_len:
            raise PeerFailed("the endpoint made another number of tokens than was asked for: this would be other work",
                             field="completion_tokens", expected=output_len, found=tokens)
        return Row(tuple(times), tokens)

    def _has_token(self, choice: dict[str, Any]) -> bool:
        """Whether an event brought a token. A chat's first event has only a role, the last one of any only a reason to stop."""
        text = (choice.get("delta") or {}).get("content") if self._chat else choice.get("text")
        return bool(text) or (text == "" and not self._chat and choice.get("finish_reason") is None)

    def _events(self, body: bytes) -> Iterator[tuple[float, dict[str, Any]]]:
        """(when, what) of each event of the stream."""
        connection = self._connect()
        try:
            connection.request("POST", self._path, body, {**self._key(), "Content-Type": "application/json",
                                                          "Accept": "text/event-stream"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise PeerFailed("the endpoint refused", field=self._path, expected="status 200",
                                 found=f"{answer.status}: {answer.read(300).decode(errors='replace')}")
            for line in answer:
                at = time.perf_counter()
                data = line.strip().removeprefix(b"data:").strip()
                if not line.startswith(b"data:") or data == b"[DONE]":
                    continue
                event = json.loads(data)
                if isinstance(event, dict):
                    yield at, event
        except (OSError, http.client.HTTPException, ValueError) as fault:
            raise PeerFailed("the endpoint cannot be talked to", field=f"{self._host}{self._path}", found=f"{fault}") from fault
        finally:
            connection.close()

    def _first_model(self) -> str:
        """The name that the server gives its only model."""
        connection = self._connect()
        try:
            connection.request("GET", f"{self._root}/models", headers=self._key())
            names = [one["id"] for one in json.loads(connection.getresponse().read())["data"]]
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as fault:
            raise PeerFailed("the endpoint does not tell its models", field=f"{self._host}{self._root}/models",
                             found=f"{type(fault).__name__}: {fault}", hint="name one: http://HOST/v1#MODEL") from fault
        finally:
            connection.close()
        if len(names) != 1:
            raise PeerFailed("the endpoint has several models", field=self._host, found=", ".join(names),
                             hint="name one: http://HOST/v1#MODEL")
        return names[0]

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, timeout=self._deadline)

    def _key(self) -> dict[str, str]:
        key = knobs.get("GLMC_API_KEY")
        return {"Authorization": f"Bearer {key}"} if key else {}
