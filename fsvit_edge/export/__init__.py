"""torch -> bundle (pipeline, parity), and bundle -> engines (build and the rest)."""
