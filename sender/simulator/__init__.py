"""An APNs that behaves, or misbehaves on request: for rehearsals and tests. Part of the product."""
