# `make` lists the targets. Each makes or refreshes .venv first; that takes a moment if nothing has changed.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup page talk demo serve test test-page test-rust test-python test-live soak lint lint-rust lint-python lint-rest format docs pictures wheels container check-wheels check-aarch64 check-windows check-floors check-world check pin clean

# What the caller's shell has set for another environment must not leak into this one.
unexport PYTHONPATH PYTHONHOME PYTHONUSERBASE CONDA_PREFIX VIRTUAL_ENV
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

PY := .venv/bin/python
CARGO := cargo
RUST := --manifest-path rust/Cargo.toml --locked
SHELL_SCRIPTS := scripts/*.sh .ci/run Moshi.command
# Linters that are not Python packages; .ci/run installs them.
if-there = @if command -v $(1) >/dev/null; then echo $(1) $(2); $(1) $(2); else echo '$(1) is not installed: skipped'; fi

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

setup: ## make or refresh the environment in .venv
	@sh scripts/setup.sh

talk: ## talk with Moshi: with the best model that suits this machine, fetched if need be, else with the demo model (OPTIONS=…)
	@sh Moshi.command $(OPTIONS)

demo: setup ## play six spoken digits to the demo model and keep its answer in out/
	@mkdir -p out
	@$(PY) local_mlx.py --demo --input assets/demo/digits.flac --output out/demo.wav --transcript out/demo.jsonl --tail 2
	@echo 'More demos, in the environment (. .venv/bin/activate):'
	@echo '  msh-mlx transcribe --demo                                     # speech to text'
	@echo '  msh-mlx say --demo "three one four"                           # text to speech'
	@echo '  python local_mlx.py --demo --prompt "say each digit plus one" # a conversation with a role'

page: ## build the web page into client/dist (with Node.js)
	@sh scripts/setup.sh page

serve: page ## serve conversations with the demo model to browsers and clients on this machine (OPTIONS=…)
	@$(PY) server_opus.py --demo $(OPTIONS)

test: test-rust test-python ## run all tests but those that need sound devices (test-live)

test-rust: setup
	$(CARGO) test $(RUST) -p checkpoint -p echo -p kernels -p lm -p mimi -p rings

# What happens in real time is tested alone, with all processors for itself.
test-python: setup
	$(PY) -m pytest --numprocesses 3 --ignore tests/devices --ignore tests/world --ignore tests/net
	$(PY) -m pytest tests/net

test-live: ## hold conversations on virtual sound devices (on Linux; installs PulseAudio where it may)
	@sh scripts/setup.sh live virtual
	MSH_REQUIRE_LIVE=1 $(PY) -m pytest tests/devices

test-page: ## check the page and its parts, and try it in browsers (Debian's; installs them where it may)
	@sh scripts/setup.sh page browsers
	cd client && npm run --silent lint && npm run --silent check && npm run --silent test && npm run --silent test:browsers

soak: setup ## hold ten hours of live conversation with the demo model, as fast as the machine goes
	$(PY) benchmarks/soak.py --hours 10

lint: lint-rust lint-python lint-rest ## check format, style and types, in Rust, Python and shell

lint-rust: setup
	$(CARGO) fmt --manifest-path rust/Cargo.toml --all --check
	$(CARGO) clippy $(RUST) --workspace --all-targets -- -D warnings
	$(CARGO) fmt --manifest-path benchmarks/echo_crates/Cargo.toml --check

lint-python: setup
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m mypy --platform win32 --no-warn-unreachable
	$(PY) -m mypy.stubtest mimi msh_native

lint-rest:
	$(call if-there,shellcheck,$(SHELL_SCRIPTS))
	$(call if-there,actionlint,)
	$(call if-there,hadolint,containers/Containerfile)
	sh scripts/check_tree.sh

format: setup ## format the sources
	$(CARGO) fmt --manifest-path rust/Cargo.toml --all
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: setup ## write the tables of options in docs/options.md
	$(PY) scripts/make_options.py --write

pictures: setup ## draw the pictures of the terminal and the page in docs/ (with Debian's Chromium)
	$(PY) scripts/make_pictures.py
	@sh scripts/setup.sh page browsers
	cd client && npx vite build && MSH_PICTURES=1 npx vitest run --config vite.browser.config.ts tests/chromium.test.ts -t 'a picture of a conversation'

wheels: page ## build the wheels of the extension and the package into dist/ (WHEEL=… for maturin)
	rm -rf dist
	$(PY) -m maturin build --release --locked $(WHEEL) --out dist -m rust/mimi-pyo3/Cargo.toml
	$(PY) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls -l dist

container: ## build the image msh-mlx of the server with Docker, Podman or Buildah (EXTRA=cuda for NVIDIA GPUs)
	@sh scripts/container.sh $(EXTRA)

check-wheels: wheels ## install the wheels into an empty environment, and run the demo there
	@sh scripts/check_wheels.sh

check-aarch64: page ## test the Rust code and the wheels for aarch64 by QEMU, on an x86-64 Debian machine
	rustup target add aarch64-unknown-linux-gnu
	@sh scripts/check_aarch64.sh

check-windows: setup ## check the Rust code for Windows, and try it with Wine (on Debian, with gcc-mingw-w64-x86-64, wine64 and wine)
	rustup target add x86_64-pc-windows-gnu
	@sh scripts/check_windows.sh

check-floors: setup ## test with the oldest packages that pyproject.toml allows, in the oldest supported Python here
	@sh scripts/check_floors.sh

check-world: ## try servers and clients that others wrote with those of this project (by hand; fetches gigabytes the first time)
	@sh scripts/setup.sh live virtual
	$(PY) -m pytest tests/world -rP

check: lint test test-page check-wheels ## run lint, test, test-page and check-wheels

pin: ## resolve requirements.txt again from pyproject.toml (UPGRADE=1: to the newest versions)
	@sh scripts/pin.sh

clean: ## remove what was built, .venv too
	rm -rf .venv dist out rust/target .pytest_cache .mypy_cache .ruff_cache .hypothesis .cache build
	rm -f rust/mimi-pyo3/python/*/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
