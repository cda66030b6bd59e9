# Every habit of this project has a target here; `make help` lists them.
SHELL := /bin/sh
PY := .venv/bin/python
BIN := .venv/bin
STAMP := .venv/setup.stamp
TYPED := services clients/python/qflow clients/generate.py migrations bench examples tests

# One test process keeps the suite of all services and mostly waits; two others fill two cores.
PYTEST := $(PY) -m pytest -n $(or $(JOBS),3) --dist loadfile

# Everything here starts many Pythons: what they import is compiled once, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: fmt-check settings-check $(shell sed -n 's/^\([a-z-]*\):.*\#\# .*/\1/p' $(MAKEFILE_LIST))

help: ## list what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name what; do printf '  make %-12s %s\n' "$$name" "$$what"; done

setup: $(STAMP) ## make .venv from the locks (the only setup; the others call it)

$(STAMP): requirements/dev.lock requirements/setup
	@requirements/setup
	@touch $@

demo: $(STAMP) ## start everything, run a real workflow, print the result, stop
	@$(PY) -m services.standalone demo

run: $(STAMP) ## start the whole suite on this machine and stay (QFLOW_HOME, QFLOW_PORT_BASE)
	@$(PY) -m services.standalone up

test: $(STAMP) ## run the tests, ten minutes on two cores (JOBS=3)
	@$(PYTEST) -q -m "not slow and not bench and not docker and not ray and not clients" $(ARGS)
	@echo "NOT RUN HERE: the slow tests (make test-slow), the Docker tests (make test-docker), the clients of other languages (make test-clients), those on a Ray cluster (make test-ray); all at full length: make test-all"

# Nearly all of these run suites, which mostly wait: a suite in each process.
test-slow: $(STAMP) ## run what make test leaves out for its time
	@$(PY) -m pytest -n $(or $(JOBS),2) --dist loadscope --no-loadscope-reorder -q -m "slow and not bench and not docker and not ray and not clients" $(ARGS)

test-docker: $(STAMP) ## run the tests that need a Docker daemon, and fail without one
	@QFLOW_REQUIRE_DOCKER=1 $(PY) -m pytest -n $(or $(JOBS),2) --dist loadfile -q -m docker $(ARGS)

test-ray: $(STAMP) ## install the ray group and run the tests on a Ray cluster of three nodes
	@$(BIN)/uv pip install -q --require-hashes --python $(PY) -r requirements/ray.lock
	@QFLOW_REQUIRE_RAY=1 $(PY) -m pytest -q -m ray $(ARGS)

test-all: $(STAMP) ## run all tests at full length and size
	@QFLOW_TEST_FULL=1 $(PYTEST) -q -m "not bench and not clients" $(ARGS)

check: fmt-check lint types proto-check settings-check ## check format, lint, types, rooms and contract; no tests

fmt: $(STAMP) ## format the code and mend what lint can mend
	@$(BIN)/ruff format -q .
	@$(BIN)/ruff check -q --fix .

fmt-check: $(STAMP)
	@$(BIN)/ruff format --check .

lint: $(STAMP) ## lint the code, the rooms' rules, and under Python 3.9 what runs beside user code or reads it
	@$(BIN)/ruff check .
	@if [ -d services/runner/agent ]; then $(BIN)/ruff check --isolated --target-version py39 --select E4,E7,E9,F,W,B --ignore B904 services/runner/agent services/registry/gateways/source_analyzer/analyze; fi
	@$(BIN)/lint-imports --no-cache

types: $(STAMP) ## check types strictly
	@$(BIN)/mypy $(wildcard $(TYPED))

proto: $(STAMP) ## generate the stubs from the protos
	@$(PY) protos/generate.py

proto-check: $(STAMP) ## check the stubs, lint the protos, refuse breaking changes
	@$(PY) protos/generate.py --check
	@cd protos && ../$(BIN)/buf lint
	@mkdir -p build && $(BIN)/buf build protos -o build/image.binpb && $(BIN)/buf breaking build/image.binpb --config protos/buf.yaml --against protos/image.binpb

settings: $(STAMP) ## write what the code says of each setting into docs/settings.md
	@$(PY) docs/settings_page.py

settings-check: $(STAMP)
	@$(PY) docs/settings_page.py --check

cases: $(STAMP) ## print which tests name which case of docs/cases.md
	@$(PY) -m tests.support.cases

clients: $(STAMP) ## generate the stubs of the clients (ONLY="go java"; Rust and C++ generate as they compile)
	@$(PY) clients/generate.py $(ONLY)

test-clients: $(STAMP) ## compile every client, run its example on a live suite, and the gateway (needs their compilers)
	@$(PY) -m pytest -q -m clients tests/clients $(ARGS)

reference: $(STAMP) ## write the reference of the contract from its comments (build/reference)
	@$(PY) protos/reference.py build/reference

migrate: $(STAMP) ## bring the database of QFLOW_DATABASE_URL to this version
	@$(PY) -m migrations upgrade $(ARGS)

bench: $(STAMP) ## measure, one JSON line per figure (ONLY=chain one, ONLY=list their names)
	@$(PY) -m bench $(ONLY)

soak: $(STAMP) ## run the fault tests over and over for ROUNDS=5 rounds, and send FUZZ=1000000 mutated messages
	@for round in $$(seq $(or $(ROUNDS),5)); do echo "round $$round"; QFLOW_TEST_FULL=1 $(PY) -m pytest -q tests/faults $(ARGS) || exit 1; done
	@echo "mutated messages"; QFLOW_TEST_FUZZ=$(or $(FUZZ),1000000) $(PY) -m pytest -q tests/contracts/test_fuzz.py tests/unit/test_parsers.py

audit: $(STAMP) ## look the locks up among known vulnerabilities; fails where nobody could be asked
	@$(BIN)/uv pip install -q --require-hashes --python $(PY) -r requirements/audit.lock
	@$(PY) requirements/audit.py $(ARGS)

sbom: $(STAMP) ## write what the suite is made of to build/sbom.json, as CycloneDX
	@mkdir -p build && PYTHONPATH=. $(PY) requirements/bill_of_materials.py > build/sbom.json

docs: $(STAMP) ## build the docs site, strictly, into build/site
	@test -x build/docs-env/bin/mkdocs || { $(BIN)/uv venv -q --python $(PY) build/docs-env && $(BIN)/uv pip install -q --require-hashes --python build/docs-env/bin/python -r requirements/docs.lock; }
	@$(PY) docs/lay_out.py build/docs
	@NO_MKDOCS_2_WARNING=1 build/docs-env/bin/mkdocs build -q --strict

lock: $(STAMP) ## compute the locks anew from requirements/*.in
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes requirements/dev.in -o requirements/dev.lock
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes -c requirements/dev.lock requirements/run.in -o requirements/run.lock
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes -c requirements/dev.lock requirements/ray.in -o requirements/ray.lock
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes -c requirements/dev.lock requirements/audit.in -o requirements/audit.lock
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes -c requirements/dev.lock requirements/docs.in -o requirements/docs.lock

clean: ## remove what was built (not .qflow, which holds data)
	@rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
