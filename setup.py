"""Builds the one extension module; everything else is in pyproject.toml.

ASYNCTUNE_DEBUG=1 builds it with bounds checks and line tracing, without optimisation.
"""

import os
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DEBUG = os.environ.get("ASYNCTUNE_DEBUG") == "1"

DIRECTIVES: dict[str, Any] = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "nonecheck": DEBUG,
    "cdivision": True,
    "linetrace": DEBUG,
}


class BuildCore(build_ext):
    """Cythonizes when it builds, so that merely asking for metadata compiles nothing."""

    def finalize_options(self) -> None:
        from Cython.Build import cythonize

        self.distribution.ext_modules = cythonize(
            self.distribution.ext_modules, compiler_directives=DIRECTIVES, build_dir="build/cython"
        )
        super().finalize_options()


setup(
    ext_modules=[
        Extension(
            "asynctune._core",
            ["asynctune/_core.pyx"],
            extra_compile_args=["-O0", "-g"] if DEBUG else ["-O3"],
            define_macros=[("CYTHON_TRACE_NOGIL", "1")] if DEBUG else [],
        )
    ],
    cmdclass={"build_ext": BuildCore},
)
