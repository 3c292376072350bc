"""Finds and runs the programs ``sae-train``, ``sae-eval`` and ``sae-data``."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Generator

from .errors import DynamicSaeError


def program(name: str) -> str:
    """The path of a program: that of this Python environment, or one on the PATH.

    Raises:
        DynamicSaeError: if there is none.
    """
    beside = [str(pathlib.Path(sys.executable).parent), sysconfig.get_path("scripts")]
    found = shutil.which(name, path=os.pathsep.join(beside)) or shutil.which(name)
    if found is None:
        raise DynamicSaeError(f"{name}: not found beside {sys.executable}, nor on the PATH; install the package with its "
                              "programs (pip install ./python in a clone), or put the directory of the program on the PATH")
    return found


def output_of(*command: str) -> str:
    """What a program that ends at once prints.

    Raises:
        DynamicSaeError: with the program's message, if it fails.
    """
    done = subprocess.run([program(command[0]), *command[1:]], capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise failure(command[0], done.returncode, done.stderr.splitlines())
    return done.stdout


def failure(name: str, code: int, lines: list[str]) -> DynamicSaeError:
    """The error of a program that has failed: its own message."""
    start = max((i for i, line in enumerate(lines) if line.startswith("error:")), default=max(0, len(lines) - 5))
    message = "\n".join(lines[start:]).removeprefix("error: ") or "it printed nothing"
    return DynamicSaeError(f"{name} (exit code {code}): {message}")


def lines_of(command: list[str]) -> Generator[str, None, None]:
    """Runs a program and yields its lines as they come, those of the error stream among them.

    Ctrl-C, or a notebook's stop, reaches the program once, and it may save what it has before KeyboardInterrupt goes on.

    Raises:
        DynamicSaeError: with the program's message, if it fails.
    """
    own_group = {"start_new_session": True} if os.name == "posix" else {}  # else Ctrl-C in a terminal would reach it twice
    lines: list[str] = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
        errors="replace", **own_group,
    ) as process:
        try:
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                del lines[:-200]
                yield lines[-1]
        except BaseException:  # also GeneratorExit: whoever reads the lines was interrupted
            if os.name == "posix" and process.poll() is None:
                process.send_signal(signal.SIGINT)
            with contextlib.suppress(OSError, ValueError):
                process.stdout.read()  # until it has ended
            process.wait()
            raise
    if process.returncode:
        raise failure(pathlib.Path(command[0]).name, process.returncode, lines)
