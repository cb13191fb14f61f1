"""The built-in visual-reasoning domains: what each label is worth is known, because it was made so.

A scene is a 2×2 grid of numbered, coloured squares. A solution names the colour of one square in
each of its four steps, a wrong one always a colour that is nowhere in the image; only a look at the
image tells. Written in the canonical format, so that a run on them reads files like any other.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dreamprm.data.formats import save_questions, save_trajectories
from dreamprm.data.trajectory import Candidate, SelectionQuestion, Trajectory
from dreamprm.errors import UserError, unknown_name
from dreamprm.writing import whole_file, writing

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 200),
    "yellow": (240, 220, 40),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
CELL = 28  # pixels: one image token of Qwen2-VL
QUESTION = "What colour has each square?"
STEP_ERROR = 0.2  # chance that the solver names a wrong colour
COMPLETION_ERROR = 0.05  # the same for the sampler of the Monte Carlo completions
COMPLETIONS = 8  # per prefix

QUALITIES = {
    "clean": "Monte Carlo labels as they are",
    "noisy": "30 % of the labels p replaced by 1 − p",
    "random": "labels of another solution",
    "wrong_images": "the image of another question",
    "inverted": "every label p replaced by 1 − p",
    "easy": "the question gives the answer away: no image needed",
}
HARMFUL = ("random", "wrong_images", "inverted")

Scene = tuple[str, str, str, str]


@dataclass(frozen=True)
class Synthetic:
    """The built-in domains.

    Attributes:
        train: the solutions of every domain, by its name.
        meta: the clean meta set.
        test: questions to select from.
        truth: by the id of a training solution, what its step labels would be without the trouble
            of its domain. Not saved, and no part of the data: corrected labels are held against it.
    """

    train: dict[str, list[Trajectory]]
    meta: list[Trajectory]
    test: list[SelectionQuestion]
    truth: dict[str, tuple[float | None, ...]] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Writes ``train-<domain>.jsonl``, ``meta.jsonl`` and ``test.jsonl``; no others stay.

        Raises:
            UserError: they cannot be written.
        """
        files = {f"train-{name}.jsonl": rows for name, rows in self.train.items()}
        files["meta.jsonl"] = self.meta
        for name, rows in files.items():
            save_trajectories(folder / name, rows)
        save_questions(folder / "test.jsonl", self.test)
        for path in folder.glob("*.jsonl"):
            if path.name not in {*files, "test.jsonl"}:
                path.unlink()


def draw_synthetic(
    folder: Path,
    domains: Mapping[str, str],
    solutions: int,
    meta: int,
    questions: int,
    candidates: int,
    seed: int,
    redraw: bool = True,
) -> Synthetic:
    """Draws the built-in domains, and writes their images to ``images/``.

    An image is named by what is in it, so that those of other domains that are there stay right.

    Args:
        folder: of ``images/``.
        domains: the quality (a key of ``QUALITIES``) of each domain, by its name.
        solutions: per domain.
        meta: solutions of the clean meta set, with an outcome each and no step labels.
        questions: test questions.
        candidates: solutions to choose from per test question.
        seed: all is a function of it.
        redraw: whether images that are there are replaced where they differ.

    Raises:
        UserError: a quality is not known, or an image cannot be written.
    """
    for quality in domains.values():
        if quality not in QUALITIES:
            raise UserError(unknown_name("quality of a synthetic domain", quality, QUALITIES))
    images = _Images(folder / "images", redraw)
    train = {}
    truth: dict[str, tuple[float | None, ...]] = {}
    for number, (name, quality) in enumerate(domains.items()):
        rng = np.random.default_rng((seed, 0, number))
        train[name], true = _domain(name, quality, solutions, images, rng)
        truth |= {row.id: labels for row, labels in zip(train[name], true, strict=True)}
    rng = np.random.default_rng((seed, 1))
    rows = [_solution(f"meta-{i}", "meta", _scene(rng), images, rng) for i in range(meta)]
    rng = np.random.default_rng((seed, 2))
    return Synthetic(
        train,
        [replace(row, step_labels=None) for row in rows],
        [_question(i, candidates, images, rng) for i in range(questions)],
        truth,
    )


