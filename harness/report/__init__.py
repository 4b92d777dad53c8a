"""From the store to tables: what was measured, what is missing and why."""
