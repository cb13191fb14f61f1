"""Training, meta and test sets as wholes: what they lack, and what leaks from one to another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dreamprm.data.findings import Findings
from dreamprm.data.validation import CHARACTER_EDGES, STEP_EDGES, Digests, FileReport


def check_sets(files: Sequence[FileReport]) -> Findings:
    """What is wrong with training, meta and test sets as wholes, and between them."""
    findings = Findings()
    sets: dict[str, list[FileReport]] = {}
    for report in files:
        sets.setdefault(report.role, []).append(report)
    if "train" in sets:
        domains = {name for report in sets["train"] for name in report.domains}
        if len(domains) == 1:
            findings.add("warning", f"train has one domain only, {min(domains)!r}: weight 1")
        usable = sum((report.usable for report in sets["train"]), Counter[bool | None]())
        labels = sum(sum(d.labels) for r in sets["train"] for d in r.domains.values())
        if not labels and (usable[True] or usable[False]):
            findings.add("warning", "train has outcomes only: data.labels=outcome makes labels")
        elif not labels:
            findings.add("error", "train has no labelled step and no outcome")
    if "meta" in sets:
        usable = sum((report.usable for report in sets["meta"]), Counter[bool | None]())
        outcomes = [outcome for outcome in (True, False) if usable[outcome]]
        if not outcomes:
            findings.add("error", "meta has no solution with steps and an outcome")
        elif len(outcomes) == 1:
            only = "right" if outcomes[0] else "wrong"
            findings.add(
                "error",
                f"all {usable[outcomes[0]]} usable solutions of meta are {only}: "
                "meta_loss=pairwise and calibrated compare right with wrong ones",
            )
    roles = [role for role in ("train", "meta", "test") if role in sets]
    for place, one in enumerate(roles):
        for other in roles[place + 1 :]:
            _find_leaks(findings, one, other, sets)
    return findings


def _find_leaks(
    findings: Findings, one: str, other: str, sets: Mapping[str, list[FileReport]]
) -> None:
    whole = _shared(sets[one], sets[other], "questions")
    if whole:
        values, where = whole
        findings.add(
            "error", f"{one} and {other} share questions, with their images", where, values
        )
    texts = _shared(sets[one], sets[other], "texts")
    if texts and texts[0] > (whole[0] if whole else 0):
        more = texts[0] - (whole[0] if whole else 0)
        message = f"{one} and {other} share texts of questions, with other images"
        findings.add("warning", message, texts[1], more)
    pictures = _shared(sets[one], sets[other], "pictures")
    if pictures:
        findings.add("warning", f"{one} and {other} share images", pictures[1], pictures[0])


def _shared(
    ones: Sequence[FileReport], others: Sequence[FileReport], name: str
) -> tuple[int, str] | None:
    """How many digests two sets share, and the first place of the first of them in each."""

    def values(reports: Sequence[FileReport]) -> np.ndarray:
        arrays = [np.frombuffer(getattr(r, name).values, np.uint64) for r in reports]
        return np.concatenate([np.zeros(0, np.uint64), *arrays])

    common = np.intersect1d(values(ones), values(others))
    if not len(common):
        return None

    def first(reports: Sequence[FileReport]) -> str:
        for report in reports:
            digests: Digests = getattr(report, name)
            found = np.isin(np.frombuffer(digests.values, np.uint64), common[:1])
            if found.any():
                return report.place(digests.rows[int(found.argmax())])
        raise AssertionError("a shared digest is of both")

    return len(common), f"{first(ones)} and {first(others)}"


def as_json(files: Sequence[FileReport], sets: Findings) -> dict[str, Any]:
    """The report as it is written with ``--json``."""

    def listed(findings: Findings) -> list[dict[str, Any]]:
        return [vars(finding) for finding in findings]

    all_findings = [*sets, *(finding for report in files for finding in report.findings)]
    return {
        "errors": sum(f.count for f in all_findings if f.severity == "error"),
        "warnings": sum(f.count for f in all_findings if f.severity == "warning"),
        "edges": {"steps": STEP_EDGES, "characters": CHARACTER_EDGES},
        "files": [
            {
                "path": str(report.path),
                "set": report.role,
                "rows": report.rows,
                "findings": listed(report.findings),
                "domains": {name: vars(counts) for name, counts in report.domains.items()},
            }
            for report in files
        ],
        "sets": listed(sets),
    }
