"""Builds the one extension module; everything else is in pyproject.toml.

Two more builds look for errors, each in a place of its own under build/, so that none is taken for another:
ASYNCTUNE_DEBUG=1 checks bounds, traces lines and does not optimise; ASYNCTUNE_SANITIZE=1 is for AddressSanitizer and
UndefinedBehaviorSanitizer (`make debug`, `make asan`).
"""

import os
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DEBUG = os.environ.get("ASYNCTUNE_DEBUG") == "1"
SANITIZE = os.environ.get("ASYNCTUNE_SANITIZE") == "1"

PLACE = "build/asan" if SANITIZE else "build/debug" if DEBUG else "build/release"

DIRECTIVES: dict[str, Any] = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "nonecheck": DEBUG,
    "cdivision": True,
    "linetrace": DEBUG,
}

# A cast from float that overflows is undefined too, but not among "undefined"; and Python compiles extensions with
# -fwrapv, under which an integer that overflows would not be reported.
SANITIZERS = ["-fsanitize=address,undefined,float-cast-overflow"]
SANITIZED = ["-fno-sanitize-recover=all", "-fno-wrapv", "-fno-omit-frame-pointer", "-O1", "-g"]


class BuildCore(build_ext):
    """Cythonizes when it builds, so that merely asking for metadata compiles nothing."""

    def finalize_options(self) -> None:
        from Cython.Build import cythonize

        self.distribution.ext_modules = cythonize(
            self.distribution.ext_modules, compiler_directives=DIRECTIVES, build_dir=PLACE
        )
        super().finalize_options()


setup(
    ext_modules=[
        Extension(
            "asynctune._core",
            ["asynctune/_core.pyx"],
            extra_compile_args=[*SANITIZERS, *SANITIZED] if SANITIZE else ["-O0", "-g"] if DEBUG else ["-O3"],
            extra_link_args=SANITIZERS if SANITIZE else [],
            define_macros=[("CYTHON_TRACE_NOGIL", "1")] if DEBUG else [],
        )
    ],
    cmdclass={"build_ext": BuildCore},
    options={"build": {"build_base": PLACE, "build_lib": f"{PLACE}/lib"}},
)
