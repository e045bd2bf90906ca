"""Makes a competition's data: recipe, leak lint, manifest, and only then the names that the rest of the program looks for.

Everything is built in a folder beside the final one and moved; `manifest.json` goes away first and comes back last, so
whoever is killed in between leaves "not prepared", never something half-made.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dojo_kernel.competition.lint import lint
from dojo_kernel.competition.recipes import RECIPES, Job, Recipe, needs_extra
from dojo_kernel.competition.spec import DOJO
from dojo_kernel.errors import ConfigError, DojoError
from dojo_kernel.registry import meant
from dojo_kernel.settings import data_root

if TYPE_CHECKING:
    from dojo_kernel.competition.spec import Competition

__all__ = ["RECIPES", "prepare"]

Progress = Callable[[str], None]
Fraction = Callable[[float], None]

SYNTHETIC = "SYNTHETIC.json"
"""A file of `raw/` that says: made up, by `dojo synth`."""

_FORMAT = 1
_SMALL, _MOST_HASHED = 2**20, 2**26
"""Bytes of a file that is hashed to see whether it has changed, and of all that are."""
_EPOCH = 946_684_800
"""Every file's time, 2000-01-01: a time of writing may tell what is in a file."""


def prepare(
    competition: Competition,
    *,
    force: bool = False,
    raw: Path | None = None,
    progress: Progress | None = None,
    fraction: Fraction | None = None,
) -> Path:
    """Makes `public/` and `private/`, or does nothing when they are there and whole; returns the folder they lie in.

    What is said goes to `<data root>/<slug>.log` as well, with times.

    Args:
        competition: What to prepare.
        force: Make them again even so.
        raw: Where the raw files are; `competition.raw_dir` if None. Archives are unpacked there.
        progress: Called with a line of text at each stage.
        fraction: Called often, with how much of the present stage is done, 0 to 1.

    Raises:
        ConfigError: The spec is wrong, the disk cannot be written, or the leak lint found an answer in `public/`.
        DownloadError: Raw data is missing.
    """
    told: Progress = progress or (lambda _: None)
    folder = competition.data_dir
    try:
        data_root().mkdir(parents=True, exist_ok=True)
        with locked(data_root() / f".{competition.slug}.lock"), _logged(competition, told) as say:
            raw = (raw or competition.raw_dir).absolute()
            if not force and _is_whole(competition, raw, say):
                say(f"{competition.slug} is already prepared")
                return folder
            _make(competition, raw, say, fraction or (lambda _: None))
    except OSError as error:
        raise ConfigError(
            f"cannot prepare {competition.slug}: {error.filename or folder}: {error.strerror}; "
            f"to keep data elsewhere: DOJO_DATA=FOLDER dojo prepare {competition.slug}"
        ) from error
    return folder


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Two programs that prepare the same competition take turns; the second then finds it done."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _logged(competition: Competition, told: Progress) -> Iterator[Progress]:
    """What is said, and what goes wrong, also goes to a file that stays."""
    with (data_root() / f"{competition.slug}.log").open("a", encoding="utf-8") as log:

        def say(line: str) -> None:
            log.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {line}\n")
            log.flush()
            told(line)

        try:
            yield say
        except (DojoError, OSError) as error:
            log.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} failed: {error}\n")
            raise


def _make(competition: Competition, raw: Path, say: Progress, fraction: Fraction) -> None:
    new = data_root() / f".{competition.slug}.preparing"
    remove(new)
    try:
        job = Job(competition, raw=raw, public=new / "public", private=new / "private", say=say, fraction=fraction)
        job.public.mkdir(parents=True)
        job.private.mkdir()
        say(f"{competition.slug}: recipe {competition.prepare.recipe}")
        _run_recipe(competition, job)
        (job.public / "description.md").write_text(competition.description, encoding="utf-8")
        _check_files(competition, job)
        _check_sides(competition, job)
        normalise(new)
        say(f"{competition.slug}: looking for answers in public/")
        _refuse_leaks(competition, job)
        say(f"{competition.slug}: taking checksums")
        write_manifest(job, new)
        move_into_place(new, competition.data_dir)
    finally:
        remove(new)


_COMMON = frozenset({"accept", "why", "split_dojo"})
"""Keys of `[prepare]` that are not the recipe's: what the lint may find, and why the split is not MLE-Dojo's."""


