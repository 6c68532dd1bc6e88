# Everything a fresh machine needs is behind these goals; `make help` lists them.
# The set-up itself is tests/lab/setup.sh, the lab is the program in tests/lab.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

BUILD := $(or $(CARGO_TARGET_DIR),target)
LAB := $(BUILD)/debug/lab
LAB_DIRECTORY := $(or $(TESSERA_LAB),target/lab)

# ---- set-up: checked before every goal that builds, written down once ----

BUILDING := run shell lab test check bench lint setup programs docs-generated install install-guest deb nested-tests nested-benches artifacts peers calls image image-tests soak fuzz release-programs reproducible audit sbom mutants miri
SETUP_GOALS := $(filter $(BUILDING),$(MAKECMDGOALS))
ifneq ($(SETUP_GOALS),)
SETUP_GOALS += $(if $(IMAGE),image) $(if $(filter image-tests,$(MAKECMDGOALS)),image test deb) $(if $(filter sbom,$(MAKECMDGOALS)),deb) $(if $(filter soak,$(MAKECMDGOALS)),bench)
endif
ifneq ($(filter lab,$(MAKECMDGOALS)),)
ifeq ($(wildcard $(SCRIPT)),)
$(error make lab: name the script that the nested host shall run: make lab SCRIPT=file)
endif
endif
ifneq ($(SETUP_GOALS),)
# Empty until setup.sh fills it, so that a failing set-up is the only thing make reports.
ifeq ($(wildcard $(LAB_DIRECTORY)/setup.mk),)
$(shell mkdir -p $(LAB_DIRECTORY); touch $(LAB_DIRECTORY)/setup.mk)
endif
include $(LAB_DIRECTORY)/setup.mk
endif

# One goal after the other, but for `built`, which make starts itself when the machine is set up.
ifeq ($(MAKECMDGOALS),built)
include $(LAB_DIRECTORY)/setup.mk
else
.NOTPARALLEL:

# make starts over when setup.sh changes the file, and continues when it does not.
$(LAB_DIRECTORY)/setup.mk: FORCE
	@tests/lab/setup.sh $(SETUP_GOALS)
endif

.PHONY: FORCE built unit-tests help setup run shell lab test check bench lint clean programs docs-generated install install-guest deb nested-tests nested-benches artifacts peers calls image image-tests soak fuzz release-programs reproducible audit sbom mutants miri

help:
	@printf '%s\n' \
	  'make run      boot a Linux guest with MTE, directly where this machine can, else nested' \
	  'make shell    the same, with an interactive shell in the guest' \
	  'make image [PACKAGES="a b"] [SIZE=2G] [REFRESH=1]' \
	  '              make a Debian image for guests in $(LAB_DIRECTORY)/image, as any user, once; make shell IMAGE=1 boots it' \
	  'make test     unit tests on this machine, then the nested tests; LONG=1: the long ones too' \
	  'make image-tests  tests of the Debian image, which they make where it is missing' \
	  'make soak [TIME=10m]  what some nested tests do a few times, hundreds of times: the better part of an hour.' \
  '              With TIME the rounds of kills alone, for as long' \
	  'make calls [TESTS=filter]  the nested tests, or some, with a record of the system calls that each thread makes: the' \
	  '              rules of resources/seccomp that none has used' \
	  'make fuzz [TIME=60] [RUNS=n] [TARGET=name] [JOBS=n] [ASAN=1] [INPUT=file] [MINIMISE=1]' \
	  '              fuzz every target, or one, for TIME seconds each: docs/fuzzing.md' \
	  'make check    lints and unit tests: what a change should pass before it is committed' \
  'make bench [ONLY=start] [LONG=1]  figures in instructions of the nested host, beside QEMU, and a report of them with' \
	  '              plots in $(BUILD)/bench; LONG: the long ones too' \
	  'make lab SCRIPT=file [FILES="a:/path b"] [ICOUNT=1] [NODE1=128M] [MEMORY=4G] [CPUS=2] [IMAGE=1] [APPEND="..."]' \
	  '              run a script in the nested host; succeeds if the script does' \
	  'make lint     formatting and lints, as continuous integration wants them' \
	  'make docs-generated  manual pages and completions of shells, in $(LAB_DIRECTORY)/share' \
	  'make reproducible  build the programs twice, in two places, and compare them byte by byte' \
	  'make audit [OFFLINE=1]  licences, sources and advisories of all dependencies, by cargo-deny; OFFLINE: no advisories' \
	  'make mutants [FILES="vmm/src/tag_storage/pool/**"] [SHARD=0/8] [JOBS=1]' \
	  '              change the code of arch, devices, the pool and the snapshot format, once in each place: a test must fail' \
	  'make miri     the unit tests of arch and devices under Miri, which finds undefined behaviour; takes a while' \
	  'make deb      Debian packages for arm64, in $(LAB_DIRECTORY)/debs' \
	  'make install [PREFIX=/usr/local] [DESTDIR=/]' \
	  '              install what a host needs; make install-guest: the agent' \
	  'make setup    only install what the other goals need' \
	  'make clean    remove what was built (downloads stay in the cache)'

