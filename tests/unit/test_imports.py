"""The house rules: imports run recipes -> reward -> alignment, files stay short, and nothing is called utils."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("alignment", "reward", "recipes")
# What the files of a folder must not import; alignment/ppo too takes its scorer as an argument.
FORBIDDEN = {"alignment": {"reward", "recipes"}, "reward": {"recipes"}, "recipes": {"recipes"}}

BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
LIBRARY = sorted(file for folder in ("alignment", "reward") for file in (ROOT / folder).rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and absolute module of every import, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; name the package"
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield node.lineno, getattr(node.args[0], "value", "")


def test_there_is_something_to_walk():
    assert {"recipes/sft.py", "recipes/evaluate.py"} <= set(map(name_of, RECIPES))
    assert {"alignment/data.py", "reward/rouge.py"} <= set(map(name_of, LIBRARY))


def test_imports_of_every_kind_are_seen():
    source = "import a.b as c, d\ndef f():\n    from e.f import g\n    importlib.import_module('h')"
    assert sorted(imports(ast.parse(source))) == [(1, "a.b"), (1, "d"), (3, "e.f"), (4, "h")]


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_run_one_way(folder: str):
    wrong = [
        f"{name_of(file)}:{line} imports {module}"
        for file in sorted((ROOT / folder).rglob("*.py"))
        for line, module in imports(ast.parse(file.read_text("utf-8")))
        if module.partition(".")[0] in FORBIDDEN[folder]
    ]
    assert not wrong


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.name)
def test_what_a_benchmark_imports_of_ours_is_there(file: Path):
    # They are run by hand, so that a name that has moved would be missed.
    ours = [
        node
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OURS
    ]
    assert ours or file.name == "ppo_trl.py"
    for node in ours:
        exec(ast.unparse(node), {})


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.name)
def test_a_recipe_puts_the_checkout_on_the_path_before_it_imports_ours(recipe: Path):
    # `accelerate launch recipes/x.py` puts recipes/ first on sys.path, where `import reward` finds recipes/reward.py.
    tree = ast.parse(recipe.read_text("utf-8"))
    expected = "sys.path[0] = str(Path(__file__).resolve().parents[1])"
    lines = [node.lineno for node in tree.body if ast.unparse(node) == expected]
    ours = [line for line, module in imports(tree) if module.partition(".")[0] in OURS]
    assert len(lines) == 1
    assert lines[0] < min(ours)


@pytest.mark.parametrize(("files", "most"), [(RECIPES, 130), (LIBRARY, 400)], ids=["recipes", "library"])
def test_files_stay_short(files: list[Path], most: int):
    lengths = {name_of(file): len(file.read_text("utf-8").splitlines()) for file in files}
    assert {name: length for name, length in lengths.items() if length > most} == {}


def test_nothing_is_called_utils():
    files = [*ROOT.glob("*.py"), *(file for folder in OURS for file in (ROOT / folder).rglob("*.py"))]
    assert [name for name in map(name_of, files) if "utils" in name.removesuffix(".py").split("/")] == []
