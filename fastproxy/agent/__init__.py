"""The agent: supervises workers, reads configuration, owns listening sockets, DNS, telemetry and the admin API."""