setup:
	@echo "setup: this machine has what it needs (arm64 programs are built for $(ARM64_TARGET))"

# ---- programs ----

# A file that did not change keeps its time.
install-changed = cmp -s "$(1)" "$(2)" || install "$(1)" "$(2)"

RELEASE := $(BUILD)/$(ARM64_TARGET)/release

# Messages of panics name files of dependencies by their paths, which are the same on no two machines.
REGISTRY := $(or $(CARGO_HOME),$(HOME)/.cargo)/registry/src
REMAP = --config 'target.$(ARM64_TARGET).rustflags=["--remap-path-prefix=$(REGISTRY)=/registry"]'
RELEASE_BUILD = cargo build --release --target $(ARM64_TARGET) --bins $(REMAP)

# Client and agent in builds of their own: cargo gives a shared dependency the features that all of one build ask for.
release-programs: $(LAB_DIRECTORY)/setup.mk
	@$(RELEASE_BUILD) --package tessera --package tessera-guest
	@$(RELEASE_BUILD) --package tesseractl
	@$(RELEASE_BUILD) --package tessera-agent

programs: release-programs
	@cargo build --package tessera-lab
	@mkdir -p $(LAB_DIRECTORY)/bin
	@for name in tessera tesseractl tessera-agent guest-init hold-vm; do $(call install-changed,$(RELEASE)/$$name,$(LAB_DIRECTORY)/bin/$$name); done

# Out of the programs' command lines, in the layout of PREFIX/share.
docs-generated: $(LAB_DIRECTORY)/setup.mk
	@rm -rf $(LAB_DIRECTORY)/share
	@cargo run --quiet --package tesseractl --example generate -- $(LAB_DIRECTORY)/share

PREFIX := /usr/local
install-files = resources/install.sh $(1) "$(PREFIX)" "$(DESTDIR)" $(LAB_DIRECTORY)/bin $(LAB_DIRECTORY)/share

install: programs docs-generated
	@$(call install-files,host)

install-guest: programs docs-generated
	@$(call install-files,guest)

# What the programs are made of.
sbom: docs-generated
	@PATH=$(TOOLS):$$PATH resources/debian/sbom.sh $(ARM64_TARGET) $(LAB_DIRECTORY)/share/sbom

# Advisories come from https://github.com/rustsec/advisory-db.
audit: $(LAB_DIRECTORY)/setup.mk
	@OFFLINE=$(OFFLINE) PATH=$(TOOLS):$$PATH resources/audit.sh

deb: programs docs-generated sbom
	@resources/debian/build.sh $(LAB_DIRECTORY)/bin $(LAB_DIRECTORY)/share $(LAB_DIRECTORY)/debs

artifacts: programs
	@$(LAB) fetch

