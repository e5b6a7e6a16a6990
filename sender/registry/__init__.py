"""What is known of devices: their tokens and fields as values, and what a person can do to their state: quarantine,
restore, forget."""
