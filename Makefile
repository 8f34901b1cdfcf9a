# `make` lists what there is.

ENVOY_VERSION  ?= 1.40.0
ENVOY_VERSIONS := 1.38.3 1.39.3 1.40.0
# ENVOY_BIN runs another Envoy than the one of ENVOY_VERSION.
ENVOY_BIN      ?=

# BENCH_FLAGS are further flags of bench.
BENCH_FLAGS    ?=

export CGO_ENABLED := 1
export ENVOY_BIN ENVOY_VERSION

GO  := go
# Without the symbol table of the debugger the object is a third smaller; the
# one the runtime prints stacks from stays.
SO_LDFLAGS := -s -w
# Without gRPC's pages of traces, whose templates would have the linker keep all
# methods there are, it is smaller by another third. Names are resolved by Go: the
# C library's resolver is one more library that an image would have to have.
SO_TAGS    := grpcnotrace netgo osusergo

# E2E_PARALLEL is how many end-to-end tests run at once: most of what they do is wait.
E2E_PARALLEL ?= 4
# IN_FULL are the packages some tests of which leave out much, or themselves, under the race detector.
IN_FULL := ./codecs/... ./filter/... ./filters/... ./envoy-build/golang ./envoy-build/internal/balancer

.DEFAULT_GOAL := help
.PHONY: help so so-arm64 meltemi operator crds envoy envoys demo test unit e2e e2e-all e2e-golang istio helm e2e-istio churn bench hostile soak lint clean need-go need-cc

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "variables: ENVOY_VERSION=$(ENVOY_VERSION) (of $(ENVOY_VERSIONS)), ENVOY_BIN=path of another Envoy"

so: need-go need-cc ## build/libmeltemi.so, what Envoy loads
	@mkdir -p build
	$(GO) build -trimpath -buildmode=c-shared -tags '$(SO_TAGS)' -ldflags='$(SO_LDFLAGS)' -o build/libmeltemi.so ./envoy-build

so-arm64: need-go ## build/arm64/libmeltemi.so, by a cross compiler
	@tools/need.sh 'aarch64-linux-gnu-gcc=gcc-aarch64-linux-gnu libc6-dev-arm64-cross'
	GOOS=linux GOARCH=arm64 CC=aarch64-linux-gnu-gcc $(GO) build -trimpath -buildmode=c-shared -tags '$(SO_TAGS)' -ldflags='$(SO_LDFLAGS)' -o build/arm64/libmeltemi.so ./envoy-build

meltemi: need-go ## build/meltemi, the tool: captures, configurations, EnvoyFilters
	CGO_ENABLED=0 $(GO) build -trimpath -o build/meltemi ./cmd/meltemi

operator: need-go ## build/meltemi-operator, the control plane for Kubernetes
	cd control/operator && . ./env.sh && $(GO) build -trimpath -ldflags='$(SO_LDFLAGS)' -o ../../build/meltemi-operator ./cmd/meltemi-operator

crds: need-go ## charts/meltemi-crds, from the Go types of the objects
	tools/crds.sh

envoy: ## build/envoy-VERSION/envoy, the official binary of ENVOY_VERSION
	@test -n "$(ENVOY_BIN)" || tools/envoy.sh $(ENVOY_VERSION)

envoys: ## the official binaries of all versions under test
	@test -n "$(ENVOY_BIN)" || for v in $(ENVOY_VERSIONS); do tools/envoy.sh $$v || exit 1; done

demo: so envoy ## real Dubbo through Envoy, routed by rules (KEEP=1 leaves it running)
	cd examples/dubbo && $(GO) run ./demo

test: unit e2e ## unit tests, then end to end: 1.40.0 with 2 workers in full, the rest as a smoke run

unit: need-go need-cc ## tests that need no Envoy, those with much to do once more in full
	$(GO) test -race ./...
	$(GO) test $(IN_FULL)
	cd examples/memcached && $(GO) test -race ./...
	cd envoy-build/golang/register && $(GO) test ./exampletest
	cd control/operator && . ./env.sh && $(GO) test ./...

e2e: so envoys ## end-to-end tests on real Envoys
	cd e2e && $(GO) test -count=1 -timeout 45m -parallel $(E2E_PARALLEL) -matrix=smoke

e2e-all: so envoys e2e-golang ## the end-to-end tests in full on every version, 1 and 2 workers
	cd e2e && $(GO) test -count=1 -timeout 90m -parallel $(E2E_PARALLEL) -matrix=full

# CONTRIB_ENVOY_BIN or ISTIO_PROXY_BIN run a real one in place of the imitation.
e2e-golang: so envoy ## the end-to-end tests in full by Envoy's golang filter
	cd e2e && $(GO) test -count=1 -timeout 60m -parallel $(E2E_PARALLEL) -matrix=golang

istio: need-go ## build/istio: API server, etcd, istiod, pilot-agent; minutes the first time
	tools/istio.sh

helm: need-go ## build/helm; minutes the first time
	tools/helm.sh

e2e-istio: so meltemi operator envoy istio helm ## end to end in a mesh: a real control plane, sidecars and gateway in network namespaces
	cd e2e/istio && $(GO) test -count=1 -timeout 45m
	cd e2e/istio/controlplane && . ./env.sh && $(GO) test -count=1 ./...

churn: so meltemi operator envoy istio helm ## a thousand changes of routes in a mesh, under load and with outages
	cd e2e/istio && $(GO) test -count=1 -timeout 30m -v -run TestRoutersChangeUnderLoad -churn 1000 .

bench: so envoy ## CPU, throughput and latency beside direct, tcp_proxy, dubbo_proxy
	cd examples/memcached && $(GO) build -trimpath -buildmode=c-shared -tags '$(SO_TAGS)' -ldflags='$(SO_LDFLAGS)' -o ../../build/memcached/libmeltemi.so .
	cd bench && $(GO) run . -envoy "$${ENVOY_BIN:-../build/envoy-$(ENVOY_VERSION)/envoy}" -so ../build/libmeltemi.so $(BENCH_FLAGS)

hostile: so envoy ## a million mutated frames of each protocol, and the attacks at their full size
	cd e2e && $(GO) test -count=1 -timeout 60m -v -run TestHostile -hostile 1000000 .

soak: so envoy ## load, faults and config updates: ten minutes, and five by Envoy's golang filter
	cd e2e && $(GO) test -count=1 -timeout 30m -v -run TestSoak -soak 10m .
	cd e2e && $(GO) test -count=1 -timeout 30m -v -run TestSoak -soak 5m -matrix=golang .

lint: need-go ## formatting, vet, house rules
	tools/lint.sh

clean: ## remove build/
	rm -rf build

need-go:
	@command -v $(GO) >/dev/null || { echo "Go is missing: install Go 1.26 or newer (Debian: apt-get install golang, or the archive of the Go project)" >&2; exit 1; }

need-cc:
	@command -v $${CC:-gcc} >/dev/null || { echo "a C compiler is missing: install gcc (Debian: apt-get install gcc libc6-dev)" >&2; exit 1; }
