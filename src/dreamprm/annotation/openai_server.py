"""Generation by a server of the OpenAI protocol, many requests at a time."""

from __future__ import annotations

import base64
import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from dreamprm.annotation.config import AnnotationConfig
from dreamprm.annotation.generators import Reply, Request
from dreamprm.annotation.prompt import CONTINUE, ask
from dreamprm.annotation.questions import Question
from dreamprm.annotation.retries import PassingFailure, retry_after, with_retries
from dreamprm.errors import UserError

log = logging.getLogger("dreamprm")

NO_KEY = "none"  # what servers that want no key are sent, as the client wants one


class OpenAIGenerator:
    """Samples by the ``openai`` client.

    Args:
        config: of the annotation.
        questions: of it.

    Raises:
        UserError: the package is missing, or the key, or the images cannot be sent.
    """

    together = False

    def __init__(self, config: AnnotationConfig, questions: Sequence[Question]) -> None:
        try:
            import openai  # not a requirement of the package: for this generator alone
        except ImportError as error:
            raise UserError(
                "generator: openai needs the package openai: pip install 'dreamprm[annotate]'"
            ) from error
        self.errors = openai
        self.config, self.server = config, config.openai
        self.capacity = self.server.concurrency * self.server.samples_per_request
        self.samples_per_request = self.server.samples_per_request
        if self.server.continuation == "completions":
            for question in questions:
                if question.images:
                    raise UserError(
                        f"question {question.id!r} has images, which openai.continuation: "
                        "completions cannot send: expected prefill or instruction"
                    )
        base_url = self.server.base_url or os.environ.get("OPENAI_BASE_URL")
        # A line end of the file that the key came from is no part of it.
        self.key = os.environ.get(self.server.api_key_env, "").strip()
        if not self.key.isprintable() or not self.key.isascii():
            raise UserError(
                f"the key in the environment variable {self.server.api_key_env} holds characters "
                "that no key has, such as a line end in its middle"
            )
        if not self.key and base_url is None:
            raise UserError(
                f"there is no key in the environment variable {self.server.api_key_env} "
                "(openai.api_key_env), and openai.base_url names no server that may want none"
            )
        self.client = openai.OpenAI(
            base_url=base_url,
            api_key=self.key or NO_KEY,
            timeout=self.server.timeout,
            max_retries=0,  # the client's own would wait for no server that starts anew
        )
        self.where = str(self.client.base_url)
        self.pool = ThreadPoolExecutor(self.server.concurrency, "request")
        self.under_way: dict[Future[Reply], Request] = {}
        self.stop = threading.Event()

    def fingerprint(self) -> dict[str, Any]:
        """Nothing: what a server serves by a name is its own affair."""
        return {}

    def start(self, requests: Sequence[Request]) -> None:
        """Sends requests, as soon as one of the connections is free."""
        for request in requests:
            self.under_way[self.pool.submit(self._answer, request)] = request

    def finished(self) -> list[tuple[Request, Reply]]:
        """Waits for at least one reply.

        Raises:
            UserError: the server refuses a request, or is not there, or not for long enough.
        """
        done, _ = wait(self.under_way, return_when=FIRST_COMPLETED)
        # Replies first: a failure that came with them shall not cost what is paid for.
        good = [future for future in done if future.exception() is None]
        if good:
            return [(self.under_way.pop(future), future.result()) for future in good]
        raise next(iter(done)).exception()  # type: ignore[misc]

    def rescue(self) -> list[tuple[Request, Reply]]:
        """Waits for the requests that the server works on; the others are not sent."""
        self.stop.set()
        waiting = [future for future in self.under_way if not future.cancel()]
        if any(not future.done() for future in waiting):
            log.info(
                "waiting for %d requests that are paid for; Ctrl-C gives them up", len(waiting)
            )
        wait(waiting)
        replies = [
            (self.under_way[future], future.result())
            for future in waiting
            if not future.cancelled() and future.exception() is None
        ]
        self.under_way = {}
        return replies

    def close(self) -> None:
        """Ends connections and threads."""
        self.stop.set()
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.client.close()

    def _answer(self, request: Request) -> Reply:
        def report(line: str) -> None:
            log.info("%s", line)

        return with_retries(lambda: self._ask(request), self.server, self.stop, report)

    def _ask(self, request: Request) -> Reply:
        """One try."""
        if self.stop.is_set():
            raise UserError("stopped")
        body = self._body(request)
        openai = self.errors
        try:
            if self.server.continuation == "completions":
                found: Any = self.client.completions.create(**body)
                texts = [choice.text for choice in found.choices]
            else:
                found = self.client.chat.completions.create(**body)
                texts = [choice.message.content or "" for choice in found.choices]
        except openai.APITimeoutError as error:
            raise PassingFailure(
                f"{self.where} did not answer within {self.server.timeout:g} seconds"
            ) from error
        except openai.APIConnectionError as error:
            cause = self._safe(str(error.__cause__ or error))
            raise PassingFailure(f"there is no connection to {self.where}: {cause}") from error
        except openai.APIStatusError as error:
            raise self._status(error) from error
        except (openai.APIError, ValueError) as error:
            raise PassingFailure(
                f"{self.where} gave an answer that cannot be read: {self._safe(str(error))}"
            ) from error
        if len(texts) != len(request.samples):
            raise UserError(
                f"{self.where} gave {len(texts)} texts for a request of {len(request.samples)}: "
                "set openai.samples_per_request=1"
            )
        usage = found.usage
        return Reply(
            tuple(self._new(request, text) for text in texts),
            usage.prompt_tokens if usage else 0,
            usage.completion_tokens if usage else 0,
        )

    def _new(self, request: Request, text: str) -> str:
        """What is new in a text: some servers repeat the prefix that they were given."""
        return (
            text[len(request.given) :] if request.given and text.startswith(request.given) else text
        )

    def _status(self, error: Any) -> Exception:
        """What an HTTP status means: to be tried again, or the user's to put right."""
        status, said = error.status_code, self._safe(_said(error))
        if status == 401:
            return UserError(
                f"{self.where} refuses the key in {self.server.api_key_env} "
                f"(openai.api_key_env): {said}"
            )
        if status == 404:
            return UserError(
                f"{self.where} has no model {self.server.model!r} (openai.model), or no such "
                f"address (openai.base_url): {said}"
            )
        if status in (408, 409, 429) or status >= 500:
            if error.code == "insufficient_quota":
                return UserError(f"{self.where}: {said}")
            return PassingFailure(
                f"{self.where} answers {status}: {said}", retry_after(error.response.headers)
            )
        return UserError(f"{self.where} refuses a request with {status}: {said}")

    def _safe(self, text: str) -> str:
        """One line without the key, which some servers repeat."""
        if self.key:
            text = text.replace(self.key, "[key]")  # before a part of it is cut off
        return " ".join(text.split())[:500]

    def _body(self, request: Request) -> dict[str, Any]:
        server, config = self.server, self.config
        extra = server.extra_body | (server.continue_body if request.given else {})
        body: dict[str, Any] = {
            "model": server.model,
            "temperature": config.temperature,
            server.max_tokens_key: config.max_new_tokens,
            "extra_body": extra or None,
        }
        if config.top_p < 1:
            body["top_p"] = config.top_p
        if server.send_seed:
            body["seed"] = request.seed(config.seed)
        if len(request.samples) > 1:
            body["n"] = len(request.samples)
        text = ask(request.question, config.instructions)
        if server.continuation == "completions":
            return body | {"prompt": f"{text}\n\n{request.given}"}
        if request.given and server.continuation == "instruction":
            text = f"{text}\n\n{CONTINUE}{request.given}"
        content: Any = text
        if request.question.images:
            content = [
                {"type": "image_url", "image_url": {"url": data_url(path)}}
                for path in request.question.images
            ] + [{"type": "text", "text": text}]
        messages = [{"role": "user", "content": content}]
        if request.given and server.continuation == "prefill":
            messages.append({"role": "assistant", "content": request.given})
        return body | {"messages": messages}


def _said(error: Any) -> str:
    """The message of a server's error, which may stand in several places."""
    body = error.body
    if isinstance(body, dict):
        inner = body.get("error", body)
        inner = inner if isinstance(inner, dict) else {"message": inner}
        found = inner.get("message") or inner.get("detail")
        if found:
            return str(found)
    return str(error.response.text or error.message)


@lru_cache(maxsize=64)
def data_url(path: Path) -> str:
    """An image file as a data URL, its bytes as they are and its type by what they are.

    Raises:
        UserError: it is no image.
    """
    try:
        with Image.open(path) as image:
            mime = Image.MIME.get(image.format or "")
        content = path.read_bytes()
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read image {path}: {error}") from error
    if mime is None:
        raise UserError(f"image {path} is of a kind without a media type")
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
