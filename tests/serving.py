"""A real server of the OpenAI protocol on loopback, for tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen


class Server:
    """``transformers serve`` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = str(folder / "generator")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [str(Path(sys.executable).with_name("transformers")), "serve"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"]
        quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | quiet
            )

    def wait(self) -> None:
        deadline = time.monotonic() + 120
        while True:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            try:
                with urlopen(f"http://127.0.0.1:{self.port}/health") as answer:
                    assert answer.status == 200
                    return
            except OSError:
                time.sleep(0.1)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def answered(self) -> int:
        """Requests that the server's own log calls answered, of all its lives."""
        lines = self.log.read_text(errors="replace").splitlines()
        return sum('completions HTTP/1.1" 200' in line for line in lines)
