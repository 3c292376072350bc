"""Puts the programs sae-train, sae-eval and sae-data into the wheel.

They are built with cargo in the workspace above this directory. With the environment variable DYNAMIC_SAE_BINARIES=DIR the
finished programs of that directory are taken, and cargo is not called. DYNAMIC_SAE_PLATFORM names the platform of the wheel, such
as manylinux_2_28_x86_64; without it, it is that of the Python that builds.
"""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
from typing import Any

import packaging.tags
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROGRAMS = ("sae-train", "sae-eval", "sae-data")


class BuildError(Exception):
    """Why there is no wheel, and what to do."""


class ProgramsHook(BuildHookInterface):
    """Adds the programs to a wheel, and the tag of their platform."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            raise BuildError("dynamic-sae is not offered as an sdist: its programs are built from the Rust workspace around it. "
                             "Build a wheel in a clone: pip wheel --no-deps ./python")
        platform = os.environ.get("DYNAMIC_SAE_PLATFORM") or platform_tag()
        suffix = ".exe" if platform.startswith("win") else ""
        given = os.environ.get("DYNAMIC_SAE_BINARIES")
        sources = finished(pathlib.Path(given), suffix) if given else built(pathlib.Path(self.root).parent)
        self.copies = tempfile.TemporaryDirectory(prefix="dynamic-sae-")
        build_data["shared_scripts"] = {
            str(stripped(source, pathlib.Path(self.copies.name))): source.name for source in sources
        }
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self.copies.cleanup()


def platform_tag() -> str:
    """The most specific tag of this platform: on Linux with the C library's version, which is what the programs need."""
    tags = list(packaging.tags.platform_tags())
    return next((tag for tag in tags if not tag.startswith("linux_")), tags[0])


def finished(directory: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    """The programs of a directory."""
    paths = [directory.absolute() / (name + suffix) for name in PROGRAMS]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise BuildError(f"DYNAMIC_SAE_BINARIES={directory}: there is no {' and no '.join(missing)}; build them with "
                         f"cargo build {' '.join(f'-p {name}' for name in PROGRAMS)}")
    return paths


def built(workspace: pathlib.Path) -> list[pathlib.Path]:
    """The programs as cargo builds them; cargo says where it puts them."""
    if not (workspace / "Cargo.toml").is_file():
        raise BuildError(f"{workspace}: there is no Cargo.toml; build in a clone of the whole repository, or set "
                         "DYNAMIC_SAE_BINARIES to a directory with finished programs")
    if shutil.which("cargo") is None:
        raise BuildError("cargo is not on the PATH; install Rust (https://rustup.rs), install a wheel, or set "
                         "DYNAMIC_SAE_BINARIES to a directory with finished programs")
    packages = [part for name in PROGRAMS for part in ("-p", name)]
    command = ["cargo", "build", "--message-format=json-render-diagnostics", *packages]
    done = subprocess.run(command, cwd=workspace, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise BuildError(f"cargo build failed with exit code {done.returncode}; its messages are above (pip shows them with -v)")
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    paths = [pathlib.Path(message["executable"]) for message in messages if message.get("executable")]
    by_name = {path.stem: path for path in paths}
    if missing := [name for name in PROGRAMS if name not in by_name]:
        raise BuildError(f"cargo build did not make {', '.join(missing)}; is {workspace} the workspace of dynamic-sae?")
    return [by_name[name] for name in PROGRAMS]


def stripped(source: pathlib.Path, directory: pathlib.Path) -> pathlib.Path:
    """A copy of a program without debug symbols, where the system has `strip`."""
    copy = pathlib.Path(shutil.copy2(source, directory / source.name))
    if source.suffix != ".exe" and shutil.which("strip"):
        subprocess.run(["strip", str(copy)], check=True)
    return copy
