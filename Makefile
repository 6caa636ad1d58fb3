# The book's commands. `make book` and `make test` are all that a reader needs; each sets up .venv by itself.
PYTHON ?= python3
PORT ?= 8000
JOBS ?= 2
# The versions that are installed: pinned (constraints.txt), oldest (constraints-oldest.txt: the lowest that the requirements
# allow), newest (the highest) or colab (constraints-colab.txt: Google Colab's), each in an environment of its own.
VERSIONS ?= pinned
VENV_pinned := .venv
VENV_oldest := .venv-oldest
VENV_newest := .venv-newest
VENV_colab := .venv-colab
CONSTRAINTS_pinned := constraints.txt
CONSTRAINTS_oldest := constraints-oldest.txt
CONSTRAINTS_colab := constraints-colab.txt
VENV := $(or $(VENV_$(VERSIONS)),$(error VERSIONS is pinned, oldest, newest or colab, not "$(VERSIONS)"))
CONSTRAINTS := $(CONSTRAINTS_$(VERSIONS))
INSTALL := $(VENV)/bin/python -m pip install --progress-bar off $(addprefix -c ,$(CONSTRAINTS))
BIN := $(VENV)/bin
BOOK_READY := $(VENV)/.ready-book
READY := $(VENV)/.ready
BENCH_VENV := .venv-bench
BENCH_READY := $(BENCH_VENV)/.ready

.PHONY: help book pdf links test browser test-gpu refresh ledger serve lint exercises slides weights bench experiments clean
.DEFAULT_GOAL := help

help:
	@echo "make book     build the book into _build/html (sets up .venv first)"
	@echo "make pdf      build the book, print all of it into _build/pdf/denoising-vae.pdf, and link it from the pages (needs Chromium)"
	@echo "make test     run the unit tests and every notebook, comparing the stored outputs"
	@echo "make browser  build the book and its PDF and test both in Chromium (needs node, npm and Chromium)"
	@echo "make test-gpu run the tests that need a GPU, and every notebook on it"
	@echo "make serve    build the book and open it on http://127.0.0.1:$(PORT)"
	@echo "make refresh  run every notebook and store its outputs (NOTEBOOKS='book/noise.ipynb ...' for some)"
	@echo "make links    ask for every address that the pages link to (needs the network)"
	@echo "make ledger   renew the numbers of the text that come from experiments/results, and the list of them all"
	@echo "make lint     ruff, mypy and, where there is npm, eslint"
	@echo "make exercises  write the chapters for a class, without solutions but with their checks, into classroom/"
	@echo "make slides   slides of the chapters, from the same notebooks, in _build/slides (NOTEBOOKS=book/noise.ipynb for one)"
	@echo "make bench    time the training step beside a plain loop, pythae and Pyro (options of both programs: BENCH='--rounds 3 --seconds 1')"
	@echo "make weights  train the shipped weights again (one to two hours on a CPU)"
	@echo "make experiments  train over seeds and store what is measured; goes on where it was stopped (hours)"
	@echo "make clean    remove what was built"

