"""What a user has to fill in is marked in one way, and says what it is."""

import pytest
from cluster_files import EXAMPLES, FILES, MARK, text_of


def unexplained(text):
    """Marks that no comment of the form `# …<CHANGE-ME:name>: what it is` explains."""
    comments = [line.partition("#")[2] for line in text.splitlines() if line.lstrip().startswith("#")]
    told = {mark[1] for comment in comments for mark in MARK.finditer(comment) if not comment.startswith("SBATCH")}
    return {mark[1] for mark in MARK.finditer(text)} - told


@pytest.mark.parametrize("name", FILES)
def test_every_marked_value_is_explained_in_a_comment(name):
    assert not unexplained(text_of(name))


@pytest.mark.parametrize("text", ["image: <CHANGE-ME:image>", "#SBATCH --partition=<CHANGE-ME:partition>"])
def test_a_mark_without_a_comment_is_found(text):
    assert unexplained(text)


@pytest.mark.parametrize("name", FILES)
def test_marks_have_one_form(name):
    text = text_of(name)
    assert text.count("CHANGE-ME") == len(MARK.findall(text)) or name == "README.md"


def test_every_mark_has_an_example_and_every_example_a_mark():
    marks = {mark for name in FILES for mark in MARK.findall(text_of(name))}
    assert marks == set(EXAMPLES)
