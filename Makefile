# `make run` and `make test` install what they need into .venv first, and only when it has changed.

PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)
VENV := .venv
BIN := $(VENV)/bin
FOR_RUN := $(VENV)/.installed
FOR_TEST := $(VENV)/.installed-dev
SYNC := UV_PYTHON_DOWNLOADS=never $(BIN)/uv pip sync --quiet --python $(BIN)/python
UPGRADE ?= --upgrade
LOCK := UV_PYTHON_DOWNLOADS=never $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --strip-extras --custom-compile-command "make lock" $(UPGRADE)

# Bytecode is kept whatever the shell says: without it every process compiles a thousand modules anew, which
# takes seconds each. It stays inside .venv.
export PYTHONDONTWRITEBYTECODE :=
export PYTHONPYCACHEPREFIX := $(abspath $(VENV))/bytecode

.DEFAULT_GOAL := help
.PHONY: help run test sweep unit check lint node bench eval lock clean

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /\1 /p' $(MAKEFILE_LIST) | while read -r name what; do \
		printf 'make %-6s %s\n' "$$name" "$$what"; done

run: $(FOR_RUN)  ## start everything on this machine, with a demo, until Ctrl-C
	@exec $(BIN)/python manage.py up --with-parent

# A fresh clone has no bytecode, and none of Hypothesis' tables: each test process would make all of it. So one does it
# while lint uses another core.
PREPARED := $(VENV)/.prepared
PREPARE := $(BIN)/python -m pytest --collect-only -n 0; \
	$(BIN)/python -c "import litellm, hypothesis.internal.charmap as tables; tables.intervals_from_codec('utf-8')"

test: $(FOR_TEST)  ## lint, types, import contracts, then all tests against real servers
	@[ $(PREPARED) -nt $(FOR_TEST) ] || { { touch $(PREPARED); $(PREPARE); } >/dev/null 2>&1 & }
	@$(MAKE) --no-print-directory lint
	@echo "── tests"
	@[ -d clients/typescript/node_modules ] || echo "Skipped: what needs Node (make node installs its tools)."
	@$(BIN)/python -m pytest -n 4 --dist loadscope --no-loadscope-reorder

sweep: $(FOR_TEST)  ## all tests with all cases and examples, of which make test draws a few
	@TEST_CASES=all $(BIN)/python -m pytest -n 4 --dist loadscope --no-loadscope-reorder

unit: $(FOR_TEST)  ## tests that need no server, in less than a minute
	@$(BIN)/python -m pytest tests/unit

check: $(FOR_TEST)  ## one test, file or folder: make check T=tests/unit/test_cron.py
	@test -n "$(T)" || { echo "Say which: make check T=tests/unit/test_cron.py" >&2; exit 1; }
	@TEST_CASES=all $(BIN)/python -m pytest "$(T)"

lint: $(FOR_TEST)  ## lint, types and import contracts alone
	@echo "── ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "── mypy"
	@$(BIN)/mypy
	@echo "── import contracts"
	@$(BIN)/lint-imports

node:  ## install the tools of clients/typescript, from its lock; the tests of it run once they are there
	@npm --prefix clients/typescript ci

bench: $(FOR_TEST)  ## measure, in one table; all of it: make bench FULL=1 (bench/README.md)
	@$(BIN)/python -m bench $(B) $(if $(FULL),--full) $(if $(JSON),--json $(JSON)) $(if $(COMPARE),--compare $(COMPARE))

# MODEL= BASE_URL= KEY= name the model as ADIUVA_MODEL, _API_BASE and _API_KEY do, which serve where these are not given.
# A key on a command line can be read by others on the machine: better in the environment.
eval: export ADIUVA_MODEL := $(or $(MODEL),$(ADIUVA_MODEL))
eval: export ADIUVA_MODEL_API_BASE := $(or $(BASE_URL),$(ADIUVA_MODEL_API_BASE))
eval: export ADIUVA_MODEL_API_KEY := $(or $(KEY),$(ADIUVA_MODEL_API_KEY))
eval: $(FOR_TEST)  ## how well a model does: make eval MODEL=openai/… BASE_URL=… (docs/evaluation.md)
	@$(BIN)/python -m bench.evaluation $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(JSON),--json $(JSON)) \
		$(if $(RECORD),--record $(RECORD)) $(if $(REPLAY),--replay $(REPLAY)) $(if $(PRICE),--price $(PRICE)) $(ARGS)

# The locks of the groups hold what they add to requirements.txt: it constrains them, and what it pins is left out.
# The bench group replaces BENCH_OWN, of which it needs another version. UPGRADE= keeps the versions that are locked.
BENCH_OWN := tenacity
PINNED := $(VENV)/pinned.txt
lock: $(BIN)/uv  ## pin the newest versions that pyproject.toml allows
	$(LOCK) pyproject.toml -o requirements.txt
	sed -n 's/ \\$$//; /^[a-z0-9]/p' requirements.txt > $(PINNED)
	$(LOCK) --group traces -c $(PINNED) $$(sed 's/==.*//; s/^/--no-emit-package /' $(PINNED)) -o requirements-traces.txt
	$(LOCK) --group dev -c $(PINNED) $$(sed 's/==.*//; s/^/--no-emit-package /' $(PINNED)) -o requirements-dev.txt
	sed -i.old '/^$(BENCH_OWN)==/d' $(PINNED)
	$(LOCK) --group bench -c $(PINNED) $$(sed 's/==.*//; s/^/--no-emit-package /' $(PINNED)) -o bench/chat/requirements.txt
	sed -i.old '/^# The following packages were excluded/,$$d' requirements-traces.txt requirements-dev.txt bench/chat/requirements.txt
	rm -f $(PINNED) $(PINNED).old requirements-traces.txt.old requirements-dev.txt.old bench/chat/requirements.txt.old

clean:  ## remove .venv and caches; the data in .state stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ── What is installed ───────────────────────────────────────────────────────────────────────────────────

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Adiuva needs Python 3.11 or newer: install it, or name it (make PYTHON=...)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make .venv; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(BIN)/uv: | $(BIN)/python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(FOR_TEST): requirements.txt requirements-dev.txt | $(BIN)/uv
	@echo "Installing what tests need into $(VENV) ..."
	@$(SYNC) requirements.txt requirements-dev.txt
	@touch $(FOR_RUN) $(FOR_TEST)

# What tests need includes what running needs, so it is never taken out again.
ifneq ($(wildcard $(FOR_TEST)),)
$(FOR_RUN): $(FOR_TEST)
	@touch $(FOR_RUN)
else
$(FOR_RUN): requirements.txt | $(BIN)/uv
	@echo "Installing into $(VENV) ..."
	@$(SYNC) requirements.txt
	@touch $(FOR_RUN)
endif
