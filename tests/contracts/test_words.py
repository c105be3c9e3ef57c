"""Code and docs use the words of the field: phrases that only this project used do not come back."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Phrase -> what to write instead.
INSTEAD = {
    r"middling": "typical",
    r"looks? at (the )?val\b": "validation run",
    r"further heads": "auxiliary heads",
    r"deal(s|t|ing)? (the )?(groups|splits|samples)": "assign to splits",
    r"(is|are|be) dealt": "assigned to splits",
    r"let go\b": "unfreeze",
    r"stands? still": "frozen",
    r"(params\.yaml|what|as it) stands": "current",
    r"in vain": "without use",
    r"may pass off": "retryable",
    r"\bgo(es)? on\b": "resume, continue",
    r"\bfurther\b": "other, more, additional",
    r"come upon": "find",
    r"(set|report|file|folder|page|interval|member|data) lies\b": "is, is stored",
    r"\bdice (fall|toss|roll)": "random generator, rng",
    r"passes that make one step": "gradient accumulation",
}
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs", "params.yaml", "dvc.yaml", "Makefile"]


def test_no_word_is_ours_alone() -> None:
    listed = ["git", "ls-files", "--", "segmill", "flows", "tasks", "benchmarks", *PAGES]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    texts = (".py", ".md", ".yaml", ".jinja", "Makefile")
    files = [name for name in names if name.endswith(texts) and name != "docs/log.md" and (ROOT / name).is_file()]
    assert len(files) > 200
    found = [
        f"{name}: '{match[0]}', write '{instead}'"
        for name in files
        for phrase, instead in INSTEAD.items()
        for match in re.finditer(phrase, " ".join((ROOT / name).read_text().split()), re.IGNORECASE)
    ]
    assert found == []
