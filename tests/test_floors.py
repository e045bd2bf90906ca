"""Which way imports may go: no room reaches up or sideways, and each library has its home."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dojo_kernel"
FILES = sorted(PACKAGE.rglob("*.py"))
WORDS = {"errors", "registry", "records", "actions", "settings", "places", "units"}
GAME = {"episode", "feedback", "agents", "testing", "heads", "reviewers"}
FACES = {"env", "run", "slots", "ray_engine", "search", "replay", "watcher", "measures", "rows", "results", "evaluate", "report"}
PARTS = {"kernel", "competition", "journal", "chat"}
FLOORS = {name: floor for floor, names in enumerate([WORDS, PARTS, GAME, FACES]) for name in names}
FLOORS |= {"live": 4, "cli": 4, "__main__": 5}
HOMES = {
    "docker": {"kernel"}, "jupyter_client": {"kernel", "inside"}, "zmq": {"kernel", "inside"}, "nbformat": {"journal", "replay"},
    "pandas": {"competition"}, "sklearn": {"competition"}, "gymnasium": {"env", "__init__"}, "typer": {"cli"},
    "openai": {"chat", "agents"}, "anthropic": {"chat"}, "keyring": {"chat"}, "ray": {"ray_engine"},
    "agents": {"agents"}, "prompt_toolkit": {"agents"},
    "rich": {"cli", "live", "replay", "report"},
}  # fmt: skip


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def imports(path):
    """(top-level name, room of ours or None) of every import in the file; type-checking ones count too."""
    return tuple(_imports(path))


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            modules = [f"{node.module}.{one.name}" for one in node.names] if node.module == "dojo_kernel" else [node.module]
        for module in modules:
            top, *rest = module.split(".")
            yield top, (rest or ["__init__"])[0] if top == "dojo_kernel" else None


def test_no_room_imports_from_above_or_from_its_neighbours():
    for path in FILES:
        here = room(path)
        if here in {"__init__", "inside"}:
            continue
        for _, there in imports(path):
            if there in {None, here, "__version__"}:
                continue
            below = FLOORS[there] < FLOORS[here]
            inner = FLOORS[here] != 1 and FLOORS[there] == FLOORS[here]
            assert below or inner, f"{path.relative_to(PACKAGE)} imports {there}"
            assert here != "agents" or there in WORDS | {"chat"}, (
                f"{path.relative_to(PACKAGE)}: agents know words and chat only, not {there}"
            )
            through = FLOORS[there] != 2 or there == "episode"
            assert here != "env" or through, (
                f"{path.relative_to(PACKAGE)}: a face reaches the game through episode only, not {there}"
            )


def test_words_know_pydantic_and_platformdirs_only():
    for path in FILES:
        if room(path) in WORDS:
            foreign = {top for top, _ in imports(path)} - sys.stdlib_module_names - {"dojo_kernel"}
            assert foreign <= {"pydantic", "platformdirs"}, path


def test_what_runs_in_the_box_is_made_of_the_standard_library_and_ipykernel():
    for path in FILES:
        tops = {top for top, _ in imports(path)}
        if room(path) == "inside":
            foreign = tops - sys.stdlib_module_names
            assert foreign <= {"ipykernel", "IPython", "comm", "jupyter_client", "tornado", "traitlets", "zmq", "cloudpickle"}, (
                f"{path}: {foreign}"
            )  # what comes with the first; the last is optional
        assert "inside" not in {there for _, there in imports(path)}, f"{path} imports what belongs in the box"


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_imported_at_its_home_only(library):
    assert {room(path) for path in FILES for top, _ in imports(path) if top == library} <= HOMES[library]


def test_importing_the_package_loads_no_heavy_library():
    code = "import sys, dojo_kernel; print(*sorted({'pandas', 'sklearn', 'numpy', 'gymnasium', 'jupyter_client', 'docker', 'nbformat', 'pydantic'} & {*sys.modules}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
