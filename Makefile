# For GNU make 3.81 and later.

FUZZTIME ?= 10s

FAULTS_TIME ?= 5m
FAULTS_SEED ?= 0
FAULTS_ARGS ?=
SOAK_TIME   ?= 30m

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  ?= $(shell git rev-parse --verify --short HEAD 2>/dev/null || echo none)
# The commit's date, not today's: the same commit builds the same binary.
DATE    ?= $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null || echo unknown)
LDFLAGS  = -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.date=$(DATE)

.PHONY: help run test lint fuzz faults soak memory bench microbench bench-compare generate check-asyncapi test-node verify-k8s e2e-k8s e2e-images build image clean
.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' Makefile

run: ## Try everything in one process, with an embedded NATS server
	go run ./cmd/bridge dev

test: ## Run all tests with the race detector
	go test -race -shuffle=on ./...

lint: ## Check the format, go vet and staticcheck
	@echo gofmt -l
	@files=$$(git ls-files --cached --others --exclude-standard -- '*.go') || exit 1; \
	unformatted=$$(echo "$$files" | while read -r f; do \
		if test -f "$$f"; then gofmt -l "$$f" || echo "$$f"; fi; done); \
	if test -n "$$unformatted"; then \
		echo "not formatted, run gofmt -w on:" >&2; echo "$$unformatted" >&2; exit 1; fi
	go vet ./...
	go vet -tags faults,failpoints ./...
	go tool -modfile=tools/go.mod staticcheck ./...
	go tool -modfile=tools/go.mod staticcheck -tags faults,failpoints ./...

fuzz: ## Run every fuzz target for FUZZTIME (10s)
	@sh tools/fuzz.sh $(FUZZTIME)

faults: ## Break what is around the bridge for FAULTS_TIME (5m), by FAULTS_SEED (random)
	go test -tags faults -count=1 -v -timeout 3h ./faults -time=$(FAULTS_TIME) -seed=$(FAULTS_SEED) $(FAULTS_ARGS)

soak: ## Send webhooks for SOAK_TIME (30m) and watch what the bridge takes
	go test -tags faults -count=1 -v -timeout 0 -run 'TestSoak$$' ./faults -soak=$(SOAK_TIME) $(FAULTS_ARGS)

memory: ## Show what a bridge takes at most when many requests come at once
	go test -tags faults -count=1 -v -timeout 20m -run 'TestMemory$$' ./faults -memory

BENCH_ARGS     ?=
BENCH          ?= .
BENCH_COUNT    ?= 6
BENCH_PACKAGES ?= ./...

bench: ## Measure the bridge beside three references and NATS, for half an hour; BENCH_ARGS=-help says more
	go run ./bench $(BENCH_ARGS)

microbench: ## Run all benchmarks of single stages
	go test -run '^$$' -bench $(BENCH) -benchmem $(BENCH_PACKAGES)

bench-compare: ## Compare the benchmarks BENCH of BENCH_PACKAGES with those of the last commit
	@sh tools/bench-compare.sh $(BENCH_COUNT) '$(BENCH)' $(BENCH_PACKAGES)

generate: ## Make the Go types of the payloads from the schemas
	go generate ./events

check-asyncapi: ## Check the AsyncAPI document with the official parser (needs Node and npm)
	cd tools/asyncapi && npm ci --silent
	go run ./cmd/bridge asyncapi | node tools/asyncapi/check.js

test-node: ## Try the service for Node against a running bridge (needs Node and npm)
	cd examples/node && npm ci --silent
	go test -tags node -count=1 -run TestNodeService ./examples

OVERLAYS   = $(sort $(dir $(wildcard deploy/k8s/overlays/*/kustomization.yaml)))
COMPONENTS = $(sort $(dir $(wildcard deploy/k8s/components/*/kustomization.yaml)))
EMPTY     :=
# A program that checks kustomize folders with the API server's own code, if there is one.
K8S_VERIFY ?=

verify-k8s: ## Render every overlay, bare and with every component, and check it strictly
	go run -C tools ./verify-k8s $(patsubst %/,../%,$(OVERLAYS)) \
		$(foreach o,production spool,../deploy/k8s/overlays/$(o)$(subst $(EMPTY) ,,$(patsubst %/,+../%,$(filter-out %/nats-tls/,$(COMPONENTS))))) \
		../deploy/k8s/overlays/with-nats$(subst $(EMPTY) ,,$(patsubst %/,+../%,$(COMPONENTS)))
	$(if $(K8S_VERIFY),$(K8S_VERIFY) -psa restricted $(OVERLAYS))

build: ## Build the static binary bin/bridge
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$(LDFLAGS)" -o bin/bridge ./cmd/bridge

IMAGE     ?= bridge:$(VERSION)
IMAGE_TAR ?= bin/bridge.tar

image: ## Pack IMAGE_TAR (bin/bridge.tar), a container image from scratch, without a container engine
	GOOS=linux CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$(LDFLAGS)" -o bin/image/bridge ./cmd/bridge
	go run -C tools ./image -binary ../bin/image/bridge -output ../$(IMAGE_TAR) -ref $(IMAGE) -version $(VERSION) -revision $(COMMIT) -created $(DATE)

# What takes an image archive into the cluster: kind load image-archive, k3d image import.
E2E_LOAD ?=
E2E_ARGS ?=

e2e-images: ## Pack the images that e2e-k8s runs into bin/, and load each with E2E_LOAD
	$(MAKE) image IMAGE=bridge:e2e IMAGE_TAR=bin/e2e-bridge.tar
	$(MAKE) image IMAGE=bridge:e2e-next IMAGE_TAR=bin/e2e-bridge-next.tar VERSION=next
	GOOS=linux CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o bin/image/nats-server github.com/nats-io/nats-server/v2
	go run -C tools ./image -binary ../bin/image/nats-server -path /usr/local/bin/nats-server -user 1000:1000 -title nats-server \
		-description "NATS server" -output ../bin/e2e-nats.tar -ref nats:e2e -created $(DATE)
	$(if $(E2E_LOAD),set -e; for tar in bridge bridge-next nats; do $(E2E_LOAD) bin/e2e-$$tar.tar; done)

e2e-k8s: ## Do to a cluster (KUBECONFIG) what operators do, under load; see CONTRIBUTING.md
	go test -tags e2e -count=1 -v -timeout 1h ./deploy/e2e -nats-image=nats:e2e $(E2E_ARGS)

clean: ## Remove what build made
	rm -rf bin
