"""What the code says of the three papers stands in them."""

import subprocess

import pytest
from conftest import ROOT
from papers import citations, stands_in

# Logs of what was, not claims about the code.
LOGS = ("CHANGELOG.md", "docs/training-log.md", "results/", "tests/")


def citing_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "*.py", "*.md", "*.yaml"], cwd=ROOT, capture_output=True, text=True)
    return [name for name in listed.stdout.split() if not name.startswith(LOGS)]


def test_every_cited_section_stands_in_its_paper():
    lost = []
    for name in citing_files():
        cited = citations((ROOT / name).read_text(encoding="utf-8"))
        lost += [f"{name}: {paper}, {place}" for paper, place in cited if not stands_in(paper, place)]
    assert not lost, "\n".join(lost)


@pytest.mark.parametrize(
    "paper, place, stands",
    [
        ("JEPA4Rec", "section 3.3.2", True),
        ("JEPA4Rec", "section 4.6", False),
        ("JEPA4Rec", "Appendix F", True),
        ("JEPA4Rec", "Figure 7b", True),
        ("JEPA4Rec", "Figure 9", False),
        ("RecFormer", "Table 4", True),
        ("RecFormer", "eq. 12", True),
        ("RecFormer", "eq. 13", False),
        ("ST5", "Tables A.1, A.3 and A.4", True),
        ("ST5", "section 4.4.1.2", True),
        ("ST5", "appendix B.3", True),
        ("ST5", "section 7.1", False),
    ],
)
def test_a_place_is_found_where_it_is_and_nowhere_else(paper, place, stands):
    assert stands_in(paper, place) is stands


def test_a_citation_belongs_to_the_paper_named_last():
    text = (
        '''"""As in section 3.3, and RecFormer's Algorithm 1; the ST5 thesis, section 4.4.1, and Longformer, §3."""'''
    )
    assert citations(text) == [
        ("JEPA4Rec", "section 3.3"), ("RecFormer", "Algorithm 1"), ("ST5", "section 4.4.1"),
    ]  # fmt: skip
