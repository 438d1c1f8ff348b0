# Everything runs from .venv, which each target brings up to date by itself.
SHELL := /bin/sh
.DEFAULT_GOAL := help
VENV := .venv/bin
# Without bytecode every process compiles all packages again, which takes longer than the rest of its start.
unexport PYTHONDONTWRITEBYTECODE
CODE := app benchmarks tests alembic locustfile.py requirements/install.py requirements/licences.py scripts

# The first interpreter on the PATH that is new enough; `make run PYTHON=/some/python3.12` chooses another.
# Itself and not a script before it, such as that of pyenv, which takes longer to start than Python.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	"$$name" -c 'import sys; sys.version_info < (3, 11) and sys.exit(1); print(sys.executable)' 2>/dev/null && break; done)

LOAD_HOST ?= http://127.0.0.1:8000
LOAD_USERS ?= 50
LOAD_SECONDS ?= 60
FUZZ_SECONDS ?= 300
CHAOS_SECONDS ?= 300
# Many tests wait for servers and processes, so more of them than cores run at a time.
TEST_PROCESSES ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

.PHONY: help run dev clients serve worker migrate seed doctor env-example metrics-table openapi vendored test quick browser fuzz check format lint types imports migrations-lint \
	dockerfile-lint workflows-lint audit load bench bench-quick chaos lock licences clean install install-test install-dev install-clients \
	install-postgres image image-digest sbom sign release-notes release

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  \033[1m%-16s\033[0m %s\n' "$$name" "$$text"; done

# Each installs what its targets need: run < test < dev.
install install-test install-dev:
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then echo "Onehop needs Python 3.11 or newer, and none was found on the PATH."; exit 1; fi; \
	exec "$$python" requirements/install.py $(if $(filter install,$@),run,$(@:install-%=%))

# What the clients' generators want does not go together with the program's packages.
CLIENTS := .venv/clients
NODE_LOCK := tests/clients/package-lock.json

install-clients: install-dev ## Install the generators of clients that `make check` runs (those of npm where Node.js is)
	@command -v java >/dev/null || echo "java is not on the PATH: openapi-generator is left out."
	@cmp -s requirements/clients.txt $(CLIENTS)/clients.lock || { \
		$(VENV)/uv venv --quiet --clear --python $(VENV)/python $(CLIENTS) && \
		$(VENV)/uv pip sync --quiet --require-hashes --python $(CLIENTS)/bin/python requirements/clients.txt && \
		cp requirements/clients.txt $(CLIENTS)/clients.lock; }
	@if ! command -v npm >/dev/null; then \
		echo "npm is not on the PATH: the generators of TypeScript are left out. Install Node.js 20 or newer, then run make install-clients."; \
	elif ! cmp -s $(NODE_LOCK) tests/clients/node_modules/installed.lock; then \
		(cd tests/clients && npm ci --prefer-offline --loglevel=error) && cp $(NODE_LOCK) tests/clients/node_modules/installed.lock; fi

run: install ## Start everything: servers, API and worker (HOST, PORT, APP_WORKERS, DATABASE_URL, REDIS_URL)
	@exec $(VENV)/python -m app dev

dev: install ## The same, and start the API anew whenever a source file changes
	@exec $(VENV)/python -m app dev --reload

serve: install ## The API alone
	@exec $(VENV)/python -m app serve

worker: install ## The background worker alone
	@exec $(VENV)/python -m app worker

migrate: install ## Bring the database to the newest schema
	@$(VENV)/python -m app migrate up

seed: install ## Add the demo people and their data
	@$(VENV)/python -m app seed

doctor: install ## Check settings, servers, schema and disk, and say what is wrong
	@$(VENV)/python -m app doctor

env-example: install ## Write .env.example anew from the settings
	@$(VENV)/python -m app config --env-example > .env.example.new && mv .env.example.new .env.example

metrics-table: install ## Write docs/metrics.md anew
	@$(VENV)/python -m app metrics > docs/metrics.md.new && mv docs/metrics.md.new docs/metrics.md

openapi: install ## Write docs/openapi.json anew
	@$(VENV)/python -m app openapi > docs/openapi.json.new && mv docs/openapi.json.new docs/openapi.json

# `make test POSTGRES_VERSION=15` runs the suite on that installation instead of the wheel's; POSTGRES_BIN names its folder.
POSTGRES_BIN ?= $(if $(POSTGRES_VERSION),/usr/lib/postgresql/$(POSTGRES_VERSION)/bin)
test quick check fuzz: export TEST_POSTGRES_BIN = $(POSTGRES_BIN)

PYTEST = $(VENV)/python -m pytest -n $(TEST_PROCESSES)

test: install-test ## The suite on its own servers, in parallel (ARGS="-k name", POSTGRES_VERSION=15)
	@$(PYTEST) -m 'not charts and not load and not browser and not clients' $(ARGS)

quick: install-test ## In a minute: tests without a database, and the main ways through every part with one
	@$(PYTEST) -m '(smoke or not database) and not slow and not charts and not browser and not clients' $(ARGS)

browser: install-test ## The pages in a Chromium of the PATH, or of TEST_CHROMIUM
	@$(VENV)/python -m pytest tests/browser $(ARGS)

clients: install-clients ## Generate clients of the API document, compile them, and run the quickstart with them
	@$(VENV)/python -m pytest -n 2 -m clients tests/clients $(ARGS)

fuzz: install-test ## Invented requests by the thousand, with another seed each time (FUZZ_SECONDS, FUZZ_SEED)
	@FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZ_SEED=$(or $(FUZZ_SEED),$$(date +%s)) $(VENV)/python -m pytest tests/contract/test_fuzzing.py $(ARGS)

# What reads the source alone runs on all cores, then the suite has them.
check: install-dev ## Everything that must pass before a merge
	@$(MAKE) --no-print-directory -j $$(getconf _NPROCESSORS_ONLN) types install-clients lint imports migrations-lint dockerfile-lint workflows-lint
	@$(PYTEST) -m 'not browser' --cov --cov-report=term:skip-covered $(ARGS)

format: install-dev ## Format the code and fix what can be fixed
	@$(VENV)/ruff format $(CODE)
	@$(VENV)/ruff check --fix $(CODE)

lint: install-dev ## Formatting and lint
	@$(VENV)/ruff format --check $(CODE)
	@$(VENV)/ruff check $(CODE)

types: install-dev ## mypy --strict
	@$(VENV)/mypy --strict

imports: install-dev ## Who may import whom
	@$(VENV)/lint-imports

migrations-lint: install-dev ## squawk on the SQL of each migration
	@.ci/squawk

dockerfile-lint: install-dev ## hadolint
	@$(VENV)/hadolint Dockerfile

SCHEMA = $(VENV)/check-jsonschema --quiet --builtin-schema

workflows-lint: install-dev ## actionlint, zizmor and the schemas of what GitHub and Compose read; without the network
	@$(VENV)/actionlint
	@$(VENV)/zizmor --offline --quiet .github
	@$(SCHEMA) vendor.github-workflows .github/workflows/*.yml
	@$(SCHEMA) custom.github-workflows-require-timeout .github/workflows/*.yml
	@$(SCHEMA) vendor.dependabot .github/dependabot.yml
	@$(SCHEMA) vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	@$(SCHEMA) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	@$(SCHEMA) vendor.compose-spec compose.yaml

audit: install-dev ## Known vulnerabilities in what the image installs
	@$(VENV)/pip-audit --disable-pip --require-hashes -r requirements/production.txt

load: install-dev ## A minute of mixed load against a running system (LOAD_HOST, LOAD_USERS, LOAD_SECONDS, ARGS)
	@mkdir -p reports
	@status=0; $(VENV)/python -m locust --headless --only-summary --loglevel WARNING --host $(LOAD_HOST) \
		--users $(LOAD_USERS) --spawn-rate $(LOAD_USERS) --run-time $(LOAD_SECONDS)s \
		--html reports/load.html --csv reports/load $(ARGS) || status=$$?; \
		echo "Report: reports/load.html"; exit $$status

bench: install-dev ## Every measure and the report in docs/benchmarks; about half an hour on a machine of its own
	@$(VENV)/python -m benchmarks full $(ARGS)

bench-quick: install-dev ## The same in five minutes, report in reports/benchmarks (ARGS="--only limits")
	@$(VENV)/python -m benchmarks quick --output reports/benchmarks $(ARGS)

chaos: install-dev ## Break everything in turn under load, and check that nothing is lost (CHAOS_SECONDS)
	@$(VENV)/python -m benchmarks.chaos $(CHAOS_SECONDS) $(ARGS)

lock: install-dev ## Write the lock files anew from pyproject.toml (UPGRADE=1: newest versions)
	@$(VENV)/python requirements/lock.py $(if $(UPGRADE),--upgrade)

vendored: install-dev ## Fetch the scripts of the console from their npm packages anew (npm)
	@$(VENV)/python scripts/vendored.py

licences: install-dev ## Write docs/licences.md anew
	@$(VENV)/python requirements/licences.py

install-postgres: ## Install a PostgreSQL server for `make test POSTGRES_VERSION=…` (Debian and Ubuntu)
	@.ci/install-postgres "$(POSTGRES_VERSION)"

# What a release is made of. IMAGE is its name in a registry, without a tag.
IMAGE ?= onehop
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' app/__init__.py)
# A registry takes lower case only, and the name may be that of a GitHub repository.
IMAGE_NAME = $(shell printf '%s' "$(IMAGE)" | tr '[:upper:]' '[:lower:]')
IMAGE_DIGEST = $(shell sed -n 's/.*"containerimage.digest": "\(sha256:[0-9a-f]*\)".*/\1/p' reports/image.json)
ATTESTED = --attest type=sbom --attest type=provenance,mode=max --push

image: ## Build the image (IMAGE; PUSH=1: to its registry, with SBOM and provenance)
	@mkdir -p reports
	@docker buildx build --build-arg VERSION="$(VERSION)" --build-arg REVISION="$$(git rev-parse HEAD)" \
		--tag "$(IMAGE_NAME):$(VERSION)" --metadata-file reports/image.json $(if $(PUSH),$(ATTESTED),--load) .

image-digest: ## The digest of the image that was pushed, as a line for GITHUB_OUTPUT
	@test -n "$(IMAGE_DIGEST)" && echo "digest=$(IMAGE_DIGEST)"

sbom: ## Write the SBOM of the image that was pushed to reports/sbom.spdx.json
	@docker buildx imagetools inspect "$(IMAGE_NAME)@$(IMAGE_DIGEST)" --format '{{ json .SBOM.SPDX }}' > reports/sbom.spdx.json

sign: ## Sign the image that was pushed, with the identity of the workflow
	@cosign sign --yes "$(IMAGE_NAME)@$(IMAGE_DIGEST)"

release-notes: ## Check that TAG names the version, and write reports/notes.md
	@mkdir -p reports
	@.ci/release-notes "$(TAG)" > reports/notes.md

release: ## Make the release of this version on GitHub
	@gh release create "v$(VERSION)" --verify-tag --title "Onehop $(VERSION)" --notes-file reports/notes.md reports/sbom.spdx.json

clean: ## Remove caches and reports (data in .data and .venv stay)
	@rm -rf .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache reports htmlcov
	@find app tests alembic -name __pycache__ -type d -prune -exec rm -rf {} +
