"""``dreamprm annotate`` with servers of the OpenAI protocol.

The real one is ``transformers serve`` on loopback, with tiny models saved to disk: chats, images
too, raw completions, a final assistant turn that the model goes on with, killed and started anew.
Where it falls short (transformers 5.23) a server of the test's own is in its place, for that alone:
it refuses `n`; asks for no key; answers an unknown model with 500, or 400 where it serves one
alone, and not with 404; never answers 429 or with Retry-After. It takes `seed` for the whole
process, so that sampled texts are a function of their seed only with one request at a time.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dreamprm import load_trajectories
from dreamprm.annotation.retries import retry_after
from dreamprm.cli import main
from dreamprm.journal import Journal
from tests.generator import INSTRUCTIONS, save_generator, save_image_reader, write_questions
from tests.serving import Server
from tests.shared import needs_shared

SMALL = [f"instructions={INSTRUCTIONS}", "chains=2", "completions=3", "max_new_tokens=30"]
PATIENT = ["openai.first_delay=0.2", "openai.longest_delay=1", "openai.retries=200"]
CONCURRENCY = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    save_generator(folder / "generator")
    write_questions(folder / "questions.jsonl")
    server = Server(folder)
    try:
        server.start()
        server.wait()
        yield server
    finally:
        server.kill()


def arguments(server: Server, out: Path, *options: str) -> list[str]:
    files = [f"questions={server.folder / 'questions.jsonl'}", f"out={out}", "generator=openai"]
    where = [f"openai.base_url=http://127.0.0.1:{server.port}/v1", f"openai.model={server.model}"]
    rest = [f"openai.concurrency={CONCURRENCY}", *SMALL, *PATIENT, *options]
    return ["annotate", "annotate", *files, *where, *rest]


def requests_of(out: Path) -> int:
    """Requests that an annotation of one completion each cannot do without."""
    rows = [json.loads(line) for line in out.with_suffix(".counts.jsonl").read_text().splitlines()]
    return len(rows) + sum(prefix["total"] for row in rows for prefix in row["prefixes"])


def greedy(server: Server, out: Path, *options: str) -> int:
    return main(arguments(server, out, "openai.continuation=prefill", "temperature=0", *options))


@pytest.fixture(scope="module")
def whole(server: Server) -> bytes:
    """What nobody interrupted: the greedy texts."""
    out = server.folder / "whole.jsonl"
    before = server.answered()
    assert greedy(server, out) == 0
    assert server.answered() - before == requests_of(out)
    return out.read_bytes()


@needs_shared
def test_a_server_and_this_machine_give_the_same(server: Server, whole: bytes) -> None:
    out = server.folder / "local.jsonl"
    files = [f"questions={server.folder / 'questions.jsonl'}", f"local.model={server.model}"]
    command = ["annotate", "annotate", *files, f"out={out}", *SMALL, "local.device=cpu"]
    assert main([*command, "temperature=0"]) == 0
    assert out.read_bytes() == whole
    assert len({row.outcome for row in load_trajectories(out)}) == 2


@needs_shared
@pytest.mark.parametrize("continuation", ["instruction", "completions"])
def test_other_ways_to_go_on(server: Server, tmp_path: Path, continuation: str) -> None:
    out = tmp_path / "out.jsonl"
    before = server.answered()
    assert main(arguments(server, out, f"openai.continuation={continuation}")) == 0
    assert server.answered() - before == requests_of(out)
    rows = load_trajectories(out)
    assert len(rows) == 6
    # The plain text of a completion is not what the small model has learned to answer: what it
    # samples then is anything.
    begins = "Step" if continuation == "instruction" else ""
    assert any(row.steps and row.steps[0].startswith(begins) for row in rows)


@needs_shared
def test_seeds_reach_the_server(server: Server, tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = ["openai.concurrency=1", "chains=1", f"seed={seed}", "temperature=1"]
        assert main(arguments(server, tmp_path / f"{name}.jsonl", *options)) == 0
        found.append((tmp_path / f"{name}.counts.jsonl").read_bytes())
    assert found[0] == found[1] != found[2]


@needs_shared
def test_a_server_that_is_killed_costs_nothing_twice(
    server: Server, whole: bytes, tmp_path: Path
) -> None:
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    before = server.answered()
    seen = []

    def kill_and_start() -> None:
        wait_for_lines(partial, 8)
        server.kill()
        seen.append(partial.read_bytes().count(b"\n"))
        server.start()

    killer = threading.Thread(target=kill_and_start)
    killer.start()
    assert greedy(server, out) == 0
    killer.join()
    assert seen[0] <= requests_of(out)
    assert out.read_bytes() == whole
    # An answer that was under way when the server died may have been logged and lost.
    needed = requests_of(out)
    assert needed <= server.answered() - before <= needed + CONCURRENCY
    server.wait()


@needs_shared
def test_a_client_that_is_killed_costs_nothing_twice(
    server: Server, whole: bytes, tmp_path: Path
) -> None:
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    before = server.answered()
    lives = 3
    for life in range(lives):
        process = os.fork()
        if process == 0:
            torch.set_num_threads(1)
            os._exit(greedy(server, out, "--resume"))
        wait_for_lines(partial, 6 * (life + 1))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    kept = [json.loads(line) for line in partial.read_text().splitlines()[1:]]
    keys = [tuple(piece["key"]) for piece in kept]
    assert len(keys) == len(set(keys)) >= 6 * lives - 1
    assert greedy(server, out, "--resume") == 0
    assert out.read_bytes() == whole
    needed = requests_of(out)
    assert needed <= server.answered() - before <= needed + CONCURRENCY * lives


def wait_for_lines(path: Path, lines: int) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@needs_shared
def test_a_wrong_model_is_refused(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert main(arguments(server, out, "openai.model=nope", "openai.retries=1")) == 2
    assert "answers 500: Internal Server Error; gave up after 2 tries" in capsys.readouterr().err
    assert not out.exists()


@needs_shared
def test_images_reach_the_server(server: Server, tmp_path: Path) -> None:
    model = save_image_reader(tmp_path / "model")
    rows = [{"id": "none", "question": "What?", "answer": "4"}]
    for number, colour in enumerate(["red", "blue"]):
        Image.new("RGB", (60, 40), colour).save(tmp_path / f"{number}.png")
        rows.append(rows[0] | {"id": colour, "images": [f"{number}.png"]})  # type: ignore[dict-item]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    same = [f"questions={tmp_path / 'q.jsonl'}", "temperature=0", "max_new_tokens=6", "chains=1"]
    assert main(arguments(server, tmp_path / "a.jsonl", *same, f"openai.model={model}")) == 0
    local = ["annotate", "annotate", *SMALL, *same, "local.device=cpu", f"local.model={model}"]
    assert main([*local, f"out={tmp_path / 'b.jsonl'}"]) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert len({row.steps for row in load_trajectories(tmp_path / "a.jsonl")}) == 3


def test_without_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"openai.base_url=http://127.0.0.1:{port}/v1", "openai.retries=2"]
    assert main(faulty(tmp_path, *options, "openai.first_delay=0.01")) == 2
    error = capsys.readouterr().err
    assert f"there is no connection to http://127.0.0.1:{port}/v1" in error
    assert "gave up after 3 tries" in error
    assert not (tmp_path / "out.jsonl").exists()


# What no real server does when it is asked to: failures, by a server of our own.

GOOD = "Step 1: two and two.\nStep 2: so four.\nFinal answer: 4"
KEY = "sk-secret-1234567890"
Answer = tuple[int, dict[str, str], Any]  # status, headers, body


def chat(*texts: str) -> Answer:
    choices = [
        {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        for i, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
    return 200, {}, body | {"choices": choices, "usage": usage}


def error(status: int, message: str, code: str | None = None, **headers: str) -> Answer:
    return status, headers, {"error": {"message": message, "type": "x", "code": code}}


class Faulty:
    """Answers request n as ``answer(n, body)`` says; keeps what it was asked, and when."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], Answer]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        lock = threading.Lock()
        faulty = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    number = len(faulty.bodies)
                    faulty.bodies.append(body)
                    faulty.headers.append({k.lower(): v for k, v in self.headers.items()})
                    faulty.times.append(time.monotonic())
                status, headers, found = answer(number, body)
                text = found if isinstance(found, bytes) else json.dumps(found).encode()
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name.replace("_", "-"), value)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)
                except OSError:
                    pass  # the client waits no more

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def __enter__(self) -> Faulty:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self) -> str:
        return f"openai.base_url=http://127.0.0.1:{self.http.server_port}/v1"


