# The plain commands behind each target are in CONTRIBUTING.md, for machines without make.
#
#   make book                        from nothing: makes .venv, installs, builds the book
#   PYTHON=/path/to/python make book uses that environment as it is: no .venv, no installation
#   make run DATASET=emoji           one data set of papermill_runs/params/

DATASET ?= emoji
EXTRAS  := book,test

ifdef PYTHON
  PY    := $(PYTHON)
  READY :=
else
  PY    := .venv/bin/python
  READY := .venv/.ready
endif

# So that kernels and subprocesses find clair too where it is not installed.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

.PHONY: book test slow speed run records lint notebooks lab serve clean iconclip constraints
.DEFAULT_GOAL := book

# The stamp is written last: an interrupted installation is taken up again by the next call.
.venv/.ready: pyproject.toml constraints.txt
	@for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && found=$$p && break; done; \
	test -n "$$found" || { echo "The book needs Python 3.11 or newer, and none was found." >&2; exit 1; }; \
	.venv/bin/python -m pip --version >/dev/null 2>&1 || $$found -m venv --clear .venv
	.venv/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

book: $(READY)
	$(PY) book/build.py

test: $(READY)
	$(PY) -m pytest tests
	$(PY) -m pytest --nbval book

# Kills, thousands of cases, drawing everything twice: some minutes.
slow: $(READY)
	$(PY) -m pytest tests -m slow

# Side by side with what users would write otherwise; the results are tracked.  Leave the machine alone.
speed: $(READY)
	$(PY) speed/retrieval.py
	$(PY) speed/refinement.py

run: $(READY)
	$(PY) -m clair papermill --params papermill_runs/params/$(DATASET).yaml

# The tracked records and the README's figure; the table that it prints goes into the README.
records: $(READY)
	rm -f papermill_runs/records/*.json
	for split in 0 1 2 3 4; do $(PY) -m clair run --quiet --params papermill_runs/params/emoji.yaml \
	    split=$$split records=papermill_runs/records || exit 1; done
	$(PY) -m clair report papermill_runs/records --figure book/headline.svg

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m codespell_lib

# Run the notebooks and save them as they are committed: with outputs, without images.
# ONLY=01 runs those whose names start so.
notebooks: $(READY)
	$(PY) book/build.py notebooks $(ONLY)

lab: $(READY)
	$(if $(PYTHON),,$(PY) -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[lab]')
	$(PY) -m jupyter lab

serve: book
	$(PY) -m http.server --bind 127.0.0.1 --directory _build/html 8000

# What can be made again; .venv and the cache of rendered pictures and features stay.
clean:
	rm -rf _build papermill_runs/out .pytest_cache .ruff_cache .mypy_cache .hypothesis

# The embedded CLIP, trained anew: needs npm, and on two cores about 90 minutes.
iconclip: $(READY)
	npm install --no-package-lock --prefix iconclip
	$(PY) iconclip/icons.py
	$(PY) iconclip/train.py

constraints: $(READY)
	$(PY) .ci/constraints.py
