"""The embedded PostgreSQL and Valkey, and the processes around them."""
