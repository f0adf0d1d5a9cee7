# make demo    the whole workflow on the default configuration, on this machine's CPU
# make test    the tests
# make test-presets   every file of presets/: its jobs at full size, and its whole workflow with tiny models
# make test-pytheus   our states against the simulator of the quantum task's paper
# make test-resume    kills, signals and damaged checkpoints, then the same adapter (ten minutes)
# make bench-data     speed, memory and packing of the data stages (ROWS=1000000)
# make bench-million  a million rows through the data stages, and every text there and back
# make lint    format, style, types and the workflow's own checks
# make format  write the files as `make lint` wants them
# make check   say what is missing before jobs are submitted to a cluster (CONFIG="presets/raven.yaml mine.yaml")
# make slurm-setup    make `snakemake --profile slurm` find profiles/slurm and its executor
# make test-cluster   Apptainer and a real one-node Slurm on this machine (as root), and the workflow in them
# make bench-evaluate    fidelities of programs against pytheusQ, and bench-merge
# make bench-merge    merging against a copy of the files and against peft
# make bench-wild      a million random and mutated texts into the judge of programs
# make bench-plan     the plan against measurements and known figures; MEASURE=--measure: on a GPU, measure first
# make bench-training  the training step against other ways to take it, on a GPU
# make bench-sampling  samples an hour of an 8B model against one prompt at a time, on a GPU
# make bench-scaling   the training step on one, two and four GPUs
# make bench-sharded   sharded full fine-tuning over RANKS=4 GPUs
# make bench-driver   the cost of Snakemake itself
# make verify  recompute every hash of every artifact
# make images  build the container images, without root; BASE=debian where no container registry is reached,
#              TORCH=cpu where there are no GPUs, HARNESS=1 for lm-evaluation-harness too, GGUF=1 for GGUF export
# make check-images    recompute the content digests of the images
# make shell STAGE=train    a shell in the container of a stage, as its jobs see it
# make lock    remake the lists of pinned packages from envs/*.in
# make schema  remake schemas/config.schema.json from the settings
# make clean   delete results, checkpoints and logs

PYTHON ?= python3.11
CORES ?= $(shell nproc)
ROWS ?= 1000000
BASE ?= registry
TORCH ?= cuda
STAGE ?= train
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test test-presets test-pytheus test-resume bench-data bench-million lint format verify bench-training lock schema clean images check-images shell check slurm-setup test-cluster bench-driver bench-plan bench-evaluate bench-merge bench-wild bench-sampling bench-scaling bench-sharded

demo: $(INSTALLED)
	$(BIN)/snakemake --cores $(CORES)
	@echo "The report: results/report.html"

test: $(INSTALLED) work/packages/harness work/packages/gguf
	$(BIN)/pytest --numprocesses $(CORES) --dist loadfile

test-presets: $(INSTALLED)
	$(BIN)/pytest -m "presets or not presets" tests/test_presets.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --line-length 120 --check Snakefile rules
	$(BIN)/snakemake --lint
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt --line-length 120 Snakefile rules

CONFIG ?= config.yaml
PROFILE ?= profiles/slurm
bench-scaling: $(INSTALLED)
	$(BIN)/python benchmarks/scaling.py

bench-sharded: $(INSTALLED)
	$(BIN)/python scripts/launch.py --ranks $(or $(RANKS),4) benchmarks/sharded.py --model results/models/smollm2-135m

bench-driver: $(INSTALLED)
	$(BIN)/python benchmarks/driver.py

check: $(INSTALLED)
	$(BIN)/python scripts/check.py --configfile $(CONFIG) --profile $(PROFILE)

# The profile where Snakemake looks for it by name, and its executor where Python looks for packages.
PROFILES = $${XDG_CONFIG_HOME:-$$HOME/.config}/snakemake
slurm-setup: $(INSTALLED)
	mkdir -p "$(PROFILES)"
	ln -sfn "$(CURDIR)/profiles/slurm" "$(PROFILES)/slurm"
	echo "$(CURDIR)/profiles/slurm/executor" \
		> "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/corax-slurm.pth"

test-resume: $(INSTALLED)
	PYTHONPATH=scripts:tests $(BIN)/python benchmarks/resume.py

test-cluster: $(INSTALLED)
	tests/cluster/install_apptainer.sh
	tests/cluster/slurm.sh start
	$(BIN)/pytest -m cluster tests/cluster
	tests/cluster/slurm.sh stop

bench-plan: $(INSTALLED)
	$(BIN)/python benchmarks/plan.py $(MEASURE)

# On a machine with a GPU; Unsloth is compared where it is installed.
bench-training: $(INSTALLED)
	$(BIN)/python benchmarks/training.py

bench-sampling: $(INSTALLED)
	$(BIN)/python benchmarks/sampling.py

verify: $(INSTALLED)
	$(BIN)/python scripts/verify.py

schema: $(INSTALLED)
	$(BIN)/python scripts/schema.py > schemas/config.schema.json

lock: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" envs/lock.sh

images: $(INSTALLED)
	$(BIN)/python scripts/images.py build --base "$(BASE)" --torch "$(TORCH)" $(if $(HARNESS),--harness) $(if $(GGUF),--gguf)

check-images: $(INSTALLED)
	$(BIN)/python scripts/images.py check

shell: $(INSTALLED)
	$(BIN)/python scripts/images.py shell "$(STAGE)"

bench-evaluate: work/packages/pytheus
	PYTHONPATH=$< $(BIN)/python benchmarks/evaluate.py
	$(MAKE) bench-merge

bench-merge: $(INSTALLED)
	$(BIN)/python benchmarks/merge.py

bench-wild: $(INSTALLED)
	$(BIN)/python benchmarks/wild.py

# What only one comparison needs lies apart from the environment.
work/packages/%: envs/%.txt $(INSTALLED)
	rm -rf $@
	$(BIN)/pip install --quiet --no-deps --require-hashes --target $@ --requirement $<

# What GGUF export needs besides is no package that pip could install: llama.cpp's converter.
work/packages/gguf: envs/gguf.txt envs/llama-cpp.txt envs/llama-cpp-build.txt $(INSTALLED)
	rm -rf $@ $@.part
	$(BIN)/pip install --quiet --no-deps --require-hashes --target $@.part --requirement $<
	$(BIN)/python scripts/images.py converter $@.part
	mv $@.part $@

test-pytheus: work/packages/pytheus
	PYTHONPATH=$< $(BIN)/pytest -m pytheus tests/test_pytheus.py

work/llama3: work/packages/bench
	PYTHONPATH=$< $(BIN)/python benchmarks/llama3.py $@

bench-data: work/packages/bench
	PYTHONPATH=$< $(BIN)/python benchmarks/data.py --rows $(ROWS)
	$(BIN)/python benchmarks/json_array.py

MILLION = results/datasets/million results/models/llama-3-tokenizer
bench-million: work/llama3
	$(BIN)/snakemake --cores 2 results/runs/million/plan/manifest.json --configfile benchmarks/million.yaml
	$(BIN)/python benchmarks/round_trip.py --dataset $(word 1,$(MILLION)) --model $(word 2,$(MILLION))
	$(BIN)/python benchmarks/million.py results

clean:
	rm -rf results work logs

# The CUDA build of torch, where pip takes that one, needs the CUDA libraries too: cuda.txt.
$(INSTALLED): envs/local.txt envs/cuda.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes --requirement envs/local.txt \
		|| $(BIN)/pip install --quiet --require-hashes --requirement envs/local.txt --requirement envs/cuda.txt
	touch $@
