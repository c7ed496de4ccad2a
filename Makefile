# Everything runs in the checkout's own .venv, which the first target makes.

PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/.ready
CORE := build/.core
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all lint compile debug sanitized asan fuzz bench clean

demo: $(CORE)  ## the four methods side by side on a small DCGAN, a few minutes; a second time it only summarises
	$(PY) examples/gan/compare.py --out examples/gan/out --runs 16 --steps 150

test: $(CORE)  ## what runs on every change
	$(PY) -m pytest -m "not slow and not gpu"

test-all: $(CORE)  ## the slow tests; none collected (pytest's status 5) is no failure
	$(PY) -m pytest -m "slow and not gpu" || { status=$$?; [ $$status -eq 5 ] && echo "there are no slow tests" || exit $$status; }

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

compile: $(CORE)

debug: $(READY)  ## the tests against a core with bounds checks, under asyncio's debug mode
	rm -rf build/debug
	ASYNCTUNE_DEBUG=1 $(PY) setup.py --quiet build
	PYTHONASYNCIODEBUG=1 PYTHONPATH=$(CURDIR)/build/debug/lib:$(CURDIR) $(PY) -P -m pytest -m "not slow and not gpu"

sanitized: $(READY)
	rm -rf build/asan
	ASYNCTUNE_SANITIZE=1 $(PY) setup.py --quiet build

# The sanitizers' runtime has to come first, and Python has to take its objects from malloc to have them watched. What CPython
# keeps to its end would be reported as leaks; tests/test_limits.py looks for the core's.
ASAN = LD_PRELOAD=$$(gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	PYTHONMALLOC=malloc PYTHONPATH=$(CURDIR)/build/asan/lib:$(CURDIR) $(PY) -P

asan: sanitized  ## the core's tests and a short fuzz under AddressSanitizer and UndefinedBehaviorSanitizer
	$(ASAN) -m pytest --capture=sys -m "not slow" $(wildcard $(patsubst %,tests/test_%.py,core schedulers population limits))
	$(ASAN) -m tests.fuzz --seconds 20

SECONDS ?= 600
fuzz: sanitized  ## the array API under arguments that nobody should pass: SECONDS=600 long, from SEED on
	$(ASAN) -m tests.fuzz --seconds $(SECONDS) $(SEED:%=--seed %)

bench: $(CORE)  ## what a trial costs beside ProcessPoolExecutor
	$(PY) bench/trials.py

clean:  ## all that was built; the environment stays
	rm -rf build dist *.egg-info asynctune/_core*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(INSTALL) setuptools Cython
	$(INSTALL) --no-build-isolation --editable '.[demo,dev]'
	touch $@

$(CORE): $(READY) asynctune/_core.pyx asynctune/_core.pxd setup.py
	$(PY) setup.py --quiet build_ext --inplace
	mkdir -p build && touch $@
