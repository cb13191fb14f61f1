"""The annotation of a file of questions: what is asked when, what is kept, what is written."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dreamprm.annotation.config import AnnotationConfig, settings
from dreamprm.annotation.cost import STEPS, Cost, describe, estimate, prefixes_of
from dreamprm.annotation.generators import Generator, Reply, Request, build_generator
from dreamprm.annotation.grading import check_rules, rule_of
from dreamprm.annotation.questions import Question, load_answered_questions
from dreamprm.annotation.solutions import Annotated, Course, course
from dreamprm.errors import UserError
from dreamprm.journal import Journal, is_finished, journal_path
from dreamprm.progress import progress_bar
from dreamprm.writing import write_whole

log = logging.getLogger("dreamprm")

Key = tuple[str, int, int, int]


def annotate(
    config: AnnotationConfig, resume: bool = False, overwrite: bool = False, dry_run: bool = False
) -> None:
    """Samples solutions and completions, and writes trajectories with step labels.

    ``config.out`` holds the trajectories and ``….counts.jsonl`` beside it the counts that the
    labels come from, both in the order of the questions, whole or not at all. Until then every
    reply stands in ``….jsonl.partial`` from the moment that it is there.

    Args:
        config: of the annotation.
        resume: continue one that was interrupted; starts anew where there is none.
        overwrite: replace an output that is there, once the new one is whole.
        dry_run: print what it would cost, and stop.

    Raises:
        UserError: the questions or the config are wrong, the generator cannot be had, or there is
            an output already.
    """
    questions = load_answered_questions(config.questions)
    rules = {q.domain: config.grading.rules.get(q.domain, config.grading.rule) for q in questions}
    check_rules([rule_of(rules[q.domain], q.answer, q.options) for q in questions])
    out = Path(config.out)
    _check_images(questions, out.parent)
    print(describe(estimate(config, questions), config, len(questions)))
    if dry_run:
        return
    partial = journal_path(out, "an annotation", resume, overwrite)
    generator = build_generator(config, questions)
    try:
        of = _fingerprint(config, questions, generator)
        if resume and is_finished(out, of):
            log.info("%s is complete", out)
            return
        if overwrite:
            partial.unlink(missing_ok=True)
        journal = Journal(partial, of)
        annotated = _run(config, questions, generator, journal)
    finally:
        generator.close()
    write_whole(counts_path(out), [_json(item.count_record()) for item in annotated])
    journal.finish(out, [_json(item.trajectory.to_record(out.parent)) for item in annotated])
    log.info("%s", _summary(annotated))


def counts_path(out: Path) -> Path:
    """The file of counts that belongs to an output."""
    return out.with_suffix(".counts.jsonl")


def _run(
    config: AnnotationConfig,
    questions: Sequence[Question],
    generator: Generator,
    journal: Journal,
) -> list[Annotated]:
    """Annotates every solution; what the journal holds is not asked for again."""
    known = {_key(piece): _reply(piece) for piece in journal.pieces}
    if known:
        log.info("%s continues after %d requests", config.out, len(known))
    work = _Work(config, questions, generator.samples_per_request)
    cost = Cost()
    under_way = 0
    expected = 1 + prefixes_of(config.search, STEPS) * config.completions
    with progress_bar("annotate", len(work.results) * expected, "text") as bar:

        def settle(request: Request, reply: Reply, is_new: bool) -> None:
            if is_new:
                journal.add(_piece(request, reply))
                known[request.key] = reply
                cost.add(len(reply.texts), reply.prompt_tokens, reply.completion_tokens)
                bar.set_postfix_str(_so_far(cost, config), refresh=False)
            else:
                # Counted from the start, or the rate would be that of reading a file.
                bar.initial += len(reply.texts)
            work.settle(request, reply)
            bar.total = work.expected_texts(expected)
            bar.update(len(reply.texts))

        arrived: list[tuple[Request, Reply]] = []
        try:
            while True:
                batch = work.take(generator.capacity - under_way)
                missing = [request for request in batch if request.key not in known]
                asked = batch if generator.together and missing else missing
                generator.start(asked)
                under_way += sum(len(request.samples) for request in asked)
                for request in batch:
                    if request not in asked:
                        settle(request, known[request.key], is_new=False)
                if under_way and (not work.waiting or under_way >= generator.capacity):
                    arrived = generator.finished()
                    for request, reply in arrived:
                        under_way -= len(request.samples)
                        settle(request, reply, is_new=request.key not in known)
                elif not batch and not under_way:
                    break
        except BaseException:
            for request, reply in (*arrived, *generator.rescue()):
                if request.key not in known:
                    journal.add(_piece(request, reply))
            journal.close()
            raise
    if cost.requests:
        log.info("%d requests: %s", cost.requests, _so_far(cost, config))
    return [result for result in work.results if result is not None]


class _Work:
    """What is to be asked next.

    The order is a function of the questions and of the replies so far, in the order that they are
    settled; a batch of requests is then the same after an interruption.

    Attributes:
        waiting: requests that nobody has taken.
        results: of the solutions that are done, in the order of the questions.
    """

    def __init__(
        self, config: AnnotationConfig, questions: Sequence[Question], samples_per_request: int
    ) -> None:
        self.config = config
        self.samples = samples_per_request
        numbered = [(question, n) for question in questions for n in range(config.chains)]
        self.results: list[Annotated | None] = [None] * len(numbered)
        self.texts = 0  # of the solutions that are done
        self.waiting: deque[Request] = deque()
        self._done = 0
        self._places = {(question.id, n): i for i, (question, n) in enumerate(numbered)}
        self._new: Iterator[tuple[Question, int]] = iter(numbered)
        self._courses: dict[int, Course] = {}
        self._asked: dict[int, list[Request]] = {}
        self._replies: dict[int, dict[Key, Reply]] = {}

    def take(self, samples: int) -> list[Request]:
        """The next requests, of at most so many samples in all, but one where none is under way."""
        taken: list[Request] = []
        room = samples
        while room > 0:
            if not self.waiting and not self._begin():
                break
            size = len(self.waiting[0].samples)
            if size > room and taken:
                break
            taken.append(self.waiting.popleft())
            room -= size
        return taken

    def settle(self, request: Request, reply: Reply) -> None:
        """Takes note of a reply."""
        place = self._places[request.question.id, request.chain]
        replies = self._replies[place]
        replies[request.key] = reply
        asked = self._asked[place]
        if len(replies) < len(asked):
            return
        texts = [replies[item.key].texts for item in asked]
        self.texts += sum(map(len, texts))
        self._go_on(place, texts)

    def expected_texts(self, a_solution: int) -> int:
        """Texts of the whole work, by the mean of the solutions that are done."""
        mean = self.texts / self._done if self._done else a_solution
        return round(max(mean * len(self.results), self.texts))

    def _begin(self) -> bool:
        """Begins one more solution, if there is one."""
        for question, chain in self._new:
            place = self._places[question.id, chain]
            self._courses[place] = course(question, chain, self.config, self.samples)
            self._go_on(place, None)
            return True
        return False

    def _go_on(self, place: int, texts: list[tuple[str, ...]] | None) -> None:
        solution = self._courses[place]
        try:
            asked = next(solution) if texts is None else solution.send(texts)
        except StopIteration as end:
            self.results[place] = end.value
            self._done += 1
            for table in (self._courses, self._asked, self._replies):
                del table[place]
            return
        self._asked[place], self._replies[place] = asked, {}
        self.waiting.extend(asked)


def _piece(request: Request, reply: Reply) -> dict[str, Any]:
    return {
        "key": list(request.key),
        "texts": list(reply.texts),
        "tokens": [reply.prompt_tokens, reply.completion_tokens],
    }


def _key(piece: dict[str, Any]) -> Key:
    question, chain, prefix, start = piece["key"]
    return question, chain, prefix, start


def _reply(piece: dict[str, Any]) -> Reply:
    return Reply(tuple(piece["texts"]), *piece["tokens"])


def _so_far(cost: Cost, config: AnnotationConfig) -> str:
    prices = config.openai.prices
    money = config.generator == "openai" and (prices.prompt or prices.completion)
    return f"{cost}, {cost.money(prices):.2f} in money" if money else str(cost)


def _fingerprint(
    config: AnnotationConfig, questions: Sequence[Question], generator: Generator
) -> dict[str, Any]:
    """What the result is a function of, by the keys of the config."""
    digest = hashlib.sha256()
    for question in questions:
        images = [hashlib.sha256(path.read_bytes()).hexdigest() for path in question.images]
        fields = (question.id, question.domain, question.text, question.answer, images)
        digest.update(json.dumps(fields).encode())
    return settings(config) | {"questions": digest.hexdigest()} | generator.fingerprint()


def _check_images(questions: Sequence[Question], folder: Path) -> None:
    """Before anything is paid for: the output can name every image."""
    for question in questions:
        for path in question.images:
            if not path.resolve().is_relative_to(folder.resolve()):
                raise UserError(
                    f"image {path} is outside {folder}, the folder of out: expected out in a "
                    "folder that holds the images, as paths in it are relative to it"
                )


def _summary(annotated: Sequence[Annotated]) -> str:
    right = sum(bool(item.trajectory.outcome) for item in annotated)
    silent = sum(item.trajectory.answer is None for item in annotated)
    labels = sum(
        label is not None for item in annotated for label in item.trajectory.step_labels or ()
    )
    return (
        f"{len(annotated)} solutions, {right} right, {silent} without a final answer; "
        f"{labels} step labels"
    )


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False)
