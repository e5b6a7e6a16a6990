"""The only room that talks to APNs. Importing it needs nothing of the worker's extra; its client and wire do."""
