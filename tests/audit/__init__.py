"""What `make check` asks beside lint and tests: known vulnerabilities of what we depend on, and secrets in the tree."""
