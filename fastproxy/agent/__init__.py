"""The agent: supervises workers, reads configuration, owns sockets, DNS, telemetry and the admin API."""
