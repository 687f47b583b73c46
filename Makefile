# Targets for people; `make help` lists them. Needs Go, make and git; the tests
# and benchmarks install the Debian packages they lack.

SHELL       := /bin/bash
.SHELLFLAGS := -o pipefail -c
export CGO_ENABLED := 0

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
BINARIES := vswitch vswitch-cni vswitch-bench vswitch-demo

# gcc is for the race detector alone: the binaries are built without cgo.
TEST_PACKAGES  := iperf3 iputils-ping curl tcpdump nftables ethtool uidmap podman crun runc containerd rootlesskit slirp4netns systemd busybox-static gcc libc6-dev
BENCH_PACKAGES := iperf3 sockperf openvswitch-switch passt slirp4netns nftables ethtool containernetworking-plugins
# A package's version begins with a digit and sorts; a tree without tags has its count of commits.
PACKAGE_VERSION := $(shell git describe --tags 2>/dev/null | sed -n 's/^v\([0-9]\)/\1/p' | grep . || echo "0.0.0+$$(git rev-list --count HEAD).$$(git rev-parse --short HEAD)")
NFPM := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.4
STATICCHECK    := honnef.co/go/tools/cmd/staticcheck@v0.7.0

# What `make image` builds; deploy/kustomization.yaml says where nodes find it.
IMAGE ?= localhost/vswitch:latest

# Time for each fuzz target in test-long; length of a soak.
FUZZTIME ?= 20s
HOURS    ?= 12

# End-to-end tests run alone, after the rest and one after the other: their
# figures and timeouts want the machine. The race detector is for what runs in
# the test's own process.
E2E  := $(wildcard ./internal/e2e) ./internal/demo
UNIT := go list ./... | grep -v -e '/internal/e2e$$' -e '/internal/e2ek8s$$' -e '/internal/demo$$'
RACE := $(UNIT) | grep -v -e '/internal/arrows$$' -e '/internal/lab' -e '/bench$$' -e '/cmd/vswitch-demo$$'
SUM  := go run ./internal/testsum

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.DEFAULT_GOAL := build

.PHONY: build
build: ## static binaries into bin/
	@mkdir -p bin
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(BINARIES:%=./cmd/%)

.PHONY: demo
demo: build ## two nodes, pods and all kinds of traffic; KEEP=1 leaves them up, ROOTLESS=1 is an ordinary user's
	@bin/vswitch-demo $(if $(filter-out 0,$(KEEP)),--keep) $(if $(filter-out 0,$(ROOTLESS)),--rootless)

.PHONY: test
test: test-deps build ## everything in its short form: unit, fuzz seeds, race, namespaces, end to end
	@echo "== unit, fuzz seeds, namespaces"
	@go test -json -count=1 -timeout 5m $$($(UNIT)) | $(SUM)
	@echo "== race detector"
	@CGO_ENABLED=1 go test -json -race -count=1 -timeout 8m $$($(RACE)) | $(SUM)
	@$(MAKE) --no-print-directory e2e TIMEOUT=12m

.PHONY: e2e
e2e: TIMEOUT ?= 30m
e2e: build ## only the end-to-end tests; RUN=regexp picks some
	@echo "== end to end"
	@VSWITCH_BIN=$(CURDIR)/bin go test -json -p 1 -count=1 -timeout $(TIMEOUT) $(if $(RUN),-run '$(RUN)') $(E2E) | $(SUM)

# The control plane of Kubernetes, from the modules that test/k8s names. The
# binaries say their version as a release's do: vswitch and kubectl ask for it.
K8S_VERSION := $(shell sed -n 's|^\tk8s.io/kubernetes v\([0-9.]*\).*|\1|p' test/k8s/go.mod)
K8S_STAMP    = $(foreach p,k8s.io/component-base/version k8s.io/client-go/pkg/version,-X $(p).gitVersion=v$(K8S_VERSION) -X $(p).gitMajor=$(word 1,$(subst ., ,$(K8S_VERSION))) -X $(p).gitMinor=$(word 2,$(subst ., ,$(K8S_VERSION))))

.PHONY: k8s
k8s: bin/k8s/built ## kube-apiserver, kube-controller-manager, kubectl and etcd into bin/k8s/: minutes, once

bin/k8s/built: test/k8s/go.mod test/k8s/go.sum
	@echo "== Kubernetes v$(K8S_VERSION) and etcd: some eleven minutes of CPU when nothing is cached"
	@mkdir -p bin/k8s
	@cd test/k8s && go build -trimpath -ldflags '-s -w $(K8S_STAMP)' -o $(CURDIR)/bin/k8s/ $(addprefix k8s.io/kubernetes/cmd/,kube-apiserver kube-controller-manager kubectl)
	@cd test/k8s && go build -trimpath -ldflags '-s -w' -o $(CURDIR)/bin/k8s/etcd go.etcd.io/etcd/server/v3
	@touch $@

