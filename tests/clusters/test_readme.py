"""The commands that the files and their README tell people to type exist, with every option."""

import re
import shlex

import click
import pytest
from cluster_files import FOLDER, filled
from ray.scripts.scripts import cli as ray
from typer.main import get_command

from search.cli import app

GROUPS = {"ray": ray, "prunesearch": get_command(app)}
FILES = sorted(path for path in FOLDER.rglob("*") if path.suffix in {".md", ".yaml", ".sh"})


def typed(text):
    """The commands in code blocks and comments, as shell words; what a command starts in turn follows by itself."""
    text = re.sub(r"\\\n[# ]*", " ", filled(text))
    blocks = re.findall(r"^```\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [
        found[1] for found in re.finditer(r"^ *#? {4,}((?:ray|kubectl|docker|sbatch) .*)$", text, flags=re.MULTILINE)
    ]
    lines += [found[1] for found in re.finditer(r"^ *(?:- |exec )((?:ray|prunesearch) .*)$", text, flags=re.MULTILINE)]
    pending = [shlex.split(line, comments=True) for line in lines]
    while pending:
        words = pending.pop()
        yield words
        pending += [
            shlex.split(word) for word in words if " " in word and word.split()[0] in GROUPS
        ]  # quoted: `ray exec`
        if "--" in words:
            pending.append(words[words.index("--") + 1 :])


def unknown(words):
    """What a command of Ray or prunesearch does not have, of what was typed; nothing for commands of others."""
    command, rest = GROUPS.get(words[0]), words[1:]
    if command is None:
        return []
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        found = command.get_command(click.Context(command), rest[0])
        if found is None:
            return [rest[0]]
        command, rest = found, rest[1:]
    rest = rest[: rest.index("--")] if "--" in rest else rest
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    return [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_command_exists_with_its_options(path):
    commands = list(typed(path.read_text(encoding="utf-8")))
    assert not [(words, fault) for words in commands for fault in unknown(words)]


def test_the_readme_shows_commands_of_all_kinds():
    commands = [words[0] for words in typed((FOLDER / "README.md").read_text(encoding="utf-8"))]
    assert {"ray", "kubectl", "docker", "sbatch", "prunesearch"} <= set(commands)
    assert commands.count("ray") >= 7


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("ray job submits --address x", "submits"),
        ("ray exec a.yaml 'ray job submit --entrypoint-gpus 1 -- x'", "--entrypoint-gpus"),
        ("prunesearch run mine.yaml --adress auto", "--adress"),
        ("kubectl exec x -- ray stat", "stat"),
    ],
)
def test_a_command_that_does_not_exist_is_found(line, fault):
    assert [fault] == [each for words in typed(f"```\n{line}\n```\n") for each in unknown(words)]


def test_every_file_is_named_in_the_readme():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in FOLDER.rglob("*"):
        if path.is_file() and path.name not in {"README.md", ".env", "auth.ini", "make_bucket.py", "requirements.txt"}:
            assert str(path.relative_to(FOLDER)) in text, path


def test_links_in_the_readme_lead_somewhere():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (FOLDER / link).exists(), link