# Made anew whenever the requirements change: first what builds the book, which runs nothing and needs no PyTorch, ...
$(BOOK_READY): requirements-book.txt requirements.txt pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@echo "== setting up $(VENV) to build the book: half a minute and 300 MB, once"
	$(PYTHON) -m venv --clear $(VENV) \
		|| { echo "On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(INSTALL) -r requirements-book.txt
	@touch $@

# ... then, with the first command that runs something, PyTorch and the rest.
$(READY): $(BOOK_READY)
	@echo "== adding PyTorch and the tests' tools to $(VENV): some minutes and 1 to 6 GB, once"
	$(INSTALL) -r requirements.txt
	@touch $@

book: $(BOOK_READY)
	@echo "== building the book, warnings are errors: ten seconds"
	$(BIN)/jupyter-book build . --all --warningiserror --keep-going
	@echo "== done: open _build/html/index.html, or run: make serve"

# the pages offer the PDF only where there is one: `make book` builds them without the links, and this puts the links in
pdf: $(READY) book
	@echo "== printing the book: a minute or two"
	$(BIN)/python tools/pdf.py

# asks the servers of others, and so is no part of the tests
links: $(BOOK_READY)
	@echo "== asking for every address that the pages link to"
	$(BIN)/jupyter-book build . --builder linkcheck

test: $(READY)
	@echo "== running the unit tests and every notebook, $(JOBS) files at a time: a few minutes"
	$(BIN)/python -m pytest --nbval --numprocesses $(JOBS) --dist loadfile

# what the pages take from a CDN, for the tests in a browser, and the linter of the widgets' front end
NODE_READY := node_modules/.package-lock.json
$(NODE_READY): package.json package-lock.json
	npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

browser: $(READY) pdf $(NODE_READY)
	@echo "== testing the built pages in a browser, and the PDF"
	$(BIN)/python -m pytest tests/browser -m browser

# with the environment that knows the GPU: make test-gpu PYTEST='python -m pytest'
PYTEST ?= $(BIN)/python -m pytest
test-gpu:
	$(PYTEST) tests/test_gpu.py -m gpu -ra
	$(PYTEST) --nbval book

serve: book
	@echo "== http://127.0.0.1:$(PORT) (Ctrl-C stops)"
	@(sleep 1; $(BIN)/python -m webbrowser http://127.0.0.1:$(PORT) || true) &
	$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

refresh: $(READY)
	$(BIN)/python tools/refresh.py $(NOTEBOOKS)

# after an experiment; what it changes is to be read, since a sentence may no longer be true
ledger: $(READY)
	$(BIN)/python tools/ledger.py --update

# the front end's part needs npm; in CI it must run
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if command -v npm >/dev/null || [ -n "$$CI" ]; then $(MAKE) --no-print-directory lint-js; \
		else echo "== npm is not installed: the widgets' front end was not linted"; fi

# what is in classroom/ already may hold somebody's work, and is left alone
exercises: $(READY)
	$(BIN)/python tools/exercises.py $(NOTEBOOKS)

# with reveal.js and MathJax beside them if npm has installed both: npm ci
slides: $(READY)
	$(BIN)/python tools/slides.py $(NOTEBOOKS)

.PHONY: lint-js
lint-js: $(NODE_READY)
	npm run --silent lint

$(BENCH_READY): benchmarks/requirements.txt constraints.txt pyproject.toml
	@echo "== setting up $(BENCH_VENV), the environment of the benchmark and its peers, once"
	$(PYTHON) -m venv --clear $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --progress-bar off -e . -r benchmarks/requirements.txt -c constraints.txt
	@touch $@

bench: $(BENCH_READY)
	$(BENCH_VENV)/bin/python -m benchmarks.bench $(BENCH)
	$(BENCH_VENV)/bin/python -m benchmarks.ladder $(BENCH)

weights: $(READY)
	$(BIN)/python tools/train_weights.py

# the long ones say first how long they take; each goes on where it was stopped
experiments: $(READY)
	@$(BIN)/python -m experiments.squares --estimate
	@$(BIN)/python -m experiments.gaps --estimate
	@$(BIN)/python -m experiments.rectangles --estimate
	@$(BIN)/python -m experiments.mnist --estimate
	@$(BIN)/python -m experiments.bernoulli --estimate
	@$(BIN)/python -m experiments.outlook --estimate
	@$(BIN)/python -m experiments.convolutional --estimate
	$(BIN)/python -m experiments.squares
	$(BIN)/python -m experiments.strip
	$(BIN)/python -m experiments.planes
	$(BIN)/python -m experiments.gaps
	$(BIN)/python -m experiments.rectangles
	$(BIN)/python -m experiments.mnist
	$(BIN)/python -m experiments.bernoulli
	$(BIN)/python -m experiments.outlook
	$(BIN)/python -m experiments.convolutional

clean:
	rm -rf _build
