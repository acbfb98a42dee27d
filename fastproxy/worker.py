"""A worker: uvloop and the core, nothing else.

The agent speaks to it over one Unix socket (SOCK_SEQPACKET), one command a packet, words parted by spaces,
descriptors as SCM_RIGHTS. ``setup`` is the first, the others come in any order.

====================================  ===========  ==============================================================
command                               descriptors  meaning
====================================  ===========  ==============================================================
``setup <worker> <json of Settings>`` live, ring   map the shared memory; settings that do not change while running
``plan <version>``                    plan memfd   map, check and swap to it between two events
``listen <name>``                     socket       accept from it; name is the listener's key in the tables
``unlisten <name>``                   –            stop accepting; connections go on, closing as they fall idle
``drain``                             –            stop accepting, ``Connection: close``, say ``drained`` at the end
``quit``                              –            end at once
====================================  ===========  ==============================================================

It answers ``ready``, ``serving <version> <swap µs>``, ``rejected <version> <reason>``, ``drained``.
End of file on the socket means that the agent is gone: the worker drains by itself and ends.
"""