def _domain(
    name: str, quality: str, count: int, images: _Images, rng: np.random.Generator
) -> tuple[list[Trajectory], list[tuple[float | None, ...]]]:
    """The solutions, and what their step labels would be without the trouble of the domain."""
    easy = quality == "easy"
    rows = [
        _solution(f"{name}-{i}", name, _scene(rng, uniform=easy), images, rng, hint=easy)
        for i in range(count)
    ]
    truth = [row.step_labels or () for row in rows]
    if quality == "wrong_images":
        scenes = [_scene(rng) for _ in rows]
        pairs = list(zip(rows, scenes, strict=True))
        return (
            [replace(row, images=(images.of(scene),)) for row, scene in pairs],
            [tuple(_prefix_chances(row, scene)) for row, scene in pairs],
        )
    labels = np.array([row.step_labels for row in rows], dtype=float)
    if quality == "random":
        labels = rng.permutation(labels)
    elif quality in ("noisy", "inverted"):
        flip = rng.random(labels.shape) < (0.3 if quality == "noisy" else 1.0)
        labels = np.where(flip, 1 - labels, labels)
    troubled = [
        replace(row, step_labels=tuple(p.tolist())) for row, p in zip(rows, labels, strict=True)
    ]
    return troubled, truth


def _question(
    number: int, candidates: int, images: _Images, rng: np.random.Generator
) -> SelectionQuestion:
    scene = _scene(rng)
    rows = [_solution("", "test", scene, images, rng) for _ in range(candidates)]
    return SelectionQuestion(
        id=f"test-{number}",
        question=QUESTION,
        images=(images.of(scene),),
        answer=" ".join(scene),
        candidates=tuple(
            Candidate(
                steps=row.steps,
                answer=row.answer,
                correct=bool(row.outcome),
                # Whether the prefix is free of errors, for the AUC of step scores.
                step_labels=tuple(float(p > 0) for p in _prefix_chances(row, scene)),
            )
            for row in rows
        ),
    )


def _solution(
    id: str,
    domain: str,
    scene: Scene,
    images: _Images,
    rng: np.random.Generator,
    hint: bool = False,
) -> Trajectory:
    """A solution by a solver that errs in each step with chance ``STEP_ERROR``."""
    named = list(scene)
    for place in range(4):
        if rng.random() < STEP_ERROR:
            named[place] = str(rng.choice([c for c in COLOURS if c not in scene]))
    order = rng.permutation(4)
    steps = tuple(f"Square {place + 1} is {named[place]}." for place in order)
    row = Trajectory(
        id=id,
        domain=domain,
        question=f"Every square is {scene[0]}. {QUESTION}" if hint else QUESTION,
        steps=steps,
        images=(images.of(scene),),
        outcome=tuple(named) == scene,
        answer=" ".join(named),
    )
    labels = tuple(
        float(rng.binomial(COMPLETIONS, p) / COMPLETIONS) for p in _prefix_chances(row, scene)
    )
    return replace(row, step_labels=labels)


def _prefix_chances(row: Trajectory, scene: Scene) -> list[float]:
    """For every prefix, the chance that a completion of it ends right: 0 after an error."""
    facts = {f"Square {place} is {colour}." for place, colour in enumerate(scene, start=1)}
    right = [step in facts for step in row.steps]
    return [
        (1 - COMPLETION_ERROR) ** (len(right) - i) if all(right[:i]) else 0.0
        for i in range(1, len(right) + 1)
    ]


def _scene(rng: np.random.Generator, uniform: bool = False) -> Scene:
    names = rng.choice(list(COLOURS), size=4)
    a, b, c, d = (str(names[0 if uniform else i]) for i in range(4))
    return a, b, c, d


class _Images:
    """The image file of every scene, drawn the first time it is asked for."""

    def __init__(self, folder: Path, redraw: bool) -> None:
        self._folder, self._redraw = folder, redraw
        self._drawn: set[Scene] = set()
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def of(self, scene: Scene) -> Path:
        """The file."""
        path = self._folder / ("-".join(scene) + ".png")
        if scene not in self._drawn and (self._redraw or not path.is_file()):
            content = io.BytesIO()
            _draw(scene).save(content, "PNG")
            if not path.is_file() or path.read_bytes() != content.getvalue():
                with whole_file(path, sync=False) as file:
                    file.write(content.getvalue())
        self._drawn.add(scene)
        return path


def _draw(scene: Scene) -> Image.Image:
    image = Image.new("RGB", (2 * CELL, 2 * CELL))
    pen = ImageDraw.Draw(image)
    for place, colour in enumerate(scene):
        x, y = place % 2 * CELL, place // 2 * CELL
        pen.rectangle((x, y, x + CELL - 1, y + CELL - 1), fill=COLOURS[colour])
        pen.text((x + 9, y + 4), str(place + 1), fill=(128, 128, 128), font_size=18)
    return image
