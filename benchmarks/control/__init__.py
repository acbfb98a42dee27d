"""The control plane's rows: a real ``fastproxyctl serve``, and many proxies that have everything but workers.

``python -m benchmarks.control`` measures them and writes control.json, control.md and control.svg.

subscribers   a process with many real :class:`fastproxy.link.Link`, each checking and keeping its rows
bare          plain pyzmq, as many SUB sockets that only read: what it and the machine take by themselves
crowd         both as child processes that are asked questions
plane         the control plane as a child process
scenarios     the rows
model         what the measured constants say of 100,000 proxies
report        tables and chart
"""
