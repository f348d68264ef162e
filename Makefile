# Every command a contributor needs. `make` alone lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help run test bench bench-micro bench-peers bench-pitr bench-vault bench-deps soak attacks fuzz drills try-drill deps fmt lint doc deny deb try-deb

CARGO ?= cargo
UPSTREAM ?=
# Most tests wait for processes and disks: twice the cores end in two thirds of the time.
TEST_THREADS ?= $(shell echo $$((2 * $$(nproc))))

# Whether this system makes a network for whoever asks; in many containers it does not.
OWN_NETWORK := unshare $(if $(filter-out 0,$(shell id -u)),--map-root-user) --net ip link set lo up 2>/dev/null

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## build the release binary and start the demo; UPSTREAM=http://127.0.0.1:3000 puts it before a real app
	$(CARGO) build --release --locked
	exec ./target/release/foregate demo $(if $(UPSTREAM),--upstream '$(UPSTREAM)')

test: deps lint doc ## install what tests need, then fmt, clippy, docs, unit and black-box tests
	@left_out=; \
	if ! $(OWN_NETWORK); then \
	  echo 'left out: tests in a network of their own (own_network::), since none can be made here' >&2; \
	  left_out='-- --skip own_network::'; \
	fi; \
	if $(CARGO) nextest --version >/dev/null 2>&1; then \
	  echo '+ cargo nextest run'; $(CARGO) nextest run --locked --no-fail-fast --test-threads $(TEST_THREADS) $$left_out; \
	else \
	  echo '+ cargo test'; $(CARGO) test --locked --no-fail-fast --lib --bins --tests $$left_out; \
	fi

deps: ## install what the tests need (apt-get); without the right to, say what is missing
	@scripts/install-test-deps

fmt: ## format the sources
	$(CARGO) fmt

lint: ## formatting and clippy, warnings denied
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets --all-features -- -D warnings

doc: ## build the documentation, warnings denied
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps

bench: bench-micro bench-vault bench-pitr ## microbenchmarks, then the vault beside its peers; some 15 minutes, needs root

bench-deps: ## install the peers of the benchmarks (apt-get)
	@scripts/install-bench-deps

bench-micro: ## microbenchmarks of the hot paths
	$(CARGO) bench --locked --profile fast --bench guard --bench blocklist --bench headers

bench-peers: bench-deps ## Foregate, nginx and HAProxy side by side, CPU per request
	$(CARGO) build --release --locked
	PEERS_PAGE=benches/README.md $(CARGO) bench --locked --profile fast --bench peers

bench-vault: bench-deps ## backup and restore beside pg_dump and pg_restore, and the proxy meanwhile; needs root
	$(CARGO) bench --locked --profile fast --bench vault

bench-pitr: bench-deps ## the log's archive and base backups beside pgBackRest's; needs root
	$(CARGO) bench --locked --profile fast --bench pitr

soak: ## a million clients, then mixed requests for SOAK_SECONDS (600); the sum of all runs stands in target/soak-total
	$(CARGO) test --locked --profile fast --test it -- --ignored --nocapture --test-threads=1

attacks: ## hostile clients for some seconds each: what they cost others and the gate, as a table in target/attacks.md
	rm -f target/attacks.md
	ATTACK_SECONDS=$${ATTACK_SECONDS:-5} ATTACK_TABLE=$$PWD/target/attacks.md \
	  $(CARGO) test --locked --profile fast --test it -- attacks --test-threads=1 --nocapture
	cat target/attacks.md

fuzz: ## every parser of foreign bytes for FUZZ_SECONDS (30); needs cargo-fuzz and a C++ compiler
	fuzz/run $${FUZZ_SECONDS:-30}

drills: ## recover twenty instants of a cluster under load, right to the transaction
	$(CARGO) test --locked --test recovery -- --ignored --nocapture

try-drill: ## from nothing to a proven recovery: cluster, load, archive, base backup, drill; prints RTO by phase and RPO
	$(CARGO) build --release --locked
	scripts/try-drill

deny: ## licences, bans and sources of the dependencies; needs cargo-deny
	@$(CARGO) deny --version >/dev/null 2>&1 || { \
	  echo 'cargo-deny is missing; it builds in some minutes: cargo install --locked cargo-deny' >&2; exit 1; }
	$(CARGO) deny check bans licenses sources

deb: ## build a Debian package in target/debian
	$(CARGO) build --release --locked
	packaging/build-deb target/release/foregate target/debian

try-deb: deb ## install that package under a real systemd in a container, upgrade and restart it under load; needs root
	scripts/try-package