def faulty(folder: Path, *options: str) -> list[str]:
    questions = folder / "q.jsonl"
    if not questions.exists():
        questions.write_text('{"id": "1", "question": "2 + 2?", "answer": "4"}\n')
    files = [f"questions={questions}", f"out={folder / 'out.jsonl'}", "generator=openai"]
    small = ["openai.model=m", "chains=1", "completions=2", "openai.first_delay=0.01"]
    return ["annotate", "annotate", *files, *small, *options]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_failures_that_pass_are_tried_again(tmp_path: Path, status: int) -> None:
    with Faulty(lambda n, _: error(status, "busy") if n < 3 else chat(GOOD)) as server:
        assert main(faulty(tmp_path, server.url)) == 0
    assert len(server.bodies) == 3 + 3  # a solution, two completions of its first step
    (row,) = load_trajectories(tmp_path / "out.jsonl")
    assert row.step_labels == (1.0, 1.0)


def test_retry_after_is_kept(tmp_path: Path) -> None:
    with Faulty(lambda n, _: error(429, "wait", retry_after="1") if n == 0 else chat(GOOD)) as s:
        assert main(faulty(tmp_path, s.url)) == 0
    assert s.times[1] - s.times[0] >= 1
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 1445412470) == 10
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


def test_the_delays_double_up_to_the_longest(tmp_path: Path) -> None:
    options = ["openai.first_delay=0.1", "openai.longest_delay=0.4", "openai.retries=5"]
    with Faulty(lambda n, _: error(500, "down")) as server:
        assert main(faulty(tmp_path, server.url, *options)) == 2
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert len(gaps) == 5
    for gap, delay in zip(gaps, (0.1, 0.2, 0.4, 0.4, 0.4), strict=True):
        assert gap >= delay / 2  # jitter takes up to a half


