"""Celery, its queues and schedule, Flower and logging."""
