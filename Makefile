# Moraine. `make` alone explains the targets.

SHELL       := /bin/sh
.DEFAULT_GOAL := help

GO          ?= go
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT      ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
MODULE      := github.com/moraine-storage/moraine
LDFLAGS     := -s -w -X $(MODULE)/agent/version.Version=$(VERSION) -X $(MODULE)/agent/version.Commit=$(COMMIT)

PREFIX      ?= /usr/local
DATA_DIR    ?= /var/lib/moraine-dev
TESTRUN     := $(GO) run ./contrib/testrun

.PHONY: help
help: ## Show this text
	@echo "Moraine: replicated volumes for containers"; echo
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo; echo "Variables: DATA_DIR (run), DESTDIR PREFIX (install), FUZZ FUZZTIME (fuzz), MORAINE_CRASH_CUTS (crash), SUITE (test-suite), BENCH (bench)"

.PHONY: run
run: ## Build and run an agent for development in the foreground (as root; data in DATA_DIR)
	@sh contrib/packages.sh run
	@$(MAKE) --no-print-directory build
	bin/moraine agent -dev -data-dir $(DATA_DIR)

.PHONY: build
build: ## Build bin/moraine, one static binary
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/moraine ./agent/cmd/moraine

.PHONY: install
install: build ## Install the binary, the systemd unit and a first configuration under DESTDIR
	install -D -m 0755 bin/moraine $(DESTDIR)$(PREFIX)/bin/moraine
	install -d -m 0755 $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)/etc/moraine
	sed 's|@PREFIX@|$(PREFIX)|g' contrib/systemd/moraine.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/moraine.service
	test -e $(DESTDIR)/etc/moraine/agent.hcl || install -m 0644 contrib/systemd/agent.hcl $(DESTDIR)/etc/moraine/agent.hcl

.PHONY: generate
generate: ## Write the generated code anew (protobuf)
	@sh contrib/packages.sh generate
	@$(TESTRUN) generate

.PHONY: check
check: ## Format, vet, staticcheck, generated code, tree rules, builds for amd64 and arm64
	@sh contrib/packages.sh generate
	@$(TESTRUN) check

.PHONY: unit
unit: ## Tests that need no root, with the race detector
	@$(TESTRUN) unit

.PHONY: test
test: ## Everything: check, unit, and as root the integration suites with real peers
	@sh contrib/packages.sh test
	@$(TESTRUN) test

.PHONY: test-suite
test-suite: ## Only the integration suites named in SUITE (as root)
	@sh contrib/packages.sh test
	@$(MAKE) --no-print-directory build
	@$(TESTRUN) suite $(SUITE)

.PHONY: crash
crash: ## The store's crash-replay tests with 10,000 cuts
	@$(TESTRUN) crash

.PHONY: fuzz
fuzz: ## Fuzz every decoder, 10 minutes each (FUZZTIME=30s, FUZZ=regexp to change)
	@$(TESTRUN) fuzz $(FUZZ)

.PHONY: bench
bench: ## Compare with nbdkit and qemu-nbd; writes contrib/bench/RESULTS.md (BENCH=flags)
	@sh contrib/packages.sh test
	@$(MAKE) --no-print-directory build
	$(GO) run ./contrib/bench/cmd/bench $(BENCH)
