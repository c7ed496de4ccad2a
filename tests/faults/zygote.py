"""Zygote: a process that has imported everything, and forks a driver for each line that it reads.

What is forked is as good as a new interpreter: there is no loop and no second thread in here.
"""

import ctypes
import gc
import json
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

import asynctune as at
from asynctune.searchers.hyperopt import _load_library
from tests.digest import digest
from tests.faults.scenarios import arguments


def main() -> None:
    _load_library()
    for name in at.__all__:
        getattr(at, name)  # imported when it is first asked for
    gc.freeze()  # or a collection would copy every page of it
    for line in sys.stdin:
        job = json.loads(line)
        assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose threads"
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            drive(job, theirs)
        os.close(theirs)
        answer(pid)
        _, status = os.waitpid(pid, 0)
        os.set_blocking(ours, False)  # something that the driver left behind may hold the other end
        with open(ours, "rb", buffering=0) as pipe:
            said = pipe.read(2**16)
        outcome = json.loads(said) if said else {}
        answer(outcome | {"status": os.waitstatus_to_exitcode(status)})


def answer(thing: Any) -> None:
    sys.stdout.write(json.dumps(thing) + "\n")
    sys.stdout.flush()


def drive(job: dict[str, Any], outcome: int) -> NoReturn:
    """Be the driver."""
    status = 1
    try:
        signal.alarm(job["seconds"])
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # tracebacks of trials that are to fail
        os.environ |= {"FAULTS_NOTES": job["notes"], "FAULTS_PACE": str(job["pace"])}
        given = arguments(job["scenario"]) | job["options"] | {key: job[key] for key in ("run_dir", "slots", "resume")}
        os.environ |= job["environment"]
        if job["environment"] and job["fault"]["who"] == "driver":
            ctypes.CDLL(None).faults_arm()
            for name in job["environment"]:
                del os.environ[name]
        try:
            tuner = at.Tuner(**given)
            at.run.__wrapped__(tuner)  # type: ignore[attr-defined]
            os.write(outcome, json.dumps({"digest": digest(tuner._study)}).encode())
            status = 0
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is to be known
            text = traceback.format_exc()[-20_000:]
            os.write(outcome, json.dumps({"error": type(error).__name__, "text": text}).encode())
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
