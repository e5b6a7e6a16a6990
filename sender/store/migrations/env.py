"""Alembic's environment: one connection, whose search_path is our schema, handed over by `sender.store.migrate`."""

from alembic import context

from sender.store.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table="alembic_version",
    version_table_schema=context.config.attributes["schema"],
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
