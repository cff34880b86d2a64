"""What README, guides and YAMLs tell: commands with options that exist, links that lead somewhere, a whole file map."""

import importlib
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "results" / "README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
SCRIPT = re.compile(r"(?:accelerate launch (?:[^\n]*? )?|python )((recipes|benchmarks)/(\w+)\.py[^\n]*)")
CODE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands_in(text: str) -> list[list[str]]:
    """The words of each command that starts a script of ours, from the script on."""
    text = re.sub(r" *\\\n *(# +)?", " ", text)
    return [shlex.split(match.group(1), comments=True) for match in SCRIPT.finditer(text)]


@cache
def options_of(script: str) -> set[str]:
    """What a script's own --help lists."""
    if script.startswith("benchmarks/"):
        done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
        return set(re.findall(r"--[\w-]+", done.stdout))
    with redirect_stdout(StringIO()) as said, pytest.raises(SystemExit):
        importlib.import_module(script.removesuffix(".py").replace("/", ".")).main(["--help"])
    return set(re.findall(r"--[\w-]+", said.getvalue())) | {"--config"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_in_commands_exist(page: Path):
    blocks = [code for language, code in CODE.findall(page.read_text("utf-8")) if language == "sh"]
    commands = [words for code in blocks for words in commands_in(code)]
    for script, *words in commands:
        unknown = {word for word in words if word.startswith("--")} - options_of(script)
        assert not unknown, f"{script} {' '.join(words)}"
    assert commands or page.name in ("CONTRIBUTING.md", "usage.md")


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_command_at_the_top_of_a_yaml_exists(file: Path):
    commands = commands_in("\n".join(line.removeprefix("# ") for line in file.read_text("utf-8").splitlines()))
    assert any(f"recipes/configs/{file.name}" in words for words in commands)
    for script, *words in commands:
        assert {word for word in words if word.startswith("--")} <= options_of(script)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_in_a_page_is_python(page: Path):
    for language, code in CODE.findall(page.read_text("utf-8")):
        if language == "python":
            compile(code, name_of(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", page.read_text("utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), target
        headings = re.findall(r"^#+ (.+)$", CODE.sub("", file.read_text("utf-8")), re.MULTILINE) if anchor else []
        slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in slugs, f"{target}#{anchor}"


def test_files_that_are_named_exist():
    for page in PAGES:
        for name in re.findall(r"\b(?:accelerate_configs|recipes|docs)/[\w./-]+\.\w+", page.read_text("utf-8")):
            assert (ROOT / name).exists() or name == "recipes/X.py", f"{name_of(page)}: {name}"


@pytest.mark.parametrize("package", ["alignment", "reward", "recipes"])
def test_the_file_map_is_whole(package: str):
    whole_map = (ROOT / "README.md").read_text("utf-8").partition("## What is where")[2]
    _, _, after = whole_map.partition(f"\n{package}/")
    own = re.split(r"\n(?=\w)", after)[0]
    named = set(re.findall(r"^ +([\w.]+\.\w+) ", own, re.MULTILINE))
    files = {file.name for file in (ROOT / package).rglob("*") if file.suffix in (".py", ".html")}
    assert named == files - {"__init__.py"}
