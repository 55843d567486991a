# What README and CI call. Every target can be run again at any time.
.PHONY: setup build demo test soak bench lint unit netns

# Where `make bench` writes its reports.
REPORT ?= target/bench

setup:              ## install what is missing from Debian's packages
	./scripts/setup

build: setup        ## the weft binary, optimised: target/release/weft
	cargo build --release --locked -p weft

demo: build         ## three hosts, real etcd, pods that reach each other, a host that dies and returns
	./target/release/weft demo

UNIT = cargo test --workspace --exclude weft --locked --no-fail-fast
NETNS = cargo test -p weft --locked --no-fail-fast

test: setup lint    ## everything that decides right or wrong; closes with the sum
	./scripts/sum '$(UNIT)' '$(NETNS)'

lint:               ## formatting, and clippy with warnings as errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features --locked -- -D warnings

unit:               ## unit and property tests, store against real etcd
	$(UNIT)

netns:              ## stories on real kernels: namespaces as hosts, real etcd
	$(NETNS)

soak: setup         ## long: 10 GB hashed through each backend, ten minutes of random faults
	cargo test -p weft --release --locked --features soak --test soak -- --test-threads=1 --nocapture

bench: build        ## measure the paths; writes overlay.json, proxy.json and their .svg to $(REPORT)
	mkdir -p $(REPORT)
	./target/release/weft bench overlay --json $(REPORT)/overlay.json --svg $(REPORT)/overlay.svg
	./target/release/weft bench proxy --json $(REPORT)/proxy.json --svg $(REPORT)/proxy.svg
