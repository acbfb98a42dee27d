"""The commands of ``fastproxyctl``, by what they are about.

asking      what commands have in common: the server they ask, how they fail
completing  what the shell completes
changes     apply, delete, diff, rollback, import, and what is told of their results
editing     edit: a document through $EDITOR
reading     get, status, history, show, verify, watch
refused     who was refused, for status
rolling     rollout status and abort
breakers    breaker open, close, clear, list
serving     serve, relay, publish: those that run
keys        keys init, node, operator, token, list

Each file has one ``add(app)``. ``ctrl.cli`` puts them together.
"""
