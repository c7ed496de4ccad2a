"""NVML: drivers of boxes that are not here. `nvml.c` and `cuda.c` answer as NVIDIA's libraries are documented to."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["Box", "libraries"]


def libraries(directory: Path) -> Path:
    """The libraries, compiled into `directory`."""
    for source, name in (("nvml.c", "libnvidia-ml.so.1"), ("cuda.c", "libcuda.so.1")):
        path = Path(__file__).with_name(source)
        subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", directory / name, path], check=True)
    return directory


class Box:
    """A box, and programs that run on it.

    Args:
        libraries: where the libraries are.
        directory: where its description is written.
        text: the description; see `nvml.c`.
        settings: environment variables; those that matter here are not inherited.
    """

    def __init__(self, libraries: Path, directory: Path, text: str, **settings: str) -> None:
        description = directory / "box"
        description.write_text(text)
        away = ("CUDA_", "HIP_", "ROCR_", "OMP_", "MKL_", "OPENBLAS_", "ROCM_")
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(away)}
        self._environment |= {"LD_LIBRARY_PATH": str(libraries), "FAKE_NVML": str(description), **settings}

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Status, output and errors of a Python process."""
        run = subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return run.returncode, run.stdout, run.stderr

    def ask(self, expression: str) -> Any:
        """What an expression comes to, as JSON has it; `slots` is the package, with its modules."""
        code = (
            "import ctypes, dataclasses, json, os, pathlib\n"
            "from asynctune import slots\n"
            "from asynctune.slots import discovery, nvml\n"
            f"print(json.dumps({expression}, default=dataclasses.asdict))"
        )
        status, output, errors = self.run("-c", code)
        assert status == 0, errors
        return json.loads(output)
