"""`python -m train STAGE …`: the result on standard output, the log on standard error.

Exit 0 done, 2 bad input (one sentence), 1 our fault (a traceback), 143 or 130 stopped by SIGTERM or Ctrl-C.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import tyro

from data.errors import BadInput, UserError
from train.interrupt import Stopped
from train.stages import STAGES

# No phone home, and no warning about forks; both must be set before the libraries load.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# On CPUs with AVX512-BF16 bitsandbytes asks for a package that would fetch code from the hub at every start.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def main(arguments: Sequence[str]) -> int:
    """Run one stage and return the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("train").setLevel(logging.INFO)
    try:
        stage, *flags = arguments
        config = _config(stage, flags)
        # Only the chosen stage loads torch: --help answers at once.
        result = importlib.import_module(STAGES[stage].module).main(config)
        if _is_first():
            print(result)
    except UserError as error:
        if not _is_first():  # of several processes, all of which find the same mistake; the first one ends us meanwhile
            time.sleep(2)
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    return 0


def _config(stage: str, flags: Sequence[str]) -> Any:
    """The stage's settings from its flags; with --resume, from the run, and the flags must agree with it."""
    if stage not in STAGES:
        raise BadInput(f"'{stage}' is no stage of train. It is one of {', '.join(STAGES)}.")
    kind = STAGES[stage].config
    saved = None
    folder = _value_of("--resume", flags)
    if folder is not None and "resume" in kind.__dataclass_fields__:
        from train.resume import saved_config

        saved = saved_config(folder, stage=stage, kind=kind)
    options = {} if saved is None else {"default": saved}
    config = tyro.cli(
        kind, args=list(flags), prog=f"python -m train {stage}", use_underscores=True, config=(), **options
    )
    if saved is not None:
        from train.resume import check_unchanged

        check_unchanged(saved, config)
    return config


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _value_of(flag: str, flags: Sequence[str]) -> str | None:
    for i, text in enumerate(flags):
        if text.startswith(f"{flag}="):
            return text.partition("=")[2]
        if text == flag and i + 1 < len(flags):
            return flags[i + 1]
    return None


def _usage() -> str:
    lines = [f"  {name:<10}{(stage.config.__doc__ or '').splitlines()[0]}" for name, stage in STAGES.items()]
    return "\n".join(
        ["usage: python -m train STAGE [flags]", "", *lines, "", "python -m train STAGE --help lists its flags."]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
