"""The three papers' texts, where somebody has them: which sections, tables, figures and equations they have."""

import os
import re
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

FILES = {"JEPA4Rec": "jepa4rec.txt", "RecFormer": "recformer_slides.txt", "ST5": "sentence_t5_thesis.txt"}
# How a file calls a paper; None for works that are not among the three.
NAMES = {"JEPA4Rec": "JEPA4Rec", "RecFormer": "RecFormer", "thesis": "ST5", "Sentence-T5": "ST5", "ST5": "ST5"}
NAMES |= dict.fromkeys(("Longformer", "et al.", "Bootstrap", "CL4SRec", "UniSRec's"), None)
PLACE = r"(?:[A-F]\.\d+|[A-F]\b|\d+(?:\.\d+)*)"
CITATION = re.compile(
    rf"(?P<kind>[Ss]ections?|§|[Aa]ppendix|[Cc]hapter|Tables?|Figures?|Algorithm|eq\.|equations?) ?"
    rf"(?P<places>{PLACE}[ab]?(?:(?:, | and | to ){PLACE}[ab]?)*)"
)


def folder() -> Path:
    """`$SEQREC_PAPERS`, else ``shared/papers`` beside the checkout; skips the test where there is none."""
    found = Path(os.environ.get("SEQREC_PAPERS", ROOT.parent / "shared" / "papers"))
    if not found.is_dir():
        pytest.skip(f"no papers: {found} is missing (name the folder in SEQREC_PAPERS)")
    return found


@cache
def text_of(paper: str) -> str:
    return (folder() / FILES[paper]).read_text(encoding="utf-8")


def stands_in(paper: str, citation: str) -> bool:
    """Whether "section 3.3", "Table A.1", "eq. 12" or "Appendix C" stands in a paper's text as a place of its own."""
    found = CITATION.fullmatch(citation)
    assert found, f"{citation} is no section, table, figure, equation or algorithm"
    kind, text = found["kind"].rstrip("s").lower(), text_of(paper)
    places = [place.rstrip("ab") for place in re.findall(f"{PLACE}[ab]?", found["places"])]
    patterns = {
        "table": r"^ *Table {}:",
        "figure": r"^(.* )?[Ff]igure {}\b",
        "algorithm": r"^Algorithm {}:",
        "eq.": r"(\(|tag\{{){}(\)|\}})",
        "equation": r"(\(|tag\{{){}(\)|\}})",
        "appendix": r"^(Appendix )?{}\b[\s]*[A-Z]?",
    }
    pattern = patterns.get(kind, r"^(Chapter )?{}[\s]+[A-Z]?")
    return all(re.search(pattern.format(re.escape(place)), text, re.MULTILINE) for place in places)


def citations(text: str) -> list[tuple[str, str]]:
    """(paper, citation) of a file; a citation is of the paper named last before it, of ours where none was."""
    flat = " ".join(re.sub(r"^\s*#", "", line) for line in text.splitlines())
    names = sorted((m.start(), m[0]) for m in re.finditer("|".join(map(re.escape, NAMES)), flat))
    found = []
    for match in CITATION.finditer(flat):
        before = [name for start, name in names if start < match.start()]
        of = re.match(r" of the thesis", flat[match.end() :])
        paper = "ST5" if of else NAMES[before[-1]] if before else "JEPA4Rec"
        if paper:
            found.append((paper, match[0]))
    return found