def test_a_slow_server_is_tried_again(tmp_path: Path) -> None:
    def answer(number: int, body: dict[str, Any]) -> Answer:
        if number == 0:
            time.sleep(1)
        return chat(GOOD)

    with Faulty(answer) as server:
        assert main(faulty(tmp_path, server.url, "openai.timeout=0.3")) == 0
    assert len(server.bodies) == 4


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (error(401, f"no such key {KEY}"), "refuses the key in OPENAI_API_KEY"),
        (error(404, "no model"), "has no model 'm' (openai.model)"),
        (error(400, "bad seed"), "refuses a request with 400: bad seed"),
        (error(429, "pay", "insufficient_quota"), "pay"),
        (error(429, "later", retry_after="99999"), "asks to wait 99999 seconds"),
        ((200, {}, b"<html>"), "an answer that cannot be read"),
        (chat(), "gave 0 texts for a request of 1"),
    ],
)
def test_failures_that_do_not_pass_are_one_message(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    message: str,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Faulty(lambda n, _: answer) as server:
        assert main(faulty(tmp_path, server.url, "openai.retries=1")) == 2
    assert len(server.bodies) <= 2
    printed = capfd.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert KEY not in printed.err + printed.out
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_the_line_end_of_a_keys_file_is_no_part_of_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\r\n")
    long = "x" * 490 + KEY  # where the message is cut off
    with Faulty(lambda n, _: error(400, long)) as server:
        assert main(faulty(tmp_path, server.url)) == 2
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    printed = capfd.readouterr().err
    assert KEY[:6] not in printed
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n{KEY}")
    assert main(faulty(tmp_path, server.url)) == 2
    printed = capfd.readouterr().err
    assert "holds characters that no key has" in printed
    assert KEY[:6] not in printed


def test_the_key_is_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)

    def answer(number: int, body: dict[str, Any]) -> Answer:
        return chat(GOOD) if number < 2 else error(500, f"trouble with {KEY}")

    options = ["openai.api_key_env=MY_KEY", "openai.retries=0", "openai.concurrency=1"]
    with Faulty(answer) as server:
        assert main(faulty(tmp_path, server.url, *options)) == 2
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    partial = tmp_path / "out.jsonl.partial"
    assert partial.read_bytes().count(b"\n") == 3
    for path in tmp_path.iterdir():
        assert KEY not in path.read_text()
    # Another server by the same name goes on.
    with Faulty(lambda n, _: chat(GOOD)) as server:
        assert main(faulty(tmp_path, server.url, *options, "--resume")) == 0
    assert len(server.bodies) == 1