# The nested tests run as arm64 programs in the lab: each is installed as tests/NAME, as cargo names it.
install-tests = mkdir -p $(LAB_DIRECTORY)/tests; \
	cargo test --no-run $(1) --target $(ARM64_TARGET) $(REMAP) --package tessera-tests --message-format=json-render-diagnostics \
	  | sed -nE 's/.*"target":\{"kind":\["(test|bench)"\][^}]*"name":"([^"]*)".*"executable":"([^"]*)".*/\2 \3/p' \
	  | while read -r name program; do \
	      $(call install-changed,$$program,$(LAB_DIRECTORY)/tests/$$name); \
	    done

nested-tests: $(LAB_DIRECTORY)/setup.mk
	@$(call install-tests,--profile nested --test nested)

# What test.sh builds first.
unit-tests: $(LAB_DIRECTORY)/setup.mk
	@cargo nextest run --no-run --workspace --exclude tessera-tests

# The release build is linked by one processor: the builds of the tests have the other.
built: artifacts nested-tests unit-tests

# As users have it: some benches call the VMM's own code.
nested-benches: programs
	@$(call install-tests,--release --bench benches)

reproducible: $(LAB_DIRECTORY)/setup.mk
	@tests/reproducible.sh $(LAB_DIRECTORY)/reproducible $(ARM64_TARGET)

image: programs
	@$(LAB) image $(PACKAGES:%=--package %) $(if $(SIZE),--size $(SIZE)) $(if $(REFRESH),--refresh)

# Kernels of nested hosts beside the usual one, by their Debian packages: tests ask for them.
HOST_KERNELS := linux-image-arm64-16k

# ---- goals ----

run: artifacts
	@$(LAB) guest

shell: artifacts
	@$(LAB) shell $(if $(IMAGE),--image)

# make's own exit status is 0 or 2, as always; the script's is in the last line of the goal.
lab: export LAB_SCRIPT = $(SCRIPT)
lab: export LAB_FILES = $(FILES)
lab: export LAB_APPEND = $(APPEND)
lab: artifacts
	@options=($(if $(ICOUNT),--icount) $(if $(NODE1),--node1 $(NODE1)) $(if $(MEMORY),--memory $(MEMORY)) $(if $(CPUS),--cpus $(CPUS)) $(if $(IMAGE),--image)); \
	for file in $$LAB_FILES; do options+=(--file "$$file"); done; \
	[[ -z $$LAB_APPEND ]] || options+=(--append "$$LAB_APPEND"); \
	status=0; $(LAB) run "$$LAB_SCRIPT" "$${options[@]}" || status=$$?; \
	echo "make lab: $$LAB_SCRIPT ended with status $$status"; exit $$status

# The kernels of the tests' hosts come first: a slow download is no slow test.
test: $(LAB_DIRECTORY)/setup.mk
	@$(MAKE) --no-print-directory -j2 built
	@for package in $(HOST_KERNELS); do $(LAB) fetch --package $$package >/dev/null; done
	@tests/lab/test.sh $(if $(LONG),all,nested)

image-tests: image artifacts deb
	@$(call install-tests,--profile nested --test image)
	@cargo nextest run --package tessera-tests --test image --profile image </dev/null

# With TIME the rounds of kills alone, which can end after each.
soak: export TESSERA_SOAK_TIME = $(TIME)
soak: artifacts
	@$(call install-tests,--profile nested --test soak --test nested)
	@[[ -n $$TESSERA_SOAK_TIME ]] || unset TESSERA_SOAK_TIME; \
	cargo nextest run --package tessera-tests --test soak --profile soak $(if $(TIME),kills) </dev/null
	$(if $(TIME),,@TESSERA_ASSAULT_SECONDS=600 TESSERA_FAULTS_ALL=1 cargo nextest run --package tessera-tests \
	  --test nested --profile soak --run-ignored all -E 'test(/^(faults|hostile_guest)::/)' </dev/null)

