"""From a plan to a running system.

``local`` runs one supervised process per replica, ``inprocess`` a whole graph on one event loop. Below
``local``, from the inside out: ``guardian`` (nothing outlives the launcher), ``processes`` (one guarded
process), ``restarts`` (when to try again), ``slots`` (one replica, kept running). ``replica_main`` is what
such a process runs.
"""
