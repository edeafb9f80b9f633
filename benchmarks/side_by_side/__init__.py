"""Our stack next to NVIDIA Dynamo's, measured in one run: ``python -m benchmarks.side_by_side --help``.

::

    bodies     request bodies, each different from all others
    loadgen    loadgen.c, built and run: one window of load on one server
    stacks     the servers under test, and which processes are theirs
    proxies    peer routers in front of our frontend
    cells      what is measured at which size
    measure    the cells in turn, both sides interleaved
    soak       hours of long prompts, and whether memory grows
    stats      medians, ratios, slopes
    table      Markdown, against the goals
    plot       SVG
"""