# What the tests print is in the file of the record, too.
calls: RECORD := $(abspath $(BUILD))/calls
calls: artifacts nested-tests
	@TESSERA_RECORD_CALLS=1 cargo nextest run --package tessera-tests --profile nested --run-ignored all \
	  --success-output immediate $(if $(TESTS),-E '$(TESTS)') </dev/null >$(RECORD) 2>&1 || { tail -20 $(RECORD); false; }
	@TESSERA_CALLS=$(RECORD) cargo nextest run --package tessera --test seccomp --run-ignored all --no-capture \
	  rules_that_no_nested_test_has_used </dev/null

# The program of libFuzzer's, and what starts it for one target after the other.
fuzz:
	@cargo build --quiet --package tessera-fuzz --bin tessera-fuzz
	@engine=$$(ASAN=$(ASAN) tests/fuzz/build.sh); \
	$(BUILD)/debug/tessera-fuzz --program "$$engine" --folder $(BUILD)/fuzz/work \
	  --time $(or $(TIME),60) --jobs $(or $(JOBS),1) $(if $(RUNS),--runs $(RUNS)) $(if $(INPUT),--input "$(INPUT)") \
	  $(if $(MINIMISE),--minimise) $(TARGET)

# What is changed, unless FILES says so, and what is not: code for tests. A package is tested by its own unit tests, the VMM by
# those of the rooms that are changed.
MUTATED := arch/src/** devices/src/** vmm/src/tag_storage/pool/** vmm/src/snapshot/**
FOR_TESTS := **/testing/** **/testing.rs **/fuzz.rs **/examine.rs

mutants: export FILES ?= $(MUTATED)
mutants: export LEFT_OUT := $(FOR_TESTS)
mutants: export CARGO_PROFILE_DEV_DEBUG := false
mutants: $(LAB_DIRECTORY)/setup.mk
	@files=(); read -ra globs <<<"$$FILES"; for glob in "$${globs[@]}"; do files+=(--file "$$glob"); done; \
	read -ra globs <<<"$$LEFT_OUT"; for glob in "$${globs[@]}"; do files+=(--exclude "$$glob"); done; \
	PATH=$(TOOLS):$$PATH cargo mutants --test-tool nextest --no-shuffle --output $(BUILD) --jobs $(or $(JOBS),1) \
	  $(if $(SHARD),--shard $(SHARD)) "$${files[@]}" -- --lib -E 'not package(tessera) or test(/^(tag_storage|snapshot)::/)'

miri: $(LAB_DIRECTORY)/setup.mk
	@MIRIFLAGS="-Zmiri-disable-isolation" PROPTEST_CASES=$(or $(CASES),4) \
	  cargo +nightly miri nextest run --package tessera-arch --package tessera-devices --no-fail-fast $(if $(TESTS),-E '$(TESTS)')

check: lint
	@tests/lab/test.sh

# QEMU, whose devices ours are measured beside, and what uses them: on nested hosts, and in their guests; and a server for
# guests that work.
peers: programs
	@$(LAB) programs host --package qemu-system-arm --package iperf3 qemu-system-aarch64 iperf3
	@$(LAB) programs guest --package fio --package iperf3 --package iputils-ping fio iperf3 ping
	@$(LAB) programs service --package redis-tools redis-check-rdb redis-benchmark redis-cli

# Benches are tests that `cargo test` leaves out. Their report is in $(BUILD)/bench.
bench: artifacts nested-benches peers
	@LONG=$(LONG) tests/lab/bench.sh $(BUILD)/bench $(ONLY)

lint:
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets -- -D warnings
	@cargo clippy --workspace --all-targets --target $(ARM64_TARGET) -- -D warnings
	@shellcheck --external-sources --severity=warning $$(grep -rIlE --exclude-dir=target --exclude-dir=.git '^#!(/bin/(ba)?sh|/usr/bin/env bash)$$' .)

clean:
	@rm -rf $(LAB_DIRECTORY)
	@if command -v cargo >/dev/null; then cargo clean; else rm -rf $(BUILD); fi