# Helm, which says that it is for the Kubernetes above, as a release does.
HELM_VERSION := 3.22.0
HELM_STAMP    = $(foreach n,Major=$(word 1,$(subst ., ,$(K8S_VERSION))) Minor=$(word 2,$(subst ., ,$(K8S_VERSION))),-X helm.sh/helm/v3/pkg/chartutil.k8sVersion$(n))

bin/k8s/helm-$(HELM_VERSION):
	@echo "== Helm v$(HELM_VERSION)"
	@GOBIN=$(CURDIR)/bin/k8s CGO_ENABLED=0 go install -trimpath -ldflags '-s -w $(HELM_STAMP)' helm.sh/helm/v3/cmd/helm@v$(HELM_VERSION)
	@rm -f bin/k8s/helm-* && mv bin/k8s/helm $@

.PHONY: e2e-k8s
e2e-k8s: TIMEOUT ?= 20m
e2e-k8s: test-deps build k8s bin/k8s/helm-$(HELM_VERSION) ## the tests with a real Kubernetes control plane; RUN=regexp picks some
	@echo "== Kubernetes"
	@VSWITCH_BIN=$(CURDIR)/bin go test -json -count=1 -timeout $(TIMEOUT) $(if $(RUN),-run '$(RUN)') ./internal/e2ek8s | $(SUM)

.PHONY: test-long
test-long: export VSWITCH_TEST := long
test-long: test-deps build fuzz ## everything in its full form, and each fuzz target for FUZZTIME: some 50 minutes
	@echo "== unit, namespaces"
	@go test -json -count=1 -timeout 15m $$($(UNIT)) | $(SUM)
	@echo "== race detector"
	@CGO_ENABLED=1 go test -json -race -count=1 -timeout 20m $$($(RACE)) | $(SUM)
	@$(MAKE) --no-print-directory e2e TIMEOUT=60m
	@$(MAKE) --no-print-directory e2e-k8s TIMEOUT=40m

.PHONY: fuzz
# Go would make a new input smaller for up to a minute, and try no other meanwhile.
fuzz: ## each fuzz target for FUZZTIME
	@grep -rE --include='*_test.go' -o '^func Fuzz[A-Za-z0-9_]*' . | sed -E 's|^(.*)/[^/]*:func |\1 |' | sort -u | \
	while read -r dir target; do \
		echo "== $$dir $$target for $(FUZZTIME)"; \
		go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s "$$dir" || exit 1; \
	done

.PHONY: soak
soak: export VSWITCH_TEST := soak
soak: export VSWITCH_SOAK := $(HOURS)h
soak: test-deps build ## pods that come and go under load while the dataplane is killed, for HOURS=12
	@VSWITCH_BIN=$(CURDIR)/bin go test -count=1 -v -timeout 0 -run Soak ./internal/e2e

.PHONY: bench
bench: bench-deps build $(if $(findstring scale,$(ONLY)),k8s) ## measure against the kernel and other networks on this machine; ONLY=regexp picks rows, ONLY=scale large clusters (NODES=n)
	@for p in vswitch/fib vswitch/flow internal/node; do go test -c -o bin/$${p##*/}.test ./$$p || exit 1; done
	@bin/vswitch-bench run $(if $(ONLY),--only '$(ONLY)') $(if $(PAIRS),--pairs $(PAIRS)) $(if $(NODES),--nodes $(NODES)) --json out/bench.json

.PHONY: bench-doc
bench-doc: build ## put the last run's table and plots into docs/benchmarks.md
	@bin/vswitch-bench report out/bench.json

.PHONY: image
image: build ## a container image of the static binaries alone; IMAGE=name:tag, with podman, buildah or docker
	@for tool in podman buildah docker; do command -v $$tool >/dev/null && break; tool=; done; \
		if [ -z "$$tool" ]; then echo "make image: want podman, buildah or docker"; exit 1; fi; \
		$$tool build --tag $(IMAGE) --file deploy/Containerfile bin

.PHONY: deb
deb: DEB_DIR ?= out/
deb: build ## a Debian package into out/
	@mkdir -p $(DEB_DIR)
	PACKAGE_VERSION='$(PACKAGE_VERSION)' GOARCH=$$(go env GOARCH) go run $(NFPM) package --config deploy/package/nfpm.yaml --packager deb --target $(DEB_DIR)

.PHONY: lint
lint: ## gofmt, go vet, staticcheck
	@bad=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
		if [ -n "$$bad" ]; then echo "not formatted (make fmt):"; echo "$$bad"; exit 1; fi
	go vet ./...
	go run $(STATICCHECK) ./...

.PHONY: fmt
fmt: ## format every Go file
	@gofmt -w $$(git ls-files -co --exclude-standard '*.go')

.PHONY: generate
generate: ## regenerate generated code
	go generate ./...

.PHONY: test-deps
test-deps: ## install what the tests need (Debian), if missing
	@.ci/packages $(TEST_PACKAGES)

.PHONY: bench-deps
bench-deps: ## install what the benchmarks need (Debian), if missing
	@.ci/packages $(BENCH_PACKAGES)

.PHONY: clean
clean: ## remove what was built and measured
	rm -rf bin out