def _run_recipe(competition: Competition, job: Job) -> None:
    recipe = find_recipe(competition)
    signature = inspect.signature(recipe)
    named = [one.name for one in signature.parameters.values()][1:]
    loose = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
    left_out = frozenset({"accept"}) if loose else _COMMON
    parameters = {key: value for key, value in competition.prepare.parameters.items() if key not in left_out}
    if competition.dojo_split and not loose:
        plain = competition.slug.removesuffix(DOJO)
        raise ConfigError(f"{plain}: its recipe knows only one split; run: dojo prepare {plain}")
    if not loose and (unknown := sorted(set(parameters) - set(named))):
        raise ConfigError(
            f"{competition.folder}/competition.toml: prepare.{unknown[0]}: recipe {competition.prepare.recipe!r} has no such key"
            f"; {meant(unknown[0], [*named, *sorted(_COMMON)])}"
        )
    try:
        signature.bind(job, **parameters)
    except TypeError as error:
        raise ConfigError(f"{competition.folder}: [prepare]: recipe {competition.prepare.recipe!r}: {error}") from None
    try:
        recipe(job, **parameters)
    except (DojoError, OSError):
        raise
    except Exception as error:  # a recipe may be anybody's code
        raise ConfigError(
            f"{competition.slug}: recipe {competition.prepare.recipe!r} failed: {type(error).__name__}: {error}"
        ) from error


def find_recipe(competition: Competition) -> Recipe:
    """The recipe by name, by `package.module:name`, or by `recipe.py:name` beside the spec. Raises ConfigError."""
    address = competition.prepare.recipe
    file, _, name = address.partition(":")
    if not file.endswith(".py"):
        return RECIPES[address]
    path = competition.folder / file
    spec = importlib.util.spec_from_file_location(f"dojo_recipe_{competition.slug.replace('-', '_')}", path)
    if Path(file).name != file or not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"{competition.slug}: recipe {address!r}: no file {path}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        recipe: Recipe = getattr(module, name)
    except ModuleNotFoundError as error:
        if error.name in {"pyarrow", "py7zr"}:
            raise needs_extra(error) from None
        raise ConfigError(f"{competition.slug}: cannot load recipe {address!r}: {error}") from error
    except Exception as error:  # a recipe may be anybody's code
        raise ConfigError(f"{competition.slug}: cannot load recipe {address!r}: {error}") from error
    return recipe


def _check_files(competition: Competition, job: Job) -> None:
    for path in (job.public / "sample_submission.csv", job.private / "answers.csv"):
        if not path.is_file():
            raise ConfigError(
                f"{competition.slug}: recipe {competition.prepare.recipe!r} wrote no {path.parent.name}/{path.name}"
            )


def _check_sides(competition: Competition, job: Job) -> None:
    """Raises ConfigError unless there are public and private test rows."""
    split = competition.split
    if split.mode == "full":
        return
    csv.field_size_limit(1 << 30)
    with (job.private / "answers.csv").open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file)
        key = split.by or competition.submission.id
        if key not in (lines.fieldnames or ()):
            raise ConfigError(f"{competition.slug}: answers.csv has no column {key!r}")
        sides: set[bool] = set()
        for line in lines:
            sides.add(split.is_public(line[key]))
            if len(sides) > 1:
                return
    raise ConfigError(
        f"{competition.slug}: all test rows are on one side of the public/private split; "
        "more rows, another [split] seed, or mode = 'full' in competition.toml mends it"
    )


def _refuse_leaks(competition: Competition, job: Job) -> None:
    accept = competition.prepare.parameters.get("accept", [])
    if not isinstance(accept, list):
        raise ConfigError(f"{competition.slug}: [prepare] accept must be a list of the lint's checks")
    findings = lint(competition, job.public, job.private)
    blocking = [finding for finding in findings if finding.blocks and finding.check not in accept]
    for finding in findings:
        if finding not in blocking:
            job.say(f"{competition.slug}: warning: {finding}")
    if blocking:
        raise ConfigError(
            f"{competition.slug}: public/ gives answers away, nothing was prepared: " + "; ".join(map(str, blocking))
        )


# --- manifest -----------------------------------------------------------------------------------------------------------


