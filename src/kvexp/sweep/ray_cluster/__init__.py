"""Have curves measured by the actors of a Ray cluster.

`places` is this process's side. `head` and `relay` are processes of their own and alone import Ray: a lost
cluster ends a process that uses it, and a hung one blocks it. `actor` is what Ray runs on a node.
"""
