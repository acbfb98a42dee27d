"""Resources: the YAML documents people write, from text to tables.

floor  module                                   what it is
0      problem, hosts                           one error with its place; host patterns
0      tree, source                             text to values with lines; files to texts
1      fields, model                            the words of the schema
2      breaker, virtual_service, traffic        the schema, kind by kind
3      documents, load, exports                 documents, good and bad; the last good ones; who sees them
4      registry, clusters, routes, listeners,   one table each
       breakers
5      compile                                  all documents to tables
6      advice                                   what is no error and yet surely not meant
7      __main__                                 the same as a process of its own, for the agent

Importing this package costs pydantic and PyYAML: the agent does not, it runs
``python -m fastproxy.resources``.
"""

from fastproxy.resources.compile import compile_tables, settle
from fastproxy.resources.documents import Document, Row
from fastproxy.resources.load import Loaded, load, load_texts, merge_last_good
from fastproxy.resources.problem import Problem

__all__ = [
    "Document",
    "Loaded",
    "Problem",
    "Row",
    "compile_tables",
    "load",
    "load_texts",
    "merge_last_good",
    "settle",
]