def test_no_key_and_no_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    assert main(faulty(tmp_path)) == 2
    assert "no key in the environment variable OPENAI_API_KEY" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "openai", None)
    assert main(faulty(tmp_path)) == 2
    assert "pip install 'dreamprm[annotate]'" in capsys.readouterr().err


def test_an_interruption_waits_for_what_is_paid_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(number: int, body: dict[str, Any]) -> Answer:
        time.sleep(0.05)
        return chat(GOOD)

    options = ["completions=12", "chains=3", "openai.concurrency=3"]
    add = Journal.add
    calls = []

    def interrupting(journal: Journal, *pieces: Any) -> None:
        calls.append(1)
        if len(calls) == 10:
            raise KeyboardInterrupt
        add(journal, *pieces)

    with Faulty(answer) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "add", interrupting)
            assert main(faulty(tmp_path, server.url, *options)) == 130
        asked = len(server.bodies)
        assert (tmp_path / "out.jsonl.partial").read_bytes().count(b"\n") == 1 + asked
        assert main(faulty(tmp_path, server.url, *options, "--resume")) == 0
        assert len(server.bodies) == requests_of(tmp_path / "out.jsonl") == 39


def test_what_a_request_says(tmp_path: Path) -> None:
    Image.new("RGB", (30, 30)).save(tmp_path / "really.png", "JPEG")
    row = {"id": "1", "question": "2 + 2?", "answer": "4", "images": ["really.png"]}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))

    def answer(number: int, body: dict[str, Any]) -> Answer:
        return chat(*[GOOD] * body.get("n", 1))

    options = ["openai.samples_per_request=2", "completions=5", "openai.send_seed=false"]
    options += ["openai.max_tokens_key=max_completion_tokens", "openai.continuation=prefill"]
    options += ["openai.extra_body={top_k: 5}", "top_p=0.9"]
    options += ["openai.continue_body={continue_final_message: true}"]
    with Faulty(answer) as server:
        assert main(faulty(tmp_path, server.url, *options)) == 0
    first, *rest = server.bodies
    assert "n" not in first
    assert sorted(body.get("n", 1) for body in rest) == [1, 2, 2]
    for body in server.bodies:
        assert "seed" not in body
        assert "max_tokens" not in body
        assert body["max_completion_tokens"] == 1024
        assert body["top_k"] == 5
        # The turn that stands last is the user's, where nothing is continued.
        assert body.get("continue_final_message") == (True if body is not first else None)
        assert (body["temperature"], body["top_p"]) == (0.7, 0.9)
        image, text = body["messages"][0]["content"]
        assert image["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")
        assert text["text"].endswith("Problem:\n2 + 2?")
    assert [message["role"] for message in first["messages"]] == ["user"]
    assert rest[0]["messages"][1] == {"role": "assistant", "content": "Step 1: two and two.\n"}
    assert main(faulty(tmp_path, server.url, "openai.continuation=completions", "--overwrite")) == 2


def test_seeds_differ_between_the_texts(tmp_path: Path) -> None:
    with Faulty(lambda n, _: chat(GOOD)) as server:
        assert main(faulty(tmp_path, server.url, "chains=3", "completions=4")) == 0
    seeds = [body["seed"] for body in server.bodies]
    assert len(seeds) == len(set(seeds)) == 15
    assert all(0 <= seed < 2**31 for seed in seeds)
    asked = [body["messages"][0]["content"] for body in server.bodies]
    assert sum("The solution so far:\n\nStep 1: two and two.\n" in text for text in asked) == 12
