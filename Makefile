# make help lists what there is. Every target installs the Debian packages it needs if a command
# is missing (see .ci/packages), can be run again, and can be interrupted.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo demo-keep build test lint bench compare quilkin clean packages

# Root's tools (tc, ethtool, nft) are in sbin, which a user's PATH may lack.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

RELEASE := target/release
# The lab needs root. Without it, and without sudo, the demo says so and runs in user space.
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null && echo sudo; })

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## a client, the box and three nodes: watch connections being balanced
	@$(AS_ROOT) $(RELEASE)/penstock-perf demo

demo-keep: build ## the same, and it stays up to look around in
	@$(AS_ROOT) $(RELEASE)/penstock-perf demo --keep

build: packages ## everything, in release
	@echo "Building Penstock (release; the first time takes a few minutes)"
	@cargo build --release --workspace --bins

test: packages ## everything CI checks: format, lints, tests (with the lab's), docs
	@.ci/test

lint: packages ## format and lints only
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

bench: build ## the packet path over memory: nanoseconds, instructions and ratios against the last committed ones
	@.ci/packages valgrind
	$(RELEASE)/penstock-perf pipeline --flows 1000,1000000 --case 'hit nat,new nat4,worker' --instructions perf/baseline.json

compare: build ## the same traffic through Penstock, the kernel, nftables, HAProxy and others; ARGS=--quick: two minutes
	@.ci/packages iptables ipvsadm haproxy wrk nginx libnginx-mod-stream:/usr/lib/nginx/modules/ngx_stream_module.so dpdk-dev:dpdk-testpmd
	@$(AS_ROOT) $(RELEASE)/penstock-perf compare $(ARGS)

# Where the peer of make compare looks. One of its dependencies (gxhash) does not compile without AES instructions.
QUILKIN := /var/cache/penstock-lab/quilkin
quilkin: packages ## build quilkin, a UDP proxy, as one more peer of make compare: ten minutes or so, once
	@if [ -x $(QUILKIN)/bin/quilkin ]; then echo "It is there: $(QUILKIN)/bin/quilkin"; else \
	    echo "Building quilkin (it is kept in $(QUILKIN))" && \
	    RUSTFLAGS="-C target-feature=+aes" cargo install quilkin --version 0.10.0 --locked --root target/quilkin && \
	    $(AS_ROOT) install -D target/quilkin/bin/quilkin $(QUILKIN)/bin/quilkin; fi

clean: ## remove what was built, and labs a killed process left
	@[ ! -x $(RELEASE)/penstock-perf ] || $(AS_ROOT) $(RELEASE)/penstock-perf lab list
	cargo clean

packages:
	@.ci/packages
