"""Set up and run Rankwise with nothing but Python 3.11 or newer.

    python3 dev.py serve [app.py's flags]     the app, on sample data the first time
    python3 dev.py test [pytest's flags]      the tests; without flags all, in one process a core (at most 8)
    python3 dev.py check                      lint, types and import rules
    python3 dev.py install                    only the set-up

Each makes the virtual environment `.venv` beside this file and installs the pinned requirements into it when they
changed. Nothing is installed into the system's Python.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin/python"
STAMP = VENV / "installed.txt"
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt")
ALL_TESTS = (
    *("--numprocesses", "auto", "--maxprocesses", "8"),
    *("--dist", "loadfile", "--no-loadscope-reorder"),
    *("--durations", "20"),
)
CHECKS = (
    ("ruff", "format", "--check", "."),
    ("ruff", "check", "."),
    ("mypy",),
    ("importlinter",),
)


def main(arguments: list[str]) -> int:
    """Dispatch the verb; returns the exit code."""
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if verb not in ("serve", "test", "check", "install"):
        print(__doc__)
        return 0 if verb in ("", "-h", "--help", "help") else 2
    # Modules are compiled when first imported. Where that is not kept, each start takes 25 s instead of 10.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        install("requirements.txt" if verb == "serve" else "requirements-dev.txt")
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if verb == "serve":
        become(str(ROOT / "app.py"), *rest)
    if verb == "test":
        become("-m", "pytest", *(rest or ALL_TESTS))
    if verb == "check":
        return max(check(*command) for command in CHECKS)
    return 0


class SetupError(Exception):
    """The set-up cannot go on; the message says what to do."""


def install(requirements: str) -> None:
    """Bring `.venv` to the pinned requirements; a no-op when it has them."""
    if sys.version_info < (3, 11):  # noqa: UP036 - an older Python must hear this sentence
        raise SetupError(
            f"this is Python {sys.version.split()[0]}; Rankwise needs 3.11 or newer. Run it with that one."
        )
    wanted = fingerprint(requirements)
    done = STAMP.read_text().split() if STAMP.exists() else []
    if wanted in done and PYTHON.exists():
        return
    began = time.monotonic()
    pip = make_venv()
    print(f"Installing {requirements} into {VENV} (once; some minutes) …", file=sys.stderr, flush=True)
    # Python compiles each module when it is first imported; compiling all of them now would take longer.
    command = [
        *pip,
        "install",
        "--quiet",
        "--no-compile",
        "--disable-pip-version-check",
        "-r",
        str(ROOT / requirements),
    ]
    if subprocess.run(command, check=False).returncode != 0:
        raise SetupError(
            f"pip could not install {requirements} (its words are above). Check the network and try again."
        )
    current = {fingerprint(name) for name in REQUIREMENTS}  # what was installed for older texts counts no more
    STAMP.write_text("\n".join({wanted, *current.intersection(done)}) + "\n")
    print(f"Installed in {time.monotonic() - began:.0f} s.", file=sys.stderr)


def fingerprint(requirements: str) -> str:
    """What the environment must match: this Python and the text of the requirement files."""
    names = {"requirements.txt", requirements}
    text = sys.version + "".join((ROOT / name).read_text() for name in sorted(names))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_venv() -> list[str]:
    """Make `.venv` if needed; returns the command that runs a pip on it."""
    venv = [sys.executable, "-m", "venv", str(VENV)]
    if not PYTHON.exists() and subprocess.run(venv, check=False, capture_output=True).returncode != 0:
        # Debian's Python comes without ensurepip: an empty environment and the system's pip do as well.
        subprocess.run([*venv, "--clear", "--without-pip"], check=False, capture_output=True)
    if not PYTHON.exists():
        raise SetupError(f"{sys.executable} cannot make a virtual environment. Install its venv module (python3-venv).")
    if works(own := [str(PYTHON), "-m", "pip"]):
        return own
    system = [sys.executable, "-m", "pip", "--python", str(PYTHON)]
    if works(system) and subprocess.run([*system, "install", "--quiet", "pip"], check=False).returncode == 0:
        return own
    raise SetupError(
        f"{sys.executable} has neither ensurepip nor pip. Install one of them (python3-venv, python3-pip)."
    )


def works(pip: list[str]) -> bool:
    """Whether this pip can be called."""
    return subprocess.run([*pip, "--version"], check=False, capture_output=True).returncode == 0


def become(*arguments: str) -> NoReturn:
    """Turn this process into the environment's Python, in the project's folder: signals reach it directly."""
    os.chdir(ROOT)
    os.execv(PYTHON, [str(PYTHON), *arguments])  # noqa: S606 - no shell is wanted


def check(module: str, *arguments: str) -> int:
    """One linter, named before it speaks."""
    print(f"== {module} {' '.join(arguments)}", flush=True)
    command = ["-m", module, *arguments]
    if module == "importlinter":  # it has no __main__
        command = ["-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    return subprocess.run([str(PYTHON), *command], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
