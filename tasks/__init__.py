"""The Celery tasks: thin bodies around the library."""
