"""What moves a campaign: tick starts it, fan-out cuts it, delivery sends and records it, sweep mends it.

    tick ──▶ fanout ──▶ delivery: claim ─▶ preparing ─▶ issuing ─▶ results ─▶ recording        sweep (mends, finishes)

No Celery in here: `tasks/` calls these modules with ids. No SQL either: that is `sender.store`'s.
"""