def normalise(folder: Path) -> None:
    """One time for every file; public can be read by a box's user, private by its owner only."""
    for path in sorted(folder.rglob("*"), reverse=True):
        private = "private" in path.relative_to(folder).parts[:1]
        if path.is_symlink():
            continue
        path.chmod((0o700 if path.is_dir() else 0o600) if private else (0o755 if path.is_dir() else 0o644))
        os.utime(path, (_EPOCH, _EPOCH))


def _prepared_files(folder: Path) -> Iterator[Path]:
    for part in ("public", "private"):
        yield from (path for path in sorted((folder / part).rglob("*")) if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path, fraction: Fraction) -> dict[str, dict[str, Any]]:
    files: dict[str, dict[str, Any]] = {}
    paths = list(_prepared_files(folder))
    for done, path in enumerate(paths):
        fraction(done / len(paths))
        files[path.relative_to(folder).as_posix()] = {"sha256": _sha256(path), "size": path.stat().st_size}
    return files


def _are_as_written(folder: Path, files: dict[str, dict[str, Any]]) -> bool:
    """Whether the files are those of the manifest: all by name, size and time, and small ones by content, up to a limit."""
    found = {path.relative_to(folder).as_posix(): path for path in _prepared_files(folder)}
    if found.keys() != files.keys():
        return False
    hashed = 0
    for name, path in found.items():
        about = path.stat()
        if about.st_size != files[name]["size"] or about.st_mtime != _EPOCH:
            return False
        if about.st_size <= _SMALL and hashed <= _MOST_HASHED:
            hashed += about.st_size
            if _sha256(path) != files[name]["sha256"]:
                return False
    return True


def _is_synthetic(raw: Path) -> bool:
    return (raw / SYNTHETIC).is_file()


def source_sha256(competition: Competition) -> str:
    """Of all that the spec's folder says about the data; another hash means that the data must be made again."""
    total = hashlib.sha256()
    for path in sorted(competition.folder.iterdir()):
        if path.is_file() and not path.name.endswith(("_board.csv", "_leaderboard.csv")):
            total.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            total.update(path.read_bytes())
    return total.hexdigest()


_VERSIONS = ("dojo_kernel", "numpy", "pandas", "pyarrow", "scikit-learn")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def write_manifest(job: Job, new: Path, *, prepared_by: dict[str, str] | None = None) -> None:
    """Into `new`; `prepared_by` tells where data comes from that no recipe of ours has made."""
    competition = job.competition
    manifest = {
        "format": _FORMAT,
        "slug": competition.slug,
        "recipe": competition.prepare.recipe,
        "parameters": competition.prepare.parameters,
        "source_sha256": source_sha256(competition),
        "versions": {
            "python": platform.python_version(),
            **{name: version for name in _VERSIONS if (version := _version(name))},
        },
        **({"synthetic": True} if _is_synthetic(job.raw) else {}),
        **({"prepared_by": prepared_by} if prepared_by else {}),
        "files": _files(new, job.fraction),
    }
    path = new / "manifest.json"
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    path.chmod(0o600)
    os.utime(path, (_EPOCH, _EPOCH))


def _is_whole(competition: Competition, raw: Path, say: Progress) -> bool:
    if not competition.is_prepared():
        return False
    try:
        manifest = json.loads(competition.manifest.read_text(encoding="utf-8"))
        changed = manifest["source_sha256"] != source_sha256(competition) and "prepared_by" not in manifest
        if manifest["format"] != _FORMAT or changed:
            say(f"{competition.slug}: the spec has changed, making the data again")
            return False
        if raw.is_dir() and any(raw.iterdir()) and _is_synthetic(raw) != manifest.get("synthetic", False):
            say(f"{competition.slug}: the raw files have changed between synthetic and real, making the data again")
            return False
        if not _are_as_written(competition.data_dir, manifest["files"]):
            say(f"{competition.slug}: files were changed or lost, making the data again")
            return False
    except (ValueError, KeyError, TypeError):
        say(f"{competition.slug}: manifest.json cannot be read, making the data again")
        return False
    return True


# --- moving -------------------------------------------------------------------------------------------------------------


def move_into_place(new: Path, folder: Path) -> None:
    """The manifest last, so that whoever is killed in between leaves: not prepared."""
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)  # from here to the last line: not prepared
    for part in ("public", "private"):
        if (folder / part).exists():
            (folder / part).replace(new / f"old-{part}")
        (new / part).replace(folder / part)
    (new / "manifest.json").replace(folder / "manifest.json")


def remove(folder: Path) -> None:
    """The whole tree, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)
