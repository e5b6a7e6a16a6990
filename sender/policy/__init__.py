"""Pure rules: tables and functions. No await, SQL, Redis, environment, logging, clock or randomness of their own."""
