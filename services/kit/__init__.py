"""What makes a process a Qflow service: no rule of the business; one table, `idempotency_keys`."""
