"""Names of characters in Unicode 3.2, a version that every Python carries unchanged, with the script's name taken out."""

from __future__ import annotations

import sys
import unicodedata
from collections import defaultdict

from dojo_kernel.competition.recipes import Job, give_ids, split_rows, write_table_competition

TELLING = {"LETTER", "LETTERS", "SYLLABLE", "SYLLABICS", "CAPITAL", "SMALL", "LIGATURE", "CHARACTER", "FORM", "TSHEG"}
"""Words that are left out: they belong to the habits of a few scripts, and say nothing of the sound."""


def character_names(job: Job, *, test_fraction: float, seed: int) -> None:
    """One row for each name that belongs to a single script; the rest of the name is the text, its first word the answer."""
    wanted = job.competition.submission.columns["script"]
    scripts: dict[str, set[str]] = defaultdict(set)
    for code_point in range(sys.maxunicode + 1):
        script, *words = unicodedata.ucd_3_2_0.name(chr(code_point), "").split(" ")
        text = " ".join(word for word in words if word not in TELLING)
        if text and not (script == "HANGUL" and words[0] == "SYLLABLE"):
            scripts[text].add(script)
    rows = [{"name": text, "script": min(of)} for text, of in sorted(scripts.items()) if len(of) == 1 and min(of) in wanted]
    split = split_rows(rows, test_fraction=test_fraction, seed=seed, stratify="script")
    write_table_competition(job, give_ids(job, split, seed))
