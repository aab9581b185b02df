# PYTHON=python3.12 picks the interpreter of a new .venv; ARGS=... goes to the command behind a target.
BIN := .venv/bin
ROOT = @[ "$$(id -u)" = 0 ] || { echo "make $@: needs root, for network namespaces: sudo make $@" >&2; exit 1; }

.PHONY: help run demo test matrix soak bench lint openapi lock clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

run: ## install what is missing, then serve (ARGS: flags of `bridgehead serve`)
	@scripts/bootstrap.sh run
	@exec $(BIN)/bridgehead serve $(ARGS)

demo: ## the walk-through, in a sandbox of namespaces
	$(ROOT)
	@scripts/bootstrap.sh demo
	@exec $(BIN)/bridgehead demo $(ARGS)

test: ## install what is missing, then every test but the soak (ARGS: flags of pytest)
	$(ROOT)
	@scripts/bootstrap.sh dev
	$(BIN)/pytest -m "not soak" -n 2 --dist worksteal $(ARGS)

matrix: ## the data plane's tests alone, then every cell: row x backend x IP version x protocol
	$(ROOT)
	@scripts/bootstrap.sh dev
	$(BIN)/pytest tests/netns/dataplane --matrix -n 2 --dist worksteal $(ARGS)

soak: ## the long runs
	$(ROOT)
	@scripts/bootstrap.sh dev
	$(BIN)/pytest -m soak --timeout 0 -n 3 --dist worksteal $(ARGS)

bench: ## the benchmarks (ARGS: rows by name, --no-peers, --docs)
	$(ROOT)
	@scripts/bootstrap.sh dev
	$(BIN)/python -m bench $(ARGS)

lint: ## ruff, mypy, import-linter
	@scripts/bootstrap.sh dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

openapi: ## write openapi.json anew
	@scripts/bootstrap.sh run
	$(BIN)/bridgehead openapi > .openapi.json.new && mv .openapi.json.new openapi.json

lock: ## write the lock files anew (ARGS=--upgrade: with newer versions)
	@scripts/bootstrap.sh run
	scripts/lock.sh $(ARGS)

clean: ## remove what the other targets made
	rm -rf .venv .openapi.json.new build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find app bench migrations tests -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
