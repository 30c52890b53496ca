# Every target does its own set-up first, which takes no time once it is done.
.DEFAULT_GOAL := help
.PHONY: help setup start demo test check bench clean

node := node_modules/.bin/node

help: ## lists these commands
	@echo 'make start runs Capstan, make demo shows what it does. All commands:'
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s  %s\n", $$1, $$2 }' Makefile

setup: ## installs what Capstan needs; the other commands do this by themselves
	@sh scripts/setup.sh

start: setup ## runs Capstan; Ctrl-C stops it (PORT, DATA_DIR and their like: docs/configuration.md)
	@exec $(node) server/main.ts start

demo: setup ## takes a tour: strangers’ programs, a crash, money, chat, images; leaves some pictures behind
	@trap : INT; $(node) demo/tour.ts || [ $$? = 130 ]

test: setup ## runs all tests on a PostgreSQL of their own
	@npm test --silent

check: setup ## checks types, style and the rules of the house
	@exec $(node) scripts/check.ts

bench: setup ## measures, and prints ratios to others
	@npm run bench --silent

clean: ## removes what was installed into and made in this folder; your data stays
	@rm -rf node_modules bench/results demo/pictures
