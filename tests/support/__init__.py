"""What tests share: clients and upstreams that speak exact bytes, the proxy as a process, parser cases."""
